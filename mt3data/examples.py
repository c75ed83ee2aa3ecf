"""One track becomes training examples: read, cut, aligned, labelled; and what is to be told of it."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

from mt3data import align
from mt3data.audio import read_audio
from mt3data.notes import Notes, trim_overlapping
from mt3data.plan import passes_of, source_files, track_row
from mt3data.track import Track
from mt3data.warp import warp
from mt3data.windows import Cut, Window, WindowConfig, cut, label


def build_track(track: Track, config: WindowConfig) -> tuple[dict[str, Any], list[Window], Notes]:
    """Builds one track.

    Returns:
        Its row of tracks.parquet, its windows, and its notes, aligned where that was asked for, but
        untrimmed. A track that fails has a row that says so, and neither windows nor notes.
    """
    stage = "labels"
    try:
        notes, problems = track.load_labels()
        labels_sha256 = _sha256_of(source_files(track)[1:])
        stage = "audio"
        samples = read_audio(track.audio, config.spectrogram.sample_rate)
        audio_sha256 = _sha256_of([track.audio])
        stage = "windows"
        passes = passes_of(track.split, config)
        cuts = [cut(samples, track.id, k, config) for k in range(passes)]
        seconds = len(samples) / config.spectrogram.sample_rate
        del samples  # a long track's would stand beside its mel while that is aligned
        stage = "align"
        notes, facts, remarks = aligned(cuts[0], notes, config)
        stage = "windows"
        labels = trim_overlapping(notes) if track.trim else notes
        windows = list(label(cuts, labels, config))
    except (ValueError, OSError) as error:
        row = track_row(track, status="quarantined", stage=stage, error=str(error))
        return row, [], Notes.empty()
    row = track_row(
        track, status="ok", seconds=seconds, frames=windows[0].track_frames, notes=len(labels),
        notes_after_audio=int((labels.onset >= seconds).sum()), records=len(windows),
        audio_sha256=audio_sha256, labels_sha256=labels_sha256,
        problems=[*problems, *remarks], **facts,
    )  # fmt: skip
    return row, windows, notes


def aligned(
    first: Cut, notes: Notes, config: WindowConfig
) -> tuple[Notes, dict[str, Any], list[str]]:
    """Measures how well labels and audio agree and does about it what config.align says.

    Args:
        first: pass 0 of the track.
    Returns:
        The notes; columns of tracks.parquet, as measured before any correction (null: not
        measurable); and remarks about what was not done, or lost.
    """
    if config.align == "off":
        return notes, {}, []
    faded = config.frames if config.edge == "segment" else 0
    found = align.measure(first.whole, notes, config.spectrogram, faded)
    facts: dict[str, Any] = {
        "lag": _or_null(found.lag_seconds),
        "drift": _or_null(found.drift_seconds),
        "align_confidence": _or_null(found.confidence),
    }
    moved, remark = notes, ""
    if config.align == "shift":
        moved, remark = align.shift(notes, found)
    elif config.align == "dtw":
        moved, _, remark = warp(first.whole, notes, config.spectrogram, faded)
    remarks = [remark] if remark else []
    if moved is not notes:
        facts["aligned"] = "shifted" if config.align == "shift" else "warped"
        if len(moved) < len(notes):
            remarks.append(f"{len(notes) - len(moved)} notes end before the audio begins; dropped")
    return moved, facts, remarks


def _or_null(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _sha256_of(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
