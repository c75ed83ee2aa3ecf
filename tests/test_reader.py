"""IndexedShards: what a batch holds follows from (seed, step) alone."""

from collections import Counter
from pathlib import Path

import fakes
import numpy as np
import pytest

from mt3data.build import build
from mt3data.errors import UserError
from mt3data.plan import BuildConfig, make_plan
from mt3data.reader import IndexedShards
from mt3data.records import ShardSet, read_tracks
from mt3data.shards import read_npy
from mt3data.tokens import encode_notes
from mt3data.vocabulary import VocabularyConfig
from mt3data.windows import WindowConfig


def make(tmp_path: Path, name: str, n_tracks: int, window: int) -> Path:
    tracks = {f"Track{n:05d}": "train" for n in range(1, n_tracks + 1)}
    root = fakes.slakh_tree(tmp_path / name, "demo", tracks, seconds=5.0)
    config = BuildConfig("demo", root, tmp_path / f"out-{name}", windows=WindowConfig(window))
    return build(make_plan(config)).folder


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("a"), "segments", 3, 256)  # 9 records


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("b"), "long", 2, 512)  # 4 records, then edge track


@pytest.fixture(scope="module")
def long_track(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("c"), "long", 2, 400)  # edge track


def test_every_record_comes_once_per_epoch(segments: Path) -> None:
    shards = IndexedShards([segments], seed=5)
    seen = [
        row for step in range(9) for row in shards.plan(step, 4)[1].tolist()
    ]  # 36 draws of 9 records
    epochs = [seen[i : i + 9] for i in range(0, 36, 9)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_any_number_of_processes_shares_the_same_global_batch(long_track: Path, world: int) -> None:
    shards = IndexedShards([long_track], seed=1)
    whole = shards.batch(7, 6, frames=256)
    parts = [shards.batch(7, 6, rank, world, frames=256) for rank in range(world)]
    for rank, part in enumerate(parts):
        assert part.keys == whole.keys[rank::world]
        for name in ("start_frames", "mel", "lengths"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rank::world])
        longest = part.tokens.shape[1]
        np.testing.assert_array_equal(part.tokens, whole.tokens[rank::world, :longest])


def test_a_crop_is_the_slice_of_its_record_with_the_tokens_of_exactly_that_crop(
    long_track: Path,
) -> None:
    shards, source = IndexedShards([long_track], seed=2), ShardSet(long_track, "train")
    tracks = {track.track: track for track in read_tracks(long_track, "train")}
    batch = shards.batch(0, 32, frames=100)
    for slot, key in enumerate(batch.keys):
        row = source.index["key"].index(key)
        offset = int(batch.start_frames[slot] - source.index["start_frame"][row])
        mel = read_npy(source.member(row, "mel"))
        np.testing.assert_array_equal(batch.mel[slot], mel[offset : offset + 100])
        track = tracks[source.index["track"][row]]
        start = int(batch.start_frames[slot])
        n_frames = min(100, track.track_frames - start)
        want = encode_notes(track.notes, start, n_frames, track.track_frames, VocabularyConfig())
        assert batch.tokens[slot, : batch.lengths[slot]].tolist() == want.tolist()
        assert not batch.tokens[slot, batch.lengths[slot] :].any()
    assert len(set(batch.start_frames.tolist())) > 20


def test_records_of_the_length_asked_for_come_as_they_are(segments: Path) -> None:
    batch = IndexedShards([segments]).batch(0, 3, frames=256)
    source = ShardSet(segments, "train")
    for key, tokens, length in zip(batch.keys, batch.tokens, batch.lengths, strict=True):
        row = source.index["key"].index(key)
        assert tokens[:length].tolist() == read_npy(source.member(row, "tokens")).tolist()


def test_mixture_shares_are_exact(segments: Path, long: Path) -> None:
    with pytest.raises(UserError, match="edge|window"):
        IndexedShards([segments, long])
    copy = segments.parent / "copy"
    if not copy.exists():
        copy.symlink_to(segments)
    shards = IndexedShards([segments, copy], weights=[0.7, 0.3], seed=3)
    sources = Counter(
        source for step in range(100) for source in shards.plan(step, 100)[0].tolist()
    )
    assert sources == {0: 7000, 1: 3000}


@pytest.mark.parametrize("weights", [[1.0], [0.0, 1.0], [1e-6, 1.0], [-1.0, 2.0]])
def test_weights_that_would_leave_out_a_build_are_refused(
    segments: Path, weights: list[float]
) -> None:
    with pytest.raises(UserError, match="expected one each, none less than"):
        IndexedShards([segments, segments], weights=weights)


def test_only_so_many_shards_stay_open(segments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mt3data.records.OPEN_SHARDS", 1)
    shards = IndexedShards([segments])
    shards.batch(0, 9)
    assert len(shards.sources[0]._files) == 1


def test_a_mixture_by_temperature_follows_the_number_of_records(segments: Path) -> None:
    shards = IndexedShards([segments], temperature=10 / 3)
    assert set(shards.plan(0, 50)[0].tolist()) == {0}


def test_segments_of_edge_segment_cannot_be_cut_again(segments: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be cut to 128 frames: build with --window 128"):
        IndexedShards([segments]).batch(0, 2, frames=128)


def test_segments_longer_than_the_records_are_refused(segments: Path) -> None:
    with pytest.raises(UserError, match="512 frames do not fit into records of 256"):
        IndexedShards([segments]).batch(0, 2, frames=512)


def test_a_shard_of_another_size_is_noticed_when_it_is_opened(long: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(long, copy)
    shard = next(copy.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"has [\d,]+ bytes; the manifest says [\d,]+"):
        IndexedShards([copy])
    shard.unlink()
    with pytest.raises(UserError, match="is missing"):
        IndexedShards([copy])


def test_a_folder_without_manifest_is_no_build(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no manifest.json, so this is no finished build"):
        IndexedShards([tmp_path])


@pytest.mark.parametrize(
    "array", [np.array([{"a": 1}], dtype=object), np.asfortranarray(np.ones((2, 3)))]
)
def test_objects_and_other_orders_are_never_read(array: np.ndarray) -> None:
    import io

    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=True)
    with pytest.raises(ValueError, match="expected numbers in C order"):
        read_npy(buffer.getvalue())


def test_an_array_that_is_cut_short_is_refused() -> None:
    from mt3data.shards import npy_bytes

    with pytest.raises(ValueError, match="buffer|reshape"):
        read_npy(npy_bytes(np.arange(5))[:-4])
    with pytest.raises(ValueError, match="expected a .npy file"):
        read_npy(b"PK not an array")
