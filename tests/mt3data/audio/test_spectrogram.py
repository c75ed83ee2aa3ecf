"""mt3data.audio.spectrogram: MT3's log-mel, whole or streamed."""

import math
from pathlib import Path

import numpy as np
import pytest
from golden_spectrogram import check_spectrogram
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3data.audio.spectrogram import (
    LogMelStream,
    SpectrogramConfig,
    count_frames,
    log_mel,
    log_mel_float16,
    mel_matrix,
    pad_to_frames,
    to_float16,
)

GOLDEN = Path(__file__).resolve().parents[3] / "tests" / "golden"
LOG_SILENCE = np.float32(math.log(1e-5))


def noise(n_samples: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n_samples) * 0.1).astype(np.float32)


def test_every_golden_spectrogram_is_within_the_tolerance():
    assert check_spectrogram(GOLDEN)[1] < 1


def test_the_golden_check_fails_for_squared_values(monkeypatch):
    monkeypatch.setattr("golden_spectrogram.log_mel", lambda audio, config: 2 * log_mel(audio))
    with pytest.raises(AssertionError, match="times the allowed error"):
        check_spectrogram(GOLDEN)


def test_all_but_a_few_mel_weights_are_tensorflows_to_the_last_bit():
    golden = np.load(GOLDEN / "spectrogram.npz")["mel_matrix"]
    assert (mel_matrix() != golden).sum() == 13
    assert ((mel_matrix() > 0) == (golden > 0)).all()


def test_digital_silence_is_log_of_1e_minus_5():
    assert (log_mel(np.zeros(4000, np.float32)) == LOG_SILENCE).all()


def test_quiet_sound_is_not_floored():
    assert log_mel(noise(2048) * np.float32(1e-9)).min(axis=0)[100] < -15


def test_two_filters_fall_between_fft_bins_and_are_always_silent():
    silent = (log_mel(noise(5000)) == LOG_SILENCE).all(axis=0)
    assert np.flatnonzero(silent).tolist() == [1, 10]


def test_a_1000_hz_tone_is_loudest_in_the_filter_whose_centre_is_nearest():
    def mel(hertz: float) -> float:
        return 1127 * math.log(1 + hertz / 700)

    centre = (mel(1000) - mel(20)) / (mel(7600) - mel(20)) * 513 - 1
    tone = np.sin(2 * np.pi * 1000 * np.arange(4096) / 16000).astype(np.float32)
    assert abs(int(log_mel(tone)[0].argmax()) - centre) <= 1


def test_one_sample_makes_one_frame_and_none_makes_none():
    assert log_mel(np.ones(1, np.float32)).shape == (1, 512)
    assert log_mel(np.zeros(0, np.float32)).shape == (0, 512)


def test_frames_are_padded_at_their_end_only():
    impulse = np.zeros(4096, np.float32)
    impulse[2560] = 1  # frame i covers samples [128 i, 128 i + 2048): frames 5 to 20 (Hann(0) = 0)
    sounds = (log_mel(impulse) > LOG_SILENCE).any(axis=1)
    assert np.flatnonzero(sounds).tolist() == list(range(5, 20))


@pytest.mark.parametrize(
    ("n_samples", "frames"), [(0, 1), (1, 1), (127, 1), (128, 2), (32767, 256), (32768, 257)]
)
def test_a_whole_extra_frame_follows_when_the_hop_divides_the_length(n_samples, frames):
    assert count_frames(n_samples) == frames
    assert len(pad_to_frames(noise(n_samples))) == 128 * frames


def test_padding_appends_zeros():
    assert pad_to_frames(np.ones(100, np.float32)).tolist() == [1.0] * 100 + [0.0] * 28


@settings(max_examples=40, deadline=None)
@given(
    n_samples=st.integers(0, 30000),
    lengths=st.lists(st.integers(0, 12000), max_size=8),
    seed=st.integers(0, 3),
)
def test_a_stream_gives_the_bytes_of_one_piece_for_any_blocks(n_samples, lengths, seed):
    samples = noise(n_samples, seed)
    stream, frames = LogMelStream(), []
    for block in np.split(samples, np.minimum(np.cumsum(lengths, dtype=int), n_samples)):
        frames.append(stream.push(block))
    frames.append(stream.finish())
    assert np.concatenate(frames).tobytes() == log_mel(samples).tobytes()


def test_a_stream_keeps_less_than_a_block_and_a_window_of_samples():
    stream = LogMelStream()
    for _ in range(40):
        stream.push(noise(1000))
        assert len(stream._pending) < 64 * 128 + 2048


def test_a_finished_stream_begins_anew():
    stream = LogMelStream()
    stream.push(noise(3000, seed=1))
    stream.finish()
    frames = np.concatenate([stream.push(noise(9000)), stream.finish()])
    assert frames.tobytes() == log_mel(noise(9000)).tobytes()


def test_a_segment_cut_before_the_transform_differs_from_a_slice_in_15_frames_only():
    samples = noise(128 * 700)
    cut, sliced = log_mel(samples[128 * 100 : 128 * 356]), log_mel(samples)[100:356]
    differs = (cut != sliced).any(axis=1)
    assert np.flatnonzero(differs).tolist() == list(range(241, 256))


@pytest.mark.parametrize("samples", [np.zeros((2, 100), np.float32), np.zeros(100, np.int16)])
def test_samples_must_be_mono_and_floating_point(samples):
    with pytest.raises(ValueError, match="mono samples, floating point"):
        log_mel(samples)


def test_other_settings_change_the_shape():
    config = SpectrogramConfig(sample_rate=8000, hop=80, fft_size=512, n_mels=40, fmax=4000.0)
    assert config.frames_per_second == 100
    assert log_mel(noise(8000), config).shape == (100, 40)


def test_rounding_to_float16_is_that_of_numpy_at_every_border() -> None:
    """Every finite half, what lies midway between neighbours, and the float32s beside both."""
    half = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    midway = (half[:-1].astype(np.float64) + half[1:]) / 2
    exact = np.concatenate([half, midway.astype(np.float32)])
    up, down = np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))
    values = np.concatenate([exact, up, down, -exact, -up, -down])
    np.testing.assert_array_equal(
        to_float16(values).view(np.uint16), values.astype(np.float16).view(np.uint16)
    )


@pytest.mark.parametrize("n_frames", [1, 64, 100])
def test_frames_in_float16_are_the_first_of_all_rounded(n_frames: int) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 110 * 128).astype(np.float32)
    expected = log_mel(samples)[:n_frames].astype(np.float16)
    np.testing.assert_array_equal(log_mel_float16(samples, n_frames), expected)
