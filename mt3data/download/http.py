"""Remote files over HTTP that outlive dropped connections.

`requests` does redirects, proxies (from the environment) and the pool of connections; urllib3's
`Retry` repeats requests that fail or are answered with 429 or 5xx. What is left to this module is
what they do not know: a body that breaks off goes on with HTTP Range, `If-Range` keeps two versions
of a file from being glued together, and mirrors are tried in order. MT3 has no counterpart.
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

BLOCK_BYTES = 1 << 16  # one read; a reset connection loses no more than this
MAX_BACKOFF_SECONDS = 60.0
BUSY = (429, 500, 502, 503, 504)  # the server may answer in a while


@dataclass(frozen=True)
class RetryPolicy:
    """How long to try.

    Attributes:
        retries: attempts in a row without a new byte before a mirror is given up.
        backoff_seconds: wait before the second retry; doubled for each one after it.
        timeout_seconds: for connecting, and for silence in a body.
    """

    retries: int = 10
    backoff_seconds: float = 1.0
    timeout_seconds: float = 60.0

    def wait(self, failures: int) -> None:
        """Sleeps before the next attempt, after so many failures in a row."""
        time.sleep(min(MAX_BACKOFF_SECONDS, self.backoff_seconds * 2 ** (failures - 1)))


RETRY_POLICY = RetryPolicy()


class MirrorError(Exception):
    """This mirror will not serve the file; the next one may."""


@dataclass(frozen=True)
class RangeResponse:
    """The head of a response: the body begins at byte `start` of a file of `total` bytes."""

    response: requests.Response
    start: int
    total: int  # 0: the server does not say
    validator: str  # what names this version of the file in If-Range; "" if nothing does


class RemoteFile(io.RawIOBase):
    """One remote file, read in order from an offset to its end, across drops and mirrors.

    Attributes:
        position: the offset of the next byte. After opening it is 0 where the server could not go
            on at the wanted offset, or the file there is another one; the reader then starts over.
        total: length of the whole file, 0 if unknown.
        validator: pass it when opening again to be sure that the file has not changed since.
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
            expected_bytes: a mirror that offers another length is passed over; 0 allows any.
            offset: where to go on.
            validator: of an earlier opening; the file is begun again if it is another one now.
        Raises:
            UserError: no mirror serves the file; the message names each with its reason.
        """
        self._urls, self._expected = list(urls), expected_bytes
        self._retry_policy, self._session = retry_policy, session(retry_policy)
        self._errors: list[str] = []
        self._failures = 0
        self._broken = ""  # why the body that was opened last cannot be read
        self.position, self.validator, self.total = offset, validator, expected_bytes
        answer = self._open()
        self.position = answer.start
        self._take(answer)

    @property
    def url(self) -> str:
        """The address that serves the file at present."""
        return self._urls[0]

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the beginning of buffer and returns how far; 0: the end of the file, and the true one.

        Raises:
            UserError: no mirror serves the rest, or the file changed meanwhile.
        """
        while not (self.total and self.position >= self.total):
            data, reason = b"", self._broken
            if not reason:
                try:
                    data = self._body.read(min(len(buffer), BLOCK_BYTES))
                except (urllib3.exceptions.HTTPError, OSError) as error:
                    reason = reason_of(error)
            if data:
                self._failures = 0
                buffer[: len(data)] = data
                self.position += len(data)
                return len(data)
            if not (self.total or reason):
                return 0  # a body of unknown length ends so
            self._broken = ""
            self._go_on(reason or "the connection was closed")
        return 0

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()
        super().close()

    def _go_on(self, reason: str) -> None:
        """Connects again after a drop; bytes that were read already are passed over."""
        self._body.close()
        self._failures += 1
        if self._failures > self._retry_policy.retries:
            self._give_up(f"broke off at byte {self.position:,}: {reason}")
        else:
            self._retry_policy.wait(self._failures)
        if not self._urls:
            raise UserError("; ".join(self._errors))
        try:
            answer = self._ask()
            if self._is_other(answer):
                raise UserError(
                    f"{self._urls[0]} changed on the server while it was read; "
                    "run the command again"
                )
            self._take(answer)
            _pass_over(self._body, self.position - answer.start)
        except MirrorError as error:
            self._give_up(str(error))
            self._broken = str(error)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            self._broken = reason_of(error)

    def _is_other(self, answer: RangeResponse) -> bool:
        """Whether the file is no longer the one that was opened."""
        renamed = self.validator and answer.validator and self.validator != answer.validator
        resized = self.total and answer.total and self.total != answer.total
        return bool(renamed or resized)

    def _open(self) -> RangeResponse:
        """The answer of the first mirror that serves the file, from `position` or from 0."""
        while self._urls:
            try:
                return self._ask()
            except (requests.RequestException, MirrorError) as error:
                self._give_up(reason_of(error))
        raise UserError("; ".join(self._errors))

    def _ask(self) -> RangeResponse:
        return request_range(
            self._session, self._urls[0], self.position, validator=self.validator,
            expected_bytes=self._expected, retry_policy=self._retry_policy,
        )  # fmt: skip

    def _give_up(self, reason: str) -> None:
        """Leaves the present mirror for the next one."""
        self._errors.append(f"{self._urls.pop(0)}: {reason}")
        self._failures, self.validator = 0, ""  # another server names its versions otherwise

    def _take(self, answer: RangeResponse) -> None:
        self._body = answer.response.raw
        self.validator = answer.validator
        self.total = answer.total or self.total


