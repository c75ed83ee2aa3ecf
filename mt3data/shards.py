"""Shards: the files in which training data rests, and how to tell that they are whole.

A build is a folder: WebDataset tar shards, one parquet index per split that gives the byte position
of every member, one row per track in `tracks.parquet`, untrimmed notes of the evaluation splits in
`references-SPLIT.parquet`, and `manifest.json`, written last, which names every shard with its size
and sha256. A record is four members of one key, side by side, in this order:

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
import os
import tarfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mt3data.errors import UserError
from mt3data.windows import Window

SCHEMA_VERSION = 1
MEMBERS = ("json", "mel.npy", "notes.npy", "tokens.npy")  # sorted, as in the tar
TAR_BLOCK = 512
MAX_KEY_BYTES = 80  # tar names end at 100
MANIFEST = "manifest.json"
NPY_MAGIC = b"\x93NUMPY\x01\x00"


def record_key(dataset: str, track: str, pass_number: int, start_frame: int) -> str:
    """KEY of a record: unique in its build, and without the dots at which webdataset would cut it.

    Raises:
        ValueError: a name with other characters than [A-Za-z0-9_-], or a key over 80 bytes.
    """
    key = f"{dataset}-{track}-p{pass_number}-{start_frame:07d}"
    if not key.replace("-", "").replace("_", "").isalnum() or not key.isascii():
        raise ValueError(f"key {key!r}: track ids may hold letters, digits, - and _ only")
    if len(key) > MAX_KEY_BYTES:
        raise ValueError(f"key {key!r} has {len(key)} bytes; at most {MAX_KEY_BYTES} fit")
    return key


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of a version 1.0 .npy file; object arrays are refused."""
    buffer = io.BytesIO()
    np.lib.format.write_array(
        buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False
    )
    return buffer.getvalue()


def read_npy(data: bytes) -> np.ndarray:
    """The array in the bytes of a version 1.0 .npy file, read-only; never unpickles.

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


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: the same value gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class HashingFile:
    """A binary file for writing that keeps the sha256 and the length of what went through."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position, self._hash = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.file.write(data)
        self._hash.update(data)
        self.position += len(data)
        return len(data)

    def tell(self) -> int:
        return self.position

    @property
    def sha256(self) -> str:
        """Of all bytes so far."""
        return self._hash.hexdigest()


