"""mt3train.evaluation.note_matching: mir_eval's pairs, found pitch by pitch."""

import mir_eval
import numpy as np
import pytest

from mt3data.music.notes import Notes
from mt3train.evaluation.note_matching import Counts, count, match, velocity_agrees


def crowd(seed: int, n: int = 400) -> Notes:
    """Notes so close together that most of them have several candidates."""
    random = np.random.default_rng(seed)
    onset = np.round(random.uniform(0, 6, n), 2)
    return Notes.from_columns({
        "onset": onset, "offset": onset + np.round(random.uniform(0.02, 0.4, n), 2),
        "pitch": random.integers(60, 66, n), "velocity": random.integers(1, 128, n),
        "program": np.zeros(n, int), "is_drum": np.zeros(n, bool), "instrument": np.zeros(n, int),
    })  # fmt: skip


def arguments(reference: Notes, estimate: Notes, velocity: bool) -> dict[str, np.ndarray]:
    """As mir_eval wants them: intervals, Hz, and velocities where they count."""
    found = {}
    for name, notes in (("ref", reference), ("est", estimate)):
        found[f"{name}_intervals"] = np.stack([notes.onset, notes.offset], axis=1)
        found[f"{name}_pitches"] = 440 * 2 ** ((notes.pitch - 69) / 12)
        if velocity:
            found[f"{name}_velocities"] = notes.velocity
    return found


@pytest.mark.parametrize("tolerance", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_mir_evals_whatever_the_tolerance(seed, offsets, tolerance):
    reference, estimate = crowd(seed), crowd(seed + 100)
    wanted = mir_eval.transcription.match_notes(
        **arguments(reference, estimate, velocity=False), onset_tolerance=tolerance,
        offset_ratio=0.2 if offsets else None, offset_min_tolerance=tolerance,
    )  # fmt: skip
    found = match(reference, estimate, offsets=offsets, tolerance=tolerance)
    assert found.tolist() == [list(pair) for pair in wanted]


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_velocities_agree_where_mir_eval_is_reported(seed, offsets):
    reference, estimate = crowd(seed), crowd(seed + 100)
    wanted = mir_eval.transcription_velocity.match_notes(
        **arguments(reference, estimate, velocity=True), offset_ratio=0.2 if offsets else None
    )
    pairs = match(reference, estimate, offsets=offsets)
    kept = pairs[velocity_agrees(reference, estimate, pairs)]
    assert 0 < len(kept) < len(pairs)
    assert kept.tolist() == [list(pair) for pair in wanted]
    counts = count(reference, estimate, offsets=offsets, velocity=True)
    assert counts == Counts(len(wanted), len(reference), len(estimate))


def test_fifty_milliseconds_are_within_fifty_milliseconds():
    reference = crowd(0, 1)
    for late, hits in ((0.05, 1), (0.0501, 0)):
        moved = Notes.from_array(reference.to_array() + [late, late, 0, 0, 0, 0, 0])
        assert count(reference, moved, offsets=False).hits == hits


def test_nothing_matches_nothing():
    assert match(Notes.empty(), crowd(0), offsets=True).shape == (0, 2)
    assert count(Notes.empty(), Notes.empty(), offsets=False, velocity=True) == Counts(0, 0, 0)


def test_counts_add_up_and_give_precision_recall_and_f1():
    counts = Counts(1, 2, 2) + Counts(2, 2, 4)
    assert counts.scores() == (0.5, 0.75, 0.6)
    assert Counts().scores() == (0, 0, 0)
    assert Counts(0, 3, 0).scores(nothing=float("nan")) == (0, 0, 0)
