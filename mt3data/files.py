"""Room on a disk, files that are whole or absent, and a lock that keeps two runs out of one folder."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import click

from mt3data.errors import UserError

WAIT_SILENTLY_SECONDS = 1.0  # for another run, before it is said


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk on which a folder lies, or will lie."""
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(
    folder: Path, n_bytes: int, purpose: str, option: str = "--root", advice: str = ""
) -> None:
    """Sees that a disk has room, before anything is written.

    Args:
        folder: where files will be written.
        n_bytes: how much they need.
        purpose: what for, in the message: "for shards".
        option: with which another place can be chosen.
        advice: how else to get on; ends the message.
    Raises:
        UserError: there is less room; it says how many bytes are needed and free.
    """
    free = free_bytes(folder)
    if n_bytes > free:
        raise UserError(
            f"{folder}: {format_bytes(n_bytes)} needed {purpose}, {format_bytes(free)} free; make room or choose "
            f"another {option}{advice}"
        )


def temp_path(path: Path) -> Path:
    """Returns an unused name beside `path`, for a file that is being written or removed."""
    return path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Writes a file atomically and durably: after a crash it is complete or absent.

    Args:
        path: the file.
        data: its content, or the pieces of its content in their order.
    Raises:
        OSError: the file cannot be written. No temporary file remains.
    """
    part = temp_path(path)
    try:
        with part.open("wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            sync_and_rename(file, part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sync_and_rename(file: BinaryIO, part: Path, path: Path) -> None:
    """Closes a file that was written as `part` and makes it durable under its name."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_atomically(folder: Path) -> None:
    """Removes a folder; other processes see it whole or not at all."""
    gone = temp_path(folder)
    with suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def file_has_size(path: Path, n_bytes: int) -> bool:
    """Checks that `path` is a file of exactly `n_bytes` bytes."""
    return path.is_file() and path.stat().st_size == n_bytes


def format_bytes(n_bytes: float) -> str:
    """Returns a number of bytes with its unit: "104.3 GB"."""
    unit = 0
    while n_bytes >= 999.95 and unit < 4:
        n_bytes, unit = n_bytes / 1000, unit + 1
    return f"{n_bytes:.{min(unit, 1)}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[unit]}"


@contextmanager
def file_lock(path: Path, busy: str = "") -> Iterator[None]:
    """Holds a lock file while the body runs; a second process gets a UserError that says `busy`.

    Without `busy` it waits instead until the first one is done; after a second it says so.

    The system frees the lock when a process ends in whatever way. On NFS it holds between hosts too
    (Linux makes it a byte-range lock there); a file system without locks is refused.
    """
    import fcntl

    with path.open("w") as file:
        try:
            _lock(file, 0.0 if busy else WAIT_SILENTLY_SECONDS)
        except BlockingIOError as error:
            if busy:
                raise UserError(f"{busy}; wait for it or stop it") from error
            click.echo(f"{path.parent}: another run is at work there; waiting for it", err=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"{path} cannot be locked ({error.strerror}); choose a folder on another file system"
            ) from error
        yield


def _lock(file: TextIO, seconds: float) -> None:
    """Locks a file; raises BlockingIOError if another process holds it for longer than that."""
    import fcntl

    end = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)


def canonical_json(value: Any) -> bytes:
    """Encodes a value as JSON with sorted keys and no spaces, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
