"""Training data through webdataset: every record of an epoch, as many steps on every process."""

from pathlib import Path

import fakes
import needs
import numpy as np
import pytest
from server import publisher

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.errors import UserError
from mt3data.shards.format import read_npy
from mt3data.shards.index import ShardSet
from mt3data.shards.reader import IndexedShards
from mt3data.shards.windows import WindowConfig
from mt3train.config import Config, DataConfig
from mt3train.data.builds import builds_at, open_evaluation, open_shards
from mt3train.data.streaming import StreamedShards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards of two records each, 400 frames of right_context "audio"."""
    folder = tmp_path_factory.mktemp("streamed")
    tracks = {f"Track{n:05d}": "train" for n in range(1, 6)}
    root = fakes.slakh_tree(folder / "root", "demo", tracks, seconds=5.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mt3data.build.plan.MIN_SHARD_BYTES", 1)
        windows = WindowConfig(400, align="off")
        return build(make_plan(BuildConfig("demo", root, folder, windows=windows))).folder


def keys(streamed: StreamedShards, steps: range, *rest: int) -> list[str]:
    return [key for step in steps for key in streamed.batch(step, *rest).keys]


def test_an_epoch_has_every_record_once_and_the_next_has_another_order(shards):
    streamed = StreamedShards([shards], "train", seed=1)
    assert (streamed.n_records, streamed.steps_per_epoch(5, 1)) == (10, 2)
    first, second = keys(streamed, range(2), 5), keys(streamed, range(2, 4), 5)
    assert len(set(first)) == len(set(second)) == 10
    assert first != second
    assert keys(StreamedShards([shards], "train", seed=1), range(4), 5) == first + second


def test_a_crop_and_its_tokens_are_those_that_the_indexed_reader_would_cut(shards):
    batch = StreamedShards([shards], "train", seed=1).batch(0, 6, frames=100)
    source = ShardSet(shards, "train")
    for slot, key in enumerate(batch.keys):
        row = source.index["key"].index(key)
        offset = int(batch.start_frames[slot] - source.index["start_frame"][row])
        mel = read_npy(source.member(row, "mel"))[offset : offset + 100]
        np.testing.assert_array_equal(batch.mel[slot], mel)
    # The same crops by the other reader, whose phases are made to hit them.
    indexed = IndexedShards([shards], "train", seed=0)
    rows = np.array([source.index["key"].index(key) for key in batch.keys])
    offsets = batch.start_frames - source.index["start_frame"][rows]
    left = np.minimum(400, source.index["track_frames"][rows] - source.index["start_frame"][rows])
    phases = (offsets + 0.5) / (np.maximum(left - 100, 0) + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexed, "draw_plan", lambda *_: (np.zeros(6, np.int64), rows))
        patch.setattr(np.random, "default_rng", lambda _: type("", (), {"random": lambda s, n: phases})())  # fmt: skip
        want = indexed.read(0, 6, range(6), frames=100)
    np.testing.assert_array_equal(batch.start_frames, want.start_frames)
    np.testing.assert_array_equal(batch.n_frames, want.n_frames)
    np.testing.assert_array_equal(batch.lengths, want.lengths)
    np.testing.assert_array_equal(batch.tokens, want.tokens)
    np.testing.assert_array_equal(batch.mel, want.mel)
    assert len(set(offsets.tolist())) > 3


def test_uneven_shards_give_every_process_the_same_steps_and_it_is_said_what_is_left_out(
    shards, capsys
):
    ranks = [StreamedShards([shards], "train", seed=1) for _ in range(2)]
    assert ranks[0].steps_per_epoch(4, 2) == 2  # 5 shards: one process gets 2, 4 records
    seen = [keys(streamed, range(4), 4, rank, 2) for rank, streamed in enumerate(ranks)]
    for epoch in (slice(0, 4), slice(4, 8)):
        assert len({*seen[0][epoch], *seen[1][epoch]}) == 8
    told = capsys.readouterr().err
    assert told == "webdataset: steps per epoch: 2; records left out: 2 of 10\n"


def test_a_run_that_continues_inside_an_epoch_begins_it_again_and_says_so(shards, capsys):
    whole = keys(StreamedShards([shards], "train", seed=1), range(10), 2)
    capsys.readouterr()
    resumed = StreamedShards([shards], "train", seed=1)
    assert keys(resumed, range(7, 10), 2) == whole[10:16]
    assert "going on in step 3 of epoch 1, with its first records again" in capsys.readouterr().err
    assert keys(resumed, range(5, 10), 2) == whole[10:]


def test_fewer_records_than_a_batch_are_refused(shards):
    with pytest.raises(
        UserError, match="batch=11 on 1 processes, which get 5 shards; .* 10 records"
    ):
        StreamedShards([shards], "train", seed=0).batch(0, 11)
    with pytest.raises(UserError, match="segments of 512 frames do not fit into records of 400"):
        StreamedShards([shards], "train", seed=0).batch(0, 2, frames=512)


@needs.posix
def test_several_builds_are_read_in_proportion_or_not_at_all(shards, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(shards)
    both = DataConfig(train=str(tmp_path / "*"), reader="webdataset", frames=100)
    with pytest.raises(UserError, match="2 builds once per epoch, which is data.temperature=1"):
        open_shards(both, 0)
    data = DataConfig(train=both.train, reader="webdataset", temperature=1.0)
    assert open_shards(data, 0).n_records == 20
    with pytest.raises(UserError, match="webdataset reads mel from .* build with --store audio"):
        open_shards(data, 0, audio=True)


def test_a_build_on_a_server_is_streamed_or_copied(shards, tmp_path):
    files = {f"/demo/{p.relative_to(shards)}": p.read_bytes() for p in shards.rglob("*") if p.is_file()}  # fmt: skip
    here = StreamedShards([shards], "train", seed=3).batch(0, 4, frames=100)
    with publisher(files) as web:
        address = f"{web.url}/demo"
        data = DataConfig(train=address, reader="webdataset", frames=100)
        streamed = open_shards(data, 3)
        np.testing.assert_array_equal(streamed.batch(0, 4, frames=100).tokens, here.tokens)
        with pytest.raises(UserError, match="is an address, .* copy it with data.cache=DIR"):
            open_evaluation(Config(data=data), streamed)
        (copy,) = builds_at(address, DataConfig(cache=str(tmp_path)))
        copied = open_shards(DataConfig(train=address, cache=str(tmp_path)), 3)
    local = IndexedShards([shards], seed=3).batch(0, 4, frames=100)
    np.testing.assert_array_equal(copied.batch(0, 4, frames=100).mel, local.mel)
    assert copy.parent == tmp_path and (copy / "manifest.json").is_file()
