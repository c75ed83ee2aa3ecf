"""mt3train.metrics: the original's scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from mt3data.notes import Notes
from mt3train.metrics import SCORES, has_drums, transcription_scores

CASES = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())["cases"]
CASES = [case for case in CASES if case["kind"] == "notes"]
ORIGINAL = {
    "onset": "Onset {}",
    "onset_offset": "Onset + offset {}",
    "program": "Onset + offset + program {} ({})",
    "drum": "Drum onset {} ({})",
}


def notes(*rows: tuple) -> Notes:
    """Rows (onset, offset, pitch, program, is_drum), velocity 100."""
    table = [(on, off, pitch, 100, program, drum, 0) for on, off, pitch, program, drum in rows]
    return Notes.from_array(np.array(table, dtype=np.float64).reshape(-1, 7))


@pytest.mark.parametrize("granularity", ["flat", "midi_class", "full"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_scores_are_the_originals(case, granularity):
    pairs = [
        (Notes.from_columns(example["ref"]), Notes.from_columns(example["est"]))
        for example in case["examples"]
    ]
    scores = [transcription_scores(*pair, granularity=granularity) for pair in pairs]
    for name, original in ORIGINAL.items():
        for ours, theirs in (("precision",) * 2, ("recall",) * 2, ("f1", "F1")):
            expected = case["scores"].get(original.format(theirs, granularity))
            if expected is not None:  # onset-only models have no offset scores
                mean = np.mean([score[f"{name}_{ours}"] for score in scores])
                assert mean == pytest.approx(expected, abs=1e-9), (name, ours)


def test_two_of_three_notes_found_and_one_invented():
    reference = notes((0, 1, 60, 0, 0), (1, 2, 62, 0, 0), (2, 3, 64, 0, 0))
    estimate = notes((0.04, 1.1, 60, 0, 0), (1, 2.3, 62, 0, 0), (2.06, 3, 64, 0, 0))
    scores = transcription_scores(reference, estimate)
    assert scores["onset_recall"] == pytest.approx(2 / 3)  # 60 ms late is too late
    assert scores["onset_offset_f1"] == pytest.approx(1 / 3)  # 300 ms of 1 s too long


def test_a_wrong_program_is_wrong_for_the_program_score_only():
    reference, estimate = notes((0, 1, 60, 0, 0)), notes((0, 1, 60, 1, 0))
    scores = transcription_scores(reference, estimate)
    assert (scores["onset_offset_f1"], scores["program_f1"]) == (1, 0)
    assert transcription_scores(reference, estimate, granularity="midi_class")["program_f1"] == 1


def test_drums_count_by_onset_and_in_no_pitched_score():
    reference, estimate = notes((0, 1, 36, 0, 1)), notes((0, 0.01, 36, 0, 1))
    scores = transcription_scores(reference, estimate)
    assert (scores["drum_f1"], scores["program_f1"], scores["onset_f1"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("reference", "estimate"),
    [((), ()), ((), ((0, 1, 60, 0, 0),)), (((0, 1, 60, 0, 0),), ())],
)
def test_every_score_is_0_when_there_is_nothing_to_match(reference, estimate):
    scores = transcription_scores(notes(*reference), notes(*estimate))
    assert scores == dict.fromkeys(SCORES, 0.0)


def test_notes_of_zero_length_are_ignored():
    reference = notes((0, 1, 60, 0, 0))
    estimate = notes((0, 1, 60, 0, 0), (0.5, 0.5, 61, 0, 0))
    assert transcription_scores(reference, estimate)["onset_precision"] == 1


def test_a_note_that_ends_before_it_begins_is_an_error():
    with pytest.raises(ValueError, match=r"1 notes of the estimate .* at 1\.000 s"):
        transcription_scores(notes((0, 1, 60, 0, 0)), notes((1, 0.5, 60, 0, 0)))


def test_drum_scores_mean_something_when_either_side_has_drums():
    drum, piano = notes((0, 1, 36, 0, 1)), notes((0, 1, 60, 0, 0))
    assert has_drums(piano, drum) and has_drums(drum, piano)
    assert not has_drums(piano, piano)
