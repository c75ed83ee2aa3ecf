"""Reads shards in order, from folders or over HTTP, and fetches whole builds from a web server.

`IndexedShards` is for shards on a disk. `stream` is a webdataset pipeline for object stores and web
servers, where one long read is fast and many short reads are slow. `cached` copies a remote build to
this machine once, for `IndexedShards` to read.

This differs from bare webdataset: the order of shards is a permutation by (seed, epoch), made before
the shards are divided among processes and workers. Only .npy and .json are decoded, and a shard with
any other member is an error. A shard that ends early, or has another number of records than the build
manifest states, is an error; webdataset delivers the records before the damage without a message. A
dropped connection is resumed where it broke (download/http.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from mt3data.datasets.manifest import Source
from mt3data.download.fetch import fetch
from mt3data.download.http import RETRY_POLICY, RemoteFile, RetryPolicy
from mt3data.errors import UserError
from mt3data.files import file_has_size, file_lock, require_space, write_atomically
from mt3data.schema import MAX_BYTES
from mt3data.shards.format import (
    BUILD_MANIFEST,
    find_builds,
    parse_build_manifest,
    read_build_manifest,
    read_npy,
    tar_members,
)
from mt3data.shards.tar import BUFFER_BYTES, DamagedTar, TarReader

if TYPE_CHECKING:
    import webdataset

DECODE: dict[str, Callable[[bytes], Any]] = {".npy": read_npy, "json": json.loads}
Record = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """One shard of a build, as its build manifest describes it.

    Attributes:
        where: a path, or an http(s) address.
        members: suffixes of the members of a record, in their order.
    """

    where: str
    bytes: int
    records: int
    members: tuple[str, ...]


def stream(
    builds: Sequence[str | Path], split: str = "train", *, seed: int = 0, epoch: int = 0,
    rank: int = 0, world_size: int = 1, retry_policy: RetryPolicy = RETRY_POLICY,
) -> webdataset.DataPipeline:  # fmt: skip
    """Yields all records of one epoch for one process, shard after shard.

    Args:
        builds: builds or folders of builds, or addresses (http, https, file) of builds.
        split: which split of each.
        seed, epoch: decide the order of the shards of all builds together. Records of a shard keep
            their order; add webdataset.shuffle for more.
        rank, world_size: the number of this process and of all processes. A process reads every
            world_size-th shard. Workers of a DataLoader divide these further.
        retry_policy: of requests to a web server.
    Returns:
        A webdataset.DataPipeline, to which stages can be added. It yields {"key": str, "json": dict,
        "tokens": int16 [n], "notes": float64 [n, 7]} and "mel" float16 [frames, n_mels] or "audio"
        int16 [samples], or both; see format.py. Arrays are read-only. Iterating raises UserError
        where a shard differs from the build manifest.
    Raises:
        UserError: an address of another kind, no build there, no such split, or no shard for this
            process.
    """
    import webdataset

    shards = epoch_shards(builds, split, seed=seed, epoch=epoch, retry_policy=retry_policy)
    if not (mine := shards[rank::world_size]):
        raise UserError(f"split {split!r} has too few shards for {world_size} processes; use fewer")
    return webdataset.DataPipeline(
        partial(iter, mine),
        webdataset.split_by_worker,
        partial(_records_of, retry_policy=retry_policy),
    )


def epoch_shards(
    builds: Sequence[str | Path], split: str, *, seed: int, epoch: int,
    retry_policy: RetryPolicy = RETRY_POLICY,
) -> list[Shard]:  # fmt: skip
    """Returns the shards of a split of all builds, in the order of an epoch; see `stream`.

    Raises:
        UserError: a build cannot be opened, or has no such split.
    """
    shards: list[Shard] = []
    for base, manifest in open_builds(builds, retry_policy):
        if split not in manifest["splits"]:
            raise UserError(
                f"{base} has no split {split!r}; it has {', '.join(manifest['splits'])}"
            )
        members = tar_members(manifest["features"])
        shards += [
            Shard(f"{base}/{entry['name']}", entry["bytes"], entry["records"], members)
            for entry in manifest["shards"]
            if entry["split"] == split
        ]
    order = np.random.default_rng([seed, 4, epoch]).permutation(len(shards))
    return [shards[i] for i in order]


def is_address(build: str | Path) -> bool:
    """Checks whether a build is given by an http(s) address; paths and file: addresses are not.

    Raises:
        UserError: another kind of address, or a command ("pipe:").
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", str(build))  # one letter is a drive
    if scheme and scheme[1].lower() not in ("http", "https", "file"):
        raise UserError(
            f"{build}: {scheme[1]}: is not read; expected a folder, or an address that begins with "
            "http://, https:// or file://"
        )
    return bool(scheme) and scheme[1].lower() != "file"  # type: ignore[index]


def local_path(build: str | Path) -> Path:
    """Returns the path of a build that is given by a path or a file: address."""
    text = str(build)
    return Path(url2pathname(urlsplit(text).path) if text.startswith("file:") else text)


