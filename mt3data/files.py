"""Finds input files, writes output files atomically, checks free disk space and locks folders."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sys
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from mt3data import system
from mt3data.errors import UserError
from mt3data.terminal import echo, kind_of

WAIT_SILENTLY_SECONDS = 1.0  # for another run, before a message
STDOUT = Path("-")  # as an output file: standard output
MARK_BYTES = 1 << 16  # at each end of a file that are searched for a mark
MAX_DOCUMENT_BYTES = 16 << 20  # of text, settings and lists
MAX_NAME_BYTES = 255  # of a file name, on nearly all file systems
NAMED_SKIPS = 5  # skipped paths that a message names


def free_bytes(folder: Path) -> int:
    """Returns the free bytes of the disk of a folder, which need not exist yet."""
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(
    folder: Path, n_bytes: int, purpose: str, option: str = "--root", advice: str = ""
) -> None:
    """Checks that a disk has enough free space, before anything is written.

    Args:
        folder: where files will be written.
        n_bytes: bytes that they need.
        purpose: what the bytes are for, in the message: "for shards".
        option: by which the user can choose another folder.
        advice: another remedy, which ends the message.
    Raises:
        UserError: too little space is free. The message has the bytes needed and the bytes free.
    """
    free = free_bytes(folder)
    if n_bytes > free:
        raise UserError(
            f"{folder}: {format_bytes(n_bytes)} needed {purpose}, {format_bytes(free)} free; make room or choose "
            f"another {option}{advice}"
        )


@dataclass(frozen=True)
class Walk:
    """The files below a folder.

    Attributes:
        files: regular files with a wanted suffix, sorted.
        skipped: what was not read, and why: "takes/.trash (hidden)".
    """

    files: list[Path]
    skipped: list[str]

    @property
    def message(self) -> str:
        """A line that counts what was skipped and names the first of it; empty if nothing was."""
        if not self.skipped:
            return ""
        n, named = len(self.skipped), ", ".join(self.skipped[:NAMED_SKIPS])
        more = f" and {n - NAMED_SKIPS:,} more" if n > NAMED_SKIPS else ""
        return f"skipped {n:,}: {named}{more}"


def walk(folder: Path, suffixes: Collection[str]) -> Walk:
    """Finds all files with some suffixes below a folder.

    Links to folders are followed, and every folder is read once, so a link to a parent does no
    harm. Names that begin with a dot, folders without permission, broken links and pipes are
    skipped and listed.

    Args:
        folder: where to begin.
        suffixes: in lower case, with their dots.
    Raises:
        OSError: the folder itself cannot be read.
    """
    files: list[Path] = []
    skipped: list[str] = []
    seen: set[tuple[int, int]] = set()
    folders, links = [folder], list[Path]()
    while folders or links:
        here = folders.pop() if folders else links.pop(0)  # a folder by its own name first
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            for path in sorted(here.iterdir()):
                is_wanted, is_folder = path.suffix.lower() in suffixes, path.is_dir()
                if path.name.startswith("."):
                    skipped += [f"{path} (hidden)"] if is_wanted or is_folder else []
                elif is_folder:
                    (links if path.is_symlink() else folders).append(path)
                elif is_wanted and path.is_file():
                    files.append(path)
                elif is_wanted:
                    skipped.append(f"{path} ({kind_of(path)})")
        except OSError as error:
            if here == folder:
                raise
            skipped.append(f"{here} ({(error.strerror or str(error)).lower()})")
    return Walk(sorted(files), sorted(skipped))


def read_limited(path: Path, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
    """Reads a regular file; never a device or a pipe, which may have no end.

    Raises:
        UserError: there is none, it cannot be read, or it has more than `limit` bytes.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: {kind_of(path)}; expected a file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > limit:
        raise UserError(f"{path}: has more than {limit:,} bytes; expected a smaller file")
    return data


def is_device(path: Path) -> bool:
    """Checks that a path is that of a device, pipe or socket, into which output is written."""
    return path.exists() and not path.is_file() and not path.is_dir()


def same_name(name: str) -> str:
    """Returns a file name in the Unicode form (NFC) in which names of one piece compare as equal.

    A Mac may write "é" as two characters where other systems write one.
    """
    return unicodedata.normalize("NFC", name)


def mark(command: str) -> str:
    """Returns the text by which a command recognises its own output files.

    Args:
        command: that writes the file: "mt3data report".
    """
    return f"Made by {command} of mt3kit"


