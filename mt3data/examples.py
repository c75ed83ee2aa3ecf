"""One track becomes training examples: read, cut, aligned, labelled; and what is to be told of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mt3data import align
from mt3data.audio import read_audio
from mt3data.mix import mixes
from mt3data.notes import Notes, trim_overlapping
from mt3data.plan import label_files, passes_of, track_row
from mt3data.track import Track
from mt3data.warp import warp
from mt3data.windows import Cut, Window, WindowConfig, cut, label


def build_track(track: Track, config: WindowConfig) -> tuple[dict[str, Any], list[Window], Notes]:
    """Builds one track.

    Returns:
        Its row of tracks.parquet, its windows, and the notes of pass 0, aligned where that was
        asked for, but untrimmed. A track that fails has a row that says so, and neither windows nor
        notes. Where passes hear different stems, the row counts the notes of all of them; lag and
        drift are those of pass 0.
    """
    stage, rate = "labels", config.spectrogram.sample_rate
    try:
        notes, remarks = _notes_of_passes(track)
        labels_sha256 = _sha256_of(label_files(track))
        stage = "audio"
        heard = mixes(track, rate) if track.passes else [read_audio(track.audio, rate)]
        audio_sha256 = _sha256_of(track.audio_files)
        stage, seconds = "windows", len(heard[0]) / rate
        cuts = _cuts(track, heard, config)
        del heard  # a long track's samples would stand beside its mel while that is aligned
        stage = "align"
        moved = [aligned(c[0], n, config) for c, n in zip(cuts, notes, strict=True)]
        stage = "windows"
        labels = [trim_overlapping(n) if track.trim else n for n, _, _ in moved]
        windows = [w for c, n in zip(cuts, labels, strict=True) for w in label(c, n, config)]
    except (ValueError, OSError) as error:
        row = track_row(track, status="quarantined", stage=stage, error=str(error))
        return row, [], Notes.empty()
    row = track_row(
        track, status="ok", seconds=seconds, frames=windows[0].track_frames,
        notes=sum(map(len, labels)), records=len(windows), audio_sha256=audio_sha256,
        notes_after_audio=sum(int((n.onset >= seconds).sum()) for n in labels),
        labels_sha256=labels_sha256,
        problems=[*remarks, *dict.fromkeys(r for _, _, told in moved for r in told)], **moved[0][1],
    )  # fmt: skip
    return row, windows, moved[0][0]


def _cuts(track: Track, heard: list[np.ndarray], config: WindowConfig) -> list[list[Cut]]:
    """The passes over each audio in `heard`: one over each, or all over the only one."""
    if track.passes:
        return [[cut(one, track.id, k, config, phased=False)] for k, one in enumerate(heard)]
    return [[cut(heard[0], track.id, k, config) for k in range(passes_of(track, config))]]


def _notes_of_passes(track: Track) -> tuple[list[Notes], tuple[str, ...]]:
    """The notes of each pass that hears stems of its own, or those of all; and problems."""
    if not track.passes:
        notes, problems = track.load_labels()
        return [notes], problems
    parts, problems = track.load_parts()
    used = [[part for i, part in parts if i in members] for members in track.passes]
    return [Notes.concat(some) for some in used], problems


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


def _sha256_of(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
