"""Reads MAESTRO, versions 1, 2 and 3: recordings of a Disklavier with what its keys and pedals did.

The manifest's rows list the recordings and their splits. The publisher's own table, where it lies
beside the files, is compared with them: v1 divides 312 recordings otherwise than v2 and v3 do, so
a folder of one version must not be built as another without a word. Rates are 44.1 or 48 kHz, by
year; audio.py brings every file to 16 kHz. Velocities and the sustain pedal are in the MIDI; the
pedal prolongs notes, as in MT3 (mt3/preprocessors.py add_track_to_notesequence). Overlaps are not
trimmed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mt3data.datasets.adapters.csv_tracks import MidiLabels, Row, rows
from mt3data.datasets.documents import read_csv, read_json
from mt3data.datasets.manifest import DatasetManifest
from mt3data.datasets.track import Track
from mt3data.errors import UserError

PIANO = 0  # General MIDI program


def tracks(
    root: Path, manifest: DatasetManifest, split_scheme: str | None = None
) -> Iterator[Track]:
    """Yields the recordings below root in the order of the manifest's rows.

    Args:
        root: the folder that holds maestro-vN.0.0, or that folder itself.
        manifest: of one version.
        split_scheme: name of a scheme of the manifest; None takes its default.
    Raises:
        UserError: there is no such scheme, no recording where one was looked for, or the
            publisher's table is unreadable.
    """
    found = rows(root, manifest, split_scheme)
    return _tracks(found, manifest)


def _tracks(found: Iterator[Row], manifest: DatasetManifest) -> Iterator[Track]:
    published: dict[str, str] | None = None
    for row in found:
        audio, midi = row.audio[0], row.labels[0]
        year_and_name = "/".join(midi.parts[-2:])
        if published is None:  # the table lies beside the folders of the years
            published = read_table(midi.parent.parent)
        problems = list(row.problems)
        theirs = published.get(year_and_name, row.split)
        if theirs != row.split:
            problems.append(
                f"the table beside the files states {theirs}, {manifest.title} {row.split}"
            )
        yield Track(
            id=row.id, name=row.name, dataset=manifest.name, split=row.split, audio=audio,
            problems=tuple(problems), failure=row.missing(audio),
            labels=MidiLabels(midi, program=PIANO, shift_seconds=row.shift_seconds),
        )  # fmt: skip


def read_table(folder: Path) -> dict[str, str]:
    """Reads the split of each MIDI file from the publisher's table; empty without a table.

    The JSON of v1 and v2 is a list of rows, that of v3 a mapping of columns, each a mapping from
    the number of the row; the CSV is the same in all.

    Raises:
        UserError: the file is damaged or lacks a column.
    """
    columns = ("midi_filename", "split")
    for path in sorted(folder.glob("maestro-v*.json")) + sorted(folder.glob("maestro-v*.csv")):
        if path.suffix == ".csv":
            return {row["midi_filename"]: row["split"] for _, row in read_csv(path, columns)}
        content = read_json(path)
        try:
            if isinstance(content, dict):
                names, splits = content["midi_filename"], content["split"]
                rows = [{"midi_filename": names[key], "split": splits[key]} for key in names]
            else:
                rows = content
            found = {row["midi_filename"]: row["split"] for row in rows}
            if not all(isinstance(value, str) for pair in found.items() for value in pair):
                raise TypeError("a name or split is no text")
            return found
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"{path}: not MAESTRO's table ({type(error).__name__}: {error}); expected "
                "midi_filename and split of every recording; remove the file or download it again"
            ) from error
    return {}
