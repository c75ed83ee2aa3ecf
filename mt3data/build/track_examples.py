"""Turns one track into training examples: reads, cuts, aligns and labels it."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mt3data.align import lag as align
from mt3data.align.warp import warp
from mt3data.audio.load import read_audio
from mt3data.audio.spectrogram import count_frames, pad_to_frames
from mt3data.build.identity import sha256_of
from mt3data.build.track_table import track_row
from mt3data.datasets.stem_mixes import mixes
from mt3data.datasets.track import Track
from mt3data.errors import UserError
from mt3data.music.notes import Notes, trim_overlapping, validate
from mt3data.shards.windows import Cut, Window, WindowConfig, cut, label, n_variants, window_mel

CORRECTIONS = ("shift", "dtw")  # of WindowConfig.align: those that move labels
# Labels beyond these limits belong to another recording, or to another time base.
MAX_LATE_SHARE, MAX_LATE_SECONDS = 0.05, 60.0
SHORTEST_SECONDS = 0.01  # of a note, a time step of the tokens


class TrackFailure(Exception):
    """A fault of a track, its files or its labels, which does not affect other tracks.

    Attributes:
        stage: "labels", "audio", "align", "windows" or "source".
        reason: the exception, or one sentence.
    """

    def __init__(self, stage: str, reason: Exception | str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage, self.reason = stage, reason


class TrackExamples:
    """Yields the windows of one track one by one.

    Only the samples of the track are held in memory as a whole, 4 MB a minute.

    Attributes:
        row: after the last window, the track's row of tracks.parquet. Where variants have different
            stems, it counts the notes of all variants; lag and drift are those of variant 0.
        notes: after the last window, the notes of variant 0, aligned where the config asks for it,
            but untrimmed.
    """

    def __init__(self, track: Track, config: WindowConfig) -> None:
        self.track, self.config = track, config
        self.row: dict[str, Any] = {}
        self.notes = Notes.empty()
        self._stage = "labels"

    def __iter__(self) -> Iterator[Window]:
        """Yields the windows, variant by variant, in time order.

        Raises:
            TrackFailure: at any moment. The windows before it must then be discarded.
        """
        try:
            yield from self._windows()
        except Exception as error:  # whatever a file makes a library raise costs this track alone
            raise TrackFailure(self._stage, error) from error

    def _windows(self) -> Iterator[Window]:
        track, config, rate = self.track, self.config, self.config.spectrogram.sample_rate
        notes, problems_of_labels = _notes_of_variants(track)
        labels_sha256 = sha256_of(track.label_files)
        self._stage = "audio"
        audio = mixes(track, rate) if track.variants else [read_audio(track.audio, rate)]
        audio_sha256 = sha256_of(track.audio_files)
        seconds = len(audio[0]) / rate
        frames = count_frames(len(audio[0]), config.spectrogram.hop)
        self._stage = "labels"
        n_late = sum(_count_late(each, seconds) for each in notes)
        problems = [*problems_of_labels, *_clipped(audio, config)]
        if n_late:
            n_notes = sum(map(len, notes))
            problems.append(f"{n_late} of {n_notes} notes begin after the end of the audio")
        if n_long := sum(int(_is_too_long(each, seconds).sum()) for each in notes):
            problems.append(
                f"{n_long} notes last until more than {MAX_LATE_SECONDS:g} s after the end of the audio; "
                "cut there"
            )
            notes = [_cut_too_long(each, seconds) for each in notes]
        records, aligned = 0, []
        for cuts, of_variant in zip(_cuts(track, audio, config), notes, strict=True):
            aligned.append((yield from self._variant(cuts, of_variant)))
            records += sum(len(one.starts) for one in cuts)
        self.notes = aligned[0].notes
        labels = [one.labels for one in aligned]
        self.row = track_row(
            track, status="ok", seconds=seconds, frames=frames, notes=sum(map(len, labels)),
            records=records, audio_sha256=audio_sha256, labels_sha256=labels_sha256,
            notes_after_audio=sum(int((n.onset >= seconds).sum()) for n in labels),
            problems=[*problems, *dict.fromkeys(p for one in aligned for p in one.problems)],
            **aligned[0].columns,
        )  # fmt: skip

    def _variant(self, cuts: list[Cut], notes: Notes) -> Generator[Window, None, _Aligned]:
        """Yields the windows of the variants that share their audio; returns their labels."""
        config, first = self.config, cuts[0]
        measured = config.align == "measure" and first.variant == 0
        # Where labels stay as they are, lag is measured on the mel of the windows as they come by.
        in_passing = measured and "mel" in config.features
        bands = np.empty((first.track_frames if in_passing else 0, align.DRUMS), np.float32)
        aligned = _Aligned(notes)
        if config.align in CORRECTIONS or (measured and not in_passing):
            self._stage = "align"
            aligned = _align(_bands(first, config), notes, config)
        self._stage = "labels"
        labels = trim_overlapping(aligned.notes) if self.track.trim else aligned.notes
        _require_valid(labels)
        self._stage = "windows"
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
    """Labels of a variant after alignment.

    Attributes:
        notes: moved where the config asks for it.
        labels: the same, trimmed where the track asks for it.
        columns: of tracks.parquet, as measured before any correction; null: not measurable.
        problems: corrections that were not made, and notes that were lost.
    """

    notes: Notes
    columns: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    labels: Notes = field(default_factory=Notes.empty)


def _require_valid(notes: Notes) -> None:
    """Raises a UserError if a note has no length or a value outside its range."""
    try:
        validate(notes)
    except ValueError as error:
        raise UserError(f"{error}. Check the labels, and the adapter that reads them") from error


def _count_late(notes: Notes, seconds: float) -> int:
    """Counts the notes that begin after the end of the audio.

    Raises:
        UserError: they are too many or too late, so the labels do not belong to the audio.
    """
    late = notes.onset[notes.onset >= seconds]
    last = float(late.max(initial=seconds)) - seconds
    allowed = min(max(1, MAX_LATE_SHARE * len(notes)), len(notes) - 1)
    if len(late) > allowed or last > MAX_LATE_SECONDS:
        raise UserError(
            f"{len(late)} of {len(notes)} notes begin after the end of the audio at {seconds:.1f} s, the "
            f"last {last:.1f} s later; expected at most {MAX_LATE_SHARE:.0%} and {MAX_LATE_SECONDS:g} s. "
            "Check that the labels belong to this recording"
        )
    return len(late)


def _is_too_long(notes: Notes, seconds: float) -> np.ndarray:
    """Finds notes that end long after the end of the audio: bool, shape (n,)."""
    return notes.offset > seconds + MAX_LATE_SECONDS


def _cut_too_long(notes: Notes, seconds: float) -> Notes:
    """Ends such notes where the audio ends, or at once if they begin later."""
    end = np.maximum(seconds, notes.onset + SHORTEST_SECONDS)
    return replace(notes, offset=np.where(_is_too_long(notes, seconds), end, notes.offset))


def _cuts(track: Track, audio: list[np.ndarray], config: WindowConfig) -> Iterator[list[Cut]]:
    """Yields the variants of each audio: one of each, or all of the only one.

    Removes padded audio from the list, so that it is not held twice.
    """
    for k in range(len(audio)):
        samples = pad_to_frames(audio.pop(0), config.spectrogram.hop)
        if track.variants:
            yield [cut(samples, track.id, k, config, phased=False)]
        else:
            yield [cut(samples, track.id, n, config) for n in range(n_variants(track, config))]


def _clipped(audio: list[np.ndarray], config: WindowConfig) -> list[str]:
    """Reports how many samples are beyond the range of stored audio."""
    if "audio" not in config.features:
        return []
    beyond = sum(int((one > 1).sum() + (one < -1).sum()) for one in audio)
    if not beyond:
        return []
    return [f"{beyond} of {sum(map(len, audio))} samples are beyond full scale; clipped"]


def _notes_of_variants(track: Track) -> tuple[list[Notes], tuple[str, ...]]:
    """Returns the notes of each variant that has its own stems, or of all variants; and problems."""
    if not track.variants:
        notes, problems = track.load_labels()
        return [notes], problems
    parts, problems = track.load_parts()
    used = [[part for i, part in parts if i in stems] for stems in track.variants]
    return [Notes.concat(some) for some in used], problems


def _bands(first: Cut, config: WindowConfig) -> np.ndarray:
    """Computes the bands of a whole variant for alignment, from a log-mel of its own."""
    bands = np.empty((first.track_frames, align.DRUMS), np.float32)
    for start in first.starts:
        part = bands[start : start + config.frames]
        mel = window_mel(first.samples, start, config)[: len(part)]
        part[:] = align.semitone_magnitudes(mel, config.spectrogram)
    return bands


def _align(bands: np.ndarray, notes: Notes, config: WindowConfig) -> _Aligned:
    """Measures how well labels and audio agree, and corrects the labels as config.align demands.

    Args:
        bands: of the whole track, see align.semitone_magnitudes.
    """
    faded = config.frames if config.right_context == "zeros" else 0
    found = align.measure(bands, notes, config.spectrogram, faded)
    columns: dict[str, Any] = {
        "lag": _or_null(found.lag_seconds),
        "drift": _or_null(found.drift_seconds),
        "align_confidence": _or_null(found.confidence),
    }
    moved, problem = notes, ""
    if config.align == "shift":
        moved, problem = align.remove_lag(notes, found)
    elif config.align == "dtw":
        moved, _, problem = warp(bands, notes, config.spectrogram, faded)
    problems = [problem] if problem else []
    if moved is not notes:
        columns["aligned"] = "shifted" if config.align == "shift" else "warped"
        if len(moved) < len(notes):
            problems.append(f"{len(notes) - len(moved)} notes end before the audio begins; dropped")
    return _Aligned(moved, columns, tuple(problems))


def _or_null(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
