"""Estimates the beats of a recording with librosa's beat tracker.

The tracker gets the onset strength of the recording: the mean rise of its log-mel spectrogram from
frame to frame. Its tempo follows the recording. Beats are then moved to the notes that begin near
them, because notes are more exact than frames. Downbeats are guessed from the notes
(mt3data.music.beats.estimate_downbeats).

The result is an estimate. Half or twice the tempo is the usual mistake. Music without clear onsets,
free rhythm and changes of metre are beyond the tracker.

Source: D. Ellis, Beat tracking by dynamic programming, 2007 (librosa.beat.beat_track). The original
has no beats.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from mt3data.audio.load import read_blocks
from mt3data.audio.spectrogram import LogMelStream, SpectrogramConfig
from mt3data.errors import UserError, install_hint
from mt3data.music.beats import Beats, Meter, arrange_bars, beats_per_bar, estimate_downbeats
from mt3data.music.notes import Notes

FRAMES = SpectrogramConfig(hop=320, fft_size=1024, n_mels=64)  # 50 frames per second
DELAY = (FRAMES.fft_size - FRAMES.hop) / 2 / FRAMES.sample_rate  # from a frame to its rise
FLOOR = np.log(1e-3)  # quieter bands count as silence
TEMPO_FRAMES = 30_000  # 10 minutes; the tempogram of one block takes 200 MB
DEFAULT_BPM = 120.0  # what librosa prefers where tempos are equally strong
NEAR_SECONDS = 0.07  # notes that begin this near to a beat move it


def require_librosa() -> None:
    """Raises a UserError where librosa is not installed."""
    if importlib.util.find_spec("librosa") is None:
        raise UserError(f"--beats auto needs librosa; {install_hint('analysis')}")


def estimate_beats(
    audio: str | Path, notes: Notes, seconds: float, meter: Meter = (4, 4), bpm: float | None = None
) -> Beats:
    """Estimates beats and bars of a recording.

    Args:
        audio: an audio file, see mt3data.audio.load.
        notes: its notes, which set the exact times of beats and the downbeats.
        seconds: its length.
        meter: the time signature.
        bpm: about how many beats per minute it has; None: the tracker prefers tempos near 120.

    Raises:
        UserError: librosa is missing, or the recording has no beats that can be found.
    """
    require_librosa()
    times = track_beats(onset_strength(audio), bpm)
    times = move_to_onsets(times[(times >= 0) & (times < seconds)], notes)
    if len(times) < 2:
        raise UserError(
            f"{audio}: {len(times)} beats found; expected 2 or more; name them with --beats FILE or --bpm"
        )
    is_downbeat = estimate_downbeats(times, notes, beats_per_bar(meter))
    return arrange_bars(times, is_downbeat, meter, seconds, f"{audio}, estimated beats")


def onset_strength(audio: str | Path) -> np.ndarray:
    """Returns the mean rise of the log-mel spectrogram, float64, one value per frame of FRAMES."""
    stream, before = LogMelStream(FRAMES), None
    rises = []

    def add(mel: np.ndarray) -> None:
        nonlocal before
        if not len(mel):
            return
        mel = np.maximum(mel, FLOOR)
        if before is None:
            before = mel[:1]
        rises.append(np.diff(mel, axis=0, prepend=before).clip(0).mean(axis=1, dtype=np.float64))
        before = mel[-1:]

    for block in read_blocks(audio, FRAMES.sample_rate):
        add(stream.push(block))
    add(stream.finish())
    return np.concatenate(rises)


def track_beats(strength: np.ndarray, bpm: float | None = None) -> np.ndarray:
    """Returns the times of beats in seconds, increasing; empty where nothing rises.

    Args:
        strength: of `onset_strength`.
        bpm: see `estimate_beats`.
    """
    import librosa

    if not strength.any():
        return np.zeros(0)
    rate, hop = FRAMES.sample_rate, FRAMES.hop
    tempos = np.concatenate([
        librosa.feature.tempo(
            onset_envelope=strength[start : start + TEMPO_FRAMES], sr=rate, hop_length=hop,
            start_bpm=bpm or DEFAULT_BPM, std_bpm=0.3 if bpm else 1.0, aggregate=None,
        )
        for start in range(0, len(strength), TEMPO_FRAMES)
    ])  # fmt: skip
    _, frames = librosa.beat.beat_track(
        onset_envelope=strength, sr=rate, hop_length=hop, bpm=tempos, trim=False
    )
    return np.asarray(frames, np.float64) * hop / rate + DELAY


def move_to_onsets(times: np.ndarray, notes: Notes) -> np.ndarray:
    """Moves each beat to the median onset of the notes that begin within NEAR_SECONDS of it.

    Beats without such notes stay. Times still increase, because beats are farther apart.
    """
    onset = np.sort(notes.onset)
    first = np.searchsorted(onset, times - NEAR_SECONDS)
    behind = np.searchsorted(onset, times + NEAR_SECONDS, "right")
    moved = [
        float(np.median(onset[a:b])) if a < b else float(time)
        for time, a, b in zip(times, first, behind, strict=True)
    ]
    return np.array(moved)