def session(retry_policy: RetryPolicy) -> requests.Session:
    """A session that repeats a failed request three times; bodies use the retry policy."""
    retry = urllib3.Retry(
        total=min(retry_policy.retries, 3), backoff_factor=retry_policy.backoff_seconds,
        backoff_max=MAX_BACKOFF_SECONDS, status_forcelist=BUSY, raise_on_status=False,
    )  # fmt: skip
    made = requests.Session()
    made.headers["User-Agent"] = f"mt3kit/{__version__}"
    # A body that is unpacked on the way has no offsets that Range could speak of.
    made.headers["Accept-Encoding"] = "identity"
    for scheme in ("http://", "https://"):
        made.mount(scheme, HTTPAdapter(max_retries=retry))
    return made


def request_range(
    http: requests.Session, url: str, offset: int, *, last: int | None = None, validator: str = "",
    expected_bytes: int = 0, retry_policy: RetryPolicy,
) -> RangeResponse:  # fmt: skip
    """The answer, read up to its body, to a request for bytes offset..last of a file (None: its end).

    The answer may begin at 0 where the server has no ranges or the file is not the one of
    validator. Where the offset is exactly the end of the file, the body is empty.

    Args:
        http: the session to use.
        url: of the file.
        validator: of the file that an earlier answer was about; "": any.
        expected_bytes: the length that the file must have; 0: any.
    Raises:
        ConnectionError: the server is busy, so it may be asked again.
        MirrorError: it does not serve this file, or not these bytes of it.
    """
    headers = {}
    if offset or last is not None:
        headers["Range"] = f"bytes={offset}-{'' if last is None else last}"
        if validator:
            headers["If-Range"] = validator
    response = http.get(url, headers=headers, stream=True, timeout=retry_policy.timeout_seconds)
    start, total = 0, int(response.headers.get("Content-Length") or 0)
    if response.status_code in (206, 416):
        # "bytes 100-199/5000" or, for an offset beyond the end, "bytes */5000"
        stated = re.fullmatch(
            r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", "")
        )
        total = int(stated[2]) if stated else 0
        start = int(stated[1]) if stated and stated[1] else offset
    ended = response.status_code == 416 and total == offset
    if response.status_code == 416 and offset and not ended:
        response.close()
        return request_range(http, url, 0, expected_bytes=expected_bytes, retry_policy=retry_policy)
    if not (response.status_code in (200, 206) or ended):
        response.close()
        if response.status_code in BUSY:
            raise requests.ConnectionError(f"the server answers {response.status_code}")
        raise MirrorError(f"the server answers {response.status_code} {response.reason}")
    if start not in (0, offset) or (response.status_code == 206 and not total):
        raise MirrorError(f"asked for byte {offset}, got {response.headers.get('Content-Range')}")
    if expected_bytes and total and total != expected_bytes:
        response.close()
        raise MirrorError(f"the server has {total:,} bytes, expected {expected_bytes:,}")
    return RangeResponse(response, start, total, _validator(response))


def _validator(response: requests.Response) -> str:
    """A strong ETag or the date of the last change; a weak ETag promises no equal bytes."""
    etag = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified", "")


def _pass_over(body: Any, n_bytes: int) -> None:
    while n_bytes > 0:
        data = body.read(min(n_bytes, BLOCK_BYTES))
        if not data:
            raise ConnectionError("the connection was closed")
        n_bytes -= len(data)


def reason_of(error: Exception) -> str:
    """The innermost cause of an error in words, without what urllib3 and requests wrap it in."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    reason = getattr(error, "reason", None)
    return reason_of(reason) if isinstance(reason, Exception) else str(error)
