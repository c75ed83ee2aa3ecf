"""Decodes tokens to notes, segment by segment.

`NoteDecoder` reads one token after the other. It keeps the time, the velocity, the program and the
open notes. A model may predict tokens in an order that has no meaning. Events that are not allowed at
their place are skipped and counted as invalid. Tokens after the start of the next segment are counted
as dropped.
Both counts and every note equal those of the original for the same tokens and start times.

Source: mt3/note_sequences.py decode_note_event, mt3/run_length_encoding.py decode_events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mt3data.music.notes import Notes, assign_instruments
from mt3data.music.vocabulary import (
    Event,
    VocabularyConfig,
    bin_to_velocity,
    get_codec,
    tokens_to_event_ids,
)

# mt3/note_sequences.py. Quantised notes may have zero length. A drum has exactly this length.
MIN_NOTE_SECONDS = 0.01
ONSET_ONLY_VELOCITY = 100  # mt3/note_sequences.py DEFAULT_VELOCITY


@dataclass
class NoteDecoder:
    """Decodes the targets of consecutive segments into notes.

    Call `decode_segment` for every segment in time order, then `finish` once. Velocity, program and
    the notes that a tie section keeps open persist from one segment to the next. Targets depend on
    this for open notes only: every target writes its program and velocity before their first use.

    Attributes:
        invalid: number of events so far that are not allowed at their place. They are skipped.
        dropped: number of tokens so far after the start of the next segment.

    Source: mt3/note_sequences.py decode_note_event, flush_note_decoding_state;
    mt3/run_length_encoding.py decode_events.
    """

    config: VocabularyConfig
    invalid: int = 0
    dropped: int = 0
    _time: float = 0.0
    _velocity: int = ONSET_ONLY_VELOCITY
    _program: int = 0
    _open: dict[tuple[int, int], tuple[float, int]] = field(default_factory=dict)
    # The notes of _open that the tie section lists. Both are keyed by (program, pitch).
    _tied: set[tuple[int, int]] = field(default_factory=set)
    _in_tie_section: bool = False
    _rows: list[tuple[float, float, int, int, int, bool]] = field(default_factory=list)

    def decode_segment(self, tokens: np.ndarray, start: float, limit: float | None = None) -> None:
        """Decodes one segment.

        Args:
            tokens: integers, shape (n,). Tokens from the first EOS on are ignored.
            start: the segment's start in seconds, see `tokenizer.segment_start`.
            limit: start of the next segment in seconds. The first event that is strictly later is
                dropped with the rest of the segment. None (and 0, as in the original): no limit.
        """
        if self.config.encoding == "ties":
            self._tied, self._in_tie_section = set(), True
        codec = get_codec(self.config)
        event_ids = tokens_to_event_ids(tokens, self.config).tolist()
        time, steps = start, 0
        for i, event_id in enumerate(event_ids):
            if event_id < 0:
                self.invalid += 1
                continue
            event = codec.decode(event_id)
            if event.type == "shift":
                steps += event.value
                time = start + steps / self.config.steps_per_second
                if limit and time > limit:
                    self.dropped += len(event_ids) - i
                    break
            else:
                steps = 0
                self.invalid += not self._accept(event, time)

    def finish(self) -> Notes:
        """Ends all open notes and returns all notes in the order of their ends."""
        self.end_open_notes()
        notes = self.pop_notes()
        return notes if self.config.encoding == "onsets" else assign_instruments(notes)

    def end_open_notes(self) -> None:
        """Ends all open notes at the last time that was decoded."""
        for onset, _ in self._open.values():
            self._time = max(self._time, onset + MIN_NOTE_SECONDS)
        for key in list(self._open):
            self._close(key, self._time)

    def pop_notes(self) -> Notes:
        """Returns the notes that ended since the last call, in the order of their ends.

        Their instruments are not numbered.
        """
        rows = np.array([(*row, 0) for row in self._rows], dtype=np.float64).reshape(-1, 7)
        self._rows.clear()
        return Notes.from_array(rows)

    def open_onset(self, program: int, pitch: int) -> float | None:
        """Returns the onset of an open note in seconds; None if there is none."""
        note = self._open.get((program, pitch))
        return note[0] if note else None

    def open_onsets(self) -> dict[tuple[int, int], float]:
        """Returns the onset in seconds of every open note, by program and pitch."""
        return {key: onset for key, (onset, _) in self._open.items()}

    def _accept(self, event: Event, time: float) -> bool:
        """Applies one event that is no shift. Returns whether it is allowed here."""
        if self.config.encoding == "onsets":
            return self._accept_onset(event, time)
        if time < self._time:
            return False
        self._time = time  # also where the event is invalid, as in the original
        key = (self._program, event.value)
        if event.type == "velocity":
            self._velocity = bin_to_velocity(event.value, self.config.num_velocity_bins)
        elif event.type == "program":
            self._program = event.value
        elif event.type == "tie":
            return self._end_tie_section()
        elif event.type == "drum":
            if self._velocity == 0:
                return False
            self._add(time, time + MIN_NOTE_SECONDS, event.value, self._velocity, 0, True)
        elif self._in_tie_section:
            if key not in self._open or key in self._tied:
                return False
            self._tied.add(key)
        elif self._velocity == 0:
            if key not in self._open:
                return False
            self._close(key, time)
        else:
            if key in self._open:  # a second onset ends the first
                self._close(key, time)
            self._open[key] = (time, self._velocity)
        return True

    def _accept_onset(self, event: Event, time: float) -> bool:
        if event.type != "pitch":
            return False
        self._add(time, time + MIN_NOTE_SECONDS, event.value, ONSET_ONLY_VELOCITY, 0, False)
        return True

    def _end_tie_section(self) -> bool:
        if not self._in_tie_section:
            return False
        for key in [key for key in self._open if key not in self._tied]:
            self._close(key, self._time)
        self._in_tie_section = False
        return True

    def _close(self, key: tuple[int, int], time: float) -> None:
        program, pitch = key
        onset, velocity = self._open.pop(key)
        self._add(onset, max(time, onset + MIN_NOTE_SECONDS), pitch, velocity, program, False)

    def _add(
        self, onset: float, offset: float, pitch: int, velocity: int, program: int, is_drum: bool
    ) -> None:
        self._rows.append((onset, offset, pitch, velocity, program, is_drum))


@dataclass(frozen=True)
class Decoded:
    """The notes of a track, with the numbers of invalid events and dropped tokens."""

    notes: Notes
    invalid: int
    dropped: int


def decode_segments(
    segments: Sequence[tuple[float, np.ndarray]], config: VocabularyConfig
) -> Decoded:
    """Decodes the segments of one track.

    Args:
        segments: (start in seconds, tokens) of each, in any order.
        config: the vocabulary of the tokens.

    Source: mt3/metrics_utils.py event_predictions_to_ns, decode_and_combine_predictions.
    """
    in_order = sorted(segments, key=lambda segment: segment[0])
    limits = [start for start, _ in in_order[1:]] + [None]
    decoder = NoteDecoder(config)
    for (start, tokens), limit in zip(in_order, limits, strict=True):
        decoder.decode_segment(tokens, start, limit)
    return Decoded(decoder.finish(), decoder.invalid, decoder.dropped)
