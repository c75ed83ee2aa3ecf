"""Compares mt3data.audio.spectrogram with the spectrograms that the original computed (spectrogram.npz)."""

from pathlib import Path

import numpy as np

from mt3data.audio.spectrogram import (
    SpectrogramConfig,
    count_frames,
    log_mel,
    mel_matrix,
    pad_to_frames,
)


def check_spectrogram(folder: Path) -> tuple[int, float]:
    """Hold every case of `folder`/spectrogram.npz against our log-mel.

    A mel value m may be off by 3e-5 m + 2e-6 of the largest FFT bin of its frame: float32 FFTs
    differ by that much, and logarithms below it have no information.

    Returns:
        (cases compared, worst error as a share of what is allowed).
    Raises:
        AssertionError: naming the case, when an error is larger than allowed.
    """
    golden = np.load(folder / "spectrogram.npz")
    config = SpectrogramConfig()
    np.testing.assert_allclose(mel_matrix(config), golden["mel_matrix"], rtol=0, atol=2e-6)
    pairs = [("stages", golden["stages/audio"], golden["stages/logmel"])]
    for name in (key.removeprefix("audio/") for key in golden.files if key.startswith("audio/")):
        audio, expected = golden[f"audio/{name}"], golden[f"logmel/{name}"]
        if audio.ndim == 1:
            audio, expected = audio[None], expected[None]
        pairs += [(name, row, answer) for row, answer in zip(audio, expected, strict=True)]
    worst = 0.0
    for name, audio, expected in pairs:
        actual = log_mel(audio, config)
        assert actual.shape == expected.shape and actual.dtype == np.float32, name
        error = _relative_error(audio, actual, expected, golden["hann_window"])
        assert error <= 1, f"{name}: {error:.2f} times the allowed error"
        worst = max(worst, error)
    return len(pairs) + _check_frames(golden), worst


def _relative_error(
    audio: np.ndarray, actual: np.ndarray, expected: np.ndarray, window: np.ndarray
) -> float:
    padded = np.pad(audio, (0, len(window)))
    frames = np.stack([padded[128 * i : 128 * i + len(window)] for i in range(len(expected))])
    peak = np.abs(np.fft.rfft(frames * window.astype(np.float64))).max(axis=1, keepdims=True)
    mel, mel_expected = np.exp(actual.astype(np.float64)), np.exp(expected.astype(np.float64))
    # 1e-10: both sides of a silent frame are exp(log(1e-5)), equal but for rounding.
    allowed = 3e-5 * mel_expected + 2e-6 * peak + 1e-10
    return float((np.abs(mel - mel_expected) / allowed).max())


def _check_frames(golden: np.lib.npyio.NpzFile) -> int:
    """The cutting of audio into frames: counts, times and samples, exactly."""
    names = [key.removeprefix("a2f/shape_") for key in golden.files if key.startswith("a2f/shape_")]
    for name in names:
        n_frames = count_frames(int(name))
        assert [n_frames, 128] == golden[f"a2f/shape_{name}"].tolist(), name
        assert (np.arange(n_frames) / 125 == golden[f"a2f/times_{name}"]).all(), name
        if f"a2f/audio_{name}" in golden:
            frames = pad_to_frames(golden[f"a2f/audio_{name}"]).reshape(-1, 128)
            assert (frames == golden[f"a2f/frames_{name}"]).all(), name
    return len(names)
