"""Micro-batches: padding, order, skipped targets; where builds are; reading ahead."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mt3data.errors import UserError
from mt3data.reader import pad_tokens
from mt3data.shards import SCHEMA_VERSION, find_builds
from mt3train.config import DataConfig
from mt3train.data import Ahead, micro_batches, mixture_builds


def batch_of(*lengths):
    tokens, lengths = pad_tokens([np.full(n, 10 + i, np.int16) for i, n in enumerate(lengths)])
    return SimpleNamespace(
        mel=np.arange(len(lengths), dtype=np.float16)[:, None, None]
        * np.ones((1, 2, 3), np.float16),
        tokens=tokens,
        lengths=lengths,
        keys=[f"k{i}" for i in range(len(lengths))],
    )


def test_similar_lengths_share_a_micro_batch_and_are_padded_to_sixteens():
    first, second = micro_batches(batch_of(40, 3, 33, 16), size=2, max_target_length=1024)
    assert (first.keys, second.keys) == (["k1", "k3"], ["k2", "k0"])
    assert (first.targets.shape, second.targets.shape) == ((2, 16), (2, 48))
    assert first.targets[0].tolist() == [11] * 3 + [0] * 13
    assert second.mel[:, 0, 0].tolist() == [2.0, 0.0]
    assert (first.n_tokens, second.n_tokens) == (19, 73)


def test_a_target_that_is_too_long_is_counted_and_trains_nothing():
    only, last = micro_batches(batch_of(20, 21, 5), size=2, max_target_length=20)
    assert only.keys == ["k1", "k2"] and only.targets[0].sum() == 0
    assert (only.n_skipped, only.n_tokens) == (1, 5)
    assert (last.n_skipped, last.n_tokens) == (0, 20)
    (nothing,) = micro_batches(batch_of(30), size=2, max_target_length=20)
    assert nothing.targets.tolist() == [[0] * 16] and nothing.n_skipped == 1


@pytest.mark.parametrize("pattern", ["*", "a", "", "[ab]"])
def test_builds_are_found_by_name_pattern_or_parent(tmp_path, pattern):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "manifest.json").touch()
    assert find_builds(str(tmp_path / pattern)) == [tmp_path / "a"]


def test_without_a_build_the_command_that_makes_one_is_named(tmp_path):
    (tmp_path / "half").mkdir()
    with pytest.raises(UserError, match=r"1 path.*`mt3data build demo --out shards/`"):
        find_builds(str(tmp_path / "*"))
    with pytest.raises(UserError, match="nothing is there"):
        find_builds(str(tmp_path / "no" / "*"))


def builds_of(folder, *datasets):
    for name in datasets:
        (folder / name).mkdir()
        manifest = {"schema": SCHEMA_VERSION, "dataset": name, "splits": {}, "shards": []}
        (folder / name / "manifest.json").write_text(json.dumps(manifest))
    return find_builds(folder)


MT3_SETS = ("cerberus4", "guitarset", "maestro_v3", "musicnet_em", "slakh", "urmp")


def test_a_mixture_takes_its_own_sets_at_its_own_temperature(tmp_path):
    builds = builds_of(tmp_path, *MT3_SETS, "demo")
    chosen, temperature = mixture_builds(builds, DataConfig(mixture="mt3", temperature=1.0))
    assert ([path.name for path in chosen], temperature) == (list(MT3_SETS), 10 / 3)
    assert mixture_builds(builds, DataConfig(temperature=1.0)) == (builds, 1.0)


def test_a_mixture_with_a_set_that_is_not_built_names_it(tmp_path):
    builds = builds_of(tmp_path, *MT3_SETS[:-1])
    with pytest.raises(UserError, match=r"has none of urmp; .*`mt3data build urmp`"):
        mixture_builds(builds, DataConfig(mixture="mt3"))


def test_the_next_step_is_loaded_ahead_and_any_step_may_be_asked_for():
    asked = []
    ahead = Ahead(lambda step: asked.append(step) or [step], last=3)
    assert [ahead(step) for step in (0, 1, 3, 2, 3)] == [[0], [1], [3], [2], [3]]
    ahead.close()
    assert asked == [0, 1, 2, 3, 2, 3]


def test_an_error_while_reading_is_raised_where_the_batch_is_asked_for():
    def load(step):
        raise OSError("shard gone")

    ahead = Ahead(load, last=3)
    with pytest.raises(OSError, match="shard gone"):
        ahead(0)
    ahead.close()
