"""Reads URMP: small ensembles whose parts were recorded one by one and mixed.

A piece lies in a folder `NN_Title_inst_inst...`. The labels are `Notes_K_inst_NN_Title.txt`, one
per part: onset in seconds, mean frequency in hertz and duration in seconds, separated by any white
space. Frequencies go to the nearest MIDI pitch (440 Hz is 69), halves upwards. The instrument of
part K is the K-th that the folder names; where the file's own name says another (the trombone of
15_Surprise is named as a trumpet), that is reported. `Sco_*.mid` is the score, not aligned, and is
not used; neither are dot files and Supplementary_Files. No velocity is given. MT3 labels every
saxophone as program 64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mt3data.datasets.adapters.csv_tracks import VELOCITY, Row, nearest_pitches, rows
from mt3data.datasets.documents import read_text
from mt3data.datasets.manifest import DatasetManifest
from mt3data.datasets.track import Track
from mt3data.errors import UserError
from mt3data.music.midi import MAX_SECONDS
from mt3data.music.notes import Notes, shift_times

LOWEST_HZ, HIGHEST_HZ = 8.0, 12900.0  # MIDI pitches 0 to 127
COPIES = ("urmp/Dataset", "Dataset", "URMP")  # the archive's own top folder, and mirrors


def tracks(
    root: Path, manifest: DatasetManifest, split_scheme: str | None = None
) -> Iterator[Track]:
    """Yields the pieces below root in the order of the manifest's rows.

    Args:
        root: the folder that holds `urmp`, or that folder itself.
        manifest: of URMP.
        split_scheme: name of a scheme of the manifest; None takes its default.
    Raises:
        UserError: there is no such scheme, or no piece where one was looked for.
    """
    found = rows(root, manifest, split_scheme, also=COPIES)
    return (_track(row, manifest) for row in found)


def _track(row: Row, manifest: DatasetManifest) -> Track:
    audio = row.audio[0]
    named = audio.parent.name.split("_")[2:]
    problems, failure = list(row.problems), row.missing(audio)
    if len(named) != len(row.labels):
        failure = failure or f"{len(row.labels)} parts in a folder that names {len(named)}"
    for number, (path, code) in enumerate(zip(row.labels, named, strict=False), 1):
        if (stated := path.stem.split("_")[2]) != code:
            problems.append(
                f"part {number} is named {stated}, its folder names {code}; read as {code}"
            )
    programs = tuple(manifest.programs.get(code, -1) for code in named)
    if -1 in programs:
        unknown = named[programs.index(-1)]
        failure = failure or f"no program for {unknown!r}; known are {', '.join(manifest.programs)}"
    return Track(
        id=row.id, name=row.name, dataset=manifest.name, split=row.split, audio=audio,
        problems=tuple(problems), failure=failure,
        labels=PartLabels(row.labels, programs, row.shift_seconds),
    )  # fmt: skip


@dataclass(frozen=True)
class PartLabels:
    """The notes of one piece, a text file and a program (0-127) per part, each an instrument."""

    paths: tuple[Path, ...]
    programs: tuple[int, ...]
    shift_seconds: float = 0.0

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that `load` reads."""
        return self.paths

    def load(self) -> tuple[Notes, tuple[str, ...]]:
        """Reads the notes, `instrument` numbering the parts. Returns them and the problems.

        Raises:
            UserError: a file cannot be read, or a row of it is wrong; the row is named.
        """
        parts, problems = [], []
        for number, (path, program) in enumerate(zip(self.paths, self.programs, strict=True)):
            onset, hertz, duration = _read(path).T
            pitch, noticed = nearest_pitches(69 + 12 * np.log2(hertz / 440))
            problems += [f"part {number + 1}: {sentence}" for sentence in noticed]
            constant = np.zeros(len(onset))
            parts.append(Notes(
                onset, onset + duration, pitch, constant + VELOCITY, constant + program, constant,
                constant + number,
            ))  # fmt: skip
            if not len(onset):
                problems.append(f"part {number + 1}: no notes")
        return shift_times(Notes.concat(parts), self.shift_seconds), tuple(problems)


def _read(path: Path) -> np.ndarray:
    """Reads rows of (onset s, frequency Hz, duration s), shape (n, 3)."""
    table = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            onset, hertz, duration = map(float, line.split())
            if not (min(onset, duration) >= 0 and onset + duration <= MAX_SECONDS):
                raise ValueError("no time")
            if not LOWEST_HZ <= hertz < HIGHEST_HZ:
                raise ValueError("out of range")
        except ValueError as error:
            raise UserError(
                f"{path}: row {number} is {line.strip()!r}; expected onset in seconds, frequency "
                "in Hz and duration in seconds; download the file again"
            ) from error
        table.append((onset, hertz, duration))
    return np.array(table, dtype=float).reshape(-1, 3)
