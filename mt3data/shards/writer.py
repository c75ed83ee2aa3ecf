"""Writes one shard: a tar of records, which gets its name only when it is complete and durable.

format.py describes the content of a record, and why the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.files import canonical_json, sync_and_rename, temp_path
from mt3data.shards.format import SCHEMA_VERSION, npy_parts, tar_members
from mt3data.shards.windows import SOUND, Window

MAX_KEY_BYTES = 80  # tar names end at 100


def record_key(dataset: str, track: str, variant: int, start_frame: int) -> str:
    """Returns the key of the record of a dataset, track, variant and first frame.

    It is unique in its build, and has no dots, at which webdataset would cut it.

    Raises:
        ValueError: a name has other characters than [A-Za-z0-9_-], or the key has over 80 bytes.
    """
    key = f"{dataset}-{track}-p{variant}-{start_frame:07d}"
    if not key.replace("-", "").replace("_", "").isalnum() or not key.isascii():
        raise ValueError(f"key {key!r}: track ids may hold letters, digits, - and _ only")
    if len(key) > MAX_KEY_BYTES:
        raise ValueError(f"key {key!r} has {len(key)} bytes; at most {MAX_KEY_BYTES} fit")
    return key


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
        self._part = temp_path(self.path)
        self._file = self._part.open("wb")
        self._position, self._hash = 0, hashlib.sha256()

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Removes the records that were added in the body if the body raises an exception."""
        rows, position, digest = len(self.rows), self._position, self._hash.copy()
        try:
            yield
        except BaseException:
            del self.rows[rows:]
            self._file.seek(position)
            self._file.truncate()
            self._position, self._hash = position, digest
            raise

    def add(self, dataset: str, split: str, track: str, name: str, window: Window) -> None:
        """Appends one record.

        Args:
            dataset, split: as in the build manifest.
            track: the track's short id.
            name: the publisher's name of the track.
            window: the content of the record.
        """
        key = record_key(dataset, track, window.variant, window.start_frame)
        sounding = window.notes[~window.notes.is_drum]
        facts = {
            "dataset": dataset, "track": name, "split": split, "variant": window.variant,
            "start_frame": window.start_frame, "frames": window.frames,
            "track_frames": window.track_frames,
            "programs": np.unique(sounding.program).tolist(), "schema": SCHEMA_VERSION,
        }  # fmt: skip
        arrays = window.sound | {"notes": window.notes.to_array(), "tokens": window.tokens}
        row = {
            "shard": self.path.name, "key": key, "track": track, "variant": window.variant,
            "start_frame": window.start_frame, "frames": window.frames,
            "track_frames": window.track_frames, "n_notes": len(window.notes),
            "n_tokens": len(window.tokens), "programs": facts["programs"],
            "has_drums": bool(window.notes.is_drum.any()),
        }  # fmt: skip
        for member in tar_members(arrays):
            array_name = member.removesuffix(".npy")
            if member == "json":
                parts: Sequence[bytes | memoryview] = [canonical_json(facts)]
            else:
                parts = npy_parts(arrays[array_name])
            size = sum(map(len, parts))
            self._write(_tar_header(f"{key}.{member}", size))
            row[f"{array_name}_offset"], row[f"{array_name}_size"] = self._position, size
            for part in parts:
                self._write(part)
            self._write(bytes(-size % tarfile.BLOCKSIZE))
            if array_name in SOUND:
                row[f"{array_name}_crc32"] = zlib.crc32(parts[-1])
        self.rows.append(row)

    def close(self) -> dict[str, Any]:
        """Completes the shard; returns its name, bytes, sha256 and number of records."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self._position % tarfile.RECORDSIZE))
        sync_and_rename(self._file, self._part, self.path)
        return {
            "name": self.path.name, "bytes": self._position,
            "sha256": self._hash.hexdigest(), "records": len(self.rows),
        }  # fmt: skip

    def abandon(self) -> dict[str, Any]:
        """Removes the unfinished file; returns the description of a shard without records."""
        self._file.close()
        with suppress(FileNotFoundError):
            self._part.unlink()
        return {"name": self.path.name, "bytes": 0, "sha256": "", "records": 0}

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._position += len(data)


def _tar_header(name: str, size: int) -> bytes:
    """Returns the header block of a file of a tar, with fixed time, owner and mode."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)
