"""Copies remote builds to this machine: whole, or only the shards that are read.

A cache with a size limit holds the index of a build and its other small files. `IndexedShards` asks
for a shard when a batch needs it. The shard is fetched and compared with its sha256, and the shards
that were used least recently make room for it. The batches are those of a build on a disk. MT3 has no
counterpart.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mt3data import system
from mt3data.download.address import folder_address, is_address, local_path
from mt3data.errors import UserError
from mt3data.files import (
    file_has_size,
    file_lock,
    format_bytes,
    read_limited,
    require_space,
    write_atomically,
)
from mt3data.schema import MAX_BYTES
from mt3data.shards.format import BUILD_MANIFEST, read_build_manifest

if TYPE_CHECKING:
    from mt3data.datasets.manifest import Source
    from mt3data.download.http import RetryPolicy

REMOTE = "remote.json"  # in the folder of a build whose shards are fetched when they are read
PARTIAL = "-partial"  # end of the name of such a folder
LOCK = ".shards.lock"  # of a cache: one shard is fetched, and room made for it, at a time
PREFETCH = "prefetch"  # name of the threads that fetch shards before they are needed
FETCH_SECONDS = 60.0  # for which a process waits for the fetch of another one without a message


def cached(
    build: str | Path, cache: Path, retry_policy: RetryPolicy | None = None, max_bytes: int = 0
) -> Path:
    """Returns the folder of a build on this machine, and fetches a remote build first.

    A file has its name only after its size and sha256 were compared with the build manifest. The
    build manifest is written last. An interrupted fetch is resumed, and processes that need the same
    build wait for the one that fetches it.

    Args:
        build: the address of a build; a path or file: address is returned as it is.
        cache: folder for builds. This one goes into DATASET-SUM, where SUM is of its build manifest,
            so a build that changes on the server gets another folder.
        retry_policy: of requests to the server; None: RETRY_POLICY of download/http.py.
        max_bytes: of all shards in `cache` that are fetched when they are read. Then only the other
            files are fetched now, into DATASET-SUM-partial. 0 fetches the whole build now. A build
            that is whole in `cache` already is used as it is.
    Raises:
        UserError: the server does not serve the build, or serves other bytes than the build manifest
            states. The message names the file, which is kept as NAME.bad. Or `max_bytes` is less
            than one shard.
    """
    from mt3data.download.fetch import fetch  # brings requests, which reading does without
    from mt3data.download.http import RETRY_POLICY
    from mt3data.shards.stream import fetch_build_manifest

    if not is_address(build):
        return local_path(build)
    base, retry_policy = folder_address(str(build)), retry_policy or RETRY_POLICY
    data, manifest = fetch_build_manifest(base, retry_policy)
    folder = cache / f"{manifest['dataset']}-{_digest(data)}"
    on_demand = max_bytes > 0 and not (folder / BUILD_MANIFEST).is_file()
    entries, later = [*manifest["files"], *manifest["shards"]], 0  # small files first
    if on_demand:
        entries, folder = manifest["files"], folder.with_name(folder.name + PARTIAL)
        sizes = [shard["bytes"] for shard in manifest["shards"]]
        if max(sizes, default=0) > max_bytes:
            raise UserError(
                f"{base}: its largest shard has {format_bytes(max(sizes))}, the limit of the cache is "
                f"{format_bytes(max_bytes)}; raise the limit to that of several shards"
            )
        here = sum(path.stat().st_size for path in _shard_files(cache))
        later = max(0, min(max_bytes, sum(sizes)) - here)
    (folder / "index").mkdir(parents=True, exist_ok=True)
    with file_lock(cache / f".{folder.name}.lock"):
        missing = [e for e in entries if not file_has_size(folder / e["name"], e["bytes"])]
        n_bytes = sum(entry["bytes"] for entry in missing) + later
        require_space(cache, n_bytes, f"to fetch {base}", option="folder for copies")
        for entry in missing:
            fetch(_source(base, entry), folder / entry["name"], retry_policy)
        if on_demand:
            facts = {"address": base, "max_bytes": max_bytes}
            write_atomically(folder / REMOTE, json.dumps(facts).encode())
        if not (folder / BUILD_MANIFEST).is_file():
            write_atomically(folder / BUILD_MANIFEST, data)
    return folder


def build_names(folders: Sequence[Path]) -> list[str]:
    """Returns the names of builds for settings: of the folder, or in a cache of the dataset.

    So a copy of `cached` has the name of the build that it was made of, where that is in a folder with
    the name of its dataset. Copies of two builds of one dataset keep the names of their folders.

    Args:
        folders: of the builds; one without a build manifest is an address.
    """
    names = [_name(folder) for folder in folders]
    return [
        name if names.count(name) == 1 else folder.name
        for name, folder in zip(names, folders, strict=True)
    ]


def _name(folder: Path) -> str:
    dataset, _, digest = folder.name.removesuffix(PARTIAL).rpartition("-")
    path = folder / BUILD_MANIFEST
    is_copy = path.is_file() and digest == _digest(read_limited(path, MAX_BYTES))
    return dataset if is_copy else folder.name


def _digest(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()[:12]


class ShardCache:
    """Opens the shards of a remote build, and fetches those that are not here.

    Processes may share a cache. Each shard is fetched once, whoever needs it.

    Attributes:
        folder: of the build, in a cache.
        address: of the build.
        max_bytes: of the shards of all partial builds in the cache.
        traffic: of this process: shards "fetched", their "bytes", and shards "evicted" for them.
    """

    def __init__(self, folder: Path, address: str, max_bytes: int) -> None:
        """Takes the folder of `cached`, and what its REMOTE states."""
        self.folder, self.address, self.max_bytes = folder, address, max_bytes
        self.traffic = Counter[str]()
        self._entries = {entry["name"]: entry for entry in read_build_manifest(folder)["shards"]}
        self._wanted: list[str] = []  # by prefetch, in this order
        self._thread = threading.Thread()

    def holds(self, name: str) -> bool:
        """Checks whether a shard is here."""
        return file_has_size(self.folder / name, self._entries[name]["bytes"])

    def open(self, name: str) -> system.SharedFile:
        """Opens a shard, and fetches it first where it is not here.

        It stays readable until it is closed, even if another process removes it.

        Raises:
            UserError: it cannot be fetched.
        """
        if file := self._open_here(name):
            return file
        with file_lock(self.folder.parent / LOCK, silent_seconds=FETCH_SECONDS):
            return self._open_here(name) or self._fetch(name)

    def prefetch(self, names: list[str]) -> None:
        """Fetches shards in a thread, one after the other.

        Args:
            names: in the order in which they will be needed. Those that are here count as used, so
                that others are removed before them. An earlier list is forgotten; after an empty
                one the thread ends with the shard that it fetches.
        """
        for name in reversed(names):
            with suppress(OSError):
                os.utime(self.folder / name)
        self._wanted = [name for name in names if not self.holds(name)]
        if self._wanted and not self._thread.is_alive():
            # A daemon: a run that ends does not wait for a server.
            self._thread = threading.Thread(target=self._fetch_wanted, name=PREFETCH, daemon=True)
            self._thread.start()

    def _fetch_wanted(self) -> None:
        with suppress(Exception):  # the batch that needs the shard reports the fault
            while self._wanted:
                self.open(self._wanted.pop(0))

    def _open_here(self, name: str) -> system.SharedFile | None:
        path = self.folder / name
        try:
            if not self.holds(name):
                return None
            file = system.SharedFile(path)
            os.utime(path)  # the time of the last use
        except FileNotFoundError:  # another process removed it just now
            return None
        except OSError as error:
            raise UserError(f"{path} cannot be opened ({error.strerror})") from error
        return file

    def _fetch(self, name: str) -> system.SharedFile:
        from mt3data.download.fetch import fetch
        from mt3data.download.http import RETRY_POLICY

        path, entry = self.folder / name, self._entries[name]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # it may have been removed to make room
            self._make_room(path, entry["bytes"])
            fetch(_source(self.address, entry), path, RETRY_POLICY, show=False)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); make room, or choose another folder for copies"
            ) from error
        except UserError as error:
            if not self._has_changed():
                raise
            raise UserError(
                f"{self.address} has another build than when this run began; run the command again ({error})"
            ) from error
        self.traffic["fetched"] += 1
        self.traffic["bytes"] += entry["bytes"]
        return system.SharedFile(path)

    def _has_changed(self) -> bool:
        """Checks whether the address has another build manifest; False if it cannot be read."""
        from mt3data.download.http import RetryPolicy
        from mt3data.shards.stream import fetch_build_manifest

        try:
            data, _ = fetch_build_manifest(self.address, RetryPolicy(retries=0))
        except UserError:
            return False
        return data != (self.folder / BUILD_MANIFEST).read_bytes()

    def _make_room(self, path: Path, n_bytes: int) -> None:
        """Removes the files of shards that were used least recently, until n_bytes more fit."""
        sizes = {}
        for file in _shard_files(self.folder.parent):
            if not file.name.startswith(f"{path.name}.part"):  # what is there of it is resumed
                with suppress(FileNotFoundError):
                    status = file.stat()
                    sizes[file] = (status.st_mtime_ns, status.st_size)
        excess = sum(size for _, size in sizes.values()) + n_bytes - self.max_bytes
        for file, (_, size) in sorted(sizes.items(), key=lambda item: item[1]):
            if excess <= 0:
                return
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                if not system.is_in_use(error):  # Windows keeps a file that another process reads
                    raise
            else:
                excess -= size
                self.traffic["evicted"] += file.suffix == ".tar"


class CachedShard(NamedTuple):
    """A shard of a remote build."""

    cache: ShardCache
    name: str

    @property
    def path(self) -> str:
        """Where it lies when it is here."""
        return str(self.cache.folder / self.name)

    @property
    def is_here(self) -> bool:
        """Whether it need not be fetched."""
        return self.cache.holds(self.name)

    def open(self) -> system.SharedFile:
        """Opens it, see ShardCache."""
        return self.cache.open(self.name)


def is_partial(folder: Path) -> bool:
    """Checks whether the shards of a build are fetched when they are read, so that some may be absent."""
    return (folder / REMOTE).is_file()


def shard_cache(folder: Path) -> ShardCache | None:
    """Returns the cache of a build whose shards are fetched when they are read; None for others.

    Raises:
        UserError: its description is damaged.
    """
    if not is_partial(folder):
        return None
    path = folder / REMOTE
    try:
        facts = json.loads(read_limited(path))
        is_known = isinstance(facts["address"], str) and is_address(facts["address"])
        if not (is_known and type(facts["max_bytes"]) is int):
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged; remove {folder} and run the command again") from error
    return _shard_cache(folder.absolute(), facts["address"], facts["max_bytes"])


def counted_traffic(builds: Iterable[Path]) -> Callable[[], tuple[int, int, int]]:
    """Counts from now on what this process fetches of builds whose shards are fetched when they are read.

    Returns:
        A function that ends fetches ahead of need, with the shards that are being fetched. It returns
        the number of shards that were fetched, their bytes, and the number of those removed for them.
    """
    caches = list(dict.fromkeys(filter(None, map(shard_cache, builds))))
    for cache in caches:
        cache.traffic.clear()

    def end() -> tuple[int, int, int]:
        for cache in caches:
            cache.prefetch([])
        total = sum((cache.traffic for cache in caches), Counter[str]())
        return total["fetched"], total["bytes"], total["evicted"]

    return end


_shard_cache = lru_cache(None)(ShardCache)  # one for all readers of a process


def _shard_files(cache: Path) -> list[Path]:
    """Returns the shards of all partial builds in a cache, and what is left of interrupted fetches."""
    return list(cache.glob(f"*{PARTIAL}/*.tar*"))


def _source(base: str, entry: dict[str, Any]) -> Source:
    from mt3data.datasets.manifest import Source

    return Source(
        entry["name"], f"{base}/{entry['name']}", bytes=entry["bytes"], sha256=entry["sha256"],
        status="verified",
    )  # fmt: skip
