"""Compares several transcribers on the same recordings, by folders of MIDI files.

The mean of a score over recordings has a 95 % bootstrap interval. The p-value of two systems comes from
a paired bootstrap: recordings are drawn with replacement RESAMPLES times, and p is twice the smaller
share of draws in which the mean difference has one sign, so it tests both directions. Few recordings
give few different draws: below MIN_RECORDINGS there is no p-value, and even a sign test would not
reach 0.05.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.errors import UserError
from mt3data.files import same_name, walk
from mt3data.music.midi import MIDI_SUFFIXES, read_midi
from mt3data.music.notes import Notes
from mt3data.report.plots import save_figure
from mt3data.terminal import kind_of
from mt3train.evaluation.evaluate import nan_mean
from mt3train.evaluation.leakage import InstrumentScores, instrument_scores, pooled
from mt3train.evaluation.metrics import SCORINGS, none_if_nan, transcription_scores
from mt3train.evaluation.tables import RESAMPLES, interval, resampled_means, summary_of

COMMAND = "mt3train score"
COMPARED = {  # heading: score
    "onset": "onset_f1", "onset+offset": "onset_offset_f1", "frame": "frame_f1",
    "with program": "program_full_f1", "with class": "program_midi_class_f1", "drum onset": "drum_f1",
}  # fmt: skip
MIN_RECORDINGS = 6  # of a p-value
PITCHED = ("onset_f1", "onset_offset_f1", "frame_f1")  # scores of notes other than drums


@dataclass(frozen=True)
class Comparison:
    """The scores of several systems on the same recordings.

    Attributes:
        recordings: names of the references, sorted.
        scores: system -> scoring ("corrected", "mt3") -> score -> values, float64 [recordings]. NaN
            marks a score that a recording does not have.
        instruments: system -> counts by program of all recordings, in classes of General MIDI.
        missing: system -> recordings without a file, which score as if nothing was found.
        faults: files that cannot be read, with the reason. A broken file of a system scores as a
            missing one. A recording with a broken reference is left out for all systems.
        extra: system -> number of files without a reference, which are ignored.
        skipped: files and folders below the references and systems that were not read.
    """

    recordings: list[str]
    scores: dict[str, dict[str, dict[str, np.ndarray]]]
    instruments: dict[str, list[InstrumentScores]]
    missing: dict[str, list[str]]
    faults: list[str]
    extra: dict[str, int]
    skipped: list[str]


def compare_systems(references: Path, systems: Sequence[Path]) -> Comparison:
    """Scores folders of MIDI files against a folder of references.

    A file is matched by its path below the folder without suffix, or else by its name alone. Names
    in the Unicode forms NFC and NFD are equal.

    Args:
        references: folder of MIDI files with the right notes.
        systems: one folder for each system.
    Raises:
        UserError: no references, a folder without files or without files of their names, two files
            for one name, or no reference that can be read.
    """
    skipped: list[str] = []
    true_files = _midi_files(references, skipped)
    names = _system_names(systems)
    found_files = {name: _midi_files(path, skipped) for name, path in names.items()}
    faults: list[str] = []
    truths = {}
    for recording, true_file in sorted(true_files.items()):
        notes = _read(true_file, faults)
        if notes is not None:
            truths[recording] = notes
    if not truths:
        raise UserError(f"{references}: no reference can be read; first: {faults[0]}")
    scores: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    instruments, missing, extra = {}, {}, {}
    for name, files in found_files.items():
        matched = _matched(files, true_files, names[name])
        extra[name] = len(files) - len({path for path in matched.values() if path})
        missing[name] = [recording for recording in truths if matched[recording] is None]
        rows: dict[str, list[dict[str, float]]] = {scoring: [] for scoring in SCORINGS}
        counts = []
        for recording, true in truths.items():
            path = matched[recording]
            found = _read(path, faults) if path else None
            if found is None:
                found = Notes.empty()
            for scoring in SCORINGS:
                rows[scoring].append(_scores(true, found, scoring))
            counts.append(instrument_scores(true, found, "midi_class"))
        scores[name] = {
            scoring: {score: np.array([row[score] for row in of_scoring])
                      for score in COMPARED.values()}
            for scoring, of_scoring in rows.items()
        }  # fmt: skip
        instruments[name] = pooled(counts)
    return Comparison([*truths], scores, instruments, missing, faults, extra, skipped)


def _scores(true: Notes, found: Notes, scoring: str) -> dict[str, float]:
    """Scores one recording. Without true notes of a kind it has no score of them.

    So every mean is over the same recordings for all systems. Notes found of a kind that a
    recording does not have lower its scores with programs or classes.
    """
    scores = transcription_scores(true, found, scoring=scoring)
    n_drums = int(true.is_drum.sum())
    n_of = {name: len(true) for name in COMPARED.values()}
    n_of |= {name: len(true) - n_drums for name in PITCHED} | {"drum_f1": n_drums}
    return {name: scores[name] if n else math.nan for name, n in n_of.items()}


def _midi_files(folder: Path, skipped: list[str]) -> dict[str, Path]:
    """Finds the MIDI files below a folder, by path without suffix in NFC."""
    if not folder.is_dir():
        raise UserError(f"{folder}: {kind_of(folder)}; expected a folder of MIDI files")
    below = walk(folder, MIDI_SUFFIXES)
    skipped += below.skipped
    files: dict[str, Path] = {}
    for path in below.files:
        name = same_name(path.relative_to(folder).with_suffix("").as_posix())
        if name in files:
            raise UserError(f"{files[name]} and {path} have one name; remove one of them")
        files[name] = path
    if not files:
        raise UserError(f"{folder} holds no MIDI files ({', '.join(MIDI_SUFFIXES)})")
    return files


def _system_names(systems: Sequence[Path]) -> dict[str, Path]:
    """Names systems by their folders, or by whole paths where folders have one name."""
    paths = [Path(os.path.normpath(path)) for path in systems]
    real = [path.resolve() for path in paths]
    if twice := [str(path) for path, at in zip(paths, real, strict=True) if real.count(at) > 1]:
        raise UserError(f"{' and '.join(twice)} are one folder; name each system once")
    short = [path.name for path in real]
    return {
        str(path) if short.count(name) > 1 else name: path
        for name, path in zip(short, paths, strict=True)
    }


def _matched(
    files: Mapping[str, Path], recordings: Collection[str], folder: Path
) -> dict[str, Path | None]:
    """Returns a system's file of each recording: of the same path, else of the same name; or None.

    Raises:
        UserError: two files may be of one recording, or one file of two, or none is of any.
    """
    others: dict[str, list[Path]] = {}  # files of no recording's path, by their names
    for name, path in files.items():
        if name not in recordings:
            others.setdefault(name.rpartition("/")[2], []).append(path)
    matched = {recording: files.get(recording) for recording in recordings}
    used: dict[Path, str] = {}
    advice = "lay out the folder as that of the references"
    for recording in [recording for recording, path in matched.items() if path is None]:
        same = others.get(recording.rpartition("/")[2], [])
        if len(same) > 1:
            raise UserError(
                f"{folder}: {same[0]} and {same[1]} may both be of {recording}; {advice}"
            )
        if same and same[0] in used:
            raise UserError(
                f"{folder}: {same[0]} may be of {used[same[0]]} and of {recording}; {advice}"
            )
        if same:
            matched[recording] = same[0]
            used[same[0]] = recording
    if not any(matched.values()):
        raise UserError(
            f"{folder}: no file has the name of a reference; seen {min(files.values()).name}, expected "
            f"{min(recordings)}.mid; rename the files"
        )
    return matched


def _read(path: Path, faults: list[str]) -> Notes | None:
    try:
        return read_midi(path)[0]
    except (UserError, OSError) as error:
        faults.append(str(error) if str(path) in str(error) else f"{path}: {error}")
        return None


def paired_p(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the two-sided p-value of the difference of two means, by a paired bootstrap.

    Args:
        one, other: a score of the same recordings by two systems, float64 [recordings]. Recordings
            with NaN in either are ignored.
    Returns:
        At least 1 / (RESAMPLES + 1). NaN if fewer than MIN_RECORDINGS have both scores.
    """
    difference = (one - other)[~np.isnan(one - other)]
    if len(difference) < MIN_RECORDINGS:
        return math.nan
    means = resampled_means(difference)
    share = min((means <= 0).sum(), (means >= 0).sum()) + 1
    return min(1.0, 2 * float(share) / (RESAMPLES + 1))


