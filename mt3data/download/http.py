"""Reads remote files over HTTP and resumes after dropped connections.

`requests` follows redirects, uses proxies from the environment and pools connections. `Retry` of
urllib3 repeats requests that fail or get status 429 or 5xx. This module adds what they lack. A body
that breaks off resumes with HTTP Range. `If-Range` prevents that parts of two versions of a file are
joined. Mirrors are tried in order. MT3 has no counterpart.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from mt3data import __version__
from mt3data.errors import UserError

BLOCK_BYTES = 1 << 16  # of one read; a reset connection loses no more than this
MAX_BACKOFF_SECONDS = 60.0
BUSY = (429, 500, 502, 503, 504)  # status codes after which a request is repeated
MAX_FILE_BYTES = 1 << 50
# Failures of a connection. Another attempt may succeed.
CONNECTION_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


@dataclass(frozen=True)
class RetryPolicy:
    """Limits of retries.

    Attributes:
        retries: attempts in a row without a new byte before the next mirror is used.
        backoff_seconds: wait before the second retry, doubled for each one after it.
        timeout_seconds: for connecting, and between two reads of a body.
    """

    retries: int = 10
    backoff_seconds: float = 1.0
    timeout_seconds: float = 60.0

    def wait(self, failures: int) -> None:
        """Sleeps before the next attempt, after this number of failures in a row."""
        time.sleep(min(MAX_BACKOFF_SECONDS, self.backoff_seconds * 2 ** (failures - 1)))


RETRY_POLICY = RetryPolicy()


class MirrorError(Exception):
    """A mirror does not serve the file. Another mirror may."""


@dataclass(frozen=True)
class RangeResponse:
    """A response read up to its body, which begins at byte `start` of a file of `total` bytes.

    `total` is 0 if the server does not state it. `validator` identifies this version of the file in
    If-Range and is "" if nothing does.
    """

    response: requests.Response
    start: int
    total: int
    validator: str


class RemoteFile(io.RawIOBase):
    """One remote file, read in order from an offset to its end, across drops and mirrors.

    Attributes:
        position: offset of the next byte. After opening it is 0 if the server cannot resume at the
            wanted offset or has another version of the file. The reader then starts again.
        total: length of the whole file; 0 if unknown.
        validator: pass it when opening again, to detect that the file has changed since.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        expected_bytes: int = 0,
        offset: int = 0,
        validator: str = "",
        retry_policy: RetryPolicy = RETRY_POLICY,
    ) -> None:
        """Opens the first of urls that serves the file.

        Args:
            urls: the publisher's address, then mirrors of the same bytes.
            expected_bytes: required length of the file; 0 allows any.
            offset: where to resume.
            validator: of an earlier opening. The file starts at 0 if it has changed since.
        Raises:
            UserError: no mirror serves the file. The message has the reason of each.
        """
        self._urls, self._expected = list(urls), expected_bytes
        self._retry_policy, self._session = retry_policy, session(retry_policy)
        self._errors: list[str] = []
        self._failures = 0
        self.position, self.validator, self.total = offset, validator, expected_bytes
        while True:
            try:
                found = self._request()
                break
            except (requests.RequestException, MirrorError) as error:
                self._use_next_mirror(reason_of(error))
        self.position = found.start
        self._use(found)

    @property
    def url(self) -> str:
        """The address that serves the file at present."""
        return self._urls[0]

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads into `buffer` and returns the number of bytes.

        0 means that the whole file was read, never that a connection dropped.

        Raises:
            UserError: no mirror serves the rest, or the file has changed.
        """
        while not (self.total and self.position >= self.total):
            try:
                data = self._body.read(min(len(buffer), BLOCK_BYTES))
                if data:
                    self._failures = 0
                    buffer[: len(data)] = data
                    self.position += len(data)
                    return len(data)
                if not self.total:
                    return 0  # a body of unknown length ends this way
                raise ConnectionError("the connection was closed")
            except CONNECTION_ERRORS as error:
                self._reconnect(reason_of(error))
        return 0

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()
        super().close()

    def _reconnect(self, reason: str) -> None:
        """Connects again after a drop and skips bytes that were read already."""
        self._body.close()
        while True:
            self._failures += 1
            if self._failures > self._retry_policy.retries:
                self._use_next_mirror(f"broke off at byte {self.position:,}: {reason}")
            else:
                self._retry_policy.wait(self._failures)
            try:
                found = self._request()
                renamed = self.validator and found.validator not in ("", self.validator)
                if renamed or (self.total and found.total not in (0, self.total)):
                    raise UserError(
                        f"{self.url} changed on the server while it was read; run the command again"
                    )
                self._use(found)
                _skip(self._body, self.position - found.start)
                return
            except MirrorError as error:
                self._use_next_mirror(str(error))
            except CONNECTION_ERRORS as error:
                reason = reason_of(error)

    def _request(self) -> RangeResponse:
        return request_range(
            self._session, self.url, self.position, validator=self.validator,
            expected_bytes=self._expected, retry_policy=self._retry_policy,
        )  # fmt: skip

    def _use_next_mirror(self, reason: str) -> None:
        self._errors.append(f"{self._urls.pop(0)}: {reason}")
        self._failures, self.validator = 0, ""  # servers name versions in different ways
        if not self._urls:
            raise UserError("; ".join(self._errors))

    def _use(self, found: RangeResponse) -> None:
        self._body = found.response.raw
        self.validator = found.validator
        self.total = found.total or self.total


def session(retry_policy: RetryPolicy) -> requests.Session:
    """Makes a session that repeats a failed request up to three times."""
    retry = urllib3.Retry(
        total=min(retry_policy.retries, 3), backoff_factor=retry_policy.backoff_seconds,
        backoff_max=MAX_BACKOFF_SECONDS, status_forcelist=BUSY, raise_on_status=False,
    )  # fmt: skip
    made = requests.Session()
    # A body that is compressed for the transfer has no offsets for Range.
    made.headers.update({"User-Agent": f"mt3kit/{__version__}", "Accept-Encoding": "identity"})
    for scheme in ("http://", "https://"):
        made.mount(scheme, HTTPAdapter(max_retries=retry))
    return made


def request_range(
    http: requests.Session, url: str, offset: int, *, last: int | None = None, validator: str = "",
    expected_bytes: int = 0, retry_policy: RetryPolicy,
) -> RangeResponse:  # fmt: skip
    """Requests bytes offset..last of a file and reads the response up to its body.

    The body may begin at 0 if the server has no ranges or another version of the file. If the
    offset is exactly the end of the file, the body is empty.

    Args:
        http: the session to use.
        url: address of the file.
        last: last byte of the range; None reads to the end.
        validator: version of the file that an earlier response had; "" allows any.
        expected_bytes: required length of the file; 0 allows any.
    Raises:
        ConnectionError: the server is busy or not reached, so the request may be repeated.
        MirrorError: the server does not serve this file or this range, or its answer is invalid.
    """
    headers = {}
    if offset or last is not None:
        headers["Range"] = f"bytes={offset}-{'' if last is None else last}"
        if validator:
            headers["If-Range"] = validator
    try:
        response = http.get(url, headers=headers, stream=True, timeout=retry_policy.timeout_seconds)
    except (ValueError, urllib3.exceptions.HTTPError) as error:  # of a redirect, for example
        raise MirrorError(f"an address is invalid ({reason_of(error)})") from error
    try:
        return _checked(response, offset, expected_bytes)
    except BaseException:
        response.close()
        if response.status_code == 416 and offset and last is None:  # the file is shorter now
            return request_range(
                http, url, 0, expected_bytes=expected_bytes, retry_policy=retry_policy
            )
        raise


def _checked(response: requests.Response, offset: int, expected_bytes: int) -> RangeResponse:
    status, stated = response.status_code, response.headers.get("Content-Length") or "0"
    start, total = 0, _length(stated)
    if status in (206, 416):
        # "bytes 100-199/5000" or, for an offset beyond the end, "bytes */5000"
        stated = response.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes (?:([0-9]+)-[0-9]+|\*)/([0-9]+)", stated)
        total = _length(found[2]) if found else 0
        start = _length(found[1]) if found and found[1] else offset
    ended = status == 416 and total == offset
    if status in BUSY:
        raise requests.ConnectionError(f"the server answers {status}")
    if not (status in (200, 206) or ended):
        raise MirrorError(f"the server answers {status} {response.reason}")
    if start not in (0, offset) or (status == 206 and not total):
        raise MirrorError(f"requested byte {offset}, got range {stated!r}")
    if expected_bytes and total and total != expected_bytes:
        raise MirrorError(f"the server has {total:,} bytes, expected {expected_bytes:,}")
    # A weak ETag does not promise equal bytes.
    etag = response.headers.get("ETag", "")
    validator = "" if etag.startswith("W/") else etag
    return RangeResponse(
        response, start, total, validator or response.headers.get("Last-Modified", "")
    )


def _length(text: str) -> int:
    if re.fullmatch("[0-9]{1,18}", text) and int(text) <= MAX_FILE_BYTES:
        return int(text)
    raise MirrorError(f"the server states a length of {text[:40]!r}, expected a number of bytes")


def _skip(body: Any, n_bytes: int) -> None:
    while n_bytes > 0:
        data = body.read(min(n_bytes, BLOCK_BYTES))
        if not data:
            raise ConnectionError("the connection was closed")
        n_bytes -= len(data)


def reason_of(error: BaseException) -> str:
    """Returns the innermost cause of an error, without the wrappers of urllib3 and requests."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    reason = getattr(error, "reason", None)
    return reason_of(reason) if isinstance(reason, Exception) else str(error)
