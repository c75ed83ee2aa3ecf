"""Micro-batches: padding, order, skipped targets; audio to log-mel; reading ahead."""

import dataclasses
import queue
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mt3data.audio.spectrogram import SpectrogramConfig, log_mel
from mt3data.shards.reader import Batch, pad_tokens
from mt3train.config import DataConfig
from mt3train.data.loader import Prefetcher, cut_by_cost, micro_batches, to_device
from mt3train.model import MT3, ModelConfig
from mt3train.training.loss import loss_sum

MEL = SpectrogramConfig(n_mels=3)


def batch_of(*lengths):
    tokens, lengths = pad_tokens([np.full(n, 10 + i, np.int16) for i, n in enumerate(lengths)])
    rows = np.arange(len(lengths))
    mel = rows.astype(np.float16)[:, None, None] * np.ones((1, 2, 3), np.float16)
    keys, frames = [f"k{i}" for i in rows], np.full(len(rows), 2, np.int32)
    return Batch(mel, None, tokens, lengths, keys, rows * 0, frames)


def test_similar_lengths_share_a_micro_batch_and_are_padded_to_sixteens():
    # A budget of 2 x (2 + 64) positions: two rows of 2 + 48, or seven of 2 + 16.
    first, second = micro_batches(
        batch_of(40, 3, 33, 16, 2), 2, DataConfig(frames=2, max_target_length=64), MEL
    )
    assert (first.keys, second.keys) == (["k0", "k2"], ["k3", "k1", "k4"])
    assert (first.targets.shape, second.targets.shape) == ((2, 48), (3, 16))
    assert second.targets[1].tolist() == [11] * 3 + [0] * 13
    assert first.sound[:, 0, 0].tolist() == [0.0, 2.0]
    assert (first.n_tokens, second.n_tokens) == (73, 21)


def test_a_target_that_is_too_long_is_counted_and_left_out():
    data = DataConfig(frames=2, max_target_length=20)
    first, second = micro_batches(batch_of(20, 21, 5), 1, data, MEL)
    assert (first.keys, second.keys) == (["k0"], ["k2"])
    assert (first.n_skipped, second.n_skipped) == (1, 0)


def test_a_rank_whose_targets_are_all_too_long_keeps_one_without_its_tokens():
    (only,) = micro_batches(batch_of(30, 31), 4, DataConfig(frames=2, max_target_length=20), MEL)
    assert only.targets.tolist() == [[0] * 16]
    assert (only.n_tokens, only.n_skipped) == (0, 2)


@pytest.mark.parametrize(
    "padded, budget, parts",
    [
        ([48, 48, 16, 16, 16, 16], 128, [2, 4]),  # both cost 128
        ([16] * 5, 128, [3, 2]),  # not 4 and 1
        ([48, 16, 16], 10, [1, 1, 1]),  # a row may cost more than the budget
        ([32], 1000, [1]),
    ],
)
def test_micro_batches_are_few_and_cost_about_the_same(padded, budget, parts):
    assert [part.stop - part.start for part in cut_by_cost(padded, 16, budget)] == parts


@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=40),
    size=st.integers(1, 5),
    frames=st.sampled_from([1, 2, 100]),
)
def test_every_member_is_in_one_micro_batch_and_none_is_larger_than_allowed(lengths, size, frames):
    cut = micro_batches(
        batch_of(*lengths), size, DataConfig(frames=frames, max_target_length=64), MEL
    )
    fit = [f"k{i}" for i, length in enumerate(lengths) if length <= 64]
    if fit:
        assert sorted(key for micro in cut for key in micro.keys) == sorted(fit)
        assert sum(m.n_tokens for m in cut) == sum(n for n in lengths if n <= 64)
    assert cut[0].n_skipped == len(lengths) - len(fit)
    assert all(len(m.keys) * (frames + m.targets.shape[1]) <= size * (frames + 64) for m in cut)


def test_audio_becomes_log_mel_on_the_way_to_the_device_and_zero_behind_the_track_s_end():
    audio = np.random.default_rng(0).integers(-9000, 9000, (2, 384)).astype(np.int16)
    ends = np.array([3, 2], np.int32)
    batch = dataclasses.replace(batch_of(5, 9), mel=None, audio=audio, n_frames=ends)
    (micro,) = micro_batches(batch, 4, DataConfig(frames=3), SpectrogramConfig())
    mel, targets = to_device(micro, torch.device("cpu"), torch.float64)
    want = [log_mel(samples.astype(np.float32) / 32767) for samples in audio]
    assert mel.dtype == torch.float64 and targets[0, :10].tolist() == [11] * 9 + [0]
    np.testing.assert_allclose(mel[1], want[0], atol=1e-3)
    np.testing.assert_allclose(mel[0, :2], want[1][:2], atol=1e-3)
    assert (mel[0, 2] == 0).all()


def gradients(model, pieces):
    model.zero_grad()
    for mel, targets in pieces:
        loss_sum(model(mel.double(), targets), targets).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_sorted_micro_batches_have_the_gradient_of_targets_padded_to_1024():
    torch.manual_seed(0)
    model = MT3(ModelConfig(64, 8, 2, 4, 1, 1, 8, n_mels=3, dropout_rate=0.0)).double()
    batch, data = batch_of(300, 3, 90, 17, 40), DataConfig(frames=2)
    padded = np.pad(batch.tokens, ((0, 0), (0, 1024 - 300))).astype(np.int64)
    want = gradients(model, [(torch.from_numpy(batch.mel), torch.from_numpy(padded))])
    cut = micro_batches(batch, 1, data, MEL)
    found = gradients(model, [to_device(m, torch.device("cpu"), torch.float64) for m in cut])
    assert [m.targets.shape for m in cut] == [(1, 304), (4, 96)]
    for name, gradient in found.items():
        scale = want[name].abs().max().item()
        torch.testing.assert_close(gradient, want[name], rtol=0, atol=1e-12 * scale)
    without_one = gradients(model, [to_device(cut[0], torch.device("cpu"), torch.float64)])
    assert (without_one["decoder.logits_dense.weight"] - want["decoder.logits_dense.weight"]).abs().max() > 1  # fmt: skip


def test_steps_come_in_order_and_one_step_is_loaded_ahead():
    asked = queue.SimpleQueue()
    batches = Prefetcher(lambda step: asked.put(step) or [step], range(2, 5))
    assert [asked.get(), batches.get(), asked.get()] == [2, [2], 3]
    assert asked.empty()
    assert [batches.get(), batches.get()] == [[3], [4]]
    batches.close()


def test_an_error_while_reading_is_raised_where_the_batch_is_asked_for():
    def load(step):
        raise OSError("shard gone")

    with pytest.raises(OSError, match="shard gone"):
        Prefetcher(load, range(3)).get()


def test_a_batch_that_is_not_there_yet_is_none_and_comes_later():
    disk = threading.Event()
    batches = Prefetcher(lambda step: disk.wait() and [step], range(1))
    assert batches.get(timeout=0.01) is None
    disk.set()
    assert batches.get() == [0]
    batches.close()
