"""Reads one file at an address of any kind, in order, and resumes after faults. MT3 has no counterpart."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Sequence
from typing import Any

from mt3data.download.address import HTTP, file_system, scheme_of
from mt3data.download.http import RETRY_POLICY, RemoteFile, RetryPolicy, reason_of
from mt3data.errors import UserError
from mt3data.terminal import is_path_error

BLOCK_BYTES = 1 << 23  # of one request to an object store
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
INVALID = errno.EINVAL  # of file systems: an impossible bucket or name, a wrong key


class StoredFile(io.RawIOBase):
    """One file of an object store or another file system of fsspec, with the interface of RemoteFile.

    Attributes:
        url: its address.
        position: offset of the next byte. After opening it is 0 if the file has changed since the
            earlier opening. The reader then starts again.
        total: length of the file.
        validator: pass it when opening again, to detect that the file has changed since.
    """

    def __init__(
        self, url: str, *, expected_bytes: int = 0, offset: int = 0, validator: str = "",
        retry_policy: RetryPolicy = RETRY_POLICY,
    ) -> None:  # fmt: skip
        """Asks for the length and version of the file.

        Args:
            url: its address.
            expected_bytes: required length; 0 allows any.
            offset: where to resume.
            validator: of an earlier opening; "" allows any version.
            retry_policy: of requests that fail. The file system has limits of its own below these.
        Raises:
            UserError: there is no such file, it has another length, or no permission to read it.
        """
        self.url, self._retry_policy = url, retry_policy
        self._files, self._path = file_system(url)
        self._files.invalidate_cache()
        found = attempt(lambda: dict(self._files.info(self._path)), url, retry_policy)
        size = found.get("size")
        if found.get("type") != "file" or not isinstance(size, int) or size < 0:
            raise UserError(f"{url}: no file of known size")
        if expected_bytes and size != expected_bytes:
            raise UserError(f"{url}: the server has {size:,} bytes, expected {expected_bytes:,}")
        self.total = size
        self.validator = str(attempt(lambda: self._files.ukey(self._path), url, retry_policy))
        is_same = validator in ("", self.validator) and offset <= self.total
        self.position = offset if is_same else 0
        self._held = memoryview(b"")  # bytes from `position` on

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads into `buffer` and returns the number of bytes; 0 at the end of the file.

        Raises:
            UserError: the rest cannot be read.
        """
        if self.position < self.total and not self._held:
            self._held = attempt(self._next_block, self.url, self._retry_policy, Exception)
        data = self._held[: len(buffer)]
        buffer[: len(data)] = data
        self._held = self._held[len(data) :]
        self.position += len(data)
        return len(data)

    def _next_block(self) -> memoryview:
        end = min(self.position + BLOCK_BYTES, self.total)
        data = memoryview(self._files.cat_file(self._path, start=self.position, end=end))
        if len(data) != end - self.position:
            raise ConnectionError(f"received {len(data):,} of {end - self.position:,} bytes")
        return data


def attempt(
    action: Callable[[], Any], url: str, retry_policy: RetryPolicy,
    transient: type[Exception] = OSError,
) -> Any:  # fmt: skip
    """Runs an action on a file system of fsspec, and repeats it after faults that may pass.

    Args:
        action: what to run.
        url: for the message.
        retry_policy: limits of retries. The file system has limits of its own below these.
        transient: errors of other types are reported at once, and so are missing files, missing
            permission, full disks and invalid names.
    Raises:
        UserError: the last error.
    """
    failures = 0
    while True:
        try:
            return action()
        except Exception as error:  # each file system raises errors of its own library
            failures += 1
            is_permanent = isinstance(error, PERMANENT) or not isinstance(error, transient)
            if isinstance(error, OSError):
                is_permanent |= is_path_error(error) or error.errno == INVALID
            if is_permanent or failures > retry_policy.retries:
                missing = "no such file: " if isinstance(error, FileNotFoundError) else ""
                reason = reason_of(error) or type(error).__name__
                raise UserError(f"{url}: {missing}{reason}") from error
        retry_policy.wait(failures)


def open_remote(
    urls: Sequence[str], *, expected_bytes: int = 0, offset: int = 0, validator: str = "",
    retry_policy: RetryPolicy = RETRY_POLICY,
) -> RemoteFile | StoredFile:  # fmt: skip
    """Opens the file at an address; see RemoteFile and StoredFile.

    Args:
        urls: the address, then mirrors of the same bytes, which only http and https have.
        expected_bytes, offset, validator, retry_policy: see RemoteFile.
    Raises:
        UserError: the file cannot be read. The message has the reason.
    """
    if scheme_of(urls[0]) in HTTP:
        return RemoteFile(
            urls, expected_bytes=expected_bytes, offset=offset, validator=validator,
            retry_policy=retry_policy,
        )  # fmt: skip
    return StoredFile(
        urls[0], expected_bytes=expected_bytes, offset=offset, validator=validator,
        retry_policy=retry_policy,
    )  # fmt: skip
