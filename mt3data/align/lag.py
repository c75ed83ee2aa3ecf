"""Measures how much later the audio of a track is than its labels, and how certain that is.

Every note predicts an onset at its pitch. The onset strength of the audio comes from the log-mel that
a build computes anyway: a semitone band that gets louder from one frame to the next. The strengths
around all notes are summed to a curve over lags. Its peak is the lag of the track. The curve is
divided by its spread and by the square root of the number of notes. Audio that is unrelated to the
notes then has a peak near 3 for any length, and matching music has 40 to 70 per minute.

A frame is not centred and covers 128 ms, so an onset shows before the frame in which its note begins.
`BIAS_SECONDS` corrects this. It was measured on rendered music (benchmarks/align.py prints the
remaining error). The remaining error depends on the attack: sines that start at once are measured
12 ms early, slow pads up to 10 ms late, and a rendered band is within 6 ms. Lags below
`MIN_SHIFT_SECONDS` are therefore reported and never corrected. Labels from a recording or from
rendering give the time at which a key is pressed, and so does this measure.

MT3 has no counterpart. It uses labels as they are published (paper, Table 1, column "Align").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mt3data.audio.spectrogram import SpectrogramConfig, bin_hertz
from mt3data.music.notes import Notes, shift_times

LOWEST, HIGHEST = 40, 117  # pitches of the bands; 512 mel bins do not separate lower semitones
DRUMS = HIGHEST - LOWEST + 1  # the column after those of the pitches
HARMONICS = ((0, 1.0), (12, 0.7), (19, 0.5), (24, 0.35))  # semitones above a note, and weight
LOUD = 3.0  # see loud_level
SEARCH_SECONDS = 0.8  # the largest lag that is searched
BIAS_SECONDS = 0.062  # time by which an onset shows before the note's frame; see above
DRUM_BIAS_SECONDS = 0.016  # additional time for a drum, which ends before the frame is full
NOISE_PEAK = 5.0  # above the peaks of unrelated audio (at most 3.2 in 16 rendered pairs)
MIN_CONFIDENCE = 0.1  # required for a correction
MIN_SHIFT_SECONDS = 0.02  # attacks of different instruments differ by up to this much
BLOCK_FRAMES = 1024  # keeps the work area in the cache and the memory bounded
PEAK_WIDTH_SECONDS = 0.1  # the second highest peak must be further away than this


@dataclass(frozen=True)
class Alignment:
    """The measured alignment of one track.

    Attributes:
        lag_seconds: how much later the audio is than the labels. Adding it to the times of the
            labels aligns them. NaN if there is nothing to measure.
        drift_seconds: lag of the last third of the track minus the lag of the first third. NaN if
            the confidence of a third is too low.
        confidence: 0 to 1, by how much the peak exceeds the second highest peak and the peaks of
            unrelated audio. It is 0 for noise, and for a beat that fits as well one beat later.
        peak: height of the peak in spreads (see the module's docstring).
    """

    lag_seconds: float
    drift_seconds: float
    confidence: float
    peak: float = 0.0


NOT_MEASURED = Alignment(float("nan"), float("nan"), 0.0)


def measure(
    bands: np.ndarray, notes: Notes, config: SpectrogramConfig, window_frames: int = 0
) -> Alignment:
    """Measures the lag between the notes of a track and the onsets in its audio.

    Args:
        bands: of the whole track, see `semitone_magnitudes`.
        notes: its labels.
        config: of the log-mel.
        window_frames: where the mel was transformed in windows that see zeros behind their end
            (right_context "zeros"), their length; else 0.
    Returns:
        The alignment, or NOT_MEASURED if no note begins inside the audio.
    """
    return measure_strength(onset_strength(bands, config, window_frames), notes, config)


def measure_strength(strength: np.ndarray, notes: Notes, config: SpectrogramConfig) -> Alignment:
    """Measures the lag as `measure` does, from the result of `onset_strength`."""
    radius = round(SEARCH_SECONDS * config.frames_per_second)
    rows, onsets = strength_around_onsets(strength, notes, config, radius)
    if not len(rows):
        return NOT_MEASURED
    lag, confidence, peak = _highest_peak(rows, radius, config)
    third = len(strength) / config.frames_per_second / 3
    first, last = (
        _highest_peak(rows[part], radius, config) for part in (onsets < third, onsets >= 2 * third)
    )
    is_sure = min(first[1], last[1]) >= MIN_CONFIDENCE
    drift = last[0] - first[0] if is_sure else float("nan")
    return Alignment(lag, drift, confidence, peak)


def shift_notes(notes: Notes, seconds: float) -> Notes:
    """Shifts notes by `seconds`. Notes that then end before time 0 are dropped."""
    moved = shift_times(notes, seconds)
    return moved[moved.offset > moved.onset]


def remove_lag(notes: Notes, found: Alignment) -> tuple[Notes, str]:
    """Removes a constant lag if its confidence is high enough.

    Returns:
        The notes, and the reason if the confidence was too low; else "".
    """
    if found.confidence < MIN_CONFIDENCE:
        return notes, f"not shifted: confidence {found.confidence:.2f} is below {MIN_CONFIDENCE}"
    if abs(found.lag_seconds) < MIN_SHIFT_SECONDS:
        return notes, ""
    return shift_notes(notes, found.lag_seconds), ""


# --- the parts, also used by warp.py -------------------------------------------------------------


def semitone_magnitudes(mel: np.ndarray, config: SpectrogramConfig) -> np.ndarray:
    """Computes the magnitudes of semitone bands, from which everything here is measured.

    Args:
        mel: log-mel of a track or of a part of it, shape (n_frames, n_mels), float16 or float32. A
            track may be given in parts. A part of 1024 frames stays in the cache.
    Returns:
        Shape (n_frames, DRUMS), float32. This takes a third of the memory of the mel in float16.
    """
    # Two columns represent the dozen of a semitone, because the conversion to float32 is slow.
    columns = mel.take(_columns(config), axis=1).astype(np.float32)
    return np.exp(np.maximum(columns[:, ::2], columns[:, 1::2]))


def onset_strength(
    bands: np.ndarray, config: SpectrogramConfig, window_frames: int = 0
) -> np.ndarray:
    """Computes the onset strength of each pitch in each frame.

    Args: as for `measure`.
    Returns:
        Shape (n_frames, DRUMS + 1), float32, at least 0. Column p is pitch LOWEST + p with its
        harmonics. The last column is the mean of all bands, for drums.
    """
    level, loud = loud_level(bands), np.zeros((1, DRUMS), np.float32)
    strength = np.zeros((len(bands), DRUMS + 1), np.float32)
    for start in range(0, len(bands), BLOCK_FRAMES):
        before, loud = loud[-1:], loudness(bands[start : start + BLOCK_FRAMES], level)
        rise = np.diff(loud, axis=0, prepend=before if start else loud[:1])
        if window_frames:  # the last frames of a window fade, so the next one seems to get louder
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
    """Returns the reference level of `loudness`: LOUD times the 0.9 quantile of the frames' maxima.

    The level is so high that loudness is nearly proportional to magnitude. If it were nearly a
    logarithm, the first trace of a note in silence would count as its onset, tens of milliseconds
    early.
    """
    if not len(bands):
        return np.float32(1)
    return np.float32(LOUD * np.quantile(bands[::16].max(axis=1), 0.9))


def loudness(bands: np.ndarray, level: np.float32) -> np.ndarray:
    """Computes the loudness of semitone bands, log(1 + magnitude / level), (n_frames, DRUMS)."""
    magnitude = bands * (np.float32(1) / (level + np.float32(1e-9)))
    magnitude += 1
    return np.log(magnitude, out=magnitude)


def strength_around_onsets(
    strength: np.ndarray, notes: Notes, config: SpectrogramConfig, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Collects the onset strength around each note that begins inside the audio.

    Args:
        strength: see `onset_strength`.
        radius: frames on either side.
    Returns:
        One row per note in order of onset, float32 of shape (n, 2 radius + 1), each with mean 0 and
        a spread of about 1. Column c is the lag (c - radius) frames, without bias. And the onsets
        of the notes in seconds.
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
    # The median bounds the scale of notes that have no onset in the audio.
    rows /= spread + (np.float32(0.25) * np.median(spread) + np.float32(1e-9) if len(rows) else 1)
    return rows, notes.onset[order]


def band_indices(notes: Notes) -> np.ndarray:
    """Returns the column of `onset_strength` for each note. Notes below LOWEST use a higher octave."""
    pitch = np.where(notes.pitch < LOWEST, LOWEST + (notes.pitch - LOWEST) % 12, notes.pitch)
    return np.where(notes.is_drum, DRUMS, np.minimum(pitch, HIGHEST) - LOWEST)


def _highest_peak(
    rows: np.ndarray, radius: int, config: SpectrogramConfig
) -> tuple[float, float, float]:
    """Returns the lag in seconds, the confidence and the height of the highest peak of the sum."""
    if not len(rows):
        return float("nan"), 0.0, 0.0
    curve = rows.sum(axis=0, dtype=np.float64) / np.sqrt(len(rows))
    best = int(curve.argmax())
    width = PEAK_WIDTH_SECONDS * config.frames_per_second
    second = curve[np.abs(np.arange(len(curve)) - best) > width].max()
    peak = float(curve[best])
    confidence = 1 - max(second, NOISE_PEAK) / peak if peak > NOISE_PEAK else 0.0
    lag = (parabolic_peak(curve, best) - radius) / config.frames_per_second
    return float(lag), float(max(0.0, confidence)), peak


def parabolic_peak(curve: np.ndarray, best: int) -> float:
    """Returns the vertex of the parabola through sample `best` of a curve and its two neighbours."""
    if not 0 < best < len(curve) - 1:
        return float(best)
    before, at, after = curve[best - 1 : best + 2]
    bend = before - 2 * at + after
    return best + 0.5 * (before - after) / bend if bend < 0 else float(best)


@lru_cache(maxsize=8)
def _columns(config: SpectrogramConfig) -> np.ndarray:
    """Returns the mel bins nearest to a quarter tone below and above each semitone, alternating."""
    pitches = 69 + 12 * np.log2(bin_hertz(config) / 440)
    band_pitches = np.arange(LOWEST - 0.25, HIGHEST + 0.5, 0.5)
    return np.abs(pitches - band_pitches[:, None]).argmin(axis=1)
