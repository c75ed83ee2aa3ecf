"""Joins the notes of consecutive segments and returns each note as soon as it cannot change any more.

A note can change until it has ended, until no repeat can be merged with it, and until the decoder has
reached its end, because the next note of its pitch or the end of the recording may cut it. So the
state is the open notes and at most one ended note for each pitch and program. It does not grow with
the length of a recording. MT3 collects all tokens first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from mt3data.music.detokenizer import NoteDecoder
from mt3data.music.notes import Notes, assign_instruments
from mt3data.music.vocabulary import VocabularyConfig
from mt3train.transcription.decode import DecodingConfig

REPEAT_SECONDS = 0.05  # no player repeats a pitch faster; of onsets in labels 1.4 % are that close
MIN_SECONDS = 0.001  # shortest note that a MIDI file holds
ROUNDING = 1e-6  # seconds

Key = tuple[int, int, bool]  # pitch, program, is_drum


class NoteStream:
    """Joins the notes of one recording. Call `push` for every segment in time order, then `finish`.

    Onsets of one pitch and program within 50 ms (if decoding is constrained, else 1 ms) are merged. Of
    one pitch and program only one note sounds at a time, as in a MIDI file.

    Attributes:
        n_segments: number of segments so far.
        invalid: number of events that had no meaning where they were emitted. They are ignored.
        dropped: number of tokens after the end of their segment. They are ignored.
    """

    def __init__(self, vocabulary: VocabularyConfig, decoding: DecodingConfig) -> None:
        self.n_segments = 0
        self._decoder, self._vocabulary = NoteDecoder(vocabulary), vocabulary
        self._programs = decoding.programs
        self._window = (REPEAT_SECONDS if decoding.constrained else MIN_SECONDS) + ROUNDING
        self._instruments: dict[int, int] = {}
        # The last ended note of every key: onset, offset, velocity, instrument.
        self._last: dict[Key, list[float]] = {}
        self._known: list[tuple[Key, list[float]]] = []  # notes that cannot change

    @property
    def invalid(self) -> int:
        """See the class."""
        return self._decoder.invalid

    @property
    def dropped(self) -> int:
        """See the class."""
        return self._decoder.dropped

    def push(self, tokens: np.ndarray, start: float, next_start: float | None) -> Notes:
        """Decodes the next segment.

        Args:
            tokens: integers, shape (n,).
            start: its start in seconds.
            next_start: start of the next segment in seconds; None: it is the last one.
        Returns:
            The notes that are now known, in order of onset; none for the last segment.
        """
        self._decoder.decode_segment(tokens, start, next_start)
        self.n_segments += 1
        self._merge(self._decoder.pop_notes())
        if next_start is None:  # the end of the recording, which may cut any of its notes
            return Notes.empty()
        for key in [key for key in self._last if self._is_known(key, next_start)]:
            self._known.append((key, self._last.pop(key)))
        known = to_notes(self._known)
        self._known.clear()
        return known

    def unknown(self) -> dict[tuple[int, bool], float]:
        """Returns the onset of the first note that `push` has not returned, by pitch and is_drum."""
        open_notes = self._decoder.open_onsets().items()
        onsets = [((pitch, False), onset) for (_, pitch), onset in open_notes]
        onsets += [((pitch, is_drum), row[0]) for (pitch, _, is_drum), row in self._last.items()]
        return earliest(onsets)

    def finish(self, end: float) -> Notes:
        """Ends the open notes and returns the rest in order of onset.

        Args:
            end: of the recording in seconds. Notes end there at the latest.
        """
        self._decoder.end_open_notes()
        self._merge(self._decoder.pop_notes())
        return cut_notes(to_notes(self._known + list(self._last.items())), end)

    def _merge(self, ended: Notes) -> None:
        """Adds ended notes to the state. A later onset of its key makes the last note known."""
        if self._vocabulary.encoding != "onsets":
            ended = assign_instruments(ended, self._instruments)
        if self._programs:
            ended = self._programs.select(ended, self._vocabulary)
        ended = ended.sorted()
        columns = (ended.pitch, ended.program, ended.is_drum)
        keys = zip(*(column.tolist() for column in columns), strict=True)
        times = zip(ended.onset.tolist(), ended.offset.tolist(), strict=True)
        others = zip(ended.velocity.tolist(), ended.instrument.tolist(), strict=True)
        rows = [
            (key, [*time, *other]) for key, time, other in zip(keys, times, others, strict=True)
        ]
        self._known += keep_apart(rows, self._last, self._window)

    def _is_known(self, key: Key, time: float) -> bool:
        """Returns whether no note that ends later can change the last ended one of its key.

        Args:
            key: of the note.
            time: no note begins before this time any more, except for the open ones.
        """
        onset, offset = self._last[key][:2]
        pitch, program, is_drum = key
        following = None if is_drum else self._decoder.open_onset(program, pitch)
        following = time if following is None else following
        return following - onset > self._window and offset <= min(time, following)


def cut_notes(notes: Notes, end: float) -> Notes:
    """Removes notes that begin after `end` seconds, and ends those there that end later."""
    cut = replace(notes, offset=np.minimum(notes.offset, end))
    return cut[cut.offset - cut.onset >= MIN_SECONDS]


def earliest(onsets: Iterable[tuple[tuple[int, bool], float]]) -> dict[tuple[int, bool], float]:
    """Returns the smallest value of each key."""
    first: dict[tuple[int, bool], float] = {}
    for key, onset in onsets:
        first[key] = min(onset, first.get(key, onset))
    return first


def keep_apart(
    rows: Sequence[tuple[Key, list[float]]], last: dict[Key, list[float]], window: float = 0.0
) -> list[tuple[Key, list[float]]]:
    """Ends each note where the next one of its key begins, and merges those that begin together.

    Args:
        rows: notes in order of onset: their key, then onset, offset and more.
        last: the last note of every key so far. It gets the new ones.
        window: largest distance in seconds of onsets that are merged.
    Returns:
        The notes that another one of their key follows.
    """
    followed = []
    for key, row in rows:
        before = last.get(key)
        if before and row[0] - before[0] <= window:
            before[1] = max(before[1], row[1])
            continue
        if before:
            before[1] = min(before[1], row[0])
            followed.append((key, before))
        last[key] = row
    return followed


def to_notes(known: list[tuple[Key, list[float]]]) -> Notes:
    """Returns notes in order of onset. Rows without an instrument get number 0."""
    rows = [
        (onset, offset, pitch, velocity, program, is_drum, *(instrument or [0]))
        for (pitch, program, is_drum), (onset, offset, velocity, *instrument) in known
    ]
    return Notes.from_array(np.array(rows, np.float64).reshape(-1, 7)).sorted()
