"""A publisher on 127.0.0.1: a real HTTP server that serves bytes, with faults that can be switched.

It answers HTTP/1.1 with Range, If-Range and ETag, writes down every request, and takes requests for
other hosts too, as a proxy would.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

from events import HANG_SECONDS


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer; the defaults are an answer without a fault.

    Attributes:
        status: this status and no body, 0 for none.
        drop_after: bytes of the body after which the connection is closed; -1 for none.
        hang_after: bytes after which the server is silent until it stops; -1 for none.
        wrong_bytes: every byte of the body is another one.
        truncate: the file ends after so many bytes, and the header says so; -1 for none.
        no_range: Range is ignored.
        refuse_range: every Range is answered with 416.
        length: value of Content-Length; -1 for the true one, text for an invalid one.
        redirect: path or address to which this path moved.
        headers: more headers.
    """

    status: int = 0
    drop_after: int = -1
    hang_after: int = -1
    wrong_bytes: bool = False
    truncate: int = -1
    no_range: bool = False
    refuse_range: bool = False
    length: int | str = -1
    redirect: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Publisher:
    """The files of a server, its faults, and what was asked of it.

    Attributes:
        files: path, such as "/a.zip" -> content. A path may have a query: "/list?page=2".
        faults: path -> faults of the next answers in order; the last one stays if `lasting`.
        requests: (path, Range or "", status) of every answer.
        hanging: set when the server is silent in the middle of a body.
        held: paths whose answers wait for `let_go`.
        let_go: set by the test.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    lasting: dict[str, Fault] = field(default_factory=dict)
    etag: bool = True
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    hanging: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)
    held: set[str] = field(default_factory=set)
    let_go: threading.Event = field(default_factory=threading.Event)

    def next_fault(self, path: str) -> Fault:
        """The fault of this answer."""
        waiting = self.faults.get(path, [])
        return waiting.pop(0) if waiting else self.lasting.get(path, Fault())

    def ranges(self, path: str) -> list[str]:
        """The Range headers of all requests for a path, "" where there was none."""
        return [asked for name, asked, _ in self.requests if name == path]


@contextmanager
def publisher(files: dict[str, bytes] | None = None) -> Iterator[Publisher]:
    """Serves files on a free port while the body runs, with no proxy in the environment."""
    served = Publisher(files=dict(files or {}))

    class Handler(_Handler):
        publisher = served

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    direct = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    try:
        with mock.patch.dict(os.environ, direct, clear=True):
            yield served
    finally:
        served.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    publisher: Publisher

    def handle(self) -> None:
        """Serves a connection until the client, who may be killed or know enough, hangs up."""
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if unquote(self.path) in self.publisher.files:  # a page of a listing, for example
            path = unquote(self.path)
        if path in self.publisher.held:
            self.publisher.let_go.wait(HANG_SECONDS)
        fault = self.publisher.next_fault(path)
        content = self.publisher.files.get(path)
        if fault.redirect:
            return self._head(path, 302, 0, [("Location", fault.redirect)])
        if content is None or fault.status:
            return self._head(path, fault.status or 404, 0, [])
        self._serve(path, content, fault)

    def _serve(self, path: str, content: bytes, fault: Fault) -> None:
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        if fault.truncate >= 0:
            content = content[: fault.truncate]
        headers = [*fault.headers, *([("ETag", etag)] if self.publisher.etag else [])]
        first, last = 0, len(content) - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        usable = self.headers.get("If-Range", etag) == etag and not fault.no_range
        status = 200
        if asked and usable:
            first, last, status = int(asked[1]), min(int(asked[2] or last), last), 206
            if first >= len(content) or fault.refuse_range:
                headers.append(("Content-Range", f"bytes */{len(content)}"))
                return self._head(path, 416, 0, headers)
            headers.append(("Content-Range", f"bytes {first}-{last}/{len(content)}"))
        body = content[first : last + 1]
        if fault.wrong_bytes:
            body = bytes(255 - byte for byte in body)
        self._head(path, status, len(body) if fault.length == -1 else fault.length, headers)
        for stop in (fault.drop_after, fault.hang_after):
            if 0 <= stop < len(body):
                self.wfile.write(body[:stop])
                self.wfile.flush()
                self.close_connection = True
                if stop == fault.hang_after:
                    self.publisher.hanging.set()
                    self.publisher.stopped.wait(HANG_SECONDS)
                return
        self.wfile.write(body)
        promised = fault.length if isinstance(fault.length, int) else len(body) + 1
        self.close_connection = promised > len(body) or self.close_connection

    def _head(
        self, path: str, status: int, length: int | str, headers: list[tuple[str, str]]
    ) -> None:
        self.publisher.requests.append((path, self.headers.get("Range", ""), status))
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(length))]:
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""
