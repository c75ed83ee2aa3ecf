"""Reads a folder of recordings with labels for evaluation, without a build."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mt3data.audio.load import read_audio, to_int16
from mt3data.audio.spectrogram import SpectrogramConfig, count_frames
from mt3data.datasets.adapters.folder import tracks
from mt3data.datasets.manifest import load
from mt3data.datasets.track import Track
from mt3data.errors import UserError
from mt3data.shards.index import TrackRecords


def require_recordings(folder: Path) -> list[Track]:
    """Finds recordings beside MIDI files of the same name, as `mt3data build folder` pairs them.

    Raises:
        UserError: no such folder, no pair in it, or a file without a partner.
    """
    found = list(tracks(folder, load("folder")))
    for track in found:
        if track.failure:
            raise UserError(f"data.validation_folder: {folder / track.name}: {track.failure}")
    return found


def read_recordings(folder: Path, spectrogram: SpectrogramConfig) -> Iterator[TrackRecords]:
    """Yields the recordings of a folder, whatever their split.

    Raises:
        UserError: a file cannot be read, or see `require_recordings`.
    """
    for track in require_recordings(folder):
        samples = to_int16(read_audio(track.audio, spectrogram.sample_rate))
        n_frames = count_frames(len(samples), spectrogram.hop)
        padding = n_frames * spectrogram.hop + spectrogram.context - len(samples)
        audio = np.pad(samples, (0, padding))
        yield TrackRecords(track.id, n_frames, [0], [], [audio], track.load_notes())