@dataclass
class ShardWriter:
    """Writes one shard under a temporary name; `close` makes it durable and gives it its name.

    Attributes:
        path: final name of the shard.
        rows: one index row per record so far, see `index_schema`.
    """

    path: Path

    def __post_init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._part = self.path.with_name(f"{self.path.name}.tmp-{os.getpid()}")
        self._file = HashingFile(self._part.open("wb"))
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # type: ignore[call-overload]  # noqa: SIM115

    def add(self, dataset: str, split: str, track: str, name: str, window: Window) -> None:
        """Appends one record.

        Args:
            dataset, split: as in the manifest.
            track: the track's short id.
            name: the publisher's name of the track.
            window: what to store.
        """
        key = record_key(dataset, track, window.pass_number, window.start_frame)
        sounding = window.notes[~window.notes.is_drum]
        facts = {
            "dataset": dataset, "track": name, "split": split, "pass": window.pass_number,
            "start_frame": window.start_frame, "frames": len(window.mel),
            "track_frames": window.track_frames,
            "programs": np.unique(sounding.program).tolist(), "schema": SCHEMA_VERSION,
        }  # fmt: skip
        payloads = {
            "json": canonical_json(facts),
            "mel.npy": npy_bytes(window.mel),
            "notes.npy": npy_bytes(window.notes.to_array()),
            "tokens.npy": npy_bytes(window.tokens),
        }
        row = {
            "shard": self.path.name, "key": key, "track": track, "pass": window.pass_number,
            "start_frame": window.start_frame, "frames": len(window.mel),
            "track_frames": window.track_frames, "n_notes": len(window.notes),
            "n_tokens": len(window.tokens), "programs": facts["programs"],
            "has_drums": bool(window.notes.is_drum.any()), "mel_crc32": zlib.crc32(window.mel.tobytes()),
        }  # fmt: skip
        for member in MEMBERS:
            info = tarfile.TarInfo(f"{key}.{member}")
            info.size = len(payloads[member])
            info.mode = 0o644
            member_name = member.removesuffix(".npy")
            row[f"{member_name}_offset"] = self._tar.offset + TAR_BLOCK
            row[f"{member_name}_size"] = info.size
            self._tar.addfile(info, io.BytesIO(payloads[member]))
        self.rows.append(row)

    def close(self) -> dict[str, Any]:
        """Finishes the shard durably; returns its name, bytes, sha256 and number of records."""
        self._tar.close()
        _sync_and_rename(self._file.file, self._part, self.path)
        return {
            "name": self.path.name, "bytes": self._file.position,
            "sha256": self._file.sha256, "records": len(self.rows),
        }  # fmt: skip

    def abandon(self) -> None:
        """Removes the unfinished file."""
        self._file.file.close()
        with suppress(FileNotFoundError):
            self._part.unlink()


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file so that after a crash it is either whole or absent."""
    part = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    file = part.open("wb")
    file.write(data)
    _sync_and_rename(file, part, path)


def write_listed(path: Path, data: bytes) -> dict[str, Any]:
    """As `write_durably`; returns name, bytes and sha256, as the manifest lists files."""
    write_durably(path, data)
    return {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sync_and_rename(file: BinaryIO, part: Path, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# --- tables --------------------------------------------------------------------------------------


def index_schema() -> Any:
    """The columns of index/SPLIT.parquet, one row per record in the order of the shards."""
    import pyarrow as pa

    columns = [
        ("shard", pa.dictionary(pa.int32(), pa.string())), ("key", pa.string()),
        ("track", pa.string()), ("pass", pa.int32()), ("start_frame", pa.int64()),
        ("frames", pa.int32()), ("track_frames", pa.int64()), ("n_notes", pa.int32()),
        ("n_tokens", pa.int32()), ("programs", pa.list_(pa.uint8())), ("has_drums", pa.bool_()),
        ("mel_crc32", pa.uint32()),
    ]  # fmt: skip
    for member in MEMBERS:
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
        ("aligned", pa.string()), ("passes", pa.list_(pa.string())),
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
    """Writes rows as parquet, durably; returns name, bytes and sha256 of the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    table = pa.Table.from_pylist(list(rows), schema=schema)
    pq.write_table(table, buffer, compression="zstd", store_schema=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_listed(path, buffer.getvalue())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished build.

    Raises:
        UserError: no manifest (not a build, or an unfinished one), or one that cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder; expected a build, such as `mt3data build demo` makes"
            )
        inside = sorted(p.parent.name for p in folder.glob(f"*/{MANIFEST}"))
        hint = f"; builds inside it: {', '.join(inside)}" if inside else ""
        raise UserError(
            f"{folder}: no {MANIFEST}, so this is no finished build{hint}. An interrupted build is "
            "continued by the same `mt3data build` command"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest of a build ({error}); rebuild it") from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema {version}; this version of mt3kit reads {SCHEMA_VERSION}")
    return manifest


def find_builds(pattern: str | Path) -> list[Path]:
    """Finished builds that a path or a pattern such as `shards/*` names, in order.

    A folder without manifest stands for the builds directly inside it.

    Raises:
        UserError: there are none; says what was seen and which command makes one.
    """
    named = [Path(p) for p in sorted(glob.glob(str(pattern)))]  # noqa: PTH207 (may be absolute)
    inside = [child for path in named if path.is_dir() for child in sorted(path.iterdir())]
    for candidates in (named, inside):
        builds = [path for path in candidates if (path / MANIFEST).is_file()]
        if builds:
            return builds
    if not glob.has_magic(str(pattern)):
        read_manifest(Path(pattern))  # raises with the reason
    seen = f"{len(named)} path(s) there, none with a {MANIFEST}" if named else "nothing is there"
    raise UserError(
        f"no build under {pattern} ({seen}); make one with `mt3data build demo --out shards/`"
    )
