"""stream(): every record once, from folders and over HTTP, and no silence about what is missing."""

import io
import json
import multiprocessing
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fakes
import numpy as np
import pytest
import webdataset
from server import Fault, Publisher, publisher
from torch.utils.data import DataLoader
from toys import QUICK

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.errors import UserError
from mt3data.shards.format import read_npy
from mt3data.shards.index import ShardSet
from mt3data.shards.stream import epoch_shards, stream
from mt3data.shards.windows import WindowConfig

TRACKS = {f"Track{n:05d}": "train" for n in range(1, 6)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards of two records each, with mel and audio."""
    folder = tmp_path_factory.mktemp("stream")
    root = fakes.slakh_tree(folder / "root", "demo", TRACKS, seconds=3.0)
    windows = WindowConfig(256, features=("mel", "audio"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mt3data.build.plan.MIN_SHARD_BYTES", 1)
        return build(make_plan(BuildConfig("demo", root, folder, windows=windows))).folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def web(whole: Path) -> Iterator[Publisher]:
    files = {f"/shards/demo/{path.name}": path.read_bytes() for path in whole.iterdir() if path.is_file()}  # fmt: skip
    with publisher(files) as served:
        yield served


def keys(*args: object, **kwargs: object) -> list[str]:
    return [record["key"] for record in stream(*args, **kwargs)]  # type: ignore[arg-type]


def test_a_record_holds_what_its_shard_holds(whole: Path) -> None:
    source = ShardSet(whole, "train")
    n_records = 0
    for record in stream([whole]):
        row = source.index["key"].index(record["key"])
        assert list(record) == ["key", "audio", "json", "mel", "notes", "tokens"]
        assert record["json"] == json.loads(source.member(row, "json"))
        for name in ("audio", "mel", "notes", "tokens"):
            want = read_npy(source.member(row, name))
            assert record[name].dtype == want.dtype
            np.testing.assert_array_equal(record[name], want)
        n_records += 1
    assert n_records == len(source) == 10


def test_every_epoch_has_an_order_of_shards_of_its_own_by_seed(whole: Path) -> None:
    orders = [tuple(keys([whole], seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in range(4)]
    assert len(set(orders)) > 5  # of 120 orders of five shards
    assert len({frozenset(order) for order in orders}) == 1
    assert orders[0] == tuple(keys([whole]))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_an_epoch(whole: Path, world: int) -> None:
    parts = [keys([whole], epoch=3, rank=rank, world_size=world) for rank in range(world)]
    assert sorted(key for part in parts for key in part) == sorted(ShardSet(whole, "train").index["key"])  # fmt: skip


def test_more_processes_than_shards_are_refused(whole: Path) -> None:
    with pytest.raises(UserError, match="'train' has too few shards for 6 processes"):
        stream([whole], rank=5, world_size=6)


def only_keys(records: Iterator[dict]) -> Iterator[str]:
    return (record["key"] for record in records)


@pytest.mark.parametrize("method", {multiprocessing.get_start_method(), "spawn"})
def test_workers_of_a_loader_share_what_a_process_gets(method: str, whole: Path) -> None:
    loader = DataLoader(
        stream([whole]).compose(only_keys), batch_size=None, num_workers=2,
        multiprocessing_context=method,
    )  # fmt: skip
    assert sorted(loader) == sorted(keys([whole]))


def test_stages_of_webdataset_can_be_added(whole: Path) -> None:
    shuffled = stream([whole]).compose(webdataset.shuffle(100, seed=1))
    assert sorted(r["key"] for r in shuffled) == sorted(keys([whole]))


def test_several_builds_are_one_stream(whole: Path, copy: Path) -> None:
    assert sorted(keys([whole, copy])) == sorted(keys([whole]) * 2)


@pytest.mark.parametrize("form", ["path", "file"])
def test_a_folder_is_named_by_path_or_file_address(whole: Path, form: str) -> None:
    assert keys([str(whole) if form == "path" else whole.as_uri()]) == keys([whole])


# HTTP


def test_a_web_server_gives_the_same_records(whole: Path, web: Publisher) -> None:
    assert keys([f"{web.url}/shards/demo/"]) == keys([whole])


def test_a_connection_that_drops_is_taken_up_again(whole: Path, web: Publisher) -> None:
    shard = epoch_shards([whole], "train", seed=0, epoch=0)[0]
    path = f"/shards/demo/{Path(shard.where).name}"
    web.faults[path] = [Fault(drop_after=300_000), Fault(drop_after=1)]
    assert keys([f"{web.url}/shards/demo"], retry_policy=QUICK) == keys([whole])
    assert len(web.ranges(path)) == 3


def test_a_server_that_never_sends_the_rest_is_an_error(whole: Path, web: Publisher) -> None:
    shard = epoch_shards([whole], "train", seed=0, epoch=0)[-1]
    web.lasting[f"/shards/demo/{Path(shard.where).name}"] = Fault(drop_after=3000, no_range=True)
    with pytest.raises(UserError, match=r"broke off at byte 3,000"):
        keys([f"{web.url}/shards/demo"], retry_policy=QUICK)


def test_a_file_that_is_shorter_on_the_server_is_an_error(whole: Path, web: Publisher) -> None:
    shard = epoch_shards([whole], "train", seed=0, epoch=0)[-1]
    web.lasting[f"/shards/demo/{Path(shard.where).name}"] = Fault(truncate=10240)
    with pytest.raises(UserError, match=r"the server has 10,240 bytes, expected \d+"):
        keys([f"{web.url}/shards/demo"], retry_policy=QUICK)


@pytest.mark.parametrize("status", [404, 403])
def test_an_address_without_a_build_says_what_the_server_said(web: Publisher, status: int) -> None:
    web.lasting["/shards/demo/manifest.json"] = Fault(status=status)
    with pytest.raises(
        UserError, match=rf"/shards/demo/manifest.json: the server answers {status}"
    ):
        stream([f"{web.url}/shards/demo"])


# Damage


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.tar"))


def cut_at_a_record(path: Path) -> None:
    with tarfile.open(path) as tar:
        names = tar.getnames()
        second = tar.getmembers()[len(names) // 2].offset
    path.write_bytes(path.read_bytes()[:second])


def cut_in_a_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def cut_in_a_payload(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:30_000])


def lose_the_file(path: Path) -> None:
    path.unlink()


def blank_a_header(path: Path) -> None:  # as a disk does that lost a block
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        second = tar.getmembers()[len(tar.getnames()) // 2].offset
    data[second : second + 512] = bytes(512)
    path.write_bytes(data)


def flip_a_bit_of_a_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)


def flip_the_header_of_an_array(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[512] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (cut_at_a_record, r": [\d,]+ bytes, the manifest states [\d,]+"),
        (cut_in_a_header, r": 700 bytes, the manifest states"),
        (cut_in_a_payload, r": 30,000 bytes, the manifest states"),
        (lose_the_file, r" is missing"),
        (blank_a_header, r": 1 records, the manifest states 2"),
        (flip_a_bit_of_a_header, r": no header of a plain file at byte 0"),
        (flip_the_header_of_an_array, r": \S+.audio.npy cannot be decoded \(begins with"),
    ],
)
def test_a_damaged_shard_is_an_error_that_names_it(
    copy: Path, harm: Callable[[Path], None], complaint: str
) -> None:
    harm(first_shard(copy))
    with pytest.raises(UserError, match=f"{first_shard_name(copy)}{complaint}"):
        keys([copy])


def first_shard_name(folder: Path) -> str:
    return str(json.loads((folder / "manifest.json").read_text())["shards"][0]["name"])


def test_bare_webdataset_says_nothing_about_a_shard_cut_at_a_record(copy: Path) -> None:
    # The control: why records are counted at all.
    cut_at_a_record(first_shard(copy))
    urls = [str(path) for path in sorted(copy.glob("*.tar"))]
    assert len(list(webdataset.WebDataset(urls, shardshuffle=False))) == 9


# Nothing that is found is ever run


@pytest.mark.parametrize(
    "build", ["pipe:touch planted", "simplecache::s3://bucket/demo", "rsync://host/demo", "PIPE:ls"]
)
def test_commands_and_other_kinds_of_address_are_refused(
    build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r": is not read; expected a folder, or an address"):
        stream([build])
    assert list(tmp_path.iterdir()) == []


def add_member(path: Path, name: str, data: bytes) -> None:
    """Puts a file behind the others of the last record of a shard."""
    with tarfile.open(path) as tar:
        files = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for member, content in [*files, (info, data)]:
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("ending", ["pyd", "pickle", "pkl", "pth", "npy.gz", "mel.npy"])
def test_a_member_that_records_do_not_have_is_refused(copy: Path, ending: str) -> None:
    path = first_shard(copy)
    with tarfile.open(path) as tar:
        key = tar.getnames()[-1].partition(".")[0]
    add_member(path, f"{key}.{ending}", b"cbuiltins\nexec\n(S'raise SystemExit(99)'\ntR.")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["shards"][0]["bytes"] = path.stat().st_size
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"{path.name}: holds {key}.{ending}; expected {key}.audio.npy, as"):  # fmt: skip
        keys([copy])