def open_builds(
    builds: Sequence[str | Path], retry_policy: RetryPolicy = RETRY_POLICY
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields path or address, and build manifest, of every build."""
    for build in builds:
        if is_address(build):
            base = str(build).rstrip("/")
            yield base, _fetch_build_manifest(base, retry_policy)[1]
        else:
            for folder in find_builds(local_path(build)):
                yield str(folder), read_build_manifest(folder)


def cached(
    build: str | Path, cache: Path, retry_policy: RetryPolicy = RETRY_POLICY
) -> Path:  # fmt: skip
    """Returns the folder of a build on this machine, and fetches a remote build first.

    A file has its name only after its size and sha256 were compared with the build manifest. The
    build manifest is written last. An interrupted fetch is resumed, and processes that need the same
    build wait for the one that fetches it.

    Args:
        build: an http(s) address of a build; a path or file: address is returned as it is.
        cache: folder for builds. This one goes into DATASET-SUM, where SUM is of its build manifest,
            so a build that changes on the server gets another folder.
        retry_policy: of requests to the server.
    Raises:
        UserError: the server does not serve the build, or serves other bytes than the build manifest
            states. The message names the file, which is kept as NAME.bad.
    """
    if not is_address(build):
        return local_path(build)
    base = str(build).rstrip("/")
    data, manifest = _fetch_build_manifest(base, retry_policy)
    folder = cache / f"{manifest['dataset']}-{hashlib.sha256(data).hexdigest()[:12]}"
    (folder / "index").mkdir(parents=True, exist_ok=True)
    with file_lock(cache / f".{folder.name}.lock"):
        entries = [*manifest["files"], *manifest["shards"]]  # small files first
        missing = [e for e in entries if not file_has_size(folder / e["name"], e["bytes"])]
        require_space(cache, sum(e["bytes"] for e in missing), f"to fetch {base}", option="--cache")
        for entry in missing:
            source = Source(
                entry["name"], f"{base}/{entry['name']}", bytes=entry["bytes"],
                sha256=entry["sha256"], status="verified",
            )  # fmt: skip
            fetch(source, folder / entry["name"], retry_policy)
        if not (folder / BUILD_MANIFEST).is_file():
            write_atomically(folder / BUILD_MANIFEST, data)
    return folder


def _fetch_build_manifest(base: str, retry_policy: RetryPolicy) -> tuple[bytes, dict[str, Any]]:
    """Returns the data and the content of the manifest.json at an address."""
    url = f"{base}/{BUILD_MANIFEST}"
    with RemoteFile([url], retry_policy=retry_policy) as remote:
        data = io.BufferedReader(remote).read(MAX_BYTES + 1)  # the server may never end
    return data, parse_build_manifest(data, url)


def _records_of(shards: Iterable[Shard], retry_policy: RetryPolicy) -> Iterator[Record]:
    for shard in shards:
        yield from read_shard(shard, retry_policy)


def read_shard(shard: Shard, retry_policy: RetryPolicy = RETRY_POLICY) -> Iterator[Record]:
    """Yields the records of a shard, in order; see `stream`.

    Raises:
        UserError: the shard is shorter or longer than the build manifest states, holds another number
            of records, or a member that a record does not have.
    """
    with _open(shard, retry_policy) as file:
        tar = TarReader(file, most_bytes=shard.bytes)
        try:
            n_records = yield from _records(tar, shard)
        except DamagedTar as error:
            raise UserError(f"{shard.where}: {error}; get the shard again") from error
        tar.rest()
    for seen, stated, what in (
        (tar.position, shard.bytes, "bytes"),
        (n_records, shard.records, "records"),
    ):
        if seen != stated:
            raise UserError(
                f"{shard.where}: {seen:,} {what}, the manifest states {stated:,}; get the shard again"
            )


def _records(tar: TarReader, shard: Shard) -> Generator[Record, None, int]:
    """Yields the complete records of a tar; returns their number."""
    n_records, record = 0, Record()
    for place, (name, data) in enumerate(tar.files()):
        key, _, member = name.partition(".")
        wanted = shard.members[place % len(shard.members)]
        if member != wanted or record.setdefault("key", key) != key:
            raise UserError(
                f"{shard.where}: holds {name}; expected {record.get('key', key)}.{wanted}, as records "
                f"of this build have the members {', '.join(shard.members)}. Get the shard again"
            )
        try:
            record[member.removesuffix(".npy")] = DECODE[member[-4:]](data)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{shard.where}: {name} cannot be decoded ({error})") from error
        if member == shard.members[-1]:
            yield record
            n_records, record = n_records + 1, Record()
    if record:
        raise UserError(f"{shard.where}: ends inside record {record['key']}; get the shard again")
    return n_records


def _open(shard: Shard, retry_policy: RetryPolicy) -> BinaryIO:
    if is_address(shard.where):
        remote = RemoteFile([shard.where], expected_bytes=shard.bytes, retry_policy=retry_policy)
        return cast(BinaryIO, io.BufferedReader(remote, BUFFER_BYTES))
    try:
        return Path(shard.where).open("rb", BUFFER_BYTES)
    except FileNotFoundError:
        raise UserError(f"{shard.where} is missing; get the build again") from None
