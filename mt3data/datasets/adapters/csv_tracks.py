"""Finds the tracks that a manifest lists row by row: their files, splits and known issues.

Adapters of such datasets differ only in how they read labels. The rows state what a dataset holds, and
the files state which of it is there. A row without any file is no track, because a part of the dataset
was fetched (`mt3data verify` names what is missing). A row with some of its files is a track that
fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mt3data.datasets.manifest import DatasetManifest, SplitScheme, row_paths
from mt3data.errors import UserError
from mt3data.music.midi import read_midi
from mt3data.music.notes import Notes, assign_instruments, consecutive_same_pitch, shift_times

VELOCITY = 100  # of notes whose publisher gives none; with one velocity bin no token depends on it
AMBIGUOUS = 0.05  # semitones around a half, where rounding a pitch is ambiguous


@dataclass(frozen=True)
class Row:
    """One row of a manifest's CSV with the paths of its files.

    Attributes:
        id, name: as in the CSV.
        split: in the requested scheme; "" if the row is in none, see `failure`.
        audio, labels: paths in the order of the CSV, whether they exist or not.
        problems: known issues of this track, one sentence each.
        shift_seconds: sum of the shifts of known issues, added to every note time.
        failure: why the row cannot be used; empty if it can.
    """

    id: str
    name: str
    split: str
    audio: tuple[Path, ...]
    labels: tuple[Path, ...]
    problems: tuple[str, ...]
    shift_seconds: float
    failure: str

    def missing(self, audio: Path) -> str:
        """Returns why a track of this recording and these labels cannot be used; "" if it can."""
        absent = [path.name for path in (audio, *self.labels) if not _is_file(path)]
        return self.failure or (f"no {', no '.join(absent)}" if absent else "")


def rows(
    root: Path,
    manifest: DatasetManifest,
    split_scheme: str | None = None,
    *,
    also: tuple[str, ...] = (),
) -> Iterator[Row]:
    """Yields the rows with at least one existing file, in the order of the CSV.

    Args:
        root: the folder that holds `manifest.folder`, or that folder itself.
        manifest: of a dataset with rows.
        split_scheme: name of a scheme of the manifest; None takes its default.
        also: other folders below root in which copies of the dataset are known to lie.
    Raises:
        UserError: there is no such scheme, or no file of any row where one was looked for.
    """
    scheme, root = manifest.scheme(split_scheme), Path(root)
    bases = list(dict.fromkeys([root / manifest.folder, root, *(root / name for name in also)]))
    # Audio and labels may come from different publishers, and so lie in different places.
    audio, labels = (_base(bases, manifest, column) for column in ("audio", "labels"))
    if not audio and not labels:
        raise UserError(_nothing(root, bases, manifest))
    every = (
        _row(entry, manifest, scheme, audio or bases[0], labels or bases[0])
        for entry in manifest.rows.values()
    )
    return (row for row in every if any(_is_file(path) for path in (*row.audio, *row.labels)))


def _row(
    entry: dict[str, str], manifest: DatasetManifest, scheme: SplitScheme, audio: Path, labels: Path
) -> Row:
    track_id = next(iter(entry.values()))
    split = entry.get(scheme.column, "")
    failure = "" if split else f"in no split of the scheme {scheme.name!r}"
    problems, shift = [], 0.0
    for issue in manifest.known_issues:
        concerns_all = issue.action == "shift" and not issue.tracks
        if issue.action == "keep" or not (concerns_all or track_id in issue.tracks):
            continue
        problems.append(f"known issue {issue.id}: {issue.what}")
        if issue.action == "shift":
            shift += issue.shift_seconds
            problems[-1] += f" (note times moved by {issue.shift_seconds:+.3f} s)"
        elif issue.action == "drop":
            failure = failure or problems[-1]
    return Row(
        id=track_id, name=entry.get("name") or track_id, split=split,
        audio=tuple(audio / path for path in row_paths(entry, "audio")),
        labels=tuple(labels / path for path in row_paths(entry, "labels")),
        problems=tuple(problems), shift_seconds=shift,
        failure=failure,
    )  # fmt: skip


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder without permission, for example
        return False


def _base(bases: Iterable[Path], manifest: DatasetManifest, column: str) -> Path | None:
    """Returns the first base folder that holds a file of this column."""
    for base in bases:
        if base.is_dir() and _holds(base, manifest, column):
            return base
    return None


def _holds(base: Path, manifest: DatasetManifest, column: str) -> bool:
    paths = [path for entry in manifest.rows.values() for path in row_paths(entry, column)]
    there = {folder: (base / folder).is_dir() for folder in {p.rpartition("/")[0] for p in paths}}
    return any(there[p.rpartition("/")[0]] and _is_file(base / p) for p in paths)


def _nothing(root: Path, bases: list[Path], manifest: DatasetManifest) -> str:
    example = next(path for entry in manifest.rows.values() for path in row_paths(entry, "audio"))
    looked = " and ".join(str(base) for base in bases)
    reason = (
        f"{root} holds no file of {manifest.title}; looked for {example} and its like in {looked}"
    )
    if not root.is_dir():
        return f"{reason}; the folder does not exist"
    near = [root.parent, root.parent.parent, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))]
    for folder in near:
        for base in (folder, folder / manifest.folder):
            if _holds(base, manifest, "audio") or _holds(base, manifest, "labels"):
                return f"{reason}; there are files in {base}: point there"
    return f"{reason}; `mt3data download {manifest.name} --root {root}` fetches it"


# --- labels that are one MIDI file ---------------------------------------------------------------


@dataclass(frozen=True)
class MidiLabels:
    """Labels in one MIDI file, read as pretty_midi and note_seq read it (mt3data.music.midi).

    Attributes:
        path: the file.
        program: of all notes, for a dataset of one instrument; None keeps those of the file.
        shift_seconds: added to every note time.
        count_reonsets: report notes that begin while the same pitch still sounds.
    """

    path: Path
    program: int | None = None
    shift_seconds: float = 0.0
    count_reonsets: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The file that `load` reads."""
        return (self.path,)

    def load(self) -> tuple[Notes, tuple[str, ...]]:
        """Reads the notes, numbered by program with sustain applied. Returns them and the problems.

        Raises:
            UserError: the file is missing or not MIDI.
        """
        (notes, unended), problems = read_midi(self.path), []
        if unended:
            problems.append(f"{unended} of {len(notes) + unended} note-ons without an end; dropped")
        if self.program is not None:
            fixed = np.full(len(notes), self.program)
            notes = replace(notes, program=fixed, is_drum=np.zeros(len(notes), dtype=bool))
        if self.count_reonsets and (count := count_overlaps(notes)[0]):
            problems.append(
                f"{count} of {len(notes)} notes begin before the note-off of the same pitch; all "
                "notes of a pitch end at the first note-off"
            )
        return shift_times(assign_instruments(notes), self.shift_seconds), tuple(problems)


def count_overlaps(notes: Notes) -> tuple[int, int]:
    """Counts successive notes of one pitch, program and kind that overlap, and that coincide.

    Returns:
        The number of notes that begin between onset and offset of the previous note, and the
        number of notes that begin together with it.
    """
    before, after = consecutive_same_pitch(notes)
    together = notes.onset[after] == notes.onset[before]
    overlapping = ~together & (notes.onset[after] < notes.offset[before])
    return int(overlapping.sum()), int(together.sum())


def nearest_pitches(fractional: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Rounds fractional MIDI pitches to the nearest semitone, halves upwards.

    Returns:
        The pitches, and a sentence if some are within AMBIGUOUS semitones of a half.
    """
    pitches = np.floor(fractional + 0.5)
    near = int((np.abs(np.abs(fractional - pitches) - 0.5) < AMBIGUOUS).sum())
    sentence = f"{near} of {len(pitches)} pitches lie within {AMBIGUOUS} semitones of a half"
    return pitches, [sentence] if near else []