def inputs_of(paths: Iterable[Path]) -> dict[tuple[int, int], Path]:
    """Returns the files and folders that a command reads, by their identity, which all links share."""
    found = {}
    for path in paths:
        with suppress(OSError):  # the reader of the file reports that
            found[_identity(path)] = path
    return found


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def require_output(
    path: Path, command: str, force: bool = False, heading: re.Pattern[bytes] | None = None,
    inputs: Mapping[tuple[int, int], Path] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Checks that a command may write an output file, before the work that fills it.

    A file is replaced only if it is empty or carries the mark of the same command. Devices and
    pipes are written into. An input of the command is never replaced.

    Args:
        path: the file; STDOUT is always fine.
        command: that will write it, see `mark`.
        force: replace any file.
        heading: beginning of files of the command whose format has no room for a mark (CSV).
        inputs: of `inputs_of`. Below a folder of inputs, only files with the mark are replaced.
    Raises:
        UserError: a folder, a name in a folder that does not exist, a file of another origin, or an
            input.
    """
    if path == STDOUT:
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it")
    if _target(path).is_symlink():
        raise UserError(f"{path} is a link in a circle; remove it or choose another name")
    if not path.exists() and not (folder := _target(path).parent).is_dir():
        raise UserError(f"{path}: the folder {folder} does not exist; make it first")
    if not path.is_file():
        return
    if (is_read := inputs.get(_identity(path))) is not None:
        raise UserError(f"{path} is the input {is_read}; choose another name")
    if _has_mark(path, mark(command).encode(), heading):
        return
    for folder in _target(path).parents if inputs else ():
        if (is_read := inputs.get(_identity(folder))) is not None:
            raise UserError(f"{path} is a file in the input {is_read}; choose another name")
    if force:
        return
    raise UserError(
        f"{path} exists and was not written by `{command}`; choose another name, or replace it with "
        "--force"
    )


def write_output(
    path: Path, data: bytes | Iterable[bytes], command: str, force: bool = False,
    heading: re.Pattern[bytes] | None = None,
) -> None:  # fmt: skip
    """Writes an output file of a command; see `require_output`.

    A regular file appears when it is complete. A link stays and its target is replaced. Devices,
    pipes and standard output are written into.

    Args:
        path: the file, or STDOUT.
        data: its content with the mark of the command, or pieces of it.
        command: that writes it.
        force, heading: see `require_output`.
    Raises:
        UserError: as `require_output`.
        OSError: the file cannot be written.
    """
    require_output(path, command, force, heading)
    pieces = [data] if isinstance(data, bytes) else data
    if path == STDOUT:
        sys.stdout.flush()  # text that was printed before comes first
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()  # the reader of a pipe gets each piece when it is known
    elif is_device(path):
        with path.open("wb") as file:
            file.writelines(pieces)
    else:
        write_atomically(_target(path), pieces)


def _target(path: Path) -> Path:
    """Returns the file that a path and its links lead to, which need not exist."""
    return Path(os.path.realpath(path))


def _has_mark(path: Path, wanted: bytes, heading: re.Pattern[bytes] | None) -> bool:
    """Whether a file is empty, has a mark near its beginning or end, or begins with a heading."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MARK_BYTES))
        end = file.read()
        file.seek(0)
        beginning = file.read(MARK_BYTES)
    is_headed = heading is not None and heading.match(beginning) is not None
    return not size or wanted in beginning or wanted in end or is_headed


def temp_path(path: Path) -> Path:
    """Returns an unused name beside `path`, for a file that is being written or removed.

    The name is at most as long as file systems allow, however long that of `path` is.
    """
    suffix = f".tmp-{secrets.token_hex(8)}"
    name = os.fsencode(path.name)[: MAX_NAME_BYTES - len(suffix)].decode(errors="ignore")
    return path.with_name(name + suffix)


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
    """Closes a temporary file, makes it durable and renames it.

    Args:
        file: open for writing, at `part`.
        part: the temporary name.
        path: the final name.
    """
    file.flush()
    os.fsync(file.fileno())
    file.close()
    system.replace(part, path)
    system.sync_folder(path.parent)


def remove_atomically(folder: Path) -> None:
    """Removes a folder; other processes see it whole or not at all."""
    gone = temp_path(folder)
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return
    except OSError as error:
        if not system.is_in_use(error):
            raise
        gone = folder  # Windows refuses it while a file in the folder is open
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
def file_lock(path: Path, busy: str = "", silent_seconds: float | None = None) -> Iterator[None]:
    """Holds a lock file while the body runs.

    The system frees the lock when the process ends, also after a crash. The file stays. On NFS the
    lock holds between hosts too, because Linux makes it a byte-range lock there.

    Args:
        path: of the lock file.
        busy: message of the error if another process holds the lock. "": wait for it, and print a
            line after silent_seconds.
        silent_seconds: wait so long without a message; None: a second.
    Raises:
        UserError: another process holds the lock, or the file system has no locks.
    """
    from filelock import FileLock, Timeout

    if silent_seconds is None:
        silent_seconds = WAIT_SILENTLY_SECONDS
    lock = FileLock(path)
    try:
        lock.acquire(0.0 if busy else silent_seconds)
    except Timeout as error:
        if busy:
            raise UserError(f"{busy}; wait for it or stop it") from error
        echo(f"{path.parent}: another run uses this folder; waiting for it to end", err=True)
        lock.acquire()
    except OSError as error:
        if error.filename is not None:  # the file cannot be made
            raise
        raise UserError(
            f"{path} cannot be locked ({error.strerror}); choose a folder on another file system"
        ) from error
    try:
        yield
    finally:
        lock.release()


def canonical_json(value: Any) -> bytes:
    """Encodes a value as JSON with sorted keys and no spaces, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
