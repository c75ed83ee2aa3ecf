"""Holds notes as columns of arrays, with the operations on them that MT3's targets need.

A `Notes` holds a whole track or any part of one. Entry i of every column describes note i. Operations
keep the order of notes unless their docstring states otherwise. `assign_instruments` depends on it: it
numbers instruments by the order in which they appear. MT3 uses NoteSequence protocol buffers of
note-seq instead, with the same fields. With columns, a track of 10,000 notes is cut, trimmed and
tokenized without a Python loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

DRUM_INSTRUMENT = 9  # MIDI channel 10, counted from 0, holds the drums


@dataclass(frozen=True, eq=False)
class Notes:
    """Columns of equal length n.

    Attributes:
        onset: start in seconds, float64.
        offset: end in seconds, float64; later than the onset in valid notes.
        pitch: MIDI pitch 0-127, int64; for drums the General MIDI drum.
        velocity: MIDI velocity 1-127, int64.
        program: MIDI program 0-127, int64; 0 for drums.
        is_drum: whether the note is a drum hit, bool.
        instrument: number of the instrument (a MIDI channel or stem) within the track, int64.
    """

    onset: np.ndarray
    offset: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray
    program: np.ndarray
    is_drum: np.ndarray
    instrument: np.ndarray

    def __post_init__(self) -> None:
        for name, dtype in COLUMNS.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        lengths = {name: getattr(self, name).shape for name in COLUMNS}
        if len(set(lengths.values())) > 1 or len(self.onset.shape) != 1:
            raise ValueError(
                f"columns of notes must be one-dimensional and equally long, got {lengths}"
            )

    def __len__(self) -> int:
        return len(self.onset)

    def __getitem__(self, which: np.ndarray | slice) -> Notes:
        return Notes(*(getattr(self, name)[which] for name in COLUMNS))

    @staticmethod
    def empty() -> Notes:
        """Returns no notes."""
        return Notes(*(np.zeros(0) for _ in COLUMNS))

    @staticmethod
    def concat(parts: Sequence[Notes]) -> Notes:
        """Concatenates notes, in the order of the parts."""
        if not parts:
            return Notes.empty()
        return Notes(*(np.concatenate([getattr(p, name) for p in parts]) for name in COLUMNS))

    @staticmethod
    def from_columns(columns: Mapping[str, Sequence[float]]) -> Notes:
        """Makes notes from columns with the names of this class, or with `start` and `end`.

        NoteSequence uses `start` and `end`. Times are seconds in both cases.
        """
        onset = columns["onset"] if "onset" in columns else columns["start"]
        offset = columns["offset"] if "offset" in columns else columns["end"]
        rest = (columns[name] for name in list(COLUMNS)[2:])
        return Notes(np.asarray(onset), np.asarray(offset), *(np.asarray(c) for c in rest))

    @staticmethod
    def from_array(array: np.ndarray) -> Notes:
        """Makes notes from the float64 array [n, 7] of a shard's `notes.npy`.

        Raises:
            ValueError: the array has another shape.
        """
        if array.ndim != 2 or array.shape[1] != len(COLUMNS):
            raise ValueError(f"notes have shape {array.shape}; expected (n, {len(COLUMNS)})")
        return Notes(*array.T)

    def to_array(self) -> np.ndarray:
        """Returns the float64 array [n, 7] that a shard's `notes.npy` holds, columns in this order."""
        return np.stack([getattr(self, name).astype(np.float64) for name in COLUMNS], axis=1)

    def sorted(self) -> Notes:
        """Sorts notes by onset, is_drum, program, pitch and offset. Equal notes keep their order."""
        return self[np.lexsort((self.offset, self.pitch, self.program, self.is_drum, self.onset))]


COLUMNS = dict(
    zip(
        (field.name for field in fields(Notes)),
        (np.float64, np.float64, np.int64, np.int64, np.int64, np.bool_, np.int64),
        strict=True,
    )
)