def markdown(comparison: Comparison) -> str:
    """Formats the tables of a comparison in Markdown: means, p-values, instruments."""
    n = len(comparison.recordings)
    parts = []
    for scoring in SCORINGS:
        rows = []
        for system, of_system in comparison.scores.items():
            cells = []
            for score in COMPARED.values():
                values = of_system[scoring][score]
                low, high = interval(values)
                is_known = not math.isnan(low)
                cells.append(f"{nan_mean(values):.3f} [{low:.3f}, {high:.3f}]" if is_known else "-")
            rows.append([system, str(len(comparison.missing[system])), *cells])
        title = f"F1, scoring `{scoring}`: mean over {n} recordings [95 % bootstrap interval]"
        parts.append(f"{title}\n\n{_table(['system', 'missing', *COMPARED], rows)}")
    pairs = list(itertools.combinations(comparison.scores, 2))
    if pairs:
        rows = [
            [f"{a} - {b}", *(_difference(comparison, a, b, score) for score in COMPARED.values())]
            for a, b in pairs
        ]
        title = (
            "Differences of means, scoring `corrected`, with the p-value of a paired bootstrap "
            f"(two-sided, from {MIN_RECORDINGS} recordings on)"
        )
        parts.append(f"{title}\n\n{_table(['systems', *COMPARED], rows)}")
    parts.append(
        "Onset F1 of each class of instruments, notes of all recordings together\n\n"
        + _table(["instrument", "notes", *comparison.scores], _instrument_rows(comparison))
    )
    missing = {system: names for system, names in comparison.missing.items() if names}
    if missing:
        lines = "\n".join(f"- {system}: {', '.join(names)}" for system, names in missing.items())
        parts.append(f"Missing files score as if nothing was found:\n\n{lines}")
    return "\n\n".join(parts)


