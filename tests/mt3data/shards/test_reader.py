"""IndexedShards: what a batch holds follows from (seed, step) alone."""

import multiprocessing
import pickle
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import fakes
import needs
import numpy as np
import pyarrow.parquet as pq
import pytest
from events import HANG_SECONDS

from mt3data.audio.spectrogram import log_mel
from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.errors import UserError
from mt3data.music.fast_tokenizer import encode_notes
from mt3data.music.vocabulary import VocabularyConfig
from mt3data.shards import index
from mt3data.shards.format import read_npy
from mt3data.shards.index import ShardSet, read_tracks
from mt3data.shards.reader import IndexedShards
from mt3data.shards.windows import WindowConfig


def make(tmp_path: Path, name: str, n_tracks: int, window: int, **settings: Any) -> Path:
    tracks = {f"Track{n:05d}": "train" for n in range(1, n_tracks + 1)}
    root = fakes.slakh_tree(tmp_path / name, "demo", tracks, seconds=5.0)
    windows = WindowConfig(window, **settings)
    return build(
        make_plan(BuildConfig("demo", root, tmp_path / f"out-{name}", windows=windows))
    ).folder


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("a"), "segments", 3, 256)  # 9 records


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("b"), "long", 2, 512)  # 4 records, then right_context audio


@pytest.fixture(scope="module")
def long_track(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("c"), "long", 2, 400)  # right_context audio


