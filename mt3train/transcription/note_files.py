"""Encodes notes as MIDI, JSON or CSV. Every file names the command that made it."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from mt3data.files import mark
from mt3data.music.midi import DRUMS, instrument_name, midi_bytes
from mt3data.music.notes import COLUMNS, Notes

COMMAND = "mt3train transcribe"
# First lines of CSV files, which have no room for the mark: with and without velocity.
CSV_COLUMNS = {True: [*COLUMNS, "name"], False: [*(c for c in COLUMNS if c != "velocity"), "name"]}
HEADINGS = tuple(",".join(names).encode() + b"\n" for names in CSV_COLUMNS.values())


def encode_notes_as(kind: str, notes: Notes, has_velocity: bool) -> bytes:
    """Returns the content of a file of notes.

    JSON is {"made_by": ..., "notes": [{onset, offset, pitch, ...}, ...]}. CSV has one line per note
    under a heading. Times are in seconds.

    Args:
        kind: "mid", "json" or "csv".
        notes: in the order in which they are written.
        has_velocity: whether the model transcribes velocities. If not, JSON and CSV have none.
    """
    if kind == "mid":
        return midi_bytes(notes, mark(COMMAND))
    rows = _rows(notes, has_velocity)
    if kind == "json":
        text = ",\n".join(map(json.dumps, rows))
        return f'{{"made_by": {json.dumps(mark(COMMAND))}, "notes": [\n{text}\n]}}\n'.encode()
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS[has_velocity], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


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
