"""One track becomes training examples: read, cut, aligned, labelled; and what is to be told of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.align import lag as align
from mt3data.align.warp import warp
from mt3data.audio.load import read_audio
from mt3data.audio.spectrogram import count_frames, pad_to_frames
from mt3data.build.plan import n_variants
from mt3data.build.track_table import track_row
from mt3data.datasets.stem_mixes import mixes
from mt3data.datasets.track import Track
from mt3data.music.notes import Notes, trim_overlapping
from mt3data.shards.windows import Cut, Window, WindowConfig, cut, label, window_mel

CORRECTIONS = ("shift", "dtw")  # of WindowConfig.align: what moves labels


class TrackFailure(Exception):
    """What is wrong with a track, its files or its labels; other tracks are not affected.

    Attributes:
        stage: "labels", "audio", "align" or "windows".
        reason: what was raised, or one sentence.
    """

    def __init__(self, stage: str, reason: Exception | str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage, self.reason = stage, reason


class TrackExamples:
    """The windows of one track, made one by one while they are iterated over.

    Of a track only its samples are held whole, 4 MB a minute; its mel is gone once it is taken.

    Attributes:
        row: after the last window, the track's row of tracks.parquet. Where variants hear different
            stems, it counts the notes of all of them; lag and drift are those of variant 0.
        notes: after the last window, the notes of variant 0, aligned where that was asked for, but
            untrimmed.
    """

    def __init__(self, track: Track, config: WindowConfig) -> None:
        self.track, self.config = track, config
        self.row: dict[str, Any] = {}
        self.notes = Notes.empty()
        self._stage = "labels"

    def __iter__(self) -> Iterator[Window]:
        """Yields the windows, variant by variant, in time order.

        Raises:
            TrackFailure: at any moment; windows that came before it are to be thrown away.
        """
        try:
            yield from self._windows()
        except Exception as error:  # whatever a file makes a library do, it is this track's alone
            raise TrackFailure(self._stage, error) from error

    def _windows(self) -> Iterator[Window]:
        track, config, rate = self.track, self.config, self.config.spectrogram.sample_rate
        notes, remarks = _notes_of_variants(track)
        labels_sha256 = _sha256_of(track.label_files)
        self._stage = "audio"
        heard = mixes(track, rate) if track.variants else [read_audio(track.audio, rate)]
        audio_sha256 = _sha256_of(track.audio_files)
        seconds, problems = len(heard[0]) / rate, [*remarks, *_clipped(heard, config)]
        frames = count_frames(len(heard[0]), config.spectrogram.hop)
        records, found = 0, []
        for cuts, of_variant in zip(_cuts(track, heard, config), notes, strict=True):
            found.append((yield from self._variant(cuts, of_variant)))
            records += sum(len(one.starts) for one in cuts)
        self.notes = found[0].notes
        labels = [one.labels for one in found]
        self.row = track_row(
            track, status="ok", seconds=seconds, frames=frames, notes=sum(map(len, labels)),
            records=records, audio_sha256=audio_sha256, labels_sha256=labels_sha256,
            notes_after_audio=sum(int((n.onset >= seconds).sum()) for n in labels),
            problems=[*problems, *dict.fromkeys(r for one in found for r in one.remarks)],
            **found[0].facts,
        )  # fmt: skip

    def _variant(self, cuts: list[Cut], notes: Notes) -> Generator[Window, None, _Aligned]:
        """Yields the windows of variants that hear the same; returns what became of their labels."""
        config, first = self.config, cuts[0]
        measured = config.align == "measure" and first.variant == 0
        # Where labels stay as they are, lag is measured on the mel of the windows as they come by.
        in_passing = measured and "mel" in config.features
        bands = np.empty((first.track_frames if in_passing else 0, align.DRUMS), np.float32)
        aligned = _Aligned(notes)
        if config.align in CORRECTIONS or (measured and not in_passing):
            self._stage = "align"
            aligned = _align(_bands(first, config), notes, config)
        self._stage = "windows"
        labels = trim_overlapping(aligned.notes) if self.track.trim else aligned.notes
        for window in label(cuts, labels, config):
            if in_passing and window.variant == first.variant:
                part = slice(window.start_frame, window.start_frame + window.valid_frames)
                mel = window.sound["mel"][: window.valid_frames]
                bands[part] = align.semitone_magnitudes(mel, config.spectrogram)
            yield window
        if in_passing:
            self._stage = "align"
            aligned = _align(bands, notes, config)
        return replace(aligned, labels=labels)


@dataclass(frozen=True)
class _Aligned:
    """What became of the labels of a variant.

    Attributes:
        notes: moved where that was asked for; labels: the same, trimmed where the track wants it.
        facts: columns of tracks.parquet, as measured before any correction (null: not measurable).
        remarks: what was not done, or lost.
    """

    notes: Notes
    facts: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    labels: Notes = field(default_factory=Notes.empty)


def _cuts(track: Track, heard: list[np.ndarray], config: WindowConfig) -> Iterator[list[Cut]]:
    """The variants over each audio in `heard`: one over each, or all over the only one.

    Takes what it has padded out of `heard`, so that it is not held twice.
    """
    for k in range(len(heard)):
        samples = pad_to_frames(heard.pop(0), config.spectrogram.hop)
        if track.variants:
            yield [cut(samples, track.id, k, config, phased=False)]
        else:
            yield [cut(samples, track.id, n, config) for n in range(n_variants(track, config))]


def _clipped(heard: list[np.ndarray], config: WindowConfig) -> list[str]:
    """Says how many samples an audio member cannot hold."""
    if "audio" not in config.features:
        return []
    beyond = sum(int((one > 1).sum() + (one < -1).sum()) for one in heard)
    if not beyond:
        return []
    return [f"{beyond} of {sum(map(len, heard))} samples are beyond full scale; clipped"]


def _notes_of_variants(track: Track) -> tuple[list[Notes], tuple[str, ...]]:
    """The notes of each variant that hears stems of its own, or those of all; and problems."""
    if not track.variants:
        notes, problems = track.load_labels()
        return [notes], problems
    parts, problems = track.load_parts()
    used = [[part for i, part in parts if i in members] for members in track.variants]
    return [Notes.concat(some) for some in used], problems


def _bands(first: Cut, config: WindowConfig) -> np.ndarray:
    """What alignment hears of a variant, from a mel of its own."""
    bands = np.empty((first.track_frames, align.DRUMS), np.float32)
    for start in first.starts:
        part = bands[start : start + config.frames]
        mel = window_mel(first.samples, start, config)[: len(part)]
        part[:] = align.semitone_magnitudes(mel, config.spectrogram)
    return bands


def _align(bands: np.ndarray, notes: Notes, config: WindowConfig) -> _Aligned:
    """Measures how well labels and audio agree and does about it what config.align says.

    Args:
        bands: of the whole track, see align.semitone_magnitudes.
    """
    faded = config.frames if config.right_context == "zeros" else 0
    found = align.measure(bands, notes, config.spectrogram, faded)
    facts: dict[str, Any] = {
        "lag": _or_null(found.lag_seconds),
        "drift": _or_null(found.drift_seconds),
        "align_confidence": _or_null(found.confidence),
    }
    moved, remark = notes, ""
    if config.align == "shift":
        moved, remark = align.remove_lag(notes, found)
    elif config.align == "dtw":
        moved, _, remark = warp(bands, notes, config.spectrogram, faded)
    remarks = [remark] if remark else []
    if moved is not notes:
        facts["aligned"] = "shifted" if config.align == "shift" else "warped"
        if len(moved) < len(notes):
            remarks.append(f"{len(notes) - len(moved)} notes end before the audio begins; dropped")
    return _Aligned(moved, facts, tuple(remarks))


def _or_null(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _sha256_of(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