def test_every_record_comes_once_per_epoch(segments: Path) -> None:
    shards = IndexedShards([segments], seed=5)
    seen = [
        row for step in range(9) for row in shards.draw_plan(step, 4)[1].tolist()
    ]  # 36 draws of 9 records
    epochs = [seen[i : i + 9] for i in range(0, 36, 9)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_any_number_of_processes_shares_the_same_global_batch(
    long_track: Path, world_size: int
) -> None:
    whole = IndexedShards([long_track], seed=1).batch(7, 16, frames=256)
    parts = [
        IndexedShards([long_track], seed=1).batch(7, 16, r, world_size) for r in range(world_size)
    ]
    for rank, part in enumerate(parts):
        assert part.keys == whole.keys[rank::world_size]
        for name in ("start_frames", "n_frames", "mel", "lengths"):
            np.testing.assert_array_equal(
                getattr(part, name), getattr(whole, name)[rank::world_size]
            )
        longest = part.tokens.shape[1]
        np.testing.assert_array_equal(part.tokens, whole.tokens[rank::world_size, :longest])


def test_ranks_are_dealt_the_longest_records_first(segments: Path) -> None:
    shards, source = IndexedShards([segments], seed=4), ShardSet(segments, "train")
    n_tokens = dict(zip(source.index["key"], source.index["n_tokens"].tolist(), strict=True))
    ordered = [n_tokens[key] for key in shards.batch(2, 9).keys]
    assert ordered == sorted(n_tokens.values(), reverse=True)
    assert [n_tokens[key] for key in shards.batch(2, 9, rank=1, world_size=3).keys] == ordered[1::3]


def test_a_run_continues_at_any_step_without_replaying_what_came_before(
    long_track: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, ordered = IndexedShards([long_track], seed=6), list[int]()
    want = [ran.batch(step, 3, frames=64) for step in range(20)][19]
    permutation = IndexedShards._permutation

    def counted(shards: IndexedShards, source: int, epoch: int) -> np.ndarray:
        ordered.append(epoch)
        return permutation(shards, source, epoch)

    monkeypatch.setattr(IndexedShards, "_permutation", counted)
    resumed = IndexedShards([long_track], seed=6)
    got = resumed.batch(19, 3, frames=64)
    assert got.keys == want.keys
    np.testing.assert_array_equal(got.mel, want.mel)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    resumed.draw_plan(10**9, 3)  # draws 3 * 10^9 and on: two epochs of 4 records each
    assert ordered == [14, 750_000_000]


def test_seeds_give_other_orders_and_other_crops(long_track: Path) -> None:
    one, two, again = (
        IndexedShards([long_track], seed=s).batch(0, 16, frames=64) for s in (0, 1, 0)
    )
    assert one.start_frames.tolist() == again.start_frames.tolist() != two.start_frames.tolist()


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


@needs.posix
def test_mixture_shares_are_exact(segments: Path, long: Path) -> None:
    with pytest.raises(UserError, match="right_context|window"):
        IndexedShards([segments, long])
    copy = segments.parent / "copy"
    if not copy.exists():
        copy.symlink_to(segments)
    shards = IndexedShards([segments, copy], weights=[0.7, 0.3], seed=3)
    sources = Counter(
        source for step in range(100) for source in shards.draw_plan(step, 100)[0].tolist()
    )
    assert sources == {0: 7000, 1: 3000}


def test_a_mixture_takes_builds_by_size_to_the_power_0_3(tmp_path: Path) -> None:
    small, large = make(tmp_path / "s", "s", 1, 64), make(tmp_path / "l", "l", 3, 64)
    shards = IndexedShards([small, large])
    sizes = [len(source) for source in shards.sources]
    assert sizes == [10, 30]
    share = 10**0.3 / (10**0.3 + 30**0.3)
    for first in (0, 10_000, 70_000):  # in every stretch of 10,000 draws
        drawn = Counter(
            shards.draw_plan(first // 100 + k, 100)[0].tolist().count(0) for k in range(100)
        )
        assert sum(k * n for k, n in drawn.items()) == round(share * 10_000) == 4183
    rows = np.concatenate([shards.draw_plan(step, 500)[1][shards.draw_plan(step, 500)[0] == 0] for step in range(20)])  # fmt: skip
    epochs = rows[: len(rows) // 10 * 10].reshape(-1, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()  # also in a mixture


@pytest.mark.parametrize("weights", [[1.0], [0.0, 1.0], [1e-6, 1.0], [-1.0, 2.0]])
def test_weights_that_would_leave_out_a_build_are_refused(
    segments: Path, weights: list[float]
) -> None:
    with pytest.raises(UserError, match="expected one each, none less than"):
        IndexedShards([segments, segments], weights=weights)


def test_a_mixture_by_temperature_follows_the_number_of_records(segments: Path) -> None:
    shards = IndexedShards([segments], temperature=10 / 3)
    assert set(shards.draw_plan(0, 50)[0].tolist()) == {0}


def test_segments_followed_by_zeros_cannot_be_cut_again(segments: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be cut to 128 frames: build with --window 128"):
        IndexedShards([segments]).batch(0, 2, frames=128)


def test_segments_longer_than_the_records_are_refused(segments: Path) -> None:
    with pytest.raises(UserError, match="512 frames do not fit into records of 256"):
        IndexedShards([segments]).batch(0, 2, frames=512)


def test_a_shard_of_another_size_is_noticed_when_it_is_opened(long: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(long, copy)
    shard = next(copy.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"has [\d,]+ bytes; the manifest states [\d,]+"):
        IndexedShards([copy])
    shard.unlink()
    with pytest.raises(UserError, match="is missing"):
        IndexedShards([copy])


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [("lost", ": missing or damaged"), ("cut", ": missing or damaged"), ("foreign", " has no column mel_crc32")],
)  # fmt: skip
def test_an_index_that_cannot_be_used_is_named(
    long: Path, tmp_path: Path, harm: str, complaint: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(long, copy)
    index = copy / "index" / "train.parquet"
    if harm == "lost":
        index.unlink()
    elif harm == "cut":
        index.write_bytes(index.read_bytes()[:100])
    else:  # of a build with other features
        pq.write_table(pq.read_table(index).drop_columns(["mel_crc32"]), index)
    with pytest.raises(UserError, match=rf"train\.parquet{complaint}"):
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
    from mt3data.shards.format import npy_parts

    with pytest.raises(ValueError, match="buffer|reshape"):
        read_npy(b"".join(npy_parts(np.arange(5)))[:-4])
    with pytest.raises(ValueError, match="expected a .npy file"):
        read_npy(b"PK not an array")


def test_a_buffer_is_used_again_if_it_fits(long_track: Path) -> None:
    shards = IndexedShards([long_track], seed=1)
    want, room = shards.batch(1, 8, frames=64), np.empty((10, 64, 512), np.float16)
    batch = shards.batch(1, 8, frames=64, out=room)
    assert batch.mel.base is room
    np.testing.assert_array_equal(batch.mel, want.mel)
    for wrong in (room[:7], room[:, :60], room.astype(np.float32)):
        with pytest.raises(ValueError, match=r"expected float16 \(8, 64, 512\) or longer"):
            shards.batch(1, 8, frames=64, out=wrong)
    with pytest.raises(ValueError, match="not contiguous"):
        shards.batch(1, 8, frames=64, out=np.empty((64, 10, 512), np.float16).swapaxes(0, 1))


def test_threads_read_the_same(long_track: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "open_shard", lru_cache(1)(index.open_shard.__wrapped__))
    one, four = (IndexedShards([long_track, long_track], threads=n) for n in (1, 4))
    for step in range(5):
        a, b = one.batch(step, 12, frames=64), four.batch(step, 12, frames=64)
        np.testing.assert_array_equal(a.mel, b.mel)
        np.testing.assert_array_equal(a.tokens, b.tokens)


@needs.posix
def test_a_reader_goes_on_in_a_process_that_was_forked(long_track: Path) -> None:
    shards = IndexedShards([long_track])
    want = shards.batch(0, 4, frames=64)  # its threads run
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(
        target=lambda: theirs.send(shards.batch(0, 4, frames=64).tokens.tolist())
    )
    child.start()
    assert ours.poll(HANG_SECONDS), "the child waits for threads that it does not have"
    assert ours.recv() == want.tokens.tolist()
    child.join()


def test_a_shard_that_ends_early_while_it_is_read_is_an_error(long: Path, tmp_path: Path) -> None:
    shutil.copytree(long, tmp_path / "copy")
    shards = IndexedShards([tmp_path / "copy"])
    (shard,) = (tmp_path / "copy").glob("train-*.tar")
    shard.write_bytes(shard.read_bytes()[:300_000])
    with pytest.raises(UserError, match=rf"{shard.name}: ends inside record demo-.*mt3data check"):
        shards.batch(0, 4, frames=512)


# Audio


@pytest.fixture(scope="module", params=["zeros", "audio"])
def audio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"audio-{request.param}")
    return make(folder, "audio", 2, 400, features=("mel", "audio"), right_context=request.param)


def test_a_crop_of_audio_is_the_slice_of_its_record_with_the_same_tokens_as_one_of_mel(
    audio: Path, long_track: Path
) -> None:
    shards, source = IndexedShards([audio], seed=2, feature="audio"), ShardSet(audio, "train")
    batch = shards.batch(0, 12, frames=100)
    context = {"zeros": 0, "audio": 2048 - 128}[shards.right_context]
    assert batch.mel is None and batch.audio is not None
    assert batch.audio.shape == (12, 100 * 128 + context)
    for slot, key in enumerate(batch.keys):
        row = source.index["key"].index(key)
        first = 128 * int(batch.start_frames[slot] - source.index["start_frame"][row])
        want = read_npy(source.member(row, "audio"))[first : first + 100 * 128 + context]
        np.testing.assert_array_equal(batch.audio[slot], want)
    mel = IndexedShards([long_track], seed=2).batch(0, 12, frames=100)  # the same tracks
    assert (mel.keys, mel.start_frames.tolist()) == (batch.keys, batch.start_frames.tolist())
    np.testing.assert_array_equal(mel.tokens, batch.tokens)


def test_a_crop_of_audio_becomes_the_mel_of_that_crop(audio: Path, long_track: Path) -> None:
    shards = IndexedShards([audio], seed=2, feature="audio")
    batch = shards.batch(0, 12, frames=100)
    theirs = IndexedShards([long_track], seed=2).batch(0, 12, frames=100)  # of right_context audio
    alike = (
        100 if shards.right_context == "audio" else 100 - 15
    )  # a segment's last frames see zeros
    for samples, mel, n_frames in zip(batch.audio, theirs.mel, batch.n_frames, strict=True):
        ours = log_mel(samples / np.float32(32767))[: min(n_frames, alike)]
        loud = mel[: len(ours)] > -3  # what rounding to 16 bits leaves alone
        assert np.abs(ours - mel[: len(ours)])[loud].max() < 0.05


def test_mel_is_read_where_there_is_mel_and_audio_where_there_is_none(
    audio: Path, long_track: Path, tmp_path: Path
) -> None:
    assert IndexedShards([audio]).feature == "mel"
    only = make(tmp_path, "only", 1, 300, features=("audio",))
    shards = IndexedShards([only])
    assert (shards.feature, shards.right_context) == ("audio", "zeros")
    assert shards.batch(0, 2, frames=64).audio is not None  # zeros follow any crop
    with pytest.raises(UserError, match=r"not all builds hold audio \(.* has mel, notes, tokens"):
        IndexedShards([long_track], feature="audio")
    with pytest.raises(UserError, match="not all builds hold mel"):
        IndexedShards([only], feature="mel")


def test_whole_records_of_audio_leave_out_what_a_segment_does_not_hear(audio: Path) -> None:
    shards = IndexedShards([audio], feature="audio")
    batch, context = (
        shards.batch(0, 4, frames=400),
        {"zeros": 0, "audio": 1920}[shards.right_context],
    )
    assert batch.audio.shape == (4, 400 * 128 + context)
    assert sorted(batch.n_frames.tolist()) == [226, 226, 400, 400]
    np.testing.assert_array_equal(
        batch.tokens, IndexedShards([audio], feature="mel").batch(0, 4, frames=400).tokens
    )


# --- processes, threads and open files -----------------------------------------------------------


def _keys(shards: IndexedShards, step: int) -> list[str]:
    return shards.batch(step, 4, frames=256).keys


class _Steps:
    """A map-style dataset for torch's DataLoader, which pickles it for spawned workers."""

    def __init__(self, shards: IndexedShards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return 4

    def __getitem__(self, step: int) -> list[str]:
        return _keys(self.shards, step)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_batches_are_the_same_in_workers_of_every_kind(segments: Path, method: str) -> None:
    from torch.utils.data import DataLoader

    shards = IndexedShards([segments], seed=5)
    want = [_keys(shards, step) for step in range(4)]  # threads and files are open by now
    workers = 1 if method == "spawn" else 2
    loader = DataLoader(
        _Steps(shards), batch_size=None, num_workers=workers, multiprocessing_context=method
    )
    assert list(loader) == want


def test_batches_are_the_same_in_threads_and_after_pickling(segments: Path) -> None:
    shards = IndexedShards([segments], seed=5, weights=[2.0], threads=2)
    want = [_keys(shards, step) for step in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(partial(_keys, shards), range(8))) == want
    again = pickle.loads(pickle.dumps(shards))
    assert [_keys(again, step) for step in range(8)] == want
    assert (again.builds, again.seed, again.feature) == (shards.builds, 5, "mel")


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_a_number_of_threads_beyond_the_machine_is_refused(segments: Path, threads: int) -> None:
    with pytest.raises(UserError, match=f"threads={threads}; expected 1 to 64"):
        IndexedShards([segments], threads=threads)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_open_shards_are_bounded_for_all_builds_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mt3data.build.plan.MIN_SHARD_BYTES", 1)
    folders = [make(tmp_path, f"set{n}", 3, 256) for n in range(2)]
    bounded = lru_cache(2)(index.open_shard.__wrapped__)
    monkeypatch.setattr(index, "open_shard", bounded)
    everything = [IndexedShards([folder], threads=1) for folder in folders for _ in range(2)]
    assert [len(shards.sources[0]._shards) for shards in everything] == [3, 3, 3, 3]
    before = _open_files()
    for shards in everything:
        for step in range(3):
            shards.batch(step, 9, frames=256)
            assert _open_files() <= before + 2


def test_a_shard_that_is_replaced_is_opened_anew(segments: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(segments, folder)
    first = IndexedShards([folder], threads=1)
    before = first.batch(0, 4).mel.copy()
    shard = next(folder.glob("*.tar"))
    data = bytearray(shard.read_bytes())
    source = first.sources[0]
    for offset, size in zip(source.index["mel_offset"], source.index["mel_size"], strict=True):
        data[offset + 1000 : offset + size] = bytes(size - 1000)
    (folder / "new").write_bytes(data)
    (folder / "new").replace(shard)
    assert not np.array_equal(IndexedShards([folder], threads=1).batch(0, 4).mel, before)
    shard.unlink()
    with pytest.raises(UserError, match="is missing"):
        IndexedShards([folder])
