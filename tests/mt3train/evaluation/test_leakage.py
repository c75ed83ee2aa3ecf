"""mt3train.evaluation.leakage: notes under a wrong program, and a table by instrument."""

import math

import numpy as np
import pytest

from mt3data.music.midi import DRUMS
from mt3data.music.notes import Notes
from mt3train.evaluation.leakage import (
    confusion,
    instrument_scores,
    instrument_table,
    leakage,
    pooled,
)
from mt3train.evaluation.note_matching import Counts


def notes(*rows: tuple[float, int, int, int]) -> Notes:
    """Rows (onset, pitch, program, is_drum); 1 s each."""
    table = [(on, on + 1, pitch, 100, program, drum, 0) for on, pitch, program, drum in rows]
    return Notes.from_array(np.array(table, float).reshape(-1, 7))


PIECE = notes((0, 60, 0, 0), (1, 62, 0, 0), (2, 64, 0, 0), (0, 40, 33, 0), (0, 36, 0, 1))
FOUND = notes((0, 60, 0, 0), (1, 62, 33, 0), (2, 65, 33, 0), (0, 40, 33, 0), (0, 36, 0, 1))


def test_a_note_that_is_right_but_for_its_program_has_leaked():
    found = confusion(PIECE, FOUND)
    assert found == {(0, 0): 1, (33, 33): 1, (0, 33): 1}
    assert leakage(found) == pytest.approx(1 / 3)


def test_a_unison_is_right_for_each_instrument_that_plays_it():
    both = notes((0, 60, 0, 0), (0, 60, 40, 0))
    swapped = notes((0, 60, 40, 0), (0, 60, 0, 0))
    assert confusion(both, swapped) == {(0, 0): 1, (40, 40): 1}
    assert leakage(confusion(both, swapped)) == 0


def test_what_was_not_found_has_not_leaked():
    assert math.isnan(leakage(confusion(PIECE, notes())))
    assert confusion(PIECE, notes((5, 60, 33, 0), (0, 61, 33, 0))) == {}


def test_drums_do_not_leak():
    assert confusion(notes((0, 36, 0, 1)), notes((0, 36, 0, 0))) == {}


def test_a_coarser_granularity_forgives_within_a_family():
    piece, found = notes((0, 60, 0, 0)), notes((0, 60, 3, 0))
    assert confusion(piece, found) == {(0, 3): 1}
    assert confusion(piece, found, "midi_class") == {(0, 0): 1}


def test_instruments_are_counted_on_their_own_with_what_they_are_mistaken_for():
    piano, bass, drums = sorted(instrument_scores(PIECE, FOUND), key=lambda one: one.program % 128)
    assert (piano.program, bass.program, drums.program) == (0, 33, DRUMS)
    assert piano.onset == piano.onset_offset == Counts(1, 3, 1)
    assert bass.onset == Counts(1, 1, 3)
    assert drums.onset == Counts(1, 1, 1) and drums.onset_offset is None
    assert piano.mistaken_for == {33: 1} and not bass.mistaken_for


def test_tracks_are_pooled_note_by_note():
    twice = pooled([instrument_scores(PIECE, FOUND), instrument_scores(PIECE, PIECE)])
    assert [one.name for one in twice] == [
        "Acoustic Grand Piano", "Drums", "Electric Bass (finger)",
    ]  # fmt: skip
    assert twice[0].onset == Counts(4, 6, 4) and twice[0].mistaken_for == {33: 1}
    assert twice[1].onset == Counts(2, 2, 2)


def test_the_table_has_a_line_for_each_instrument():
    lines = instrument_table(instrument_scores(PIECE, FOUND))
    assert lines[1].split() == [
        "Acoustic", "Grand", "Piano", "3", "1", "0.500", "0.500", "Electric", "Bass", "(finger)", "1",
    ]  # fmt: skip
    assert lines[2].split() == ["Drums", "1", "1", "1.000", "-"]
