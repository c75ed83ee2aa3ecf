"""Golden comparisons of the scores: metrics.json and pianoroll.npz. Used by golden_check.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.music import detokenizer as detokenize
from mt3data.music.notes import Notes
from mt3data.music.vocabulary import NUM_SPECIAL_IDS, VocabularyConfig
from mt3train.evaluation.frames import FRAMES_PER_SECOND, notes_of_mt3_roll, with_minimum_length
from mt3train.evaluation.metrics import (
    GRANULARITIES,
    MEASURES,
    TOLERANCES,
    TrackSpec,
    transcription_scores,
)

TOLERANCE = 1e-9
PARTS = {
    "onset": "Onset {}", "onset_offset": "Onset + offset {}", "onset_velocity": "Onset + velocity {}",
    "onset_offset_velocity": "Onset + offset + velocity {}", "frame": "Frame {}",
}  # fmt: skip
PROGRAMS = {
    "program_{}": "Onset + offset + program {} ({})", "drum": "Drum onset {} ({})",
    "nondrum_{}": "Nondrum onset + offset + program {} ({})",
}  # fmt: skip


def original_names(specs: list[TrackSpec]) -> Iterator[tuple[str, str]]:
    """(our name, the original's name) of every score; one of ours may have several of theirs."""
    for measure in MEASURES:
        named = "F1" if measure == "f1" else measure
        for part in ("", *(f"{spec.name}/" for spec in specs)):
            for ours, theirs in PARTS.items():
                capital = named.capitalize() if ours == "frame" else named
                yield f"{part}{ours}_{measure}", part + theirs.format(capital)
        for granularity in GRANULARITIES:
            for ours, theirs in PROGRAMS.items():
                yield f"{ours.format(granularity)}_{measure}", theirs.format(named, granularity)
        for tolerance in TOLERANCES:
            yield f"tolerance_{tolerance}_{measure}", f"Onset + offset {named} ({tolerance})"


def pairs_of(case: dict[str, Any]) -> list[tuple[Notes, Notes]]:
    """(reference, estimate) of each example of a case, as the original had them."""
    if case["kind"] == "notes":
        return [
            (Notes.from_columns(example["ref"]), Notes.from_columns(example["est"]))
            for example in case["examples"]
        ]
    encoding = "ties" if case["use_ties"] else "noties"
    config = VocabularyConfig(case["num_velocity_bins"], encoding=encoding)
    decoded = detokenize.decode_segments(
        [
            (one["start_time"], np.array(one["est_tokens"], np.int64) + NUM_SPECIAL_IDS)
            for one in case["predictions"]
        ],
        config,
    )
    assert case["scores"]["Invalid events"] == decoded.invalid, case["name"]
    assert case["scores"]["Dropped events"] == decoded.dropped, case["name"]
    return [(Notes.from_columns(case["ref"]), decoded.notes)]


def check_metrics(folder: Path) -> tuple[int, float]:
    """metrics.json: every score of scoring "mt3", of each example and in the mean."""
    cases = json.loads((folder / "metrics.json").read_text())["cases"]
    worst, compared = 0.0, 0
    for case in cases:
        specs = [TrackSpec(**spec) for spec in case["track_specs"] or ()]
        scores = [
            transcription_scores(
                *pair, scoring="mt3", has_offsets=not case["onsets_only"], tracks=specs
            )
            for pair in pairs_of(case)
        ]
        expected = {key: value for key, value in case["scores"].items() if "events" not in key}
        of_each = expected.pop("__hist__")
        used = set()
        for ours, theirs in original_names(specs):
            assert (ours in scores[0]) == (theirs in expected), (case["name"], ours, theirs)
            if theirs not in expected:
                continue
            used.add(theirs)
            mine = np.array([each[ours] for each in scores])
            off = max(
                np.abs(mine - of_each[f"{theirs} (hist)"]).max(),
                abs(mine.mean() - expected[theirs]),
            )
            assert off <= TOLERANCE, f"{case['name']}: {ours} is {mine}, not {expected[theirs]}"
            worst, compared = max(worst, off / TOLERANCE), compared + 1
        assert used == set(expected), set(expected) - used
    return compared, worst


def pianoroll(notes: Notes) -> np.ndarray:
    """Sums velocities in an array, float32 [128, n_frames], without the last note's last frame.

    Source: pretty_midi/instrument.py get_piano_roll.
    """
    n_frames = int(FRAMES_PER_SECOND * notes.offset.max()) if len(notes) else 0
    roll = np.zeros((128, n_frames), np.float32)
    for note in notes.to_array():
        first, last = (int(time * FRAMES_PER_SECOND) for time in note[:2])
        roll[int(note[2]), first:last] += note[3]
    return roll


def check_pianoroll(folder: Path) -> tuple[int, float]:
    """pianoroll.npz: the original's rolls, and the lengths that it gives to notes."""
    data = np.load(folder / "pianoroll.npz", allow_pickle=False)
    names = sorted({key.split("/")[0] for key in data.files})
    for name in names:
        columns = {
            column: data[f"{name}/{column}"]
            for column in ("start", "end", "pitch", "velocity", "program", "is_drum", "instrument")
        }
        notes, are_drums = Notes.from_columns(columns), bool(data[f"{name}/is_drum_flag"])
        longer = with_minimum_length(notes, are_drums)
        np.testing.assert_array_equal(longer.offset, data[f"{name}/end_after"])
        roll = pianoroll(notes_of_mt3_roll(notes, are_drums))
        np.testing.assert_array_equal(roll, data[f"{name}/roll"])
        assert roll.dtype == data[f"{name}/roll"].dtype
    return len(names), 0.0


CHECKS = {"metrics.json": check_metrics, "pianoroll.npz": check_pianoroll}
