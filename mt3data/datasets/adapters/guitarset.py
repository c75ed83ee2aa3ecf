"""Reads GuitarSet 1.1: short guitar performances, each recorded by a microphone and by pickups.

Both mono recordings of a performance, `_mic` and `_mix` (the six pickups mixed), are tracks of
their own with the same labels. The labels are JAMS: one `note_midi` annotation per string, whose
note times count from the start of the recording; `annotation.time` is where the excerpt lay in the
session and is ignored. Pitches are fractional and go to the nearest semitone, halves upwards; how
many lie near a half is reported. The strings are merged into one instrument, so that
one pitch on two strings gives overlapping notes; they are kept.

MT3 dropped two excerpts that it does not name (478 + 238 tracks of 720) and labels every note as
program 24, "Clean Guitar".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mt3data.datasets.adapters.csv_tracks import (
    VELOCITY,
    Row,
    count_overlaps,
    nearest_pitches,
    rows,
)
from mt3data.datasets.documents import read_json
from mt3data.datasets.manifest import DatasetManifest
from mt3data.datasets.track import Track
from mt3data.errors import UserError
from mt3data.music.midi import MAX_SECONDS
from mt3data.music.notes import Notes, shift_times

PROGRAM = 24  # paper B.4 and mt3/tasks.py
N_STRINGS = 6


def tracks(
    root: Path, manifest: DatasetManifest, split_scheme: str | None = None
) -> Iterator[Track]:
    """Yields the recordings below root, `ID-mic` and `ID-mix` of each performance.

    A kind of recording of which nothing is there, because its archive was not fetched, has no
    tracks.

    Args:
        root: the folder that holds `guitarset`, or that folder itself, with one folder per archive.
        manifest: of GuitarSet.
        split_scheme: name of a scheme of the manifest; None takes its default.
    Raises:
        UserError: there is no such scheme, or no file where one was looked for.
    """
    found = rows(root, manifest, split_scheme)
    return (
        Track(
            id=f"{row.id}-{audio.stem.rpartition('_')[2]}", name=audio.stem, split=row.split,
            dataset=manifest.name, audio=audio, problems=row.problems, failure=row.missing(audio),
            labels=JamsLabels(row.labels[0], row.shift_seconds),
        )
        for row in found
        for audio in _fetched(row)
    )  # fmt: skip


def _fetched(row: Row) -> tuple[Path, ...]:
    """Returns the recordings of a row whose archive was unpacked, or all if none was."""
    return tuple(path for path in row.audio if path.parent.is_dir()) or row.audio


@dataclass(frozen=True)
class JamsLabels:
    """The notes of one JAMS file, shifted by `shift_seconds`."""

    path: Path
    shift_seconds: float = 0.0

    @property
    def files(self) -> tuple[Path, ...]:
        """The file that `load` reads."""
        return (self.path,)

    def load(self) -> tuple[Notes, tuple[str, ...]]:
        """Reads the notes of all strings in order of onset. Returns them and the problems.

        Raises:
            UserError: the file cannot be read or is not such a JAMS file.
        """
        strings = self._read()
        problems = nearest_pitches(np.concatenate(strings)[:, 2])[1]
        parts, struck_again = [], 0
        if len(strings) != N_STRINGS:
            problems.append(f"{len(strings)} strings with notes annotated, expected {N_STRINGS}")
        for table in strings:
            onset, duration, value = table.T
            constant = np.zeros(len(table))
            part = Notes(
                onset, onset + duration, nearest_pitches(value)[0], constant + VELOCITY,
                constant + PROGRAM, constant, constant,
            ).sorted()  # fmt: skip
            struck_again += sum(count_overlaps(part))
            parts.append(part)
        notes = Notes.concat(parts).sorted()
        if struck_again:
            problems.append(f"{struck_again} notes begin while their own string sounds that pitch")
        if overlapping := sum(count_overlaps(notes)) - struck_again:
            problems.append(f"{overlapping} notes begin while another string sounds their pitch")
        return shift_times(notes, self.shift_seconds), tuple(problems)

    def _read(self) -> list[np.ndarray]:
        """Returns rows of (onset s, duration s, fractional pitch) for each string."""
        content = read_json(self.path)
        try:
            strings = [a["data"] for a in content["annotations"] if a["namespace"] == "note_midi"]
            tables = [
                np.array([[n["time"], n["duration"], n["value"]] for n in data], float).reshape(-1, 3)
                for data in strings
            ]  # fmt: skip
            if not tables:
                raise ValueError("no note_midi annotation")
            onset, duration, pitch = np.concatenate(tables).T
            # A comparison with NaN is false, so NaN is refused as well.
            if not ((onset >= 0) & (duration >= 0) & (onset + duration <= MAX_SECONDS)).all():
                raise ValueError("a time or duration is negative, after a day or no number")
            if not ((pitch >= 0) & (pitch < 127.5)).all():
                raise ValueError("a value is no MIDI pitch")
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(
                f"{self.path}: not GuitarSet's JAMS ({type(error).__name__}: {error}); expected "
                "annotations `note_midi` with time, duration and value; download it again"
            ) from error
        return tables
