"""Mixing of audio: which crops, what sum, which target; the same for any number of processes."""

import dataclasses

import numpy as np
import pytest
from note_rows import notes

from mt3data.errors import UserError
from mt3data.music.fast_tokenizer import encode_notes
from mt3data.music.vocabulary import VocabularyConfig, describe_tokens
from mt3data.shards.reader import Batch, pad_tokens
from mt3train.data.mixing import MixedShards, mix

TIES = VocabularyConfig()


def crops_of(*rows):
    """Crops of two samples and one drum hit each, from (samples, drum)."""
    audio = np.array([samples for samples, _ in rows], np.int16)
    targets = [encode_notes(notes((0.5, 1, drum, 9, 0, 1)), 0, 256, 1000, TIES) for _, drum in rows]
    n = len(rows)
    keys, whole = [f"k{i}" for i in range(n)], np.arange(1, n + 1, dtype=np.int32)
    return Batch(None, audio, *pad_tokens(targets), keys, np.arange(n) * 10, whole)


def test_a_mix_is_the_sum_of_its_crops_divided_by_its_peak():
    crops = crops_of(([30000, -100], 36), ([30000, 300], 38), ([0, 0], 40), ([-5, 1], 42))
    mixed = mix(crops, [np.array([0, 1]), np.array([2]), np.array([3])], TIES)
    np.testing.assert_allclose(mixed.audio, [[1, 200 / 60000], [0, 0], [-1, 0.2]], rtol=1e-6)
    assert mixed.audio.dtype == np.float32 and mixed.mel is None
    assert mixed.keys == ["k0+k1", "k2", "k3"]
    assert (mixed.n_frames.tolist(), mixed.start_frames.tolist()) == ([2, 3, 4], [0, 20, 30])
    assert ", ".join(describe_tokens(mixed.tokens[0], TIES)) == (
        "tie, tie, shift 50, velocity 1, drum 36, drum 38, EOS"
    )


class Drawn:
    """In place of IndexedShards: member m of step s has the sample 100 s + m and m + 5 tokens."""

    seed, spectrogram, vocabulary, right_context, n_records, builds = 3, None, TIES, "zeros", 9, []
    feature = "audio"

    def n_tokens(self, step, global_batch):
        return np.arange(global_batch) + 5

    def read(self, step, global_batch, members, frames):
        rows = [([100 * step + member, 1], 36) for member in members]
        return dataclasses.replace(crops_of(*rows), keys=[f"{step}-{m}" for m in members])


def test_every_crop_of_a_step_is_in_one_mix_and_all_sizes_come_equally_often():
    groups = MixedShards(Drawn(), 4).groups(step=7, global_batch=8)
    assert np.concatenate(groups).tolist() == list(range(20))
    assert sorted(map(len, groups)) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert list(map(len, groups)) != list(map(len, MixedShards(Drawn(), 4).groups(8, 8)))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_processes_shares_the_same_mixes(world_size):
    mixed = MixedShards(Drawn(), 4)
    whole = mixed.batch(5, 8)
    parts = [mixed.batch(5, 8, rank, world_size) for rank in range(world_size)]
    for rank, part in enumerate(parts):
        assert part.keys == whole.keys[rank::world_size]
        np.testing.assert_array_equal(part.audio, whole.audio[rank::world_size])
        np.testing.assert_array_equal(part.lengths, whole.lengths[rank::world_size])
    sums = [sum(mixed.shards.n_tokens(5, 20)[int(m.split("-")[1])] for m in key.split("+"))
            for key in whole.keys]  # fmt: skip
    assert sums == sorted(sums, reverse=True)


def test_a_batch_in_which_sizes_cannot_be_equally_often_is_refused():
    with pytest.raises(UserError, match="batch=6 is not a multiple of data.mix_examples=4"):
        MixedShards(Drawn(), 4).batch(0, 6)
