"""One command takes every dataset from its publisher to shards, also where it is killed on its way.

The publishers are those of tests/helpers/publishers.py, and the command is typed as short as it can be, in
an empty folder.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import Result
from publishers import kill_in_download, kill_in_unpacking, path_of, published, run, shards
from server import Publisher, publisher

from mt3data.datasets import manifest
from mt3data.download.dataset import wanted_sources

NAMES = [name for name in manifest.names() if manifest.load(name).sources]
SHARDS = Path("shards")


class Chain(NamedTuple):
    """One dataset and its publisher, and an undisturbed run: what it said, asked for and built."""

    name: str
    web: Publisher
    manifests: Path
    result: Result
    asked: list[str]
    shards: dict[str, bytes]

    @property
    def command(self) -> tuple[str, ...]:
        """What is typed."""
        return _command(self.name)


def _command(name: str) -> tuple[str, ...]:
    return ("build", name, "--out", "shards/")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the commands are typed: a pool of workers stays where it was started."""
    from joblib.externals.loky import get_reusable_executor

    with pytest.MonkeyPatch.context() as patch:
        get_reusable_executor().shutdown(wait=True)
        patch.chdir(folder := tmp_path_factory.mktemp("home"))
        yield folder
        get_reusable_executor().shutdown(wait=True)


@pytest.fixture(scope="module", params=NAMES)
def chain(
    request: pytest.FixtureRequest, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chain]:
    """The chain of each dataset, after its undisturbed run."""
    name = request.param
    with publisher() as web, pytest.MonkeyPatch.context() as patch:
        manifests = published(name, web, tmp_path_factory.mktemp(name))
        patch.setattr(manifest, "_folder", lambda: manifests)
        empty(home)
        result = run(*_command(name))
        asked = [path for path, _, _ in web.requests]
        yield Chain(name, web, manifests, result, asked, shards(SHARDS))


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)


def assert_whole(name: str) -> None:
    verified, checked = run("verify", name), run("check", "shards")
    assert verified.exit_code == 0, verified.output
    assert verified.stdout.endswith("files, whole\n")
    assert checked.exit_code == 0, checked.output
    assert checked.stdout.endswith("shards, whole\n")


def test_an_empty_folder_becomes_shards(chain: Chain) -> None:
    assert chain.result.exit_code == 0, chain.result.output
    assert "is absent or unfinished: downloading" in chain.result.stderr
    assert chain.shards
    assert_whole(chain.name)
    wanted = [path_of(source) for source in wanted_sources(manifest.load(chain.name))]
    assert chain.asked == wanted  # each once, and nothing else
    assert "already complete" in run(*chain.command).stderr
    assert len(chain.web.requests) == len(wanted)


def test_a_run_that_was_killed_twice_ends_with_the_same_shards(chain: Chain, home: Path) -> None:
    empty(home)
    sources = wanted_sources(manifest.load(chain.name))
    paths = [path_of(source) for source in sources]
    packed = any(source.kind != "file" for source in sources)
    for path in paths[-1:] if packed else (paths[len(paths) // 3], paths[-1]):
        kill_in_download(chain.web, path, chain.manifests, *chain.command)
    if packed:
        kill_in_unpacking(chain.manifests, *chain.command)
    assert run("verify", chain.name).exit_code == 1

    result = run(*chain.command)
    assert result.exit_code == 0, result.output
    assert_whole(chain.name)
    assert shards(SHARDS) == chain.shards


@pytest.mark.parametrize("names", [("slakh", "cerberus4"), ("musicnet", "musicnet_em")])
def test_sets_that_share_files_fetch_them_once(
    names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with publisher() as web:
        manifests = published(names[1], web, tmp_path / "publisher")
        monkeypatch.setattr(manifest, "_folder", lambda: manifests)
        for order in (names, names[::-1]):
            web.requests.clear()
            root = tmp_path / order[0]
            for name in order:
                result = run("download", name, "--root", root)
                assert result.exit_code == 0, result.output
            assert sorted(path for path, _, _ in web.requests) == sorted(web.files)
            assert run("verify", names[1], "--root", root).exit_code == 0
