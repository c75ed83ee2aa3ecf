"""Cuts the records of a build into the segments that a model was trained on.

Records with log-mel fit models of the same right_context. Records with audio fit every model: segments
are cut from the int16 samples and transformed with the settings of the checkpoint.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.audio.load import from_int16
from mt3data.errors import UserError
from mt3data.shards.format import read_build_manifest
from mt3data.shards.index import TrackRecords
from mt3train.transcription.transcribe import segment_mels
from mt3train.weights.checkpoint import CheckpointInfo


def require_fit(build: Path, info: CheckpointInfo) -> None:
    """Raises UserError if the records of a build do not fit the spectrogram of a model."""
    manifest = read_build_manifest(build)
    spectrogram = asdict(info.spectrogram)
    if manifest["spectrogram"] != spectrogram:
        raise UserError(
            f"{build}: its spectrogram is {manifest['spectrogram']}, the checkpoint's is "
            f"{spectrogram}; evaluate on a build made with the settings of the training shards"
        )
    if "audio" in manifest["features"]:
        return
    if manifest["right_context"] != info.right_context:
        raise UserError(
            f"{build}: its right_context is {manifest['right_context']}, the checkpoint's is {info.right_context}; "
            f"{_make_one(manifest, info)}"
        )
    if info.right_context == "zeros" and manifest["window"] != info.frames:
        raise UserError(
            f"{build}: its segments have {manifest['window']} frames, the checkpoint's "
            f"{info.frames}; {_make_one(manifest, info)}"
        )


def _make_one(manifest: dict[str, Any], info: CheckpointInfo) -> str:
    window = info.frames if info.right_context == "zeros" else max(manifest["window"], info.frames)
    return (
        f"`mt3data build {manifest['dataset']} --window {window} --context {info.right_context} --out FOLDER` makes "
        "one that fits, --store audio one that fits every model"
    )


def segments_of(records: TrackRecords, info: CheckpointInfo) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (start frame, float32 [frames, n_mels]) of each segment of a track, padded with 0.0."""
    size, starts = info.frames, range(0, records.track_frames, info.frames)
    if records.audio:
        hop, context = info.spectrogram.hop, info.spectrogram.context
        samples = np.concatenate([window[: len(window) - context] for window in records.audio])
        # A track's last frame is padded, by one sample at least, which segment_mels does itself.
        samples = from_int16(samples[: records.track_frames * hop - 1])
        mels = segment_mels([samples], info.spectrogram, info.right_context, size)
        yield from zip(starts, mels, strict=True)
        return
    track = np.concatenate(records.mel)
    for start in starts:
        mel = track[start : start + size].astype(np.float32)  # padding included, if any
        yield start, np.pad(mel, ((0, size - len(mel)), (0, 0)))
