"""Warps labels to the audio where tempo or pauses differ, by dynamic time warping (DTW).

librosa's DTW compares the sounding pitches and the onsets of audio and labels by semitone. The first
level covers the whole track in frames so long that there are at most 1500. Finer levels work on
pieces of the track and in a band around the path of the level before, so memory is bounded for any
length. The path must come within `REFINE_SECONDS`. Then the lag around each knot is measured as in
lag.py, and the warp is a smooth curve through these lags. A warp is rejected if it fits no better
than chance, bends more than players do, or leaves a lag.

MT3 has no counterpart. The method is that of Ewert, Müller and Grosche, "High resolution audio
synchronization using chroma onset features" (ICASSP 2009), with semitones in place of chroma.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mt3data.align.lag import (
    BLOCK_FRAMES,
    DRUMS,
    HARMONICS,
    MIN_CONFIDENCE,
    MIN_SHIFT_SECONDS,
    Alignment,
    band_indices,
    loud_level,
    loudness,
    measure_strength,
    onset_strength,
    parabolic_peak,
    strength_around_onsets,
)
from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.music.notes import Notes

MAX_DTW_FRAMES = 1500  # per side: 2.25 million cells of 20 bytes
FINEST_SECONDS = 0.08  # length of a frame of the finest level
REFINE_SECONDS = 0.3  # largest error of the DTW
ZOOM = 4  # ratio of the frame lengths of two levels
KNOT_SECONDS = 1.0  # distance of the knots of the warp
STRETCH_SECONDS = 3.0  # notes within this distance determine a knot
MIN_STRETCH_PEAK = 5.0  # see lag.NOISE_PEAK
MIN_SURE = 0.5  # share of the knots with notes that must have a certain lag
MAX_BEND = 0.25  # largest relative change of tempo
BEND_SECONDS = 4.0  # time over which a tempo is measured
MIN_PEAK = 12.0  # of the warped labels; a warp that was fitted to noise reaches about 8
MAX_DRIFT_SECONDS = 0.04


@dataclass(frozen=True)
class Warp:
    """Maps label time to audio time: linear between knots, with slope 1 outside them."""

    label: np.ndarray
    audio: np.ndarray

    def __call__(self, seconds: np.ndarray) -> np.ndarray:
        """Returns the audio times of label times, seconds."""
        seconds = np.asarray(seconds, dtype=np.float64)
        beyond = np.clip(seconds, self.label[0], self.label[-1])
        return np.interp(seconds, self.label, self.audio) + (seconds - beyond)

    def inverse(self, seconds: np.ndarray) -> np.ndarray:
        """Returns the label times of audio times, seconds."""
        return Warp(self.audio, self.label)(seconds)

    def apply(self, notes: Notes) -> Notes:
        """Moves notes to audio time. Notes before time 0 are cut or dropped."""
        onset, offset = np.maximum(self(notes.onset), 0.0), self(notes.offset)
        moved = replace(notes, onset=onset, offset=offset)
        return moved[moved.offset > moved.onset]


def warp(
    bands: np.ndarray, notes: Notes, config: SpectrogramConfig, window_frames: int = 0
) -> tuple[Notes, Alignment | None, str]:
    """Warps the labels to the audio, or leaves them and returns the reason.

    Args: as `lag.measure`.
    Returns:
        The notes, warped or unchanged; the alignment after the warp (None: not warped); and the
        reason why they are unchanged, "" if they agreed within MIN_SHIFT_SECONDS before.
    """
    if not len(notes) or not len(bands):
        return notes, None, "not warped: nothing to align"
    strength = onset_strength(bands, config, window_frames)
    straight = Warp(np.zeros(1), np.zeros(1))
    before = refine(strength, notes, config, straight)
    if before is not None and np.abs(before.audio - before.label).max() < MIN_SHIFT_SECONDS:
        return notes, None, ""
    found = refine(
        strength, notes, config, _coarse_to_fine(*_audio_features(bands, strength, config), notes)
    )
    if found is None:
        return notes, None, "not warped: labels and audio have too little in common"
    for _ in range(2):
        found = refine(strength, notes, config, found) or found
    moved = found.apply(notes)
    after = measure_strength(strength, moved, config)
    reason = _implausible(found, notes, after, measure_strength(strength, notes, config))
    return (notes, None, f"not warped: {reason}") if reason else (moved, after, "")


def _implausible(found: Warp, notes: Notes, after: Alignment, before: Alignment) -> str:
    """Returns the reason why a warp is rejected, or ""."""
    if after.peak < max(MIN_PEAK, 0.8 * before.peak) or after.confidence < MIN_CONFIDENCE:
        return (
            f"the labels fit too little even then (peak {after.peak:.1f}, before {before.peak:.1f}, "
            f"needed {MIN_PEAK:.0f}; confidence {after.confidence:.2f}, needed {MIN_CONFIDENCE})"
        )
    if abs(after.lag_seconds) > MIN_SHIFT_SECONDS or abs(after.drift_seconds) > MAX_DRIFT_SECONDS:
        return (
            f"a lag of {after.lag_seconds * 1000:.0f} ms and a drift of "
            f"{after.drift_seconds * 1000:.0f} ms would remain"
        )
    times = np.arange(notes.onset.min(), notes.onset.max(), BEND_SECONDS)
    tempo = np.diff(found(times)) / BEND_SECONDS
    if len(tempo) and np.abs(tempo - 1).max() > MAX_BEND:
        return f"the tempo would change by up to {np.abs(tempo - 1).max():.0%}"
    return ""


# --- dynamic time warping ------------------------------------------------------------------------


def _coarse_to_fine(sounding: np.ndarray, onsets: np.ndarray, notes: Notes) -> Warp:
    """Finds a rough warp, with an error of a few of the finest frames where labels and audio agree.

    Args:
        sounding, onsets: see `_audio_features`.
    """
    longest = max(len(sounding), int(notes.offset.max() / FINEST_SECONDS))
    found, factor, slack = None, -(-longest // MAX_DTW_FRAMES), 0
    while True:
        frame_seconds = factor * FINEST_SECONDS
        starts = np.arange(0, len(sounding), factor)
        audio = _normalized(np.add.reduceat(sounding, starts), np.add.reduceat(onsets, starts))
        moved = notes if found is None else found.apply(notes)
        if found is not None and not len(moved):
            return found  # all notes are at one time, so the result will be rejected
        labels = _label_features(moved, frame_seconds)
        lags = (dtw_path(audio, labels, slack) - np.arange(len(labels))) * frame_seconds
        # The path has steps, so the lags are smoothed. Knots outside the notes have no data.
        knots = _knots(float(moved.onset.min()), float(moved.onset.max()))
        lags = np.interp(knots, (np.arange(len(labels)) + 0.5) * frame_seconds, lags)
        lags = _smooth(knots, lags, max(2 * STRETCH_SECONDS, 8 * frame_seconds))
        label = knots if found is None else found.inverse(knots)
        found = Warp(label, np.maximum.accumulate(knots + lags))
        if factor == 1:
            return found
        slack = 6 * ZOOM
        factor = -(-factor // ZOOM)


def dtw_path(audio: np.ndarray, labels: np.ndarray, slack: int) -> np.ndarray:
    """Returns for each label frame its audio frame by DTW, float64, non-decreasing.

    Args:
        audio, labels: features of audio and labels with the same columns, shape (n, features).
        slack: largest distance of the two in frames; 0: any.
    """
    import librosa

    n, size = len(labels), MAX_DTW_FRAMES
    if not slack:  # the whole track, at most MAX_DTW_FRAMES
        _, pairs = librosa.sequence.dtw(C=_cost(labels, audio))
        return _by_label(pairs, n)
    path = np.arange(n, dtype=np.float64)
    overlap = 4 * slack
    for first in range(0, n, size - 2 * overlap):
        start, end = max(0, first - overlap), min(n, first + size - overlap)
        low, high = min(max(0, start - slack), len(audio) - 1), min(len(audio), end + slack)
        cost = _cost(labels[start:end], audio[low:high])
        away = np.arange(low, high) - np.arange(start, end)[:, None]
        cost[np.abs(away) > slack] = (
            4  # more than any pair costs, and finite, so that there is always a path
        )
        _, pairs = librosa.sequence.dtw(C=cost, subseq=True)
        if pairs[:, 0].max() < end - start - 1:
            # librosa swaps the columns where `cost` has more rows than columns. Labels that
            # outlast the audio give such a cost (test_labels_that_outlast_the_audio_...).
            pairs = pairs[:, ::-1]
        here = _by_label(pairs, end - start) + low
        path[first:end] = here[first - start :]
        if end == n:
            break
    return np.maximum.accumulate(path)


def _cost(labels: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """Returns the squared distance of every label frame from every audio frame, 0 to 2."""
    from scipy.spatial.distance import cdist  # the bytes of a matrix product depend on its threads

    return cdist(labels, audio, "sqeuclidean")


def _by_label(pairs: np.ndarray, n: int) -> np.ndarray:
    """Returns the mean audio frame of each of n label frames on a path of (label, audio) pairs."""
    count = np.bincount(pairs[:, 0], minlength=n)
    return np.bincount(pairs[:, 0], weights=pairs[:, 1], minlength=n) / np.maximum(count, 1)


def _audio_features(
    bands: np.ndarray, strength: np.ndarray, config: SpectrogramConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the loudness and the onset strength of the audio by band, in frames of FINEST_SECONDS.

    Both have shape (n, bands).
    """
    # A frame describes the sound at its centre, and an onset shows near there too.
    centre = np.arange(len(bands)) + config.fft_size / config.hop / 2
    pool = (centre / config.frames_per_second / FINEST_SECONDS).astype(np.int64)
    starts = np.searchsorted(pool, np.arange(pool[-1] + 1))
    onsets = np.add.reduceat(strength, starts)
    level, sounding = loud_level(bands), np.zeros((len(starts), DRUMS), np.float32)
    for first in range(0, len(bands), BLOCK_FRAMES):
        block = slice(first, first + BLOCK_FRAMES)
        np.add.at(sounding, pool[block], loudness(bands[block], level))
    # The strength is relative to the mean of its band.
    return sounding, onsets / (onsets.mean(axis=0) + np.float32(1e-6))


