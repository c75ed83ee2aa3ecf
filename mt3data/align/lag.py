"""How well the labels of a track agree with its audio in time: lag, drift and how sure that is.

Every note predicts an attack at its pitch. The audio's attacks are read from the log-mel that a
build computes anyway: a semitone band that grows louder from one frame to the next. Summed over the
notes, the audio's attacks around each onset form a curve over lags whose peak is the track's lag. The
curve has a unit: it is divided by its own spread and the square root of the number of notes, so that
audio which has nothing to do with the notes stays near 3 however long it is, and music is at 40 to
70 a minute.

A frame is not centred and covers 128 ms, so an attack shows before the frame that its note begins
in: by `BIAS_SECONDS`, found on rendered music (benchmarks/align.py prints what remains of it). What
remains depends on the attack: bare sines that start at once read 12 ms early, slow pads up to 10 ms
late, a rendered band is within 6 ms. Lags below `MIN_SHIFT_SECONDS` are therefore reported and never
corrected. Labels that come from a recording or from rendering note the key press, and this measure
is about the key press, too.

MT3 has no counterpart: it takes labels as they are published (paper, Table 1, column "Align").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mt3data.audio.spectrogram import SpectrogramConfig, bin_hertz
from mt3data.music.notes import Notes, shift_times

LOWEST, HIGHEST = 40, 117  # pitches of the bands: below, 512 mel bins do not tell semitones apart
DRUMS = HIGHEST - LOWEST + 1  # column behind those of the pitches
HARMONICS = ((0, 1.0), (12, 0.7), (19, 0.5), (24, 0.35))  # semitones above a note, and weight
LOUD = 3.0  # see loud_level
SEARCH_SECONDS = 0.8  # lags beyond are not looked for
BIAS_SECONDS = 0.062  # how far before the note's frame an attack shows; see the module's text
DRUM_BIAS_SECONDS = 0.016  # and how much further a drum's, which is over before the frame is full
NOISE_PEAK = 5.0  # unrelated audio stays below (3.2 was the highest of 16 rendered pairs)
MIN_CONFIDENCE = 0.1  # below, nothing is corrected
MIN_SHIFT_SECONDS = 0.02  # smaller lags are within what attacks of different instruments differ by
BLOCK_FRAMES = 1024  # the work area stays in the cache, and memory does not grow
BESIDE_SECONDS = 0.1  # a peak's own width; the runner-up must lie further away


@dataclass(frozen=True)
class Alignment:
    """What was measured on one track.

    Attributes:
        lag_seconds: how much later the audio is than the labels; add it to the labels' times. NaN
            where there is nothing to measure by.
        drift_seconds: lag of the last third of the track minus that of the first; NaN where either
            third is not sure.
        confidence: 0 to 1: how far the peak stands above the next best lag, and above what
            unrelated audio gives. 0 for noise, and for a beat that fits as well one beat later.
        peak: height of the peak, in spreads (see the module's text).
    """

    lag_seconds: float
    drift_seconds: float
    confidence: float
    peak: float = 0.0


NOT_MEASURED = Alignment(float("nan"), float("nan"), 0.0)


def measure(
    bands: np.ndarray, notes: Notes, config: SpectrogramConfig, window_frames: int = 0
) -> Alignment:
    """Measures the lag between the onsets of a track's notes and the attacks in its audio.

    Args:
        bands: of the whole track, see `semitone_magnitudes`.
        notes: its labels.
        config: of the log-mel.
        window_frames: where the mel was transformed in windows that see zeros behind their end
            (right_context "zeros"), their length; else 0.
    Returns:
        NOT_MEASURED where nothing can be told.
    """
    return measure_strength(onset_strength(bands, config, window_frames), notes, config)


def measure_strength(strength: np.ndarray, notes: Notes, config: SpectrogramConfig) -> Alignment:
    """As `measure`, from the strength that `onset_strength` returned."""
    radius = round(SEARCH_SECONDS * config.frames_per_second)
    rows, onsets = strength_around_onsets(strength, notes, config, radius)
    if not len(rows):
        return NOT_MEASURED
    lag, confidence, peak = _peak_of(rows, radius, config)
    third = len(strength) / config.frames_per_second / 3
    first, last = (
        _peak_of(rows[part], radius, config) for part in (onsets < third, onsets >= 2 * third)
    )
    sure = min(first[1], last[1]) >= MIN_CONFIDENCE
    return Alignment(lag, last[0] - first[0] if sure else float("nan"), confidence, peak)


def shift_notes(notes: Notes, seconds: float) -> Notes:
    """The notes moved by `seconds`; what begins before time 0 then begins there, or is dropped."""
    moved = shift_times(notes, seconds)
    return moved[moved.offset > moved.onset]


def remove_lag(notes: Notes, found: Alignment) -> tuple[Notes, str]:
    """Removes a constant lag where that is sure.

    Returns:
        The notes, and why they were left as they are where that is worth a word; else "".
    """
    if found.confidence < MIN_CONFIDENCE:
        return notes, f"not shifted: confidence {found.confidence:.2f} is below {MIN_CONFIDENCE}"
    if abs(found.lag_seconds) < MIN_SHIFT_SECONDS:
        return notes, ""
    return shift_notes(notes, found.lag_seconds), ""


# --- the parts, also used by warp.py -------------------------------------------------------------


def semitone_magnitudes(mel: np.ndarray, config: SpectrogramConfig) -> np.ndarray:
    """What all measures here are taken from: magnitudes of semitone bands.

    Args:
        mel: log-mel of a track or of one stretch of it, shape (n_frames, n_mels), float16 or
            float32. A track may be given piece by piece; a piece of 1024 frames stays in the cache.
    Returns:
        Shape (n_frames, DRUMS), float32: a sixth of the mel in float16 is all that has to be kept.
    """
    # Two columns for each semitone stand for its dozen: conversion to float32 is what costs.
    columns = mel.take(_columns(config), axis=1).astype(np.float32)
    return np.exp(np.maximum(columns[:, ::2], columns[:, 1::2]))


def onset_strength(
    bands: np.ndarray, config: SpectrogramConfig, window_frames: int = 0
) -> np.ndarray:
    """How strongly each pitch is struck in each frame.

    Args: as for `measure`.
    Returns:
        Shape (n_frames, DRUMS + 1), float32, at least 0: column p is pitch LOWEST + p with its
        harmonics, the last one the mean of all bands, for drums.
    """
    level, loud = loud_level(bands), np.zeros((1, DRUMS), np.float32)
    strength = np.zeros((len(bands), DRUMS + 1), np.float32)
    for start in range(0, len(bands), BLOCK_FRAMES):
        before, loud = loud[-1:], loudness(bands[start : start + BLOCK_FRAMES], level)
        rise = np.diff(loud, axis=0, prepend=before if start else loud[:1])
        if window_frames:  # the last frames of a window fade, so the next seems to begin loud
            rise[-start % window_frames :: window_frames] = 0
        np.maximum(rise, 0, out=rise)
        out = strength[start : start + BLOCK_FRAMES]
        for semitones, weight in HARMONICS:
            out[:, : DRUMS - semitones] += np.float32(weight) * rise[:, semitones:]
        out[:, DRUMS] = 2 * rise.mean(axis=1)
    later = round(DRUM_BIAS_SECONDS * config.frames_per_second)
    strength[:, DRUMS] = np.pad(strength[:, DRUMS], (later, 0))[: len(bands)]
    return strength


def loud_level(bands: np.ndarray) -> np.float32:
    """What counts as loud in this track: LOUD times what its louder frames reach in one band.

    So high that loudness is nearly magnitude: were it nearly a logarithm, the first trace of a note
    in silence would count as its attack, tens of milliseconds early.
    """
    if not len(bands):
        return np.float32(1)
    return np.float32(LOUD * np.quantile(bands[::16].max(axis=1), 0.9))


def loudness(bands: np.ndarray, level: np.float32) -> np.ndarray:
    """Loudness of semitone bands, shape (n_frames, DRUMS): log(1 + magnitude / level)."""
    magnitude = bands * (np.float32(1) / (level + np.float32(1e-9)))
    magnitude += 1
    return np.log(magnitude, out=magnitude)


def strength_around_onsets(
    strength: np.ndarray, notes: Notes, config: SpectrogramConfig, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """The audio's attacks around the onset of each note that begins inside the audio.

    Args:
        strength: see `onset_strength`.
        radius: frames on either side.
    Returns:
        Rows, one per note in order of onset, float32 of shape (n, 2 radius + 1), each of mean 0 and
        spread about 1; column c is lag (c - radius) frames, bias removed. And their onsets, seconds.
    """
    time = (notes.onset - BIAS_SECONDS) * config.frames_per_second
    order = np.argsort(notes.onset, kind="stable")
    order = order[(time[order] >= 0) & (time[order] < len(strength))]
    frame = np.floor(time[order]).astype(np.int64)
    part = (time[order] - frame).astype(np.float32)[:, None]
    band = band_indices(notes)[order][:, None]
    rows = np.empty((len(order), 2 * radius + 1), np.float32)
    lags = np.arange(-radius, radius + 2)
    for start in range(0, len(order), BLOCK_FRAMES):
        block = slice(start, start + BLOCK_FRAMES)
        inside = np.clip(frame[block, None] + lags, 0, len(strength) - 1)
        around = strength[inside, band[block]]
        rows[block] = around[:, :-1] * (1 - part[block]) + around[:, 1:] * part[block]
    rows -= rows.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.einsum("nl,nl->n", rows, rows) / np.float32(rows.shape[1]))[:, None]
    # The median keeps notes that the audio says nothing about from being blown up.
    rows /= spread + (np.float32(0.25) * np.median(spread) + np.float32(1e-9) if len(rows) else 1)
    return rows, notes.onset[order]


def band_indices(notes: Notes) -> np.ndarray:
    """The column of `onset_strength` in which each note shows; the lowest notes by a harmonic's octave."""
    pitch = np.where(notes.pitch < LOWEST, LOWEST + (notes.pitch - LOWEST) % 12, notes.pitch)
    return np.where(notes.is_drum, DRUMS, np.minimum(pitch, HIGHEST) - LOWEST)


def _peak_of(
    rows: np.ndarray, radius: int, config: SpectrogramConfig
) -> tuple[float, float, float]:
    """Lag in seconds, confidence and height of the summed evidence's peak."""
    if not len(rows):
        return float("nan"), 0.0, 0.0
    curve = rows.sum(axis=0, dtype=np.float64) / np.sqrt(len(rows))
    best = int(curve.argmax())
    beside = BESIDE_SECONDS * config.frames_per_second
    runner_up = curve[np.abs(np.arange(len(curve)) - best) > beside].max()
    peak = float(curve[best])
    confidence = 1 - max(runner_up, NOISE_PEAK) / peak if peak > NOISE_PEAK else 0.0
    lag = (parabolic_peak(curve, best) - radius) / config.frames_per_second
    return float(lag), float(max(0.0, confidence)), peak


def parabolic_peak(curve: np.ndarray, best: int) -> float:
    """Where a curve is highest between its samples: the vertex of the parabola around sample `best`."""
    if not 0 < best < len(curve) - 1:
        return float(best)
    before, at, after = curve[best - 1 : best + 2]
    bend = before - 2 * at + after
    return best + 0.5 * (before - after) / bend if bend < 0 else float(best)


@lru_cache(maxsize=8)
def _columns(config: SpectrogramConfig) -> np.ndarray:
    """Mel bins nearest to a quarter tone below and above each semitone of the bands, in turn."""
    pitches = 69 + 12 * np.log2(bin_hertz(config) / 440)
    wanted = np.arange(LOWEST - 0.25, HIGHEST + 0.5, 0.5)
    return np.abs(pitches - wanted[:, None]).argmin(axis=1)
