"""Keeps the notes on which several passes over one recording agree.

Each pass cuts the recording into segments at other places. What a model finds by accident depends on
where a segment begins, and at its borders a model knows only one side of the music. Notes that most
passes find are right more often, and their median times are more exact. MT3 makes one pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice, takewhile
from typing import NamedTuple

import numpy as np

from mt3data.music.notes import Notes, assign_instruments
from mt3train.transcription.note_stream import REPEAT_SECONDS, ROUNDING, Key, keep_apart, to_notes

NONE_HELD: Mapping[tuple[int, bool], float] = {}
WINDOW = REPEAT_SECONDS + ROUNDING  # seconds between the first and the last onset of one note


class Found(NamedTuple):
    """A note that one pass found."""

    onset: float
    offset: float
    velocity: float
    program: int
    number: int  # of the pass


class NoteVote:
    """Joins the notes of several passes. Call `push` as they become known, `settle`, then `finish`.

    Notes of one pitch that begin within 50 ms of each other are one note, if more than half of the passes
    have one. It gets their median times and velocity, and the program of most of them. Programs that
    more than half of the passes have become notes of their own.

    The state is the notes that are not settled. It does not grow with the length of a recording.
    """

    def __init__(self, n_passes: int, numbered: bool) -> None:
        """Starts without notes.

        Args:
            n_passes: number of passes.
            numbered: number the instruments.
        """
        self._needed = n_passes // 2 + 1
        self._numbers: dict[int, int] | None = {} if numbered else None
        self._found: dict[tuple[int, bool], list[Found]] = {}  # by pitch and whether it is a drum
        self._last: dict[Key, list[float]] = {}  # the last settled note of every key

    def push(self, number: int, notes: Notes) -> None:
        """Adds notes of one pass.

        Args:
            number: of the pass, from 0.
            notes: in any order.
        """
        keys = zip(notes.pitch.tolist(), notes.is_drum.tolist(), strict=True)
        times = zip(notes.onset.tolist(), notes.offset.tolist(), strict=True)
        others = zip(notes.velocity.tolist(), notes.program.tolist(), strict=True)
        for key, (onset, offset), (velocity, program) in zip(keys, times, others, strict=True):
            found = Found(onset, offset, velocity, program, number)
            self._found.setdefault(key, []).append(found)

    def settle(self, time: float, held: Mapping[tuple[int, bool], float] = NONE_HELD) -> Notes:
        """Returns the notes that cannot change any more, in order of onset.

        Args:
            time: in seconds; no pass finds more notes that begin earlier.
            held: the exceptions, by pitch and is_drum: onset of the first note that comes later,
                because it has not ended.
        """
        agreed: list[tuple[Key, list[float]]] = []
        for (pitch, is_drum), found in list(self._found.items()):
            found.sort()
            end = min(time, held.get((pitch, is_drum), time))
            # Notes up to three windows later decide about the first one.
            while found and found[0].onset + 3 * WINDOW < end:
                for note in self._take(found):
                    agreed.append(((pitch, note.program, is_drum), list(note[:3])))
            if not found:
                del self._found[pitch, is_drum]
        known = keep_apart(sorted(agreed, key=lambda note: note[1][0]), self._last)
        for key in [key for key in self._last if self._is_known(key, time, held)]:
            known.append((key, self._last.pop(key)))
        notes = to_notes(known)
        return notes if self._numbers is None else assign_instruments(notes, self._numbers)

    def finish(self) -> Notes:
        """Returns the rest of the notes in order of onset."""
        return self.settle(math.inf)

    def _is_known(self, key: Key, time: float, held: Mapping[tuple[int, bool], float]) -> bool:
        """Returns whether no note can still cut the last one of this key."""
        pitch, _, is_drum = key
        found = self._found.get((pitch, is_drum))
        following = min(time, held.get((pitch, is_drum), time))
        return self._last[key][1] <= (min(following, found[0].onset) if found else following)

    def _take(self, found: list[Found]) -> list[Found]:
        """Removes the first note from a list in order of onset, and all that are the same one.

        Of the groups that begin with it or within 50 ms after it, that of most passes is one note.
        Returns:
            The note, or more than one if most passes agree on several programs; none if too few do.
        """
        groups = [_group(found, first) for first in range(len(_group(found, 0)))]
        best = max(groups, key=_votes)
        if _votes(best) < self._needed:
            del found[0]
            return []
        programs = {note.program: [n for n in best if n.program == note.program] for note in best}
        agreed = [p for p, notes in programs.items() if _votes(notes) >= self._needed]
        if agreed:
            notes = [_median(programs[program], program) for program in agreed]
        else:
            most = max(programs, key=lambda program: _votes(programs[program]))
            notes = [_median(best, most)]
        last = max(note.onset for note in notes)
        found[:] = [n for n in found if n not in best and n.onset - last > WINDOW]
        return notes


def _group(found: list[Found], first: int) -> list[Found]:
    """Returns the note at a place and those that begin within 50 ms after it."""
    begin = found[first].onset
    return list(takewhile(lambda note: note.onset - begin <= WINDOW, islice(found, first, None)))


def _votes(found: list[Found]) -> int:
    return len({note.number for note in found})


def _median(found: list[Found], program: int) -> Found:
    onset, offset, velocity = np.median([note[:3] for note in found], axis=0)
    return Found(float(onset), float(offset), round(float(velocity)), program, 0)
