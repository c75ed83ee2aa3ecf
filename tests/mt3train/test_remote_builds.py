"""Training on a build at an address, through a cache that holds few of its shards."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import needs
import numpy as np
import pytest
from events import HANG_SECONDS, wait_until
from remote import FaultyFileSystem, build_of, contents, put
from server import publisher
from worlds import TINY, metrics

from mt3data.errors import UserError
from mt3data.shards.cache import cached
from mt3data.shards.format import read_build_manifest
from mt3data.shards.reader import IndexedShards
from mt3train.config import load_config
from mt3train.train import train
from mt3train.weights.checkpoint import read_weights

N_SHARDS = 40
CACHED_SHARDS = 10
RUN = [*TINY, "steps=6", "batch=8", "data.frames=40", "eval_every=3", "save_every=2"]
FETCHED = re.compile(r"cache: fetched ([\d,]+) shards, ([\d.]+ \w+); removed ([\d,]+)")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_of(tmp_path_factory.mktemp("remote"), N_SHARDS)
    assert len(list(folder.glob("train-*.tar"))) == N_SHARDS
    return folder


def cache_settings(whole: Path, cache: Path) -> list[str]:
    largest = max(shard["bytes"] for shard in read_build_manifest(whole)["shards"])
    return [f"data.cache={cache}", f"data.cache_gb={CACHED_SHARDS * largest / 1e9}"]


def losses(run: Path) -> list[tuple[int, object, object]]:
    return [(line["step"], line.get("loss"), line.get("eval_loss")) for line in metrics(run)]


def weights(path: Path) -> dict[str, list[float]]:
    return {name: value.flatten().tolist() for name, value in read_weights(path)[1].items()}


@pytest.mark.parametrize("shuffle_shards", [0, 4])
def test_a_small_cache_gives_the_losses_of_a_build_on_a_disk(
    whole: Path, tmp_path: Path, shuffle_shards: int, capfd: pytest.CaptureFixture[str]
) -> None:
    FaultyFileSystem.reset()
    put("faulty://bucket/demo", contents(whole))
    settings = [*RUN, f"data.shuffle_shards={shuffle_shards}"]
    here = train(load_config([*settings, f"data.train={whole}", f"run={tmp_path / 'here'}"]))
    assert "fetched" not in capfd.readouterr().err
    there = train(
        load_config([*settings, "data.train=faulty://bucket/demo", f"run={tmp_path / 'there'}",
                     *cache_settings(whole, tmp_path / "cache")])
    )  # fmt: skip
    assert losses(tmp_path / "there") == losses(tmp_path / "here")
    assert weights(there) == weights(here)
    said = FETCHED.search(capfd.readouterr().err)
    assert said is not None
    n_fetched, n_removed = (int(said[n].replace(",", "")) for n in (1, 3))
    assert n_fetched > CACHED_SHARDS and n_fetched - n_removed <= CACHED_SHARDS + 1
    FaultyFileSystem.reset()


def test_a_run_counts_the_shards_of_its_own_builds(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    FaultyFileSystem.reset()
    put("faulty://bucket/demo", contents(whole))
    build = cached("faulty://bucket/demo", tmp_path / "cache", max_bytes=10**9)
    other = IndexedShards([build])
    other.batch(0, 4, frames=40)
    assert other.sources[0].cache and other.sources[0].cache.traffic["fetched"] > 0
    train(load_config([*RUN, f"data.train={whole}", f"run={tmp_path / 'run'}"]))
    assert "fetched" not in capfd.readouterr().err
    FaultyFileSystem.reset()


@needs.posix
def test_a_run_that_was_killed_continues_with_the_same_losses(whole: Path, tmp_path: Path) -> None:
    local = [*RUN, "data.shuffle_shards=4", f"data.train={whole}", f"run={tmp_path / 'here'}"]
    train(load_config(local))
    reader = IndexedShards([whole], seed=load_config(local).seed, shuffle_shards=4)
    rows = np.concatenate([reader.draw_plan(step, 8)[1] for step in range(4)])
    early = {reader.sources[0].shard_names[n] for n in reader.sources[0].shard_numbers[rows]}
    files = {f"/demo/{name}": data for name, data in contents(whole).items()}
    with publisher(files) as web:
        command = [
            sys.executable, "-m", "mt3train.train", *RUN, "data.shuffle_shards=4",
            f"data.train={web.url}/demo", f"run={tmp_path / 'there'}",
            *cache_settings(whole, tmp_path / "cache"),
        ]  # fmt: skip
        # The run comes to a shard of its fifth step at the latest, and waits for the server.
        web.held.update(f"/demo/{path.name}" for path in whole.glob("train-*.tar"))
        web.held.difference_update(f"/demo/{name}" for name in early)
        first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_until((tmp_path / "there" / "checkpoint-00000002.safetensors").is_file, first)
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        web.let_go.set()
        again = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS)
        assert again.returncode == 0, again.stderr
        assert FETCHED.search(again.stderr) is not None
    assert losses(tmp_path / "there") == losses(tmp_path / "here")


def test_a_local_run_continues_with_the_address_of_its_build(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    local, run = whole.rename(whole.with_name("demo")), f"run={tmp_path / 'run'}"
    try:
        address = [
            f"data.train=local://{local.as_posix()}/",
            *cache_settings(local, tmp_path / "c"),
        ]
        settings = [*RUN, run, "data.weights={demo=1}"]
        train(load_config([*settings, f"data.train={local}", "steps=2"]))
        capfd.readouterr()
        train(load_config([*settings, *address, "steps=4"]))
        train(load_config([*settings, *address, "steps=6", "data.cache_gb=0"]))
        printed = capfd.readouterr().err
        assert "step 4/4" in printed and "step 6/6" in printed
        assert "the steps before had" not in printed and "other data" not in printed
    finally:
        local.rename(whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.cache_gb=1"], "data.cache_gb limits the size of data.cache; name that folder too"),
        (
            ["data.cache=c", "data.cache_gb=1", "data.reader=webdataset"],
            "are for data.reader=indexed",
        ),
        (["data.shuffle_shards=2", "data.reader=webdataset"], "are for data.reader=indexed"),
        (["data.cache=c", "data.cache_gb=-1"], "data.cache_gb=-1"),
        (["data.shuffle_shards=-1"], "data.shuffle_shards=-1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_config([*TINY, *settings])
