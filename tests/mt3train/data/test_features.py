"""Log-mel on the trainer's device: the numbers of mt3data.audio.spectrogram.log_mel."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mt3data.audio.spectrogram import SpectrogramConfig, hann_window, log_mel
from mt3train.data.log_mel import log_mel_of_crops

CONFIG = SpectrogramConfig()
GOLDEN = np.load(Path(__file__).resolve().parents[3] / "tests" / "golden" / "spectrogram.npz")
SIGNALS = [name for name in GOLDEN.files if name.startswith("audio/")]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    ),
]


def crops_of(samples, frames, right_context="zeros", device="cpu"):
    """log_mel_of_crops of one crop that lies inside its track."""
    reach = frames * 128 + (1920 if right_context == "audio" else 0)
    crop = torch.from_numpy(samples[:reach])[None].to(device)
    whole = torch.tensor([frames], device=device)
    return log_mel_of_crops(crop, whole, frames, CONFIG)[0].cpu().numpy()


def worst(found, want, samples):
    """Largest difference of magnitudes, as a multiple of what features.py promises."""
    padded = np.pad(samples, (0, 2048))
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2048)[::128][: len(want)]
    largest = np.abs(np.fft.rfft(frames * hann_window(2048))).max(1, keepdims=True)
    allowed = 1e-5 * np.exp(want) + 1e-6 * largest
    return (np.abs(np.exp(found) - np.exp(want)) / np.maximum(allowed, 1e-12)).max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SIGNALS)
def test_a_crop_s_log_mel_is_that_of_the_data_side(name, device):
    samples = np.atleast_2d(GOLDEN[name])[-1].astype(np.float32)
    samples = np.pad(samples, (0, -len(samples) % 128))  # whole frames; zeros follow anyway
    want = log_mel(samples, CONFIG)
    assert worst(crops_of(samples, len(want), device=device), want, samples) <= 1.0


def test_the_promise_is_one_that_another_filter_bank_would_break():
    samples = GOLDEN["audio/noise_quiet_9001"][:8960]
    want = log_mel(samples, CONFIG)
    other = log_mel(samples, SpectrogramConfig(fmax=7599.0))
    assert worst(other, want, samples) > 10


@pytest.mark.parametrize("right_context", ["zeros", "audio"])
def test_the_edge_is_a_matter_of_what_the_crop_holds(right_context):
    track = np.random.default_rng(0).normal(size=12800).astype(np.float32)
    want = log_mel(track[: 40 * 128] if right_context == "zeros" else track, CONFIG)[:40]
    other = log_mel(track if right_context == "zeros" else track[: 40 * 128], CONFIG)[:40]
    found = crops_of(track, 40, right_context)
    np.testing.assert_allclose(found, want, atol=1e-3)
    assert np.abs(found[-1] - other[-1]).max() > 1
    np.testing.assert_allclose(found[:25], other[:25], atol=1e-3)


def test_whole_numbers_are_the_samples_that_shards_hold():
    samples = GOLDEN["audio/mix_12345"][: 96 * 128].astype(np.float32)
    stored = np.clip(np.rint(samples * 32767), -32768, 32767).astype(np.int16)
    want = log_mel(stored.astype(np.float32) / 32767, CONFIG)
    np.testing.assert_allclose(crops_of(stored, 96), want, atol=1e-3)


def test_frames_behind_the_track_s_end_are_zero_and_each_crop_has_its_own_end():
    crops = torch.full((2, 640), 0.5)
    mel = log_mel_of_crops(crops, torch.tensor([2, 5]), 5, CONFIG)
    assert (mel[0, 2:] == 0).all() and (mel[0, :2] != 0).all()
    assert torch.equal(mel[0, :2], mel[1, :2]) and (mel[1] != 0).all()


def test_silence_is_the_floor_and_many_crops_are_as_one():
    crops = torch.randn(70, 384)
    crops[33] = 0
    mel = log_mel_of_crops(crops, torch.full((70,), 3), 3, CONFIG)
    assert mel[33].unique().tolist() == [pytest.approx(np.log(1e-5))]
    alone = log_mel_of_crops(crops[69:], torch.tensor([3]), 3, CONFIG)
    torch.testing.assert_close(mel[69:], alone, rtol=0, atol=1e-3)


def test_autocast_does_not_touch_it():
    crops, whole = torch.randn(1, 512), torch.tensor([4])
    with torch.autocast("cpu", torch.bfloat16):
        found = log_mel_of_crops(crops, whole, 4, CONFIG)
    assert torch.equal(found, log_mel_of_crops(crops, whole, 4, CONFIG))
