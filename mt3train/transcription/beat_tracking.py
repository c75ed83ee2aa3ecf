"""Finds the beats of a recording: from a file, a constant tempo, or librosa's beat tracker.

The tracker gets the onset strength of the recording: the mean rise of its log-mel spectrogram from
frame to frame. Every 5 minutes have their own tempo, around which it may vary. Beats are then moved to the notes that begin near
them, because notes are more exact than frames. Downbeats are guessed from the notes
(mt3data.music.beats.estimate_downbeats).

The result is an estimate. Half or twice the tempo is the usual mistake. Music without clear onsets,
free rhythm and changes of metre are beyond the tracker.

Source: D. Ellis, Beat tracking by dynamic programming, 2007 (librosa.beat.beat_track). The original
has no beats.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mt3data.audio.load import read_blocks
from mt3data.audio.spectrogram import LogMelStream, SpectrogramConfig
from mt3data.errors import UserError, require_package
from mt3data.music.beats import (
    Beats,
    Meter,
    arrange_bars,
    beats_per_bar,
    constant_beats,
    estimate_downbeats,
    read_beats,
    require_beats_within,
)
from mt3data.music.notes import Notes

FRAMES = SpectrogramConfig(hop=320, fft_size=1024, n_mels=64)  # 50 frames per second
# Seconds from a frame to the rise it shows. Measured: 0.034 in rendered music, 0.055 with clicks.
DELAY = 0.042
FLOOR = np.log(1e-3)  # quieter bands count as silence
TEMPO_FRAMES = 15_000  # 5 minutes; librosa takes 0.3 GB for the tempogram of one block
DEFAULT_BPM = 120.0  # what librosa prefers where tempos are equally strong
NEAR_OCTAVES = 0.3  # standard deviation of the tempo around a given one
NEAR_SECONDS = 0.07  # notes that begin this near to a beat move it


def find_beats(
    audio: str | Path, notes: Notes, seconds: float, source: str | Path | None = "auto", *,
    bpm: float | None = None, first_beat: float = 0.0, meter: Meter | None = None,
) -> Beats:  # fmt: skip
    """Returns the beats and bars of a recording.

    Args:
        audio: an audio file, which "auto" reads.
        notes: its notes, from which "auto" and files without downbeats estimate the downbeats.
        seconds: its length.
        source: "auto", a file of `read_beats`, or None: a constant tempo.
        bpm: beats per minute of a constant tempo; with "auto" about how many there are.
        first_beat: seconds to a downbeat of a constant tempo.
        meter: the time signature; None: 4/4, or as many quarter notes as most bars have beats.

    Raises:
        UserError: no beats, or beats of another recording.
    """
    common = meter or (4, 4)
    if source == "auto":
        return estimate_beats(audio, notes, seconds, common, bpm)
    if source is None:
        if bpm is None:
            raise UserError("a constant tempo needs the number of beats per minute")
        return constant_beats(bpm, first_beat, common, seconds)
    times, is_downbeat = read_beats(Path(source))
    require_beats_within(times, seconds, str(source))
    if is_downbeat is None:
        meter, is_downbeat = common, estimate_downbeats(times, notes, beats_per_bar(common))
    return arrange_bars(times, is_downbeat, meter, seconds, str(source))


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
    require_package("librosa", "analysis", "--beats auto")
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
    tempos = []
    for start in range(0, len(strength), TEMPO_FRAMES):
        part = strength[start : start + TEMPO_FRAMES]
        tempo = librosa.feature.tempo(
            onset_envelope=part, sr=rate, hop_length=hop,
            start_bpm=bpm or DEFAULT_BPM, std_bpm=NEAR_OCTAVES if bpm else 1.0,
        )  # fmt: skip
        tempos.append(np.full(len(part), tempo.item()))
    _, frames = librosa.beat.beat_track(
        onset_envelope=strength, sr=rate, hop_length=hop, bpm=np.concatenate(tempos), trim=False
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
