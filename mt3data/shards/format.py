"""Shards: the files in which training data rests, and how to tell that they are whole.

A build is a folder: WebDataset tar shards, one parquet index per split that gives the byte position
of every member, one row per track in `tracks.parquet`, untrimmed notes of the evaluation splits in
`references-SPLIT.parquet`, and `manifest.json`, written last, which names every shard with its size
and sha256. A record is some members of one key, side by side, in this order; of mel and audio it has
one or both:

    KEY.audio.npy   int16 [frames * hop + fft_size - hop]: what the frames hear, full scale 32767
    KEY.json        where the record comes from
    KEY.mel.npy     float16 [frames, n_mels], C order, so that a crop is one contiguous byte range
    KEY.notes.npy   float64 [n, 7]: the columns of Notes
    KEY.tokens.npy  int16 [n], EOS last

Tars are USTAR with time, owner and mode fixed and nothing compressed, so the same input gives the
same bytes. Nothing in a shard is ever pickled.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.errors import UserError
from mt3data.files import canonical_json, write_atomically

SCHEMA_VERSION = 2
BUILD_MANIFEST = "manifest.json"
# What a manifest holds beside the settings and tracks that its fingerprint is taken of.
OUTCOME = {"fingerprint", "licence", "licence_url", "redistribution", "citation", "title", "splits",
           "shards", "files", "quarantined", "environment"}  # fmt: skip
# "pipe:" would be a command to webdataset, and ".." leads out of the folder.
FILE_NAME = re.compile(r"(index/)?[A-Za-z0-9_-][A-Za-z0-9_.-]*")
NPY_MAGIC = b"\x93NUMPY\x01\x00"


def tar_members(arrays: Iterable[str]) -> tuple[str, ...]:
    """How the members of a record end, in their order in a tar: "json", "mel.npy", ...

    Args:
        arrays: names of the arrays, as `features` of the build manifest has them.
    """
    return tuple(sorted(["json", *(f"{name}.npy" for name in arrays)]))


def npy_parts(array: np.ndarray) -> tuple[bytes, memoryview]:
    """Header and data of an array as a .npy file of version 1.0, the data without a copy.

    Raises:
        ValueError: the array holds Python objects.
    """
    array = np.ascontiguousarray(array)
    return _npy_header(array.dtype, array.shape), array.reshape(-1).view(np.uint8).data


@lru_cache(maxsize=4096)
def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    if dtype.hasobject:
        raise ValueError(f"dtype {dtype}: Python objects cannot be stored")
    buffer = io.BytesIO()
    fields = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def read_npy(data: bytes) -> np.ndarray:
    """The array in the data of a version 1.0 .npy file, read-only; never unpickles.

    Raises:
        ValueError: other bytes than that, Python objects, or fewer bytes than the shape wants.
    """
    if data[:8] != NPY_MAGIC:
        raise ValueError(f"begins with {data[:8]!r}; expected a .npy file of version 1.0")
    start = 10 + int.from_bytes(data[8:10], "little")
    dtype, shape = _parse_npy_header(bytes(data[8:start]))
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


@lru_cache(maxsize=4096)  # parsing takes 50 us, and a build has few different headers
def _parse_npy_header(header: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    if dtype.hasobject or is_fortran:
        raise ValueError(f"dtype {dtype}, Fortran order {is_fortran}; expected numbers in C order")
    return dtype, shape


def write_listed(path: Path, data: bytes) -> dict[str, Any]:
    """As `write_atomically`; returns name, bytes and sha256, as the manifest lists files."""
    write_atomically(path, data)
    return {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# --- tables --------------------------------------------------------------------------------------


def index_schema(arrays: Iterable[str]) -> Any:
    """The columns of index/SPLIT.parquet, one row per record in the order of the shards.

    Args:
        arrays: names of a record's arrays, as `features` of the build manifest has them.
    """
    import pyarrow as pa

    from mt3data.shards.windows import SOUND

    arrays = set(arrays)
    columns = [
        ("shard", pa.dictionary(pa.int32(), pa.string())), ("key", pa.string()),
        ("track", pa.string()), ("variant", pa.int32()), ("start_frame", pa.int64()),
        ("frames", pa.int32()), ("track_frames", pa.int64()), ("n_notes", pa.int32()),
        ("n_tokens", pa.int32()), ("programs", pa.list_(pa.uint8())), ("has_drums", pa.bool_()),
        *((f"{name}_crc32", pa.uint32()) for name in sorted(SOUND) if name in arrays),
    ]  # fmt: skip
    for member in tar_members(arrays):
        name = member.removesuffix(".npy")
        columns += [(f"{name}_offset", pa.int64()), (f"{name}_size", pa.int64())]
    return pa.schema(columns)


def tracks_schema() -> Any:
    """The columns of tracks.parquet, one row per track, quarantined ones included."""
    import pyarrow as pa

    return pa.schema([
        ("track", pa.string()), ("name", pa.string()), ("split", pa.string()),
        ("status", pa.string()), ("stage", pa.string()), ("error", pa.string()),
        ("seconds", pa.float64()), ("frames", pa.int64()), ("notes", pa.int64()),
        ("notes_after_audio", pa.int64()), ("records", pa.int64()),
        ("lag", pa.float64()), ("drift", pa.float64()), ("align_confidence", pa.float64()),
        ("aligned", pa.string()), ("variants", pa.list_(pa.string())),
        ("audio_sha256", pa.string()), ("labels_sha256", pa.string()),
        ("problems", pa.list_(pa.string())),
    ])  # fmt: skip


def references_schema() -> Any:
    """The columns of references-SPLIT.parquet: the untrimmed notes of every track."""
    import pyarrow as pa

    return pa.schema([
        ("track", pa.string()), ("onset", pa.float64()), ("offset", pa.float64()),
        ("pitch", pa.uint8()), ("velocity", pa.uint8()), ("program", pa.uint8()),
        ("is_drum", pa.bool_()), ("instrument", pa.int32()),
    ])  # fmt: skip


def write_table(path: Path, rows: Iterable[dict[str, Any]], schema: Any) -> dict[str, Any]:
    """Writes a parquet file of rows by a schema, durably; returns its name, bytes and sha256."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    table = pa.Table.from_pylist(list(rows), schema=schema)
    pq.write_table(table, buffer, compression="zstd", store_schema=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_listed(path, buffer.getvalue())


def read_build_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the finished build in a folder.

    Raises:
        UserError: no manifest (not a build, or an unfinished one), or one that cannot be read.
    """
    path = folder / BUILD_MANIFEST
    if not path.is_file():
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder; expected a build, such as `mt3data build demo` makes"
            )
        inside = sorted(p.parent.name for p in folder.glob(f"*/{BUILD_MANIFEST}"))
        hint = f"; builds inside it: {', '.join(inside)}" if inside else ""
        raise UserError(
            f"{folder}: no {BUILD_MANIFEST}, so this is no finished build{hint}. An interrupted build is "
            "continued by the same `mt3data build` command"
        )
    return parse_build_manifest(path.read_bytes(), str(path))


def parse_build_manifest(data: bytes, where: str) -> dict[str, Any]:
    """The manifest of a build from the data of its manifest.json.

    Args:
        where: the file's path or address, for messages.
    Raises:
        UserError: something else, another schema, or a file name that leaves the build's folder or
            looks like a command or an address.
    """
    try:
        manifest = json.loads(data)
        version = manifest["schema"]
        described = [
            itemgetter("name", "bytes", "sha256")(entry)
            for entry in [*manifest["shards"], *manifest["files"]]
        ]
        of_shards = [itemgetter("split", "records")(shard) for shard in manifest["shards"]]
        lost = {split for split, _ in of_shards} - set(manifest["splits"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: not a manifest of a build ({error!r}); get it again") from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{where}: schema {version}; this version of mt3kit reads {SCHEMA_VERSION}")
    if lost:
        raise UserError(
            f"{where}: has shards of {', '.join(sorted(lost))}, which is no split of it"
        )
    for name, *_ in described:
        if not FILE_NAME.fullmatch(str(name)):
            raise UserError(
                f"{where}: names {name!r}; expected files of the build, such as "
                "train-00000-of-00001.tar, and will open nothing else. Get the build again"
            )
    return manifest


def has_its_fingerprint(manifest: dict[str, Any]) -> bool:
    """Whether the settings and tracks of a manifest are those that its fingerprint was taken of."""
    identity = {name: value for name, value in manifest.items() if name not in OUTCOME}
    return hashlib.sha256(canonical_json(identity)).hexdigest() == manifest.get("fingerprint")


def find_builds(pattern: str | Path) -> list[Path]:
    """Finished builds that a path or a pattern such as `shards/*` names, in order.

    A folder without manifest stands for the builds directly inside it.

    Raises:
        UserError: there are none; says what was seen and which command makes one.
    """
    named = [Path(p) for p in sorted(glob.glob(str(pattern)))]  # noqa: PTH207 (may be absolute)
    inside = [child for path in named if path.is_dir() for child in sorted(path.iterdir())]
    for candidates in (named, inside):
        builds = [path for path in candidates if (path / BUILD_MANIFEST).is_file()]
        if builds:
            return builds
    if not glob.has_magic(str(pattern)):
        read_build_manifest(Path(pattern))  # raises with the reason
    seen = (
        f"{len(named)} path(s) there, none with a {BUILD_MANIFEST}" if named else "nothing is there"
    )
    raise UserError(
        f"no build under {pattern} ({seen}); make one with `mt3data build demo --out shards/`"
    )
