"""Reads MusicNetEM: MusicNet's audio with labels that were aligned again by expectation maximisation.

Labels are MIDI files at 120 beats per minute whose time 0 is the start of MusicNet's recording.
A sixth of their notes begin while the same pitch of the same instrument still sounds, and how these
end depends on the reader: pretty_midi, and so note_seq and MT3, ends all open notes of a pitch at
the first note-off, as is done here; a reader that matches note-ons and note-offs in order gives
other offsets. They are counted in the track's problems. Incomplete tracks are named by the
manifest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mt3data.datasets.adapters.csv_tracks import MidiLabels, rows
from mt3data.datasets.adapters.musicnet import COPIES
from mt3data.datasets.manifest import DatasetManifest
from mt3data.datasets.track import Track

UNPACKED = ("musicnet_em",)  # the zip, unpacked by hand below --root


def tracks(
    root: Path, manifest: DatasetManifest, split_scheme: str | None = None
) -> Iterator[Track]:
    """Yields the recordings below root in the order of the manifest's rows.

    A recording that MusicNet has and MusicNetEM has not is no row.

    Args:
        root: the folder that holds the datasets, or the folder of this one.
        manifest: of MusicNetEM.
        split_scheme: name of a scheme of the manifest; None takes its default.
    Raises:
        UserError: there is no such scheme, or no file where one was looked for.
    """
    found = rows(root, manifest, split_scheme, also=COPIES + UNPACKED)
    return (
        Track(
            id=row.id, name=row.name, dataset=manifest.name, split=row.split, audio=row.audio[0],
            problems=row.problems, failure=row.missing(row.audio[0]),
            labels=MidiLabels(row.labels[0], None, row.shift_seconds, count_reonsets=True),
        )
        for row in found
    )  # fmt: skip
