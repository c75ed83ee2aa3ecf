"""A remote file that can be read at any place: what `zipfile` needs to fetch single members.

MAESTRO's zip has 108 GB; its directory and one recording are a few requests. MT3 has no counterpart.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import requests
import urllib3

from mt3data.download.http import (
    RETRY_POLICY,
    MirrorError,
    RetryPolicy,
    reason_of,
    request_range,
    session,
)
from mt3data.errors import UserError

# One request asks for so much: little after a jump, more and more while reading goes straight on.
FIRST_BYTES, MOST_BYTES = 1 << 16, 1 << 24


class SeekableHttpFile(io.RawIOBase):
    """One remote file, read where one wants by HTTP Range.

    Reads that are short would be many, so wrap it: io.BufferedReader(SeekableHttpFile(...), FIRST_BYTES).
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        expected_bytes: int = 0,
        retry_policy: RetryPolicy = RETRY_POLICY,
    ) -> None:
        """Asks the first of urls that serves ranges for the length of the file.

        Args:
            expected_bytes: the length that it must have; 0 where it is not known.
        Raises:
            UserError: no mirror serves the file by ranges; MirrorError by one, the next is asked.
        """
        self._retry_policy, self._session = retry_policy, session(retry_policy)
        self._position = self._start = 0
        self._held = b""  # what was fetched last, from byte _start on
        self._ahead = FIRST_BYTES
        errors = []
        for url in urls:
            try:
                answer = request_range(
                    self._session,
                    url,
                    0,
                    last=0,
                    expected_bytes=expected_bytes,
                    retry_policy=retry_policy,
                )
                answer.response.close()
                if answer.response.status_code != 206 or not answer.total:
                    raise MirrorError(
                        "the server does not serve parts of a file (HTTP Range), so members cannot "
                        "be fetched alone; leave out --select"
                    )
                self._url, self.total, self._validator = url, answer.total, answer.validator
                return
            except (requests.RequestException, MirrorError) as error:
                errors.append(f"{url}: {reason_of(error)}")
        raise UserError("; ".join(errors))

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a place, as `io.RawIOBase.seek`; nothing is fetched."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.total}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """The offset of the next byte."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills the beginning of buffer, with one request at most; returns how far, 0 at the end.

        Raises:
            UserError: the server stopped serving this file, or the file changed.
        """
        if self._position >= self.total:
            return 0
        if not 0 <= self._position - self._start < len(self._held):
            straight = self._position == self._start + len(self._held)
            self._ahead = min(2 * self._ahead, MOST_BYTES) if straight else FIRST_BYTES
            self._start = self._position
            self._held = self._fetched(min(self._ahead, self.total - self._position))
        first = self._position - self._start
        data = memoryview(self._held)[first : first + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _fetched(self, wanted: int) -> bytes:
        failures = 0
        while True:
            try:
                return self._fetch(wanted)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                failures += 1
                if failures > self._retry_policy.retries:
                    raise UserError(f"{self._url}: {reason_of(error)}") from error
                self._retry_policy.wait(failures)
            except MirrorError as error:
                raise UserError(f"{self._url}: {error}") from error

    def _fetch(self, wanted: int) -> bytes:
        answer = request_range(
            self._session, self._url, self._position, last=self._position + wanted - 1,
            validator=self._validator, expected_bytes=self.total, retry_policy=self._retry_policy,
        )  # fmt: skip
        with answer.response as response:
            if response.status_code != 206 or answer.validator != self._validator:
                raise MirrorError("changed on the server while it was read; run the command again")
            data = response.raw.read(wanted)
        if len(data) != wanted:
            raise ConnectionError(f"{len(data)} of {wanted} bytes came")
        return data
