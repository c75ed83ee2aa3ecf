"""Is a build whole? Every file against the manifest, every record against the index and itself."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.notes import Notes
from mt3data.shards import MANIFEST, SOUND, read_manifest, read_npy, tar_members
from mt3data.vocabulary import EOS_ID, VocabularyConfig, vocabulary_size


def check(
    folder: Path, *, fast: bool = False, on_file: Callable[[str], None] = lambda name: None
) -> list[str]:
    """Looks for everything that can be wrong with a finished build.

    Args:
        folder: the build.
        fast: compare names, sizes and the index with the tar headers only, reading no bodies.
        on_file: called with each file's name when it has been looked at.
    Returns:
        One sentence per fault; empty means that the build is whole.
    Raises:
        UserError: not a finished build.
    """
    manifest = read_manifest(folder)
    faults = list(_check_names(folder, manifest))
    index_is_whole = True
    for entry in manifest["files"]:
        found = _check_file(folder, entry, fast=False)
        index_is_whole &= not (found and entry["name"].startswith("index/"))
        faults += found
        on_file(entry["name"])
    # Without its index a shard is compared with the manifest only: one fault is told once.
    rows = _rows_by_shard(folder, manifest) if index_is_whole else None
    for shard in manifest["shards"]:
        found = _check_file(folder, shard, fast)
        if not found and rows is not None:
            mine = rows.get(shard["name"], [])
            found = list(_check_shard(folder / shard["name"], shard, mine, manifest, fast))
        faults += found
        on_file(shard["name"])
    return faults


def _check_names(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    known = {entry["name"] for entry in manifest["shards"] + manifest["files"]}
    known |= {MANIFEST, "build.log.jsonl"}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in known:
            yield f"{name}: not part of this build; move it elsewhere"


def _check_file(folder: Path, entry: dict[str, Any], fast: bool) -> list[str]:
    path = folder / entry["name"]
    if not path.is_file():
        return [f"{entry['name']}: missing"]
    size = path.stat().st_size
    if size != entry["bytes"]:
        return [f"{entry['name']}: {size:,} bytes, the manifest says {entry['bytes']:,}"]
    if fast:
        return []
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    if digest.hexdigest() != entry["sha256"]:
        return [f"{entry['name']}: its bytes have changed (sha256 differs from the manifest)"]
    return []


def _rows_by_shard(folder: Path, manifest: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    rows: dict[str, list[dict[str, Any]]] = {}
    for split in manifest["splits"]:
        for row in pq.read_table(folder / "index" / f"{split}.parquet").to_pylist():
            rows.setdefault(row["shard"], []).append(row)
    return rows


def _check_shard(
    path: Path,
    shard: dict[str, Any],
    rows: list[dict[str, Any]],
    manifest: dict[str, Any],
    fast: bool,
) -> Iterator[str]:
    """Walks a tar beside its index rows."""
    if len(rows) != shard["records"]:
        yield f"{path.name}: {len(rows)} rows in the index, {shard['records']} records in the manifest"
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
    except tarfile.TarError as error:
        yield f"{path.name}: not a readable tar ({error})"
        return
    wanted = [
        (
            f"{row['key']}.{m}",
            row[f"{m.removesuffix('.npy')}_offset"],
            row[f"{m.removesuffix('.npy')}_size"],
        )
        for row in rows
        for m in tar_members(manifest["members"])
    ]
    found = [(member.name, member.offset_data, member.size) for member in members]
    if found != wanted:
        odd = next((a or b for a, b in zip(found, wanted, strict=False) if a != b), None)
        yield f"{path.name}: members differ from the index" + (
            f", first at {odd[0]}" if odd else ""
        )
        return
    if not fast:
        with path.open("rb") as file:
            for row in rows:
                yield from (f"{path.name}: {fault}" for fault in _check_record(file, row, manifest))


def _check_record(file: Any, row: dict[str, Any], manifest: dict[str, Any]) -> Iterator[str]:
    data = {}
    for member in tar_members(manifest["members"]):
        name = member.removesuffix(".npy")
        file.seek(row[f"{name}_offset"])
        data[name] = file.read(row[f"{name}_size"])
    key = row["key"]
    try:
        facts = json.loads(data["json"])
        arrays = {name: read_npy(data[name]) for name in manifest["members"]}
        tokens = arrays["tokens"]
        Notes.from_array(arrays["notes"])
    except ValueError as error:
        yield f"{key}: a member cannot be decoded ({error})"
        return
    for name in SOUND:
        if name not in arrays:
            continue
        array, wanted = arrays[name], manifest["members"][name]
        dtype, shape = wanted["dtype"], wanted["shape"]
        if array.dtype != dtype or list(array.shape) != shape:
            yield f"{key}: {name} is {array.dtype} {list(array.shape)}, expected {dtype} {shape}"
        elif not np.isfinite(array).all():
            yield f"{key}: {name} holds values that are not finite"
        elif zlib.crc32(array.tobytes()) != row[f"{name}_crc32"]:
            yield f"{key}: {name} differs from its checksum in the index"
    size = vocabulary_size(VocabularyConfig(**manifest["vocabulary"]))
    if tokens.dtype != np.int16 or tokens.ndim != 1 or not len(tokens) or tokens[-1] != EOS_ID:
        yield f"{key}: tokens are no int16 list that ends with EOS"
    elif tokens.min() < 0 or tokens.max() >= size:
        yield f"{key}: token {int(tokens.max())} is outside the vocabulary of {size}"
    if facts.get("start_frame") != row["start_frame"] or facts.get("frames") != row["frames"]:
        yield f"{key}: its json and the index differ"
