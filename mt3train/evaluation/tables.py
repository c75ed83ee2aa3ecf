"""Prints and stores the results of an evaluation: tables, JSON, CSV, and a file that resumes.

Means are over tracks. Their 95 % intervals are bootstrapped: RESAMPLES times, as many tracks as
there are get drawn with replacement. An interval states how much a mean depends on the choice of
tracks. It states nothing about other training runs or other datasets.
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
from mt3train.device import choose_precision
from mt3train.evaluation.evaluate import COLUMNS, TrackScores, nan_mean, values_of
from mt3train.evaluation.leakage import InstrumentScores
from mt3train.evaluation.metrics import SCORINGS, none_if_nan
from mt3train.evaluation.note_matching import Counts
from mt3train.model import MT3
from mt3train.transcription.decode import DecodingConfig
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
START = b'{"build": '  # of every line of a results file


def interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of the mean of the values that are not NaN.

    Args:
        values: one score of each track, shape (n_tracks,). NaN is ignored.
    Returns:
        Lower and upper end. Both are NaN if all values are.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(resampled_means(values), [2.5, 97.5])
    return float(low), float(high)


def resampled_means(values: np.ndarray) -> np.ndarray:
    """Returns the means of RESAMPLES bootstrap draws. The draws are the same for the same number of values."""
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    return np.asarray(values[drawn].mean(axis=1))


def summary_of(values: np.ndarray) -> dict[str, Any]:
    """Returns the mean of a score and its interval, for JSON."""
    return {
        "mean": none_if_nan(nan_mean(values)),
        "interval": [none_if_nan(end) for end in interval(values)],
    }


def track_table(results: Sequence[TrackScores]) -> str:
    """Formats the `corrected` F1 of each track and their means. "-" marks a missing score."""
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
    """Formats the table of the paper: one column per dataset, one row per metric.

    Our values are in scoring "mt3", with their 95 % intervals. Published values stand below ours for
    builds that have the name of a dataset of the paper, if the split is that of the paper.
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
            cells = [f"{row[place]:.3f}" if row else "-" for row in published]
            lines.append(f"{'  MT3, published':22}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def _cell(value: float) -> str:
    return f"{'-':>9}" if math.isnan(value) else f"{value:9.3f}"


def to_json(results: Results, split: str) -> dict[str, Any]:
    """Collects means, intervals, published values and every track of each build, for JSON."""
    found = {}
    for build, tracks in results.items():
        summary: dict[str, Any] = {
            scoring: {
                name: summary_of(values_of(tracks, name, scoring))
                for name in tracks[0].scores[scoring]
            }
            for scoring in SCORINGS
        }
        published = PUBLISHED.get((build, split), ())
        summary["published"] = dict(zip(PAPER_ROWS.values(), published, strict=False))
        summary["tracks"] = [to_record(track) for track in tracks]
        found[build] = summary
    return found


def to_csv(results: Results) -> str:
    """Formats one CSV line for each track and score. An empty value marks a missing score."""
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
    """Converts the scores of a track for JSON, which has null for NaN."""
    scores = {
        scoring: {name: none_if_nan(value) for name, value in values.items()}
        for scoring, values in result.scores.items()
    }
    return asdict(result) | {"scores": scores}


def from_record(record: Mapping[str, Any]) -> TrackScores:
    """Converts a record of `to_record` back."""
    instruments = [
        InstrumentScores(
            one["program"], Counts(**one["onset"]),
            Counts(**one["onset_offset"]) if one["onset_offset"] else None,
            {int(program): n for program, n in one["mistaken_for"].items()},
        )
        for one in record["instruments"]
    ]  # fmt: skip
    scores = {
        scoring: {name: math.nan if v is None else v for name, v in values.items()}
        for scoring, values in record["scores"].items()
    }
    return TrackScores(**{**record, "scores": scores, "instruments": instruments})


def identity(
    model: MT3, info: CheckpointInfo, build_manifest: Mapping[str, Any], split: str,
    decoding: DecodingConfig = DecodingConfig(),
) -> str:  # fmt: skip
    """Hashes all that scores depend on: weights, settings of the checkpoint, decoding, build, split.

    The manifest of a build holds its fingerprint and the SHA-256 of every file.
    """
    settings = asdict(info) | {"step": None}
    parts = [checksum(model.state_dict()), settings, build_manifest, split]
    parts += ["constrained"] * decoding.constrained
    precision = choose_precision(decoding.precision, next(model.parameters()).device)
    parts += [precision] * (precision != "float32")
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class ResultsFile:
    """A file with one JSON line for each scored track. Every line is on the disk before the next.

    Args:
        path: the file. It may exist and is created by the first `add`.
        identities: the `identity` of the evaluation of each build, by the name of the build.
    Attributes:
        done: build -> track -> scores that the file holds with these identities.

    Raises:
        UserError: the file holds results of another checkpoint, decoding, split or version of a
            build, or anything but results. It is not changed.
    """

    def __init__(self, path: Path, identities: Mapping[str, str]) -> None:
        self.path, self._identities = path, identities
        self.done: dict[str, dict[str, TrackScores]] = {build: {} for build in identities}
        content = path.read_bytes() if path.is_file() else b""  # no device is read
        *lines, self._torn = content.split(b"\n")
        if not (self._torn.startswith(START) or START.startswith(self._torn)):
            lines.append(self._torn)  # a killed run leaves the beginning of a line of ours
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                build, track = entry["build"], from_record(entry["result"])
                wanted = identities.get(build)
                if entry["identity"] == wanted:
                    self.done[build][track.track] = track
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(
                    f"{path}: line {number} is no result of an evaluation; name another --out"
                ) from error
            if wanted and entry["identity"] != wanted:
                raise UserError(
                    f"{path} holds results on {build} of another checkpoint, decoding, split or "
                    "version of the build; name another --out"
                )

    def add(self, build: str, result: TrackScores) -> None:
        """Appends the scores of a track. An OSError names the file."""
        entry = {"build": build, "identity": self._identities[build], "result": to_record(result)}
        try:
            if self._torn:  # the last line of a run that was killed
                os.truncate(self.path, self.path.stat().st_size - len(self._torn))
                self._torn = b""
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                if self.path.is_file():  # devices do not sync
                    os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
