"""Reads MusicNet: chamber music and solos with labels that were aligned to the audio by dynamic warping.

Labels are CSV rows whose times count samples at 44.1 kHz and whose instrument is the General MIDI
program plus one (1 is the piano). `end_beat` is a length, in spite of its name; the columns in
beats are not used. Overlapping and coinciding notes of one pitch and program are kept and counted,
as MT3 keeps them. No velocity is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mt3data.datasets.adapters.csv_tracks import VELOCITY, count_overlaps, rows
from mt3data.datasets.documents import read_csv
from mt3data.datasets.manifest import DatasetManifest
from mt3data.datasets.track import Track
from mt3data.errors import UserError
from mt3data.music.midi import MAX_SECONDS
from mt3data.music.notes import Notes, assign_instruments, shift_times

LABEL_RATE = 44100  # Hz, what the times of the CSV count in, whatever the file's own rate
COLUMNS = ("start_time", "end_time", "instrument", "note")
COPIES = ("musicnet/musicnet",)  # the copy on Kaggle has one more folder


def tracks(
    root: Path, manifest: DatasetManifest, split_scheme: str | None = None
) -> Iterator[Track]:
    """Yields the recordings below root in the order of the manifest's rows.

    Args:
        root: the folder that holds `musicnet`, or that folder itself.
        manifest: of MusicNet.
        split_scheme: name of a scheme of the manifest; None takes its default.
    Raises:
        UserError: there is no such scheme, or no recording where one was looked for.
    """
    found = rows(root, manifest, split_scheme, also=COPIES)
    return (
        Track(
            id=row.id, name=row.name, dataset=manifest.name, split=row.split, audio=row.audio[0],
            problems=row.problems, failure=row.missing(row.audio[0]),
            labels=CsvLabels(row.labels[0], row.shift_seconds),
        )
        for row in found
    )  # fmt: skip


@dataclass(frozen=True)
class CsvLabels:
    """The notes of one label file, shifted by `shift_seconds`."""

    path: Path
    shift_seconds: float = 0.0

    @property
    def files(self) -> tuple[Path, ...]:
        """The file that `load` reads."""
        return (self.path,)

    def load(self) -> tuple[Notes, tuple[str, ...]]:
        """Reads the notes, instruments numbered by program. Returns them and the problems.

        Raises:
            UserError: the file cannot be read, or a row of it is wrong; the row is named.
        """
        table = np.array(self._read()).reshape(-1, len(COLUMNS))
        start, end, instrument, pitch = table.T
        constant = np.zeros(len(table))
        notes = Notes(
            start / LABEL_RATE, end / LABEL_RATE, pitch, constant + VELOCITY, instrument - 1,
            constant, constant,
        )  # fmt: skip
        overlapping, together = count_overlaps(notes)
        problems = []
        if overlapping or together:
            problems.append(
                f"{overlapping} of {len(notes)} notes overlap one of the same pitch and program, "
                f"{together} begin together with one"
            )
        return shift_times(assign_instruments(notes), self.shift_seconds), tuple(problems)

    def _read(self) -> list[list[int]]:
        """Returns the rows as (start, end, instrument, note)."""
        table = []
        for number, entry in read_csv(self.path, COLUMNS):
            try:
                values = [int(entry[column]) for column in COLUMNS]
                start, end, instrument, note = values
                if not (
                    0 <= start < end <= MAX_SECONDS * LABEL_RATE
                    and 1 <= instrument <= 128
                    and 0 <= note <= 127
                ):
                    raise ValueError("out of range")
            except ValueError as error:
                seen = ",".join(entry[column] for column in COLUMNS)
                raise UserError(
                    f"{self.path}: row {number} has {','.join(COLUMNS)} = {seen[:80]!r}; expected "
                    "0 <= start < end within a day, instrument 1-128 and note 0-127; download the file again"
                ) from error
            table.append(values)
        return table
