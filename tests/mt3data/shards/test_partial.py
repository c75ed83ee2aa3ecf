"""A cache with a size limit: the same batches as on a disk, few shards here, all faults reported."""

import os
import pickle
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from events import HANG_SECONDS, wait_until
from remote import FaultyFileSystem, build_of, contents, put
from server import Fault, publisher
from toys import QUICK

from mt3data.errors import UserError
from mt3data.files import file_lock
from mt3data.shards import cache as caches
from mt3data.shards.cache import ShardCache, cached, shard_cache
from mt3data.shards.check import check
from mt3data.shards.format import read_build_manifest
from mt3data.shards.index import ShardSet, read_tracks
from mt3data.shards.reader import Batch, IndexedShards
from mt3data.shards.stream import open_builds

N_SHARDS = 12
ADDRESS = "faulty://bucket/builds/demo"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_of(tmp_path_factory.mktemp("partial"), N_SHARDS)
    assert len(list(folder.glob("train-*.tar"))) == N_SHARDS
    return folder


@pytest.fixture
def store(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyFileSystem]]:
    FaultyFileSystem.reset()
    put(ADDRESS, contents(whole))
    monkeypatch.setattr("mt3data.download.http.RETRY_POLICY", QUICK)
    yield FaultyFileSystem
    FaultyFileSystem.reset()


