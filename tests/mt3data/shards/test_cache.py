"""cached(): a remote build becomes a folder that holds what the server's manifest states, or nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fakes
import needs
import numpy as np
import pytest
from click.testing import CliRunner
from events import HANG_SECONDS, wait_until
from remote import contents
from server import Fault, Publisher, publisher
from toys import QUICK

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.cli.main import main
from mt3data.errors import UserError
from mt3data.shards.cache import cached
from mt3data.shards.check import check
from mt3data.shards.reader import IndexedShards
from mt3data.shards.windows import WindowConfig

TRACKS = {"Track00001": "train", "Track00002": "train", "Track00003": "test"}
SHARD = "/demo/train-00001-of-00002.tar"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    root = fakes.slakh_tree(folder / "root", "demo", TRACKS, seconds=3.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mt3data.build.plan.MIN_SHARD_BYTES", 1)
        return build(make_plan(BuildConfig("demo", root, folder, windows=WindowConfig(256)))).folder


@pytest.fixture
def web(whole: Path) -> Iterator[Publisher]:
    with publisher({f"/demo/{name}": data for name, data in contents(whole).items()}) as on:
        yield on


def get(web: Publisher, cache: Path) -> Path:
    return cached(f"{web.url}/demo", cache, QUICK)


def test_a_fetched_build_is_whole_and_gives_the_same_batches(
    whole: Path, web: Publisher, tmp_path: Path
) -> None:
    folder = get(web, tmp_path / "cache")
    assert folder.parent == tmp_path / "cache" and folder.name.startswith("demo-")
    assert check(folder) == []
    ours, theirs = (IndexedShards([path]).batch(3, 4) for path in (folder, whole))
    assert ours.keys == theirs.keys
    assert ours.mel is not None and theirs.mel is not None
    np.testing.assert_array_equal(ours.mel, theirs.mel)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)


def test_what_is_there_is_not_fetched_again(web: Publisher, tmp_path: Path) -> None:
    folder = get(web, tmp_path)
    asked = len(web.requests)
    assert get(web, tmp_path) == folder
    assert [path for path, _, _ in web.requests[asked:]] == ["/demo/manifest.json"]


def test_a_file_that_was_lost_or_cut_is_fetched_again(web: Publisher, tmp_path: Path) -> None:
    folder = get(web, tmp_path)
    (folder / "index" / "train.parquet").unlink()
    shard = folder / Path(SHARD).name
    shard.write_bytes(shard.read_bytes()[:1000])
    get(web, tmp_path)
    (folder / f"{shard.name}.bad").unlink()  # the shard as it was found
    assert check(folder) == []


def test_a_fetch_that_broke_off_goes_on_where_it_stopped(web: Publisher, tmp_path: Path) -> None:
    web.lasting[SHARD] = Fault(drop_after=5000, no_range=True)
    with pytest.raises(UserError, match=rf"{SHARD}: broke off at byte 5,000"):
        get(web, tmp_path)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert not (folder / "manifest.json").exists()
    del web.lasting[SHARD]
    asked = len(web.requests)
    assert check(get(web, tmp_path)) == []
    later = {path: span for path, span, _ in web.requests[asked:]}
    assert later[SHARD] == "bytes=5000-"
    assert "/demo/train-00000-of-00002.tar" not in later


def test_other_bytes_than_the_manifest_says_are_refused_and_named(
    web: Publisher, tmp_path: Path
) -> None:
    web.lasting[SHARD] = Fault(wrong_bytes=True)
    with pytest.raises(
        UserError, match=rf"{SHARD}: sha256 is [0-9a-f]+, expected [0-9a-f]+; kept as .*\.bad"
    ):
        get(web, tmp_path)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert not (folder / "manifest.json").exists()
    assert not (folder / Path(SHARD).name).exists()


def test_a_build_that_changes_on_the_server_is_another_folder(
    web: Publisher, tmp_path: Path
) -> None:
    first = get(web, tmp_path)
    manifest = json.loads(web.files["/demo/manifest.json"])
    web.files["/demo/manifest.json"] = json.dumps(manifest | {"title": "another"}).encode()
    assert get(web, tmp_path) != first
    assert check(first) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "pipe:touch planted"), ("name", "../../planted.tar"), ("dataset", "../../planted"),
        ("dataset", "/tmp/planted"),
    ],
)  # fmt: skip
def test_a_served_build_does_not_choose_where_its_files_go(
    web: Publisher, tmp_path: Path, field: str, value: str
) -> None:
    manifest = json.loads(web.files["/demo/manifest.json"])
    (manifest["shards"][0] if field == "name" else manifest)[field] = value
    web.files["/demo/manifest.json"] = json.dumps(manifest).encode()
    with pytest.raises(UserError, match=rf"manifest\.json: not a manifest .*{field} is '{value}'"):
        get(web, tmp_path / "inside" / "cache")
    assert [path for path, _, _ in web.requests] == ["/demo/manifest.json"]
    assert [path for path in tmp_path.rglob("*") if "planted" in path.name] == []


def test_a_manifest_without_an_end_is_refused(web: Publisher, tmp_path: Path) -> None:
    web.files["/demo/manifest.json"] = b" " * (20 << 20)
    with pytest.raises(UserError, match="expected at most 16,777,216 bytes"):
        get(web, tmp_path)


def test_a_folder_on_this_machine_is_left_where_it_is(whole: Path, tmp_path: Path) -> None:
    assert cached(whole, tmp_path) == cached(whole.as_uri(), tmp_path) == whole
    assert list(tmp_path.iterdir()) == []


def fetching(web: Publisher, cache: Path) -> subprocess.Popen[str]:
    script = f"from pathlib import Path; from mt3data.shards.cache import cached; print(cached({web.url + '/demo'!r}, Path({str(cache)!r})))"  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_fetch_every_file_once(web: Publisher, tmp_path: Path) -> None:
    web.held.add(SHARD)
    both = [fetching(web, tmp_path) for _ in range(2)]
    wait_until(lambda: [path for path, _, _ in web.requests].count("/demo/manifest.json") == 2)
    web.let_go.set()  # not before the second process has begun
    folders = [process.communicate(timeout=HANG_SECONDS)[0].strip() for process in both]
    assert folders[0] == folders[1]
    assert check(Path(folders[0])) == []
    asked = [path for path, _, _ in web.requests if path != "/demo/manifest.json"]
    assert len(asked) == len(set(asked))


@needs.posix
def test_after_a_kill_the_next_run_finishes(web: Publisher, tmp_path: Path) -> None:
    web.faults[SHARD] = [Fault(hang_after=70_000)]
    killed = fetching(web, tmp_path)
    assert web.hanging.wait(HANG_SECONDS)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    part = folder / f"{Path(SHARD).name}.part"
    wait_until(lambda: part.is_file() and part.stat().st_size, killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert check(get(web, tmp_path)) == []
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{url}/demo", "--cache", "{cache}"], "{cache}/demo-"),
        (["{url}/demo"], "Error: {url}/demo is the address of a build;"),
        (["slakh", "--cache", "{cache}"], "Error: slakh is no address of a build"),
        (["pipe://ls", "--cache", "{cache}"], "Error: pipe://ls: pipe: is not read; expected"),
    ],
)
def test_the_command_fetches_a_build_by_address(
    web: Publisher, tmp_path: Path, arguments: list[str], said: str
) -> None:
    names = {"url": web.url, "cache": tmp_path / "cache"}
    done = CliRunner().invoke(main, ["download", *(text.format(**names) for text in arguments)])
    assert done.output.startswith(said.format(**names))
    assert done.exit_code == (2 if "Error" in said else 0)
