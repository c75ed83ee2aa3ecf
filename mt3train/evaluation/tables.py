"""Results of an evaluation: tables for people, JSON and CSV for programs, and a file that resumes.

Means are over tracks. Their 95 % intervals are bootstrapped: tracks are drawn with replacement, as
many as there are, RESAMPLES times. They say how much a mean owes to the choice of tracks, and
nothing about other training runs or other datasets.
"""

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.errors import UserError
from mt3train.evaluation.evaluate import COLUMNS, TrackScores, nan_mean, values_of
from mt3train.evaluation.leakage import InstrumentScores
from mt3train.evaluation.metrics import SCORINGS
from mt3train.evaluation.note_matching import Counts
from mt3train.model import MT3
from mt3train.weights.checkpoint import CheckpointInfo, checksum

Results = Mapping[str, Sequence[TrackScores]]  # by build
TRACK_COLUMNS = COLUMNS | {"frame": "frame_f1", "leakage": "leakage"}
PAPER_ROWS = {  # metric of the paper: our score, in scoring "mt3"
    "onset F1": "onset_f1", "onset+offset F1": "onset_offset_f1",
    "multi-instrument F1": "program_full_f1",
}  # fmt: skip
# MT3 trained on its mixture (Gardner et al., ICLR 2022), in the order of PAPER_ROWS, by dataset and
# split. MT3 divides GuitarSet and URMP into training and validation only.
PUBLISHED = {
    ("maestro_v3", "test"): (0.946, 0.799, 0.816), ("cerberus4", "test"): (0.919, 0.798, 0.758),
    ("guitarset", "validation"): (0.895, 0.782, 0.782), ("musicnet", "test"): (0.502, 0.330, 0.340),
    ("slakh", "test"): (0.759, 0.573, 0.545), ("urmp", "validation"): (0.770, 0.578, 0.498),
}  # fmt: skip
RESAMPLES = 2000


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of the values that are numbers; NaN without any.

    Args:
        values: a score of each track, shape (n_tracks,).
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


# --- for people ----------------------------------------------------------------------------------


def track_table(results: Sequence[TrackScores]) -> str:
    """The scores of each track in scoring "corrected" and their means; "-" where there is nothing."""
    width = max(len("mean of tracks"), *(len(result.track) for result in results))
    headings = "".join(f"{heading:>9}" for heading in TRACK_COLUMNS)
    lines = [f"{'F1':{width}}{headings}{'notes':>8}{'found':>8}{'invalid':>9}{'dropped':>9}"]
    for result in results:
        cells = "".join(
            _cell(result.scores["corrected"][score]) for score in TRACK_COLUMNS.values()
        )
        counts = f"{result.n_reference:8}{result.n_estimate:8}{result.invalid:9}{result.dropped:9}"
        lines.append(f"{result.track:{width}}{cells}{counts}")
    means = (nan_mean(values_of(results, score, "corrected")) for score in TRACK_COLUMNS.values())
    lines.append(f"{'mean of tracks':{width}}" + "".join(map(_cell, means)))
    return "\n".join(lines)


def dataset_table(results: Results, split: str) -> str:
    """The paper's table of results: datasets across, metrics down, the published numbers beside them.

    Ours are in scoring "mt3", with their 95 % intervals; published numbers stand under datasets
    that bear the name of the paper's, where the split is that of the paper.
    """
    lines = [f"{'':22}" + "".join(f"{name:>24}" for name in results)]
    for place, (metric, score) in enumerate(PAPER_ROWS.items()):
        cells = []
        for tracks in results.values():
            values = values_of(tracks, score, "mt3")
            low, high = interval(values)
            cells.append(f"{nan_mean(values):.3f} [{low:.3f}, {high:.3f}]")
        lines.append(f"{metric:22}" + "".join(f"{cell:>24}" for cell in cells))
        published = [PUBLISHED.get((name, split)) for name in results]
        if any(published):
            told = (f"{row[place]:.3f}" if row else "-" for row in published)
            lines.append(f"{'  MT3, published':22}" + "".join(f"{cell:>24}" for cell in told))
    return "\n".join(lines)


