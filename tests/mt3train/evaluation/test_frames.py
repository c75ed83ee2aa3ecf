"""mt3train.evaluation.frames: frames that sound (the original's rolls: tests/golden/golden_metrics.py)."""

import numpy as np

from mt3data.music.notes import Notes
from mt3train.evaluation.frames import (
    FRAMES_PER_SECOND,
    frame_counts,
    pianoroll,
    with_minimum_length,
)
from mt3train.evaluation.note_matching import Counts


def notes(*rows: tuple[float, float, int, int]) -> Notes:
    """Rows (onset, offset, pitch, velocity), times in seconds."""
    return Notes.from_array(np.array([(*row, 0, 0, 0) for row in rows], float).reshape(-1, 7))


def in_frames(*rows: tuple[int, int, int, int]) -> Notes:
    """The same, times in frames."""
    return notes(
        *((on / FRAMES_PER_SECOND, off / FRAMES_PER_SECOND, *rest) for on, off, *rest in rows)
    )


def test_a_roll_sums_the_velocities_of_the_notes_that_sound():
    roll = pianoroll(in_frames((0, 3, 60, 50), (1, 2, 60, 20), (2, 4, 61, 9)))
    assert roll.shape == (128, 4)
    assert roll[60].tolist() == [50, 70, 50, 0]
    assert roll[61].tolist() == [0, 0, 9, 9]
    assert roll[:60].sum() == roll[62:].sum() == 0


def test_no_notes_make_a_roll_without_frames():
    assert pianoroll(notes()).shape == (128, 0)


def test_notes_last_50_ms_at_least_and_drums_exactly():
    piece = notes((0, 0.01, 60, 9), (0, 1, 61, 9))
    assert with_minimum_length(piece, are_drums=False).offset.tolist() == [0.05, 1]
    assert with_minimum_length(piece, are_drums=True).offset.tolist() == [0.05, 0.05]


def test_frames_are_compared_though_one_side_ends_earlier():
    long, short = pianoroll(in_frames((0, 4, 60, 20))), pianoroll(in_frames((0, 3, 60, 1)))
    assert frame_counts(long, short) == Counts(3, 4, 3)
    assert frame_counts(short, long) == Counts(3, 3, 4)
    assert frame_counts(long, short, above=30) == Counts(0, 0, 3)
