"""Downloads one published file, resumes after interruptions, and verifies it.

The file grows as NAME.part. NAME.part.json beside it holds the address and version of the file. The
file gets its name when size and checksum are those of the manifest. A file that differs is kept as
NAME.bad. MT3 has no counterpart.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from mt3data import system
from mt3data.datasets.manifest import Source, safe_name
from mt3data.download.http import RETRY_POLICY, RetryPolicy
from mt3data.download.remote import open_remote
from mt3data.download.unpack import Readable
from mt3data.errors import UserError
from mt3data.files import require_space, write_atomically
from mt3data.terminal import progress

BLOCK_BYTES = 1 << 20
MB = 1e6

Checksums = dict[str, Any]  # {"bytes": ..., "md5": ..., "sha256": ...}


class HashingReader:
    """Reads a stream, hashes what is read, and moves a progress bar."""

    def __init__(self, stream: Readable, bar: Any) -> None:
        self._stream, self._bar = stream, bar
        self._md5, self._sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        self._n_bytes = 0

    def read(self, n_bytes: int = -1) -> bytes:
        """Reads at most n_bytes; b"" at the end."""
        data = self._stream.read(n_bytes)
        self._md5.update(data)
        self._sha256.update(data)
        self._n_bytes += len(data)
        self._bar.update(len(data) / MB)
        return data

    def sums(self) -> Checksums:
        """Returns size and checksums of what was read so far."""
        return {
            "bytes": self._n_bytes,
            "md5": self._md5.hexdigest(),
            "sha256": self._sha256.hexdigest(),
        }


def file_name(source: Source) -> str:
    """Returns the publisher's name of a source's file: one safe path component."""
    return safe_name(PurePosixPath(unquote(urlsplit(source.url).path)).name, source.url)


def file_checksums(path: Path, show: bool = True) -> Checksums:
    """Reads a file and returns its size and checksums; `show` prints progress."""
    with (
        path.open("rb") as file,
        progress(path.stat().st_size / MB, f"check {path.name}", "MB", show=show) as bar,
    ):
        metered = HashingReader(file, bar)
        while metered.read(BLOCK_BYTES):
            pass
    return metered.sums()


def has_checksum(source: Source) -> bool:
    """Returns whether the publisher's checksum is known."""
    return bool(source.md5 or source.sha256)


def expected_bytes(source: Source) -> int:
    """Returns the size that a server must offer; 0 if that of the manifest is too uncertain."""
    certain = source.status in ("verified", "several") or not has_checksum(source)
    return source.bytes if certain else 0


def checksum_mismatch(source: Source, sums: Checksums) -> str:
    """Describes how checksums differ from the published ones, with both values; "" if they agree."""
    expected = {"bytes": expected_bytes(source), "md5": source.md5, "sha256": source.sha256}
    return "; ".join(
        f"{key} is {sums[key]}, expected {value}"
        for key, value in expected.items()
        if value and sums[key] != value
    )


def fetch(
    source: Source, target: Path, retry_policy: RetryPolicy = RETRY_POLICY, show: bool = True
) -> Checksums:
    """Downloads what is missing of a source to target and verifies it.

    An existing target is only verified.

    Args:
        source: its url is tried first, then its mirrors, also after a file with wrong content.
        target: file to write. Its folder exists.
        retry_policy: limits of retries.
        show: print progress.
    Returns:
        Size and checksums of the file.
    Raises:
        UserError: no server has the file, or its content differs (it is kept as NAME.bad).
    """
    part = target.with_name(target.name + ".part")
    for leftover in target.parent.glob(f"{glob.escape(_note(part).name)}.tmp-*"):
        leftover.unlink()  # of a run that was killed while it wrote this file
    faults: list[str] = []
    if target.is_file():
        sums = file_checksums(target, show)
        if not checksum_mismatch(source, sums):
            return sums
        faults.append(_put_aside(target, target, checksum_mismatch(source, sums)))
    urls = list(source.urls)
    while urls:
        try:
            used = _transfer(urls, source, part, retry_policy, show)
        except UserError as error:
            raise UserError("; ".join([*faults, str(error)])) from error
        _note(part).unlink()
        sums = file_checksums(part, show)
        if not checksum_mismatch(source, sums):
            system.replace(part, target)
            return sums
        faults.append(f"{used}: {_put_aside(part, target, checksum_mismatch(source, sums))}")
        urls = urls[urls.index(used) + 1 :]
    again = "run the command again; if the result is the same, the server has another file"
    raise UserError("; ".join([*faults, again]))


def _put_aside(path: Path, target: Path, fault: str) -> str:
    bad = target.with_name(target.name + ".bad")
    system.replace(path, bad)
    return f"{fault}; kept as {bad}"


def _transfer(
    urls: Sequence[str], source: Source, part: Path, retry_policy: RetryPolicy, show: bool
) -> str:
    """Completes NAME.part and returns the address that served its end."""
    offset, validator = _resume_from(part, urls[0], source)
    remote = open_remote(
        urls, expected_bytes=expected_bytes(source), offset=offset, validator=validator,
        retry_policy=retry_policy,
    )  # fmt: skip
    with remote, part.open("r+b" if offset else "wb") as file:
        file.seek(remote.position)
        file.truncate()
        note = {"url": remote.url, "validator": remote.validator}
        write_atomically(_note(part), json.dumps(note).encode())
        require_space(
            part.parent,
            max(0, remote.total - remote.position),
            f"to download {part.stem}",
            "folder",
        )
        done = remote.position / MB
        with progress(remote.total / MB, part.stem, "MB", done=done, show=show) as bar:
            while block := remote.read(BLOCK_BYTES):
                file.write(block)
                bar.update(len(block) / MB)
        file.flush()
        os.fsync(file.fileno())
        return remote.url


def _resume_from(part: Path, url: str, source: Source) -> tuple[int, str]:
    """Returns the offset to resume at and the required version; without either, the start.

    A part of another address can only be resumed if a checksum verifies the result.
    """
    if not (part.is_file() and _note(part).is_file()):
        return 0, ""
    try:
        note = json.loads(_note(part).read_bytes())
        validator = str(note["validator"]) if note["url"] == url else ""
    except (ValueError, KeyError, TypeError):  # it is damaged
        validator = ""
    return (part.stat().st_size, validator) if validator or has_checksum(source) else (0, "")


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")