def _label_features(notes: Notes, frame_seconds: float) -> np.ndarray:
    """Computes the features of the labels, equal to those of audio that plays them."""
    n_bands, n = DRUMS, int(notes.offset.max() / frame_seconds) + 1
    sounding = np.zeros((n + 1, n_bands), np.float32)
    onsets = np.zeros((n, n_bands + 1), np.float32)
    band = band_indices(notes)
    first = np.clip((notes.onset / frame_seconds).astype(np.int64), 0, n - 1)
    last = np.clip((notes.offset / frame_seconds).astype(np.int64) + 1, first + 1, n)
    pitched = ~notes.is_drum
    for semitones, weight in HARMONICS:
        fits = pitched & (band + semitones < n_bands)
        np.add.at(sounding, (first[fits], band[fits] + semitones), weight)
        np.add.at(sounding, (last[fits], band[fits] + semitones), -weight)
    np.add.at(onsets, (first, band), 1)
    return _normalized(np.cumsum(sounding[:-1], axis=0), onsets)


def _normalized(sounding: np.ndarray, onsets: np.ndarray) -> np.ndarray:
    """Joins both parts to one matrix, in which each row of a part has a length of at most sqrt(1/2)."""
    parts = []
    for part in (sounding, onsets):
        length = np.sqrt((part * part).sum(axis=1, keepdims=True))
        parts.append(part / (length + 0.1 * length.mean() + np.float32(1e-6)))
    return (np.concatenate(parts, axis=1) * np.float32(np.sqrt(0.5))).astype(np.float32)


