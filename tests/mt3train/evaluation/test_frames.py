"""mt3train.evaluation.frames: counts of frames that sound (rolls: tests/golden/golden_metrics.py)."""

import tracemalloc

import numpy as np
from golden_metrics import pianoroll
from hypothesis import given
from hypothesis import strategies as st

from mt3data.music.notes import Notes
from mt3train.evaluation.frames import FRAMES_PER_SECOND, frame_counts, with_minimum_length
from mt3train.evaluation.note_matching import Counts


def notes(*rows: tuple[float, float, int, int]) -> Notes:
    """Rows (onset, offset, pitch, velocity), times in seconds."""
    return Notes.from_array(np.array([(*row, 0, 0, 0) for row in rows], float).reshape(-1, 7))


def in_frames(*rows: tuple[int, int, int, int]) -> Notes:
    """The same, times in frames."""
    return notes(
        *((on / FRAMES_PER_SECOND, off / FRAMES_PER_SECOND, *rest) for on, off, *rest in rows)
    )


def test_notes_last_50_ms_at_least_and_drums_exactly():
    piece = notes((0, 0.01, 60, 9), (0, 1, 61, 9))
    assert with_minimum_length(piece, are_drums=False).offset.tolist() == [0.05, 1]
    assert with_minimum_length(piece, are_drums=True).offset.tolist() == [0.05, 0.05]


def test_frames_are_compared_though_one_side_ends_earlier():
    long, short = in_frames((0, 4, 60, 20)), in_frames((0, 3, 60, 1))
    assert frame_counts(long, short) == Counts(3, 4, 3)
    assert frame_counts(short, long) == Counts(3, 3, 4)
    assert frame_counts(long, short, above=30) == Counts(0, 0, 3)


def test_velocities_of_notes_that_sound_together_are_summed():
    chord = in_frames((0, 3, 60, 20), (1, 2, 60, 20), (2, 4, 61, 9))
    assert frame_counts(chord, chord, above=30) == Counts(1, 1, 5)
    assert frame_counts(notes(), chord) == Counts(0, 0, 5)


def test_a_note_after_a_day_costs_no_more_memory_than_one_at_the_start():
    day = notes((0, 1, 60, 90), (86399, 86400, 60, 90))
    tracemalloc.start()
    assert frame_counts(day, day) == Counts(125, 125, 125)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


ROWS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20), st.integers(59, 61),
                          st.integers(0, 60)), max_size=12)  # fmt: skip


@given(ROWS, ROWS, st.sampled_from([0, 30]))
def test_counts_are_those_of_the_rolls_as_arrays(one, other, above):
    pair = [
        in_frames(*((on, on + length, *rest) for on, length, *rest in rows))
        for rows in (one, other)
    ]
    wanted, found = pianoroll(pair[0]) > above, pianoroll(pair[1]) > 0
    both = min(wanted.shape[1], found.shape[1])
    hits = int((wanted[:, :both] & found[:, :both]).sum())
    assert frame_counts(*pair, above=above) == Counts(hits, int(wanted.sum()), int(found.sum()))
