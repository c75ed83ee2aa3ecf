"""Notes as JSON and CSV, for programs that do not read MIDI."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mt3data.files import write_atomically
from mt3data.music.midi import DRUMS, instrument_name
from mt3data.music.notes import COLUMNS, Notes


def write_json(notes: Notes, path: Path, has_velocity: bool) -> None:
    """Writes {"notes": [{onset, offset, pitch, ...}, ...]}, times in seconds.

    Args:
        notes: in the order in which they are written.
        path: of the file; one that is there is replaced.
        has_velocity: whether the model hears velocities; else they are left out.
    Raises:
        OSError: the file cannot be written.
    """
    text = ",\n".join(json.dumps(row) for row in _rows(notes, has_velocity))
    write_atomically(path, f'{{"notes": [\n{text}\n]}}\n'.encode())


def write_csv(notes: Notes, path: Path, has_velocity: bool) -> None:
    """Writes one line per note under a heading; see `write_json`."""
    text = io.StringIO()
    names = [name for name in COLUMNS if name != "velocity" or has_velocity]
    writer = csv.DictWriter(text, [*names, "name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(notes, has_velocity))
    write_atomically(path, text.getvalue().encode())


def _rows(notes: Notes, has_velocity: bool) -> Iterator[dict[str, Any]]:
    columns = {name: getattr(notes, name).tolist() for name in COLUMNS}
    columns["onset"], columns["offset"] = (
        [round(time, 6) for time in columns[name]] for name in ("onset", "offset")
    )
    if not has_velocity:
        del columns["velocity"]
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        yield row | {"name": instrument_name(DRUMS if row["is_drum"] else row["program"])}
