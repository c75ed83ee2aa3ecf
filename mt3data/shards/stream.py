"""Reads shards in order, from folders, web servers or object stores.

`IndexedShards` is for shards on a disk. `stream` is a webdataset pipeline for web servers and object
stores, where one long read is fast and many short reads are slow. `cached` (cache.py) copies a remote
build to this machine, for `IndexedShards` to read.

This differs from bare webdataset: the order of shards is a permutation by (seed, epoch), made before
the shards are divided among processes and workers. Only .npy and .json are decoded, and a shard with
any other member is an error. A shard that ends early, or has another number of records than the build
manifest states, is an error; webdataset delivers the records before the damage without a message. A
dropped connection is resumed where it broke (download/remote.py).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from mt3data.download.address import folder_address, is_address, local_path
from mt3data.download.http import RETRY_POLICY, RetryPolicy
from mt3data.download.remote import open_remote
from mt3data.errors import UserError
from mt3data.schema import MAX_BYTES
from mt3data.shards.cache import shard_cache
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
        where: a path or an address.
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
        builds: builds or folders of builds, or addresses of builds.
        split: which split of each.
        seed, epoch: decide the order of the shards of all builds together. Records of a shard keep
            their order; add webdataset.shuffle for more.
        rank, world_size: the number of this process and of all processes. A process reads every
            world_size-th shard. Workers of a DataLoader divide these further.
        retry_policy: of requests to a server.
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


def open_builds(
    builds: Sequence[str | Path], retry_policy: RetryPolicy = RETRY_POLICY
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields path or address, and build manifest, of every build."""
    for build in builds:
        if is_address(build):
            base = folder_address(str(build))
            yield base, fetch_build_manifest(base, retry_policy)[1]
        else:
            for folder in find_builds(local_path(build)):
                if cache := shard_cache(folder):
                    raise UserError(
                        f"{folder} holds only some shards of {cache.address}, which is read in order from "
                        "its address; name that in place of the folder"
                    )
                yield str(folder), read_build_manifest(folder)


def fetch_build_manifest(base: str, retry_policy: RetryPolicy) -> tuple[bytes, dict[str, Any]]:
    """Returns the data and the content of the build manifest of a build at an address.

    Raises:
        UserError: there is none, or it is damaged.
    """
    url = f"{base}/{BUILD_MANIFEST}"
    with open_remote([url], retry_policy=retry_policy) as remote:
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
        remote = open_remote([shard.where], expected_bytes=shard.bytes, retry_policy=retry_policy)
        return cast(BinaryIO, io.BufferedReader(remote, BUFFER_BYTES))
    try:
        return Path(shard.where).open("rb", BUFFER_BYTES)
    except FileNotFoundError:
        raise UserError(f"{shard.where} is missing; get the build again") from None
