"""Operations on notes, as facts to check by hand."""

import numpy as np
import pytest

from mt3data.music.notes import Notes, assign_instruments, trim_overlapping, validate


def notes(*rows: tuple) -> Notes:
    """Rows of (onset, offset, pitch, program, is_drum); velocity 80."""
    return Notes.from_array(
        np.array([(a, b, p, 80, g, d, 0) for a, b, p, g, d in rows], dtype=float)
    )


def test_an_overlapping_note_ends_where_the_next_of_its_pitch_begins() -> None:
    trimmed = trim_overlapping(notes((0, 5, 60, 0, 0), (2, 3, 60, 0, 0), (1, 9, 61, 0, 0)))
    assert trimmed.offset.tolist() == [2, 3, 9]


def test_trimming_keeps_programs_and_drums_apart() -> None:
    apart = notes((0, 5, 60, 0, 0), (2, 3, 60, 1, 0), (2, 3, 60, 0, 1))
    assert trim_overlapping(apart).offset.tolist() == [5, 3, 3]


def test_of_equal_onsets_only_the_last_note_keeps_its_length() -> None:
    trimmed = trim_overlapping(notes((1, 5, 60, 0, 0), (1, 4, 60, 0, 0)))
    assert (trimmed.onset.tolist(), trimmed.offset.tolist()) == ([1], [4])


def test_instruments_are_numbered_by_first_appearance_and_nine_is_for_drums() -> None:
    programs = [(0, 1, 60, program, 0) for program in range(20, 31)]
    numbered = assign_instruments(notes((0, 1, 36, 0, 1), *programs, (1, 2, 60, 20, 0)))
    assert numbered.instrument.tolist() == [9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 0]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ((1.0, 1.0, 60, 80, 0), "no length"),
        ((2.0, 1.0, 60, 80, 0), "no length"),
        ((-0.1, 1.0, 60, 80, 0), "onset before time 0"),
        ((0.0, float("nan"), 60, 80, 0), "not finite"),
        ((0.0, float("inf"), 60, 80, 0), "not finite"),
        ((0.0, 1.0, 60, 0, 0), "velocity outside 1-127"),
        ((0.0, 1.0, 128, 80, 0), "pitch outside 0-127"),
        ((0.0, 1.0, 60, 80, -1), "program outside 0-127"),
    ],
)
def test_a_note_that_cannot_be_encoded_is_named(row: tuple, complaint: str) -> None:
    onset, offset, pitch, velocity, program = row
    good = [0.0, 1.0, 60, 80, 0, 0, 0]
    bad = [onset, offset, pitch, velocity, program, 0, 0]
    with pytest.raises(ValueError, match=f"1 of 2 notes have .*{complaint}.*note 1"):
        validate(Notes.from_array(np.array([good, bad])))


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="equally long"):
        Notes([0.0], [1.0, 2.0], [60], [80], [0], [False], [0])  # type: ignore[arg-type]


def test_the_matrix_of_a_shard_gives_the_same_notes_back() -> None:
    one = notes((0.123456789, 5, 60, 3, 0), (2, 3, 36, 0, 1))
    back = Notes.from_array(one.to_array())
    assert back.onset.tolist() == one.onset.tolist()
    assert back.is_drum.tolist() == [False, True]
    assert Notes.from_array(Notes.empty().to_array()).to_array().shape == (0, 7)


def test_sorting_puts_drums_behind_notes_of_the_same_onset() -> None:
    mixed = notes((1, 2, 36, 0, 1), (1, 2, 60, 5, 0), (0, 2, 50, 9, 0), (1, 2, 59, 5, 0))
    assert mixed.sorted().pitch.tolist() == [50, 59, 60, 36]
