"""Builds of many small shards, and file systems of fsspec that hold them, with faults."""

import threading
from pathlib import Path
from typing import Any

import fakes
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.shards.cache import PREFETCH
from mt3data.shards.windows import WindowConfig


def build_of(folder: Path, n_tracks: int) -> Path:
    """Makes a build with one shard for each of n_tracks tracks in "train", and one in "validation"."""
    splits = {f"Track{n:05}": "train" for n in range(1, n_tracks + 1)}
    root = fakes.slakh_tree(
        folder / "root", "demo", splits | {"Track99999": "validation"}, seconds=2.0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mt3data.build.plan.MIN_SHARD_BYTES", 1)
        patch.setattr("mt3data.build.plan.SHARDS_PER_SPLIT", 1 << 20)
        return build(make_plan(BuildConfig("demo", root, folder, windows=WindowConfig(64)))).folder


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the files of a build by their names, without its log."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".jsonl"
    }


class FaultyFileSystem(MemoryFileSystem):
    """Fails in the ways of an object store. Attributes of the class are set by a test.

    Attributes:
        faults: raised by the next requests for bytes, in order.
        short: number of requests for bytes that return one byte less.
        requests: (path, start, end) of every request for bytes.
    """

    protocol = "faulty"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    faults: list[Exception] = []
    short = 0
    requests: list[tuple[str, Any, Any]] = []

    def cat_file(self, path: str, start: Any = None, end: Any = None, **rest: Any) -> bytes:
        """Returns bytes start..end of a file, or fails."""
        type(self).requests.append((path, start, end))
        if type(self).faults:
            raise type(self).faults.pop(0)
        data: bytes = super().cat_file(path, start, end, **rest)
        if type(self).short:
            type(self).short -= 1
            return data[:-1]
        return data

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("faulty://").strip("/")

    @classmethod
    def reset(cls) -> None:
        """Removes all files and faults, and waits for fetches of earlier tests, which fail then."""
        cls.store.clear()
        for thread in threading.enumerate():
            if thread.name == PREFETCH:
                thread.join()
        cls.pseudo_dirs[:] = [""]
        cls.faults, cls.short, cls.requests = [], 0, []


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


def put(address: str, files: dict[str, bytes]) -> None:
    """Writes files below an address."""
    system, path = fsspec.core.url_to_fs(address)
    for name, data in files.items():
        place = f"{path}/{name}"
        system.makedirs(place.rpartition("/")[0], exist_ok=True)
        system.pipe_file(place, data)