# --- the lag of each stretch ---------------------------------------------------------------------


def refine(
    strength: np.ndarray, notes: Notes, config: SpectrogramConfig, found: Warp
) -> Warp | None:
    """Corrects the warp `found` by the remaining lag around each knot.

    Args:
        strength: of every pitch, see `onset_strength`.
    Returns:
        The corrected warp, or None if too few knots have a certain lag.
    """
    radius = round(REFINE_SECONDS * config.frames_per_second)
    rows, onsets = strength_around_onsets(strength, found.apply(notes), config, radius)
    if not len(rows):
        return None
    times = _knots(onsets[0], onsets[-1])
    n_knots = len(times)
    nearest = np.round((onsets - times[0]) / KNOT_SECONDS).astype(np.int64)
    first = np.searchsorted(nearest, np.arange(n_knots))
    held = np.diff(np.append(first, len(rows)))
    sums = np.add.reduceat(np.pad(rows, ((0, 1), (0, 0))), first, axis=0) * (held > 0)[:, None]
    reach = round(STRETCH_SECONDS / KNOT_SECONDS)
    near = 1 - np.abs(np.arange(-reach, reach + 1)) / (reach + 1)
    curves = np.stack([np.convolve(column, near)[reach:-reach] for column in sums.T], axis=1)
    weight = np.sqrt(np.convolve(held, near**2)[reach:-reach])
    best = curves.argmax(axis=1)
    sure = curves[np.arange(n_knots), best] > MIN_STRETCH_PEAK * np.maximum(weight, 1e-9)
    if not sure.any() or sure.sum() < MIN_SURE * np.count_nonzero(weight):
        return None
    lags = [(parabolic_peak(curves[k], best[k]) - radius) / config.frames_per_second
            for k in np.flatnonzero(sure)]  # fmt: skip
    times = times[sure]
    audio = np.maximum.accumulate(times + _smooth(times, np.array(lags), STRETCH_SECONDS))
    return Warp(found.inverse(times), audio)


def _knots(first: float, last: float) -> np.ndarray:
    """Returns times at distances of KNOT_SECONDS that cover first to last, at least two."""
    return first + KNOT_SECONDS * np.arange(int((last - first) / KNOT_SECONDS) + 2)


def _smooth(times: np.ndarray, values: np.ndarray, reach: float) -> np.ndarray:
    """Smooths values by a weighted straight line around each time, after a median of five.

    Means instead of lines would be biased towards the middle at the ends of a track.
    """
    centre = np.array([np.median(values[max(0, i - 2) : i + 3]) for i in range(len(values))])
    centre[[0, -1]] = values[[0, -1]] if len(values) < 5 else centre[[0, -1]]
    out = np.empty(len(values))
    for i, time in enumerate(times):
        low, high = np.searchsorted(times, (time - reach, time + reach))
        x, y = times[low:high] - time, centre[low:high]
        weight = 1 - np.abs(x) / reach
        mean_x, mean_y = np.average(x, weights=weight), np.average(y, weights=weight)
        spread = np.average((x - mean_x) ** 2, weights=weight)
        slope = np.average((x - mean_x) * y, weights=weight) / spread if spread > 0 else 0.0
        out[i] = mean_y - slope * mean_x
    return out