def _difference(comparison: Comparison, a: str, b: str, score: str) -> str:
    one, other = (comparison.scores[system]["corrected"][score] for system in (a, b))
    mean, p = nan_mean(one - other), paired_p(one, other)
    if math.isnan(mean):
        return "-"
    if math.isnan(p):
        return f"{mean:+.3f}"
    return f"{mean:+.3f} (p {'<' if p < 0.001 else '='} {max(p, 0.001):.3f})"


def _instrument_rows(comparison: Comparison) -> list[list[str]]:
    by_system = {
        system: {one.program: one for one in found}
        for system, found in comparison.instruments.items()
    }
    counts = {
        program: (one.onset.n_reference, one.name)
        for found in by_system.values()
        for program, one in found.items()
        if one.onset.n_reference
    }
    rows = []
    for program, (n_notes, name) in sorted(counts.items(), key=lambda item: (-item[1][0], item[0])):
        found = [by_system[system].get(program) for system in by_system]
        rows.append(
            [name, str(n_notes), *(f"{one.onset.scores()[2]:.3f}" if one else "-" for one in found)]
        )
    return rows


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table with aligned columns."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [headings, *rows]]
    widths = [max(map(len, column)) for column in zip(*escaped, strict=True)]
    lines = [
        "| " + " | ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)) + " |"
        for row in escaped
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Collects means, intervals, p-values, instruments and the scores of every recording, for JSON."""
    systems = {}
    for system, of_system in comparison.scores.items():
        summary: dict[str, Any] = {
            scoring: {
                score: summary_of(values) | {"values": [none_if_nan(value) for value in values]}
                for score, values in of_scoring.items()
            }
            for scoring, of_scoring in of_system.items()
        }
        summary["instruments"] = [
            {
                "program": one.program, "name": one.name, "notes": one.onset.n_reference,
                "found": one.onset.n_estimate, "onset_f1": none_if_nan(one.onset.scores()[2]),
            }
            for one in comparison.instruments[system]
        ]  # fmt: skip
        summary["missing"] = comparison.missing[system]
        summary["files_without_reference"] = comparison.extra[system]
        systems[system] = summary
    pairs = [
        {
            "systems": [a, b],
            "p": {
                score: none_if_nan(
                    paired_p(*(comparison.scores[s]["corrected"][score] for s in (a, b)))
                )
                for score in COMPARED.values()
            },
        }
        for a, b in itertools.combinations(comparison.scores, 2)
    ]
    return {
        "recordings": comparison.recordings, "systems": systems, "pairs": pairs,
        "faults": comparison.faults,
    }  # fmt: skip


def plot_systems(comparison: Comparison, out: Path, force: bool = False) -> None:
    """Draws means and intervals of the `corrected` F1 of every system.

    Args:
        out: a .png, .svg or .pdf file, or `files.STDOUT`.
        force: replace a file of any origin.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    axes = figure.subplots()
    shown = {
        heading: score for heading, score in COMPARED.items()
        if any((~np.isnan(s["corrected"][score])).any() for s in comparison.scores.values())
    }  # fmt: skip
    width = 0.8 / len(comparison.scores)
    for i, (system, of_system) in enumerate(comparison.scores.items()):
        places = np.arange(len(shown)) + (i - (len(comparison.scores) - 1) / 2) * width
        values = [of_system["corrected"][score] for score in shown.values()]
        means = np.array([nan_mean(v) for v in values])
        ends = np.array([interval(v) for v in values]).reshape(-1, 2)
        error = np.abs(ends.T - means)
        axes.bar(places, means, width * 0.9, yerr=error, capsize=3, label=system)
    axes.set_xticks(np.arange(len(shown)), list(shown))
    axes.set_ylim(0, 1)
    axes.set_ylabel("F1")
    n = len(comparison.recordings)
    axes.set_title(f"mean over {n} recordings, 95 % bootstrap interval", fontsize=10, loc="left")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, loc="upper right", ncols=3)
    save_figure(figure, out, COMMAND, force)