def _cell(value: float) -> str:
    return f"{'-':>9}" if math.isnan(value) else f"{value:9.3f}"


# --- for programs --------------------------------------------------------------------------------


def to_json(results: Results, split: str) -> dict[str, Any]:
    """Results by build: means and intervals in both scorings, published numbers, and every track."""
    return {
        name: {
            scoring: {
                score: {"mean": _or_null(nan_mean(values)), "interval": [*map(_or_null, ends)]}
                for score in tracks[0].scores[scoring]
                for values in [values_of(tracks, score, scoring)]
                for ends in [interval(values)]
            }
            for scoring in SCORINGS
        }
        | {
            "published": dict(
                zip(PAPER_ROWS.values(), PUBLISHED.get((name, split), ()), strict=False)
            )
        }
        | {"tracks": [to_record(track) for track in tracks]}
        for name, tracks in results.items()
    }


def to_csv(results: Results) -> str:
    """Results, a line for each track and score: build, track, scoring, score, value (empty: none)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["build", "track", "scoring", "score", "value"])
    for build, tracks in results.items():
        for track in tracks:
            for scoring in SCORINGS:
                for name, value in track.scores[scoring].items():
                    known = "" if math.isnan(value) else repr(value)
                    writer.writerow([build, track.track, scoring, name, known])
    return out.getvalue()


def to_record(result: TrackScores) -> dict[str, Any]:
    """A track's scores as JSON can hold them: null for NaN."""
    scores = {
        scoring: {name: _or_null(value) for name, value in values.items()}
        for scoring, values in result.scores.items()
    }
    return asdict(result) | {"scores": scores}


def from_record(record: Mapping[str, Any]) -> TrackScores:
    """The scores of which `to_record` made a record."""
    instruments = [
        InstrumentScores(
            one["program"], Counts(**one["onset"]),
            Counts(**one["onset_offset"]) if one["onset_offset"] else None,
            {int(program): n for program, n in one["heard_as"].items()},
        )
        for one in record["instruments"]
    ]  # fmt: skip
    scores = {
        scoring: {name: math.nan if v is None else v for name, v in values.items()}
        for scoring, values in record["scores"].items()
    }
    return TrackScores(**{**record, "scores": scores, "instruments": instruments})


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value


# --- a file that resumes -------------------------------------------------------------------------


def identity(model: MT3, info: CheckpointInfo, manifest: Mapping[str, Any], split: str) -> str:
    """What results depend on, as a hash: weights, vocabulary, longest target, build and split."""
    weights, vocabulary = checksum(model.state_dict()), asdict(info.vocabulary)
    told = [weights, vocabulary, info.max_target_length, manifest["fingerprint"], split]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class ResultsFile:
    """One JSON line for each track that was scored; each is on the disk before the next begins.

    Args:
        path: the file, there or not.
        ours: the `identity` of the evaluation at hand.
        build: the name of its build.
    Attributes:
        done: what the file holds under the same identity, by track.

    Raises:
        UserError: the file holds results of another checkpoint, build or split, or no results.
    """

    def __init__(self, path: Path, ours: str, build: str) -> None:
        self.path, self._ours, self._build = path, ours, build
        self.done: dict[str, TrackScores] = {}
        content = path.read_bytes() if path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]  # a kill may have cut the last line short
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                found, same_build = entry["identity"], entry["build"] == build
                if found == ours:
                    self.done[entry["result"]["track"]] = from_record(entry["result"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}: line {number} is no result of an evaluation; name another --out"
                ) from error
            if same_build and found != ours:
                raise UserError(
                    f"{path} holds results on {build} of another checkpoint, split or version of the "
                    "build; name another --out"
                )

    def add(self, result: TrackScores) -> None:
        """Appends one track; an OSError names the file."""
        entry = {"build": self._build, "identity": self._ours, "result": to_record(result)}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