def validate(notes: Notes) -> None:
    """Checks that every note has a length and that all values are in their ranges.

    Raises:
        ValueError: a note has no length, or a value outside its range. The message states the first
            such note.

    Source: mt3/note_sequences.py validate_note_sequence, which checks length and velocity only.
    """
    is_valid = (notes.onset >= 0) & (notes.onset < notes.offset) & (notes.offset < np.inf)
    # An integer x is in 0-127 exactly if x >> 7 is 0. `|` checks three columns in one pass.
    is_valid &= (notes.velocity > 0) & ((notes.velocity | notes.pitch | notes.program) >> 7 == 0)
    if is_valid.all():
        return
    for what, bad in (
        ("times that are not finite", ~(np.isfinite(notes.onset) & np.isfinite(notes.offset))),
        ("an onset before time 0", notes.onset < 0),
        ("no length (offset <= onset)", notes.offset <= notes.onset),
        ("a velocity outside 1-127", (notes.velocity < 1) | (notes.velocity > 127)),
        ("a pitch outside 0-127", (notes.pitch < 0) | (notes.pitch > 127)),
        ("a program outside 0-127", (notes.program < 0) | (notes.program > 127)),
    ):
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"{int(bad.sum())} of {len(notes)} notes have {what}; the first is note {i}: onset "
                f"{notes.onset[i]:.6g} s, offset {notes.offset[i]:.6g} s, pitch {notes.pitch[i]}, "
                f"velocity {notes.velocity[i]}, program {notes.program[i]}"
            )


def consecutive_same_pitch(notes: Notes) -> tuple[np.ndarray, np.ndarray]:
    """Pairs each note with the next note of the same pitch, program and is_drum.

    Returns:
        Two arrays of equal length: the index of the earlier note of each pair, and of the later one.
        A note without a next one is in no pair as the earlier. Notes with equal onsets follow one
        another in the order in which they are given.
    """
    order = np.lexsort((notes.onset, notes.pitch, notes.program, notes.is_drum))
    same_key = np.ones(max(len(notes) - 1, 0), dtype=bool)
    for column in (notes.pitch, notes.program, notes.is_drum):
        same_key &= column[order][:-1] == column[order][1:]
    return order[:-1][same_key], order[1:][same_key]


def shift_times(notes: Notes, seconds: float) -> Notes:
    """Shifts all notes by `seconds`. Times before 0 are clipped to 0."""
    if not seconds:
        return notes
    onset, offset = (np.maximum(column + seconds, 0.0) for column in (notes.onset, notes.offset))
    return replace(notes, onset=onset, offset=offset)


def trim_overlapping(notes: Notes) -> Notes:
    """Ends a note where the next one of the same pitch, program and is_drum begins.

    Notes that lose all their length are dropped. The rest keep their order. The instrument number
    is ignored, so two stems of one program that hold the same pitch end each other's notes.

    Source: mt3/note_sequences.py trim_overlapping_notes.
    """
    before, after = consecutive_same_pitch(notes)
    offset = notes.offset.copy()
    offset[before] = np.minimum(offset[before], notes.onset[after])
    return replace(notes, offset=offset)[notes.onset < offset]


def separate_equal_pitches(notes: Notes) -> Notes:
    """Ends a note where the next one of the same pitch, program, is_drum and instrument begins.

    Of such notes that begin together, only the longest is kept. The notes keep their order. MIDI
    cannot represent two equal notes that overlap on one channel. After this function, a piece has the
    same notes in MIDI as in formats that can.
    """
    voice = np.stack([notes.instrument, notes.is_drum, notes.program, notes.pitch])
    order = np.lexsort((-notes.offset, notes.onset, *voice))
    kept, offset = np.ones(len(notes), dtype=bool), notes.offset.copy()
    before, after = order[:-1], order[1:]
    together = (voice[:, before] == voice[:, after]).all(axis=0)
    together &= notes.onset[before] == notes.onset[after]
    kept[after[together]] = False
    order = order[kept[order]]
    before, after = order[:-1], order[1:]
    same = (voice[:, before] == voice[:, after]).all(axis=0)
    offset[before[same]] = np.minimum(offset[before[same]], notes.onset[after[same]])
    return replace(notes, offset=offset)[kept]


def assign_instruments(notes: Notes, numbers: dict[int, int] | None = None) -> Notes:
    """Numbers the instruments by the first appearance of each program. Drums alone get number 9.

    Args:
        notes: a track, or the next part of one.
        numbers: of the programs in earlier parts of the track, by program. It gets the new ones.

    Source: mt3/note_sequences.py assign_instruments.
    """
    numbers = {} if numbers is None else numbers
    instrument = np.full(len(notes), DRUM_INSTRUMENT)
    for i in np.flatnonzero(~notes.is_drum):
        number = len(numbers) + (len(numbers) >= DRUM_INSTRUMENT)
        instrument[i] = numbers.setdefault(int(notes.program[i]), number)
    return replace(notes, instrument=instrument)
