"""Encodes notes as MIDI, JSON, JSON lines or CSV, and recognises such files of an earlier run."""

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from mt3data.files import mark
from mt3data.music.beats import Beats
from mt3data.music.midi import DRUMS, instrument_name, midi_bytes
from mt3data.music.notes import COLUMNS, Notes

COMMAND = "mt3train transcribe"
CSV_COLUMNS = {True: [*COLUMNS, "name"], False: [*(c for c in COLUMNS if c != "velocity"), "name"]}
# Beginnings of the files whose format has no room for the mark, by format.
HEADINGS = {
    "csv": re.compile(rb"onset,offset,pitch,(velocity,)?program,is_drum,instrument,name\n"),
    "jsonl": re.compile(
        rb'\{"onset": [\d.e-]+, "offset": [\d.e-]+, "pitch": \d+, ("velocity": \d+, )?"program": \d+, '
        rb'"is_drum": (true|false), "instrument": \d+, "name": "[^"]+"\}\n'
    ),
}
# Of the files for single instruments, by number of program: "church-organ". The last is "drums".
INSTRUMENT_NAMES = tuple(
    re.sub("[^a-z0-9]+", "-", instrument_name(program).lower()).strip("-")
    for program in (*range(128), DRUMS)
)


def encode_notes_as(
    kind: str, notes: Notes, has_velocity: bool, seconds: float, beats: Beats | None = None
) -> bytes:
    """Returns the content of a file of notes.

    JSON is {"made_by": ..., "notes": [{onset, offset, pitch, ...}, ...]}. JSON lines have one such
    object per line. CSV has one line per note under a heading. Times are in seconds.

    Args:
        kind: "mid", "json", "jsonl" or "csv".
        notes: in the order in which they are written.
        has_velocity: whether the model transcribes velocities. If not, JSON and CSV have none.
        seconds: length of the recording, at which MIDI ends.
        beats: beats and bars of MIDI; None: a nominal tempo without bars.
    """
    if kind == "mid":
        return midi_bytes(notes, mark(COMMAND), seconds, beats)
    rows = _rows(notes, has_velocity)
    if kind == "jsonl":
        return "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    if kind == "json":
        text = ",\n".join(map(json.dumps, rows))
        return f'{{"made_by": {json.dumps(mark(COMMAND))}, "notes": [\n{text}\n]}}\n'.encode()
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS[has_velocity], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def split_by_instrument(notes: Notes) -> dict[str, Notes]:
    """Returns the notes of every instrument by its name in INSTRUMENT_NAMES, drums last."""
    number = np.where(notes.is_drum, DRUMS, notes.program)
    found = sorted(np.unique(number).tolist(), key=lambda one: (one == DRUMS, one))
    return {INSTRUMENT_NAMES[program]: notes[number == program] for program in found}


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
