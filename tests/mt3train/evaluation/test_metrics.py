"""mt3train.evaluation.metrics: the original's scores (tests/golden/golden_metrics.py), and where ours differ."""

import math

import numpy as np
import pytest

from mt3data.music.notes import Notes
from mt3train.evaluation.metrics import COUNTED, SCORES, TrackSpec, transcription_scores


def notes(*rows: tuple) -> Notes:
    """Rows (onset, offset, pitch, program, is_drum), then velocity and instrument if they matter."""
    table = [
        (on, off, pitch, velocity, program, drum, instrument)
        for on, off, pitch, program, drum, velocity, instrument in (
            (*row, 100, 0) if len(row) == 5 else row for row in rows
        )
    ]
    return Notes.from_array(np.array(table, dtype=np.float64).reshape(-1, 7))


def both(reference: Notes, estimate: Notes, name: str) -> tuple[float, float]:
    """One score in scoring mt3 and in scoring corrected."""
    mt3, corrected = (
        transcription_scores(reference, estimate, scoring=p) for p in ("mt3", "corrected")
    )
    return mt3[name], corrected[name]


def test_two_of_three_notes_found_and_one_invented():
    reference = notes((0, 1, 60, 0, 0), (1, 2, 62, 0, 0), (2, 3, 64, 0, 0))
    estimate = notes((0.04, 1.1, 60, 0, 0), (1, 2.3, 62, 0, 0), (2.06, 3, 64, 0, 0))
    scores = transcription_scores(reference, estimate)
    assert scores["onset_recall"] == pytest.approx(2 / 3)  # 60 ms late is too late
    assert scores["onset_offset_f1"] == pytest.approx(1 / 3)  # 300 ms of 1 s too long
    assert scores["tolerance_0.1_f1"] == pytest.approx(2 / 3)
    assert scores["tolerance_0.5_f1"] == 1


@pytest.mark.parametrize("scoring", ["corrected", "mt3"])
def test_a_piece_against_itself_scores_1_in_every_score(scoring):
    piece = notes((0, 1, 60, 0, 0), (1, 2, 62, 33, 0, 90, 1), (2, 3, 36, 0, 1, 80, 2))
    scores = transcription_scores(piece, piece, scoring=scoring)
    assert {value for name, value in scores.items() if name != "leakage"} == {1.0}
    assert scores.get("leakage", 0.0) == 0.0


def test_a_wrong_program_is_wrong_for_the_program_score_and_leaks():
    reference, estimate = notes((0, 1, 60, 0, 0)), notes((0, 1, 60, 1, 0))
    scores = transcription_scores(reference, estimate)
    assert (scores["onset_offset_f1"], scores["program_full_f1"]) == (1, 0)
    assert (scores["program_midi_class_f1"], scores["program_flat_f1"]) == (1, 1)
    assert scores["leakage"] == 1


def test_drums_count_by_onset_and_in_no_pitched_score():
    reference, estimate = notes((0, 1, 36, 0, 1)), notes((0, 0.01, 36, 0, 1))
    scores = transcription_scores(reference, estimate)
    assert (scores["drum_f1"], scores["program_full_f1"]) == (1, 1)
    assert math.isnan(scores["onset_f1"]) and math.isnan(scores["nondrum_full_f1"])


def test_what_neither_side_holds_is_0_in_scoring_mt3_and_nan_here():
    assert set(transcription_scores(notes(), notes(), scoring="mt3").values()) == {0.0}
    corrected = transcription_scores(notes(), notes())
    assert tuple(sorted(corrected)) == tuple(sorted(SCORES))
    assert all(math.isnan(value) for value in corrected.values())


@pytest.mark.parametrize("there", [0, 1])
def test_every_score_is_0_when_one_side_is_empty(there):
    pair = [notes(), notes()]
    pair[there] = notes((0, 1, 60, 0, 0), (0, 1, 36, 0, 1))
    scores = transcription_scores(*pair)
    assert {scores[f"{name}_f1"] for name in COUNTED} == {0.0}
    assert math.isnan(scores["leakage"])


def test_quiet_frames_of_the_reference_do_not_count_in_scoring_mt3():
    quiet = notes((0, 1, 60, 0, 0, 20, 1), (1, 2, 64, 0, 0, 90, 1))
    assert both(quiet, quiet, "frame_precision") == (pytest.approx(0.5, abs=0.01), 1)


def test_of_instrument_0_scoring_mt3_sees_one_program_only():
    band = notes((0, 1, 60, 0, 0), (0, 1, 48, 33, 0))
    missed = notes((0, 1, 48, 33, 0))
    assert both(band, missed, "frame_recall") == (1, 0.5)


def test_short_notes_get_longer_before_the_tolerances_of_scoring_mt3():
    reference, estimate = notes((0, 0.06, 60, 0, 0)), notes((0, 0.01, 60, 0, 0))
    assert both(reference, estimate, "tolerance_0.02_f1") == (1, 0)
    assert both(reference, estimate, "tolerance_0.05_f1") == (1, 1)


def test_drums_of_another_program_are_other_drums_in_scoring_mt3():
    reference, estimate = notes((0, 1, 36, 40, 1)), notes((0, 1, 36, 0, 1))
    assert both(reference, estimate, "drum_f1") == (0, 1)
    assert both(reference, estimate, "program_flat_f1") == (0, 1)


def test_parts_have_scores_of_their_own_and_drums_none_of_offsets():
    piece = notes((0, 1, 60, 0, 0), (0, 1, 40, 33, 0), (0, 1, 36, 9, 1))
    wrong = notes((0, 1, 61, 0, 0), (0, 1, 40, 33, 0), (0, 2, 36, 0, 1))
    specs = [TrackSpec("Bass", 33), TrackSpec("Piano", 0), TrackSpec("Drums", 0, is_drum=True)]
    scores = transcription_scores(piece, wrong, tracks=specs)
    assert [scores[f"{spec.name}/onset_f1"] for spec in specs] == [1, 0, 1]
    assert "Bass/onset_offset_f1" in scores and "Drums/onset_offset_f1" not in scores
    assert scores["Drums/frame_f1"] == 1  # a drum lasts 50 ms, whatever its file says


def test_models_without_offsets_have_no_scores_of_offsets_and_velocities():
    piece = notes((0, 1, 60, 0, 0))
    scores = transcription_scores(piece, piece, has_offsets=False)
    assert not {"onset_offset_f1", "onset_velocity_f1"} & set(scores)
    assert scores["onset_f1"] == 1


@pytest.mark.parametrize("scoring", ["corrected", "mt3"])
def test_notes_of_zero_length_are_ignored(scoring):
    reference = notes((0, 1, 60, 0, 0))
    estimate = notes((0, 1, 60, 0, 0), (0.5, 0.5, 61, 0, 0))
    assert transcription_scores(reference, estimate, scoring=scoring)["onset_precision"] == 1


@pytest.mark.parametrize(("onset", "offset"), [(1, 0.5), (-0.5, 1)])
@pytest.mark.parametrize("scoring", ["corrected", "mt3"])
def test_a_note_that_cannot_be_is_an_error_that_names_it(onset, offset, scoring):
    wrong = notes((onset, offset, 60, 0, 0))
    with pytest.raises(ValueError, match=rf"1 notes of the estimate .* at {onset:.3f} s"):
        transcription_scores(notes((0, 1, 60, 0, 0)), wrong, scoring=scoring)


def test_an_unknown_scoring_is_an_error():
    with pytest.raises(ValueError, match="expected corrected or mt3"):
        transcription_scores(notes(), notes(), scoring="papier")
