"""Reads MAPS: piano pieces by seven sampled pianos and one Disklavier, recorded close and ambient.

A recording is `<piano>/MUS/MAPS_MUS-<piece>_<piano>.wav` with its labels in a `.txt` of the same
name: columns OnsetTime, OffsetTime (seconds) and MidiPitch, separated by tabs. The offsets contain
the sustain pedal. No velocity is given in these files. The `.mid` of the same name is not used. The
folders ISOL, RAND and UCHO hold single notes and chords and are ignored. MT3 has no counterpart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mt3data.datasets.adapters.csv_tracks import VELOCITY
from mt3data.datasets.documents import read_text
from mt3data.datasets.manifest import DatasetManifest
from mt3data.datasets.track import Track
from mt3data.errors import UserError
from mt3data.music.midi import MAX_SECONDS
from mt3data.music.notes import Notes
from mt3data.terminal import echo

RECORDING = re.compile(r"MAPS_MUS-(.+)_([^_]+)")
TABLES = ("MUS", "*/MUS", "*/*/MUS")  # below a piano's archive, its folder, and the dataset
PIANO = 0  # General MIDI's acoustic grand


def tracks(
    root: Path, manifest: DatasetManifest, split_scheme: str | None = None
) -> Iterator[Track]:
    """Yields the recordings of music below root in the order of their names.

    Recordings of the test pianos are the test split. Those of the same pieces by other pianos are
    left out, and their number is printed.

    Args:
        root: the folder that holds `MAPS`, or that folder itself.
        manifest: of MAPS. Its layout names the test pianos, and the pieces of each split.
        split_scheme: name of a scheme of the manifest; None takes its default.
    Raises:
        UserError: there is no such scheme, or no recording where one was looked for.
    """
    scheme, root = manifest.scheme(split_scheme), Path(root)
    bases = [base for base in (root / manifest.folder, root) if base.is_dir()]
    found: dict[str, Path] = {}
    for base in bases:
        for path in (path for table in TABLES for path in base.glob(f"{table}/MAPS_MUS-*")):
            if path.suffix in (".wav", ".txt") and RECORDING.fullmatch(path.stem):
                found.setdefault(path.stem, path.parent)
        if found:
            break
    if not found:
        raise UserError(
            f"{root} holds no recording of MAPS; looked for <piano>/MUS/MAPS_MUS-<piece>_<piano>.wav "
            f"in it and in {manifest.folder} below it. {manifest.homepage} has the archives"
        )
    listed = [
        _track(folder / stem, manifest, scheme.name) for stem, folder in sorted(found.items())
    ]
    if omitted := [track.id for track in listed if not track.split]:
        echo(
            f"maps: left out {len(omitted)} of {len(listed)} recordings, whose pieces are in the test "
            f"set too: {', '.join(omitted)}",
            err=True,
        )
    return (track for track in listed if track.split)


def _track(stem: Path, manifest: DatasetManifest, scheme: str) -> Track:
    match = RECORDING.fullmatch(stem.name)
    assert match is not None  # tracks() looked
    piece, piano = match.groups()
    split = "train"
    if piano in manifest.layout_names("test_pianos"):
        split = "test"
    elif piece in manifest.layout_names("test_pieces"):
        split = ""
    elif scheme != "published" and piece in manifest.layout_names("validation_pieces"):
        split = "validation"
    audio, labels = stem.with_name(f"{stem.name}.wav"), stem.with_name(f"{stem.name}.txt")
    absent = [path.name for path in (audio, labels) if not path.is_file()]
    return Track(
        id=f"{piece}_{piano}", name=stem.name, dataset=manifest.name, split=split, audio=audio,
        failure=f"no {', no '.join(absent)}" if absent else "", labels=TextLabels(labels),
    )  # fmt: skip


@dataclass(frozen=True)
class TextLabels:
    """The notes of one text file, all of a piano."""

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """The file that `load` reads."""
        return (self.path,)

    def load(self) -> tuple[Notes, tuple[str, ...]]:
        """Reads the notes in the order of the file.

        Returns:
            Notes in seconds of the recording, all of velocity VELOCITY, and no problems.
        Raises:
            UserError: the file cannot be read or is not such a table.
        """
        header, *lines = read_text(self.path).splitlines() or [""]
        if header.split() != ["OnsetTime", "OffsetTime", "MidiPitch"]:
            raise UserError(
                f"{self.path}: line 1 is {header[:80]!r}; expected OnsetTime, OffsetTime and MidiPitch"
            )
        table = []
        for number, line in enumerate(lines, 2):
            if not line.strip():
                continue
            try:
                on, off, key = (float(value) for value in line.split())
            except ValueError:
                on = off = key = np.nan
            if not (0 <= on < MAX_SECONDS and 0 <= off < MAX_SECONDS and key in range(128)):
                raise UserError(
                    f"{self.path}: line {number} is {line[:80]!r}; expected an onset and an offset in "
                    "seconds and a pitch of 0 to 127"
                )
            table.append((on, off, key))
        onset, offset, pitch = np.array(table, dtype=float).reshape(-1, 3).T
        zero = np.zeros(len(onset))
        return Notes(onset, offset, pitch, zero + VELOCITY, zero + PIANO, zero, zero), ()