@pytest.fixture
def no_prefetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetches only what is asked for, in the thread that asks."""
    monkeypatch.setattr(ShardCache, "prefetch", lambda self, names: None)


def largest(whole: Path) -> int:
    return max(shard["bytes"] for shard in read_build_manifest(whole)["shards"])


def partial(whole: Path, cache: Path, n_shards: int, address: str = ADDRESS) -> Path:
    return cached(address, cache, QUICK, max_bytes=n_shards * largest(whole))


def shards_in(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.tar"))


def used_bytes(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob("*/*.tar*"))


def fetched(store: type[FaultyFileSystem]) -> list[str]:
    """The shards that were requested, in order."""
    found = [re.search(r"/([^/]*)\.tar$", path) for path, start, _ in store.requests if not start]
    return [match[1] for match in found if match]


def batch(reader: IndexedShards, step: int, n_records: int) -> Batch:
    return reader.batch(step, n_records, frames=40)


def assert_equal(ours: Batch, theirs: Batch) -> None:
    assert ours.keys == theirs.keys
    assert ours.mel is not None and theirs.mel is not None
    np.testing.assert_array_equal(ours.mel, theirs.mel)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.start_frames, theirs.start_frames)


def test_first_only_the_small_files_are_fetched(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    folder = partial(whole, tmp_path, 3)
    assert folder.name.endswith("-partial")
    assert shards_in(tmp_path) == [] and fetched(store) == []
    assert len(IndexedShards([folder]).builds) == 1
    assert fetched(store) == []


@pytest.mark.parametrize("n_shards", [1, 3, N_SHARDS + 1])
@pytest.mark.parametrize("shuffle_shards", [0, 2])
@pytest.mark.parametrize("prefetch", [False, True])
def test_batches_are_those_of_the_build_on_a_disk(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path, n_shards: int, shuffle_shards: int,
    prefetch: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not prefetch:
        monkeypatch.setattr(ShardCache, "prefetch", lambda self, names: None)
    options = {"seed": 3, "shuffle_shards": shuffle_shards}
    here = IndexedShards([whole], **options)  # type: ignore[arg-type]
    there = IndexedShards([partial(whole, tmp_path, n_shards)], **options)  # type: ignore[arg-type]
    for step in (0, 1, 2, 7, 3):
        assert_equal(batch(there, step, 5), batch(here, step, 5))
        assert prefetch or used_bytes(tmp_path) <= n_shards * largest(whole)


def test_the_shards_used_least_recently_make_room(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    cache = shard_cache(partial(whole, tmp_path, 3))
    assert cache is not None
    names = [f"train-{n:05}-of-{N_SHARDS:05}.tar" for n in range(N_SHARDS)]
    for used, n in enumerate((0, 1, 2, 0, 3)):
        cache.open(names[n])
        os.utime(cache.folder / names[n], ns=(used, used))  # as if a second passed between them
    assert [path.name for path in shards_in(tmp_path)] == [names[0], names[2], names[3]]
    assert len(fetched(store)) == 4
    traffic = cache.traffic
    sizes = [shard["bytes"] for shard in read_build_manifest(whole)["shards"]]
    assert (traffic["fetched"], traffic["evicted"]) == (4, 1)
    assert traffic["bytes"] == sum(sizes[:4])


@pytest.mark.usefixtures("no_prefetch")
def test_blocks_of_shards_need_every_shard_once_in_an_epoch(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    there = IndexedShards([partial(whole, tmp_path, 5)], shuffle_shards=2)
    n_records = 4
    for step in range(-(-there.n_records // n_records)):
        batch(there, step, n_records)
    assert sorted(set(fetched(store))) == sorted(path.stem for path in whole.glob("train*.tar"))
    assert len(fetched(store)) <= N_SHARDS + 1  # the last batch reaches into the next epoch


def test_an_epoch_in_blocks_has_every_record_once(whole: Path) -> None:
    source = ShardSet(whole, "train")
    for shuffle_shards in (1, 2, 5, N_SHARDS, 100):
        reader = IndexedShards([whole], shuffle_shards=shuffle_shards)
        epochs = [reader.draw_plan(epoch, reader.n_records)[1] for epoch in (0, 1)]
        for rows in epochs:
            assert sorted(rows.tolist()) == list(range(reader.n_records))
            shards = source.shard_numbers[rows]
            changes = int((np.diff(shards) != 0).sum())
            if shuffle_shards == 1:
                assert changes == N_SHARDS - 1
            first_block = set(shards[: len(rows) * shuffle_shards // (2 * N_SHARDS)].tolist())
            assert len(first_block) <= shuffle_shards
        assert epochs[0].tolist() != epochs[1].tolist()


def test_the_shards_that_come_next_are_fetched_meanwhile(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    there = IndexedShards([partial(whole, tmp_path, 6)], shuffle_shards=2)
    batch(there, 0, 1)
    wait_until(lambda: len(shards_in(tmp_path)) >= 4)
    cache = there.sources[0].cache
    before = cache.traffic["fetched"] if cache else 0
    rows = there.draw_plan(1, 6)[1]
    ahead = {there.sources[0].shard_names[n] for n in there.sources[0].shard_numbers[rows].tolist()}
    assert ahead <= {path.name for path in shards_in(tmp_path)}
    assert 4 <= before <= 6


def test_a_shard_with_other_bytes_is_never_read(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    there = IndexedShards([partial(whole, tmp_path, 3)])
    for path in list(store.store):
        if path.endswith(".tar"):
            data = bytearray(store.store[path].getvalue())
            data[600] ^= 1
            put("faulty://", {path.lstrip("/"): bytes(data)})
    with pytest.raises(
        UserError, match=r"sha256 is [0-9a-f]+, expected [0-9a-f]+; kept as .*\.bad"
    ):
        batch(there, 0, 4)
    assert shards_in(tmp_path) == []


def test_a_build_that_was_replaced_during_a_run_is_named(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    there = IndexedShards([partial(whole, tmp_path, 3)])
    files = contents(whole)
    put(ADDRESS, {name: data + b" " for name, data in files.items()})
    with pytest.raises(UserError, match=rf"^{ADDRESS} has another build than .*\.tar: the server"):
        batch(there, 0, 4)
    put(ADDRESS, {"manifest.json": b"damaged"})
    with pytest.raises(UserError, match=rf"^{ADDRESS}/train.*\.tar: the server has"):
        batch(there, 0, 4)


def test_a_full_disk_is_named(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = IndexedShards([partial(whole, tmp_path, 3)])

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mt3data.download.fetch.write_atomically", full)
    with pytest.raises(UserError, match=r"train-.*\.tar cannot be written \(No space left"):
        batch(there, 0, 4)


def test_a_shard_that_was_cut_here_is_fetched_again(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    folder = partial(whole, tmp_path, N_SHARDS + 2)
    wanted = batch(IndexedShards([folder]), 0, 8)
    for path in shards_in(tmp_path):
        path.write_bytes(path.read_bytes()[:100])
    assert_equal(batch(IndexedShards([folder]), 0, 8), wanted)


def test_a_server_that_is_gone_is_named(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    there = IndexedShards([partial(whole, tmp_path, 3)])
    store.store.clear()
    with pytest.raises(UserError, match=rf"{ADDRESS}/train-.*\.tar: no such file"):
        batch(there, 0, 4)


def test_a_limit_below_one_shard_is_refused(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="its largest shard has .* raise the limit"):
        cached(ADDRESS, tmp_path, QUICK, max_bytes=largest(whole) - 1)
    assert list(tmp_path.iterdir()) == []


def test_a_whole_copy_is_used_as_it_is(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    copy = cached(ADDRESS, tmp_path, QUICK)
    assert partial(whole, tmp_path, 2) == copy
    assert check(copy) == []


@pytest.mark.usefixtures("no_prefetch")
def test_the_limit_holds_for_all_builds_of_a_cache(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    manifest = contents(whole)["manifest.json"].replace(b'"title"', b'"title" ', 1)
    put("faulty://bucket/builds/other", contents(whole) | {"manifest.json": manifest})
    folders = [
        partial(whole, tmp_path, 3), partial(whole, tmp_path, 3, "faulty://bucket/builds/other")
    ]  # fmt: skip
    assert folders[0] != folders[1]
    here, there = IndexedShards([whole, whole]), IndexedShards(folders)
    for step in range(3):
        assert batch(there, step, 8).keys == batch(here, step, 8).keys
        assert used_bytes(tmp_path) <= 3 * largest(whole)


def test_reading_goes_on_while_another_process_removes_the_shard(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    cache = shard_cache(partial(whole, tmp_path, 3))
    assert cache is not None
    name = f"train-00000-of-{N_SHARDS:05}.tar"
    file = cache.open(name)
    (cache.folder / name).unlink()
    data = bytearray(1024)
    assert file.read_into(memoryview(data), 0) == 1024
    assert bytes(data) == (whole / name).read_bytes()[:1024]


@pytest.mark.usefixtures("no_prefetch")
def test_many_threads_at_once_keep_the_limit_and_the_batches(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    folder = partial(whole, tmp_path, 2)
    here, there = IndexedShards([whole]), IndexedShards([folder])
    faults: list[BaseException] = []

    def read(first: int) -> None:
        try:
            for step in range(first, first + 4):
                assert_equal(batch(there, step, 4), batch(here, step, 4))
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=read, args=(10 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    assert faults == []
    assert used_bytes(tmp_path) <= 2 * largest(whole)


@pytest.mark.usefixtures("no_prefetch")
@pytest.mark.parametrize("removed", ["cache", "cache/demo"])
def test_a_folder_that_was_removed_during_a_run_is_filled_again(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path, removed: str
) -> None:
    folder = partial(whole, tmp_path / "cache", 3)
    here, there = IndexedShards([whole]), IndexedShards([folder])
    batch(there, 0, 4)
    shutil.rmtree(folder if removed == "cache/demo" else folder.parent)
    for step in (0, 1):
        assert_equal(batch(there, step, 4), batch(here, step, 4))
    assert_equal(batch(IndexedShards([partial(whole, folder.parent, 3)]), 2, 4), batch(here, 2, 4))


def test_a_process_that_waits_long_for_another_one_prints_a_message(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(caches, "FETCH_SECONDS", 0.0)
    monkeypatch.setattr("mt3data.files.echo", lambda text, **rest: messages.append(text))
    cache = shard_cache(partial(whole, tmp_path, 3))
    assert cache is not None
    name = f"train-00000-of-{N_SHARDS:05}.tar"
    waiting = threading.Thread(target=cache.open, args=(name,))
    with file_lock(tmp_path / caches.LOCK):
        waiting.start()
        wait_until(lambda: bool(messages))
    waiting.join(HANG_SECONDS)
    assert messages == [f"{tmp_path}: another run uses this folder; waiting for it to end"]
    assert [path.name for path in shards_in(tmp_path)] == [name]


def test_copies_have_the_name_of_their_dataset(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    copies = [partial(whole, tmp_path / "a", 3), cached(ADDRESS, tmp_path / "b", QUICK)]
    assert [caches.build_names([copy]) for copy in copies] == [["demo"], ["demo"]]
    assert caches.build_names([whole]) == [whole.name]
    assert caches.build_names([*copies, tmp_path]) == [*(c.name for c in copies), tmp_path.name]
    other = copies[1].rename(tmp_path / "demo-0123456789ab")  # not the sum of its manifest
    assert caches.build_names([other, Path("s3://bucket/demo")]) == [other.name, "demo"]


def test_two_limits_in_one_cache_give_the_same_batches(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    here = IndexedShards([whole])
    small, large = (IndexedShards([partial(whole, tmp_path, n)]) for n in (2, 8))
    for step in range(4):
        assert_equal(batch(small, step, 4), batch(here, step, 4))
        assert_equal(batch(large, step, 4), batch(here, step, 4))


def test_a_pickled_reader_uses_the_same_cache(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    there = IndexedShards([partial(whole, tmp_path, 3)], shuffle_shards=2)
    again = pickle.loads(pickle.dumps(there))
    assert_equal(batch(again, 2, 4), batch(there, 2, 4))


def test_whole_tracks_are_read_as_well(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    folder = partial(whole, tmp_path, 2)
    here, there = (list(read_tracks(path, "train")) for path in (whole, folder))
    assert [track.track for track in there] == [track.track for track in here]
    np.testing.assert_array_equal(there[-1].mel[0], here[-1].mel[0])


@pytest.mark.usefixtures("no_prefetch")
def test_check_reads_the_shards_that_are_here(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    folder = partial(whole, tmp_path, 3)
    batch(IndexedShards([folder]), 0, 4)
    assert check(folder) == []
    shard = shards_in(tmp_path)[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    (fault,) = check(folder)
    assert fault == f"{shard.name}: its bytes have changed (sha256 differs from the manifest)"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '{"address": "faulty://a", "max_bytes": true}',
        '{"address": "pipe:ls", "max_bytes": 1}',
    ],
)
def test_a_damaged_description_is_named(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path, text: str
) -> None:
    folder = partial(whole, tmp_path, 3)
    (folder / "remote.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"remote\.json|pipe:"):
        IndexedShards([folder])


def test_a_partial_build_is_not_streamed_from_its_folder(
    store: type[FaultyFileSystem], whole: Path, tmp_path: Path
) -> None:
    folder = partial(whole, tmp_path, 3)
    with pytest.raises(UserError, match=f"holds only some shards of {ADDRESS}, .* its address"):
        list(open_builds([tmp_path]))
    assert [base for base, _ in open_builds([shard_cache(folder).address])] == [ADDRESS]  # type: ignore[union-attr]


@pytest.mark.usefixtures("store")
def test_builds_on_a_disk_take_no_room_of_what_is_fetched_ahead(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(ShardCache, "prefetch", lambda self, names: asked.append(names))
    mixed = IndexedShards([whole, partial(whole, tmp_path, 4)], shuffle_shards=2)
    batch(mixed, 0, 1)
    assert len(asked) == 1 and len(asked[0]) in (4, 5)  # 5: most are smaller than the largest


def test_a_web_server_serves_a_partial_build_with_drops(whole: Path, tmp_path: Path) -> None:
    files = {f"/demo/{name}": data for name, data in contents(whole).items()}
    with publisher(files) as web:
        folder = partial(whole, tmp_path, 3, f"{web.url}/demo")
        here, there = IndexedShards([whole]), IndexedShards([folder])
        for name in files:
            if name.endswith(".tar"):
                web.faults[name] = [Fault(drop_after=1000)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mt3data.download.http.RETRY_POLICY", QUICK)
            assert_equal(batch(there, 0, 6), batch(here, 0, 6))


def test_a_local_file_system_of_fsspec_is_read(whole: Path, tmp_path: Path) -> None:
    folder = partial(whole, tmp_path, 3, f"local://{whole.as_posix()}")
    assert_equal(batch(IndexedShards([folder]), 0, 6), batch(IndexedShards([whole]), 0, 6))
