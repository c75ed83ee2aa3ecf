"""Reading shards from front to back, from folders or over HTTP, as a webdataset pipeline.

`IndexedShards` is what training uses where shards lie on a disk. `stream` serves object stores and web
servers, where one long read is cheap and many short ones are not. What webdataset leaves open is
settled here: the order of shards is a permutation by (seed, epoch), taken before they are divided among
processes and workers; members are decoded by a table that holds .npy and .json and nothing else, and a
shard with any other member is refused; a shard that ends early, or has another number of records than
the manifest says, is an error. (webdataset delivers the records before the damage and says nothing.)

A dropped connection is taken up again where it broke; see transport.py.
"""

from __future__ import annotations

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

from mt3data.download.http import RETRY_POLICY, RemoteFile, RetryPolicy
from mt3data.errors import UserError
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
    """One shard of a build: where it is, and what the manifest says of it.

    Attributes:
        where: a path, or an http(s) address.
        members: how the files of a record end, in their order.
    """

    where: str
    bytes: int
    records: int
    members: tuple[str, ...]


def stream(
    builds: Sequence[str | Path], split: str = "train", *, seed: int = 0, epoch: int = 0,
    rank: int = 0, world_size: int = 1, retry_policy: RetryPolicy = RETRY_POLICY,
) -> webdataset.DataPipeline:  # fmt: skip
    """All records of one epoch that fall to one process, shard after shard.

    Args:
        builds: builds or folders of builds, or addresses (http, https, file) of builds.
        split: which split of each.
        seed, epoch: decide the order of the shards of all builds together. Within a shard records
            come as they are stored; add webdataset.shuffle for more.
        rank, world_size: which process of how many; it gets every world-th shard. Workers of a
            DataLoader divide these further.
        retry_policy: with a web server.
    Returns:
        A webdataset.DataPipeline, to which stages can be added. It yields {"key": str, "json": dict,
        "tokens": int16 [n], "notes": float64 [n, 7]} and "mel" float16 [frames, n_mels] or "audio"
        int16 [samples], or both; see shards.py. Arrays are read-only. Iterating raises UserError
        where a shard is not what the manifest says.
    Raises:
        UserError: an address of another kind, no build there, no such split, or no shard for this
            process.
    """
    import webdataset

    shards = epoch_shards(builds, split, seed=seed, epoch=epoch, retry_policy=retry_policy)[
        rank::world_size
    ]
    if not shards:
        raise UserError(f"split {split!r} has too few shards for {world_size} processes; use fewer")
    return webdataset.DataPipeline(
        partial(iter, shards),
        webdataset.split_by_worker,
        partial(_records_of, retry_policy=retry_policy),
    )


def epoch_shards(
    builds: Sequence[str | Path],
    split: str,
    *,
    seed: int,
    epoch: int,
    retry_policy: RetryPolicy = RETRY_POLICY,
) -> list[Shard]:
    """The shards of a split of all builds, in the order of an epoch; see `stream`.

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
    """Whether a build is given by an http(s) address; paths and file: addresses are not.

    Raises:
        UserError: anything else that looks like an address, or like a command ("pipe:").
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", str(build))
    if scheme and scheme[1].lower() not in ("http", "https", "file"):
        raise UserError(
            f"{build}: {scheme[1]}: is not read; expected a folder, or an address that begins with "
            "http://, https:// or file://"
        )
    return bool(scheme) and scheme[1].lower() != "file"  # type: ignore[index]


def local_path(build: str | Path) -> Path:
    """The path of a build that is given by a path or a file: address."""
    text = str(build)
    return Path(url2pathname(urlsplit(text).path) if text.startswith("file:") else text)


def read_remote(url: str, retry_policy: RetryPolicy = RETRY_POLICY) -> bytes:
    """The content of a small remote file at a url.

    Raises:
        UserError: it is not served.
    """
    with RemoteFile([url], retry_policy=retry_policy) as remote:
        return remote.read()


def open_builds(
    builds: Sequence[str | Path], retry_policy: RetryPolicy = RETRY_POLICY
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path or address, and manifest, of every build."""
    for build in builds:
        if is_address(build):
            base = str(build).rstrip("/")
            url = f"{base}/{BUILD_MANIFEST}"
            yield base, parse_build_manifest(read_remote(url, retry_policy), url)
        else:
            for folder in find_builds(local_path(build)):
                yield str(folder), read_build_manifest(folder)


def _records_of(shards: Iterable[Shard], retry_policy: RetryPolicy) -> Iterator[Record]:
    for shard in shards:
        yield from read_shard(shard, retry_policy)


def read_shard(shard: Shard, retry_policy: RetryPolicy = RETRY_POLICY) -> Iterator[Record]:
    """The records of a shard, in order; see `stream`.

    Raises:
        UserError: the shard is shorter or longer than the manifest says, holds another number of
            records, or a member that a record does not have.
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
                f"{shard.where}: {seen:,} {what}, the manifest says {stated:,}; get the shard again"
            )


def _records(tar: TarReader, shard: Shard) -> Generator[Record, None, int]:
    """The whole records of a tar; returns how many there were."""
    n_records, record = 0, Record()
    for place, (name, _, _, data) in enumerate(tar.files()):
        key, _, member = name.partition(".")
        wanted = shard.members[place % len(shard.members)]
        if member != wanted or record.setdefault("key", key) != key:
            raise UserError(
                f"{shard.where}: holds {name}; expected {record.get('key', key)}.{wanted}, as records "
                f"of this build have the members {', '.join(shard.members)}. Get the shard again"
            )
        try:
            record[member.removesuffix(".npy")] = DECODE[member[-4:]](data)
        except ValueError as error:
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
