"""Reads a remote file at any offset, so that `zipfile` can fetch single members.

The zip of MAESTRO has 108 GB. Its directory and one recording take a few requests. MT3 has no
counterpart.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from mt3data.download.http import (
    CONNECTION_ERRORS,
    RETRY_POLICY,
    MirrorError,
    RetryPolicy,
    reason_of,
    request_range,
    session,
)
from mt3data.errors import UserError

# Bytes of one request: few after a jump, more and more while reading goes straight on.
FIRST_BYTES, MOST_BYTES = 1 << 16, 1 << 24


class SeekableHttpFile(io.RawIOBase):
    """One remote file, read at any offset by HTTP Range.

    Short reads would send many requests, so wrap it: io.BufferedReader(SeekableHttpFile(...),
    FIRST_BYTES).
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        expected_bytes: int = 0,
        retry_policy: RetryPolicy = RETRY_POLICY,
    ) -> None:
        """Requests the length of the file from the first of urls that serves ranges.

        Args:
            urls: the publisher's address, then mirrors of the same bytes.
            expected_bytes: required length; 0 allows any.
        Raises:
            UserError: no mirror serves ranges of the file.
        """
        self._retry_policy, self._session = retry_policy, session(retry_policy)
        self._position = self._start = 0
        self._held = b""  # the bytes that were fetched last, from byte _start on
        self._ahead, self._validator, self.total = FIRST_BYTES, "", expected_bytes
        errors = []
        for self._url in urls:
            try:
                self._fetch(0, 1)
                return
            except (MirrorError, *CONNECTION_ERRORS) as error:
                errors.append(f"{self._url}: {reason_of(error)}")
        raise UserError("; ".join(errors))

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to an offset, as `io.RawIOBase.seek`. Fetches nothing."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.total}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Returns the offset of the next byte."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Reads into `buffer` and returns the number of bytes; 0 at the end of the file.

        Raises:
            UserError: the server stopped serving this file, or the file has changed.
        """
        if self._position >= self.total:
            return 0
        if not 0 <= self._position - self._start < len(self._held):
            straight = self._position == self._start + len(self._held)
            self._ahead = min(2 * self._ahead, MOST_BYTES) if straight else FIRST_BYTES
            self._held = self._fetch_with_retries(min(self._ahead, self.total - self._position))
            self._start = self._position
        first = self._position - self._start
        data = memoryview(self._held)[first : first + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _fetch_with_retries(self, n_bytes: int) -> bytes:
        failures = 0
        while True:
            try:
                return self._fetch(self._position, n_bytes)
            except MirrorError as error:
                raise UserError(f"{self._url}: {error}") from error
            except CONNECTION_ERRORS as error:
                failures += 1
                if failures > self._retry_policy.retries:
                    raise UserError(f"{self._url}: {reason_of(error)}") from error
                self._retry_policy.wait(failures)

    def _fetch(self, offset: int, n_bytes: int) -> bytes:
        found = request_range(
            self._session, self._url, offset, last=offset + n_bytes - 1,
            validator=self._validator, expected_bytes=self.total, retry_policy=self._retry_policy,
        )  # fmt: skip
        with found.response as response:
            if self._validator and found.validator != self._validator:
                raise MirrorError("changed on the server while it was read; run the command again")
            if response.status_code != 206:
                raise MirrorError(
                    "the server does not serve parts of a file (HTTP Range), so members cannot be "
                    "fetched alone; leave out --select"
                )
            self._validator, self.total = found.validator, found.total
            data = response.raw.read(n_bytes)
        if len(data) != n_bytes:
            raise ConnectionError(f"received {len(data)} of {n_bytes} bytes")
        return data
