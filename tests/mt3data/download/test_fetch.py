"""Single files from a publisher on 127.0.0.1: faults of the network, and what is believed."""

import errno
import hashlib
import os
import select
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from server import Fault, Publisher, publisher
from toys import CONTENT, files, get, manifest, source

from mt3data.download.dataset import DownloadOptions, download
from mt3data.download.http import RetryPolicy
from mt3data.download.state import STATE
from mt3data.errors import UserError


@pytest.fixture
def web() -> Iterator[Publisher]:
    with publisher({"/data.csv": CONTENT}) as served:
        yield served


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(drop_after=300_000)],
        [Fault(drop_after=n) for n in (1, 100_000, 200_000, 10)],
        [Fault(drop_after=300_000), Fault(no_range=True)],
        [Fault(drop_after=300_000), Fault(refuse_range=True)],
        [Fault(drop_after=300_000), Fault(status=503), Fault(drop_after=200_000)],
        [Fault(status=503), Fault(status=503)],
        [Fault(redirect="/moved")],
    ],
    ids=["drop", "drops", "no range", "416", "503 between drops", "503 then fine", "redirect"],
)
def test_a_file_arrives_whole_in_spite_of(
    web: Publisher, tmp_path: Path, faults: list[Fault]
) -> None:
    web.files["/moved"] = CONTENT
    web.faults["/data.csv"] = faults
    assert files(get(tmp_path, source(web, "data.csv"))) == {"data.csv": CONTENT}


def test_a_dropped_body_goes_on_at_the_next_byte(web: Publisher, tmp_path: Path) -> None:
    web.faults["/data.csv"] = [Fault(drop_after=300_000)]
    get(tmp_path, source(web, "data.csv"))
    assert web.ranges("/data.csv") == ["", "bytes=300000-"]


def test_nothing_stays_of_a_run_that_was_killed_while_it_wrote_its_note(
    web: Publisher, tmp_path: Path
) -> None:
    (tmp_path / "toy" / STATE).mkdir(parents=True)
    (tmp_path / "toy" / "data.csv.part.json.tmp-123").write_bytes(b'{"url')
    assert files(get(tmp_path, source(web, "data.csv"))) == {"data.csv": CONTENT}


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (Fault(status=404), "the server answers 404 Not Found"),
        (Fault(status=503), "the server answers 503"),
        (Fault(truncate=1000), "the server has 1,000 bytes, expected 1,004,000"),
        (Fault(length=2_000_000), "the server has 2,000,000 bytes, expected 1,004,000"),
        (Fault(length=1_000_000), "the server has 1,000,000 bytes, expected 1,004,000"),
        (Fault(length="abc"), "a length of 'abc', expected a number of bytes"),
        (Fault(length="9" * 5000), "a length of '999"),
        (Fault(redirect="http://[::1/x"), "an address is invalid"),
        (Fault(redirect="http://a..b/x"), "an address is invalid"),
        (Fault(redirect="http://127.0.0.1:99999/x"), "an address is invalid"),
        (Fault(redirect="ftp://127.0.0.1/x"), "an address is invalid"),
        (Fault(redirect="/data.csv"), "redirects"),
        (Fault(drop_after=0), "broke off at byte 0"),
        (Fault(wrong_bytes=True), "md5 is "),
    ],
    ids=[
        "404",
        "503",
        "truncated",
        "length too long",
        "length too short",
        "length no number",
        "length of 5,000 digits",
        "redirect to half an address",
        "redirect to an empty label",
        "redirect to no port",
        "redirect to ftp",
        "redirect in a circle",
        "drop",
        "wrong bytes",
    ],
)
def test_a_lasting_fault_is_reported_in_one_line(
    web: Publisher, tmp_path: Path, fault: Fault, complaint: str
) -> None:
    web.lasting["/data.csv"] = fault
    with pytest.raises(UserError, match=complaint) as error:
        get(tmp_path, source(web, "data.csv"))
    assert "\n" not in str(error.value)
    assert "data.csv" not in files(tmp_path / "toy")


def test_a_file_with_a_wrong_checksum_is_kept_aside_and_both_values_are_reported(
    web: Publisher, tmp_path: Path
) -> None:
    wanted = source(web, "data.csv")
    web.lasting["/data.csv"] = Fault(wrong_bytes=True)
    wrong = bytes(255 - byte for byte in CONTENT)
    with pytest.raises(UserError) as told:
        get(tmp_path, wanted)
    assert wanted.md5 in str(told.value)
    assert hashlib.md5(wrong).hexdigest() in str(told.value)
    assert files(tmp_path / "toy") == {"data.csv.bad": wrong}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=404),
        Fault(truncate=9),
        Fault(wrong_bytes=True),
        Fault(drop_after=0),
        Fault(length="abc"),
        Fault(redirect="http://[::1/x"),
    ],
    ids=["404", "truncated", "wrong bytes", "drops", "length", "redirect"],
)
def test_a_mirror_is_used_where_the_first_address_fails(
    web: Publisher, tmp_path: Path, fault: Fault
) -> None:
    web.files["/mirror"] = CONTENT
    web.lasting["/data.csv"] = fault
    folder = get(tmp_path, source(web, "data.csv", mirrors=(f"{web.url}/mirror",)))
    assert files(folder)["data.csv"] == CONTENT


def test_a_proxy_of_the_environment_is_used(
    web: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", web.url)
    elsewhere = replace(source(web, "data.csv"), url="http://publisher.invalid/data.csv")
    assert files(get(tmp_path, elsewhere))["data.csv"] == CONTENT


def test_a_file_that_changed_since_the_interruption_is_begun_again(
    web: Publisher, tmp_path: Path
) -> None:
    web.lasting["/data.csv"] = Fault(drop_after=300_000)
    no_sums = {"md5": "", "bytes": 0, "status": "unverified"}
    with publisher({"/data.csv": b"new" * 200_000}) as later:
        first = source(web, "data.csv", **no_sums)
        web.lasting["/data.csv"] = Fault(drop_after=300_000, no_range=True)
        with pytest.raises(UserError, match="broke off"):
            get(tmp_path, first)
        assert (tmp_path / "toy" / "data.csv.part").stat().st_size == 300_000
        web.lasting.clear()
        web.files["/data.csv"] = later.files["/data.csv"]
        get(tmp_path, first)
    assert files(tmp_path / "toy") == {"data.csv": b"new" * 200_000}


def test_a_server_that_falls_silent_is_asked_again(
    web: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = socket.SocketIO.readinto

    def time_out_in_silence(self: Any, buffer: Any) -> int | None:
        """Raises what the socket would raise after its time limit, but at once."""
        if self._sock.gettimeout() == 123.0:  # the client's, not the server's
            while not select.select([self._sock], [], [], 0.01)[0]:
                if web.hanging.is_set():
                    web.hanging.clear()
                    raise TimeoutError("timed out")
        return read(self, buffer)

    monkeypatch.setattr(socket.SocketIO, "readinto", time_out_in_silence)
    web.faults["/data.csv"] = [Fault(hang_after=300_000)]
    hurried = DownloadOptions(
        retry_policy=RetryPolicy(retries=1, backoff_seconds=0.0, timeout_seconds=123.0)
    )
    folder = download(manifest(source(web, "data.csv")), tmp_path, hurried)
    assert files(folder) == {"data.csv": CONTENT}
    first, second = web.ranges("/data.csv")
    assert first == "" and 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 300_000


def test_a_disk_that_fills_up_meanwhile_is_reported(
    web: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"the disk is full, .* free; make room"):
        get(tmp_path, source(web, "data.csv"))


def test_where_size_and_checksum_are_uncertain_the_checksum_decides(
    web: Publisher, tmp_path: Path
) -> None:
    folder = get(tmp_path, source(web, "data.csv", bytes=7, status="one"))
    assert files(folder) == {"data.csv": CONTENT}


@pytest.mark.parametrize(("sums", "asked"), [({}, "bytes=300000-"), ({"md5": "", "bytes": 0}, "")])
def test_without_an_etag_only_a_checksum_lets_a_later_run_go_on(
    web: Publisher, tmp_path: Path, sums: dict[str, object], asked: str
) -> None:
    web.etag = False
    web.lasting["/data.csv"] = Fault(drop_after=300_000, no_range=True)
    with pytest.raises(UserError, match="broke off"):
        get(tmp_path, source(web, "data.csv", **sums))
    web.lasting.clear()
    web.requests.clear()
    assert files(get(tmp_path, source(web, "data.csv", **sums))) == {"data.csv": CONTENT}
    assert web.ranges("/data.csv") == [asked]


@pytest.mark.parametrize("name", ["..", "%2e%2e", "a%2F..", "a%00b", "", "x" * 300])
def test_a_name_in_an_address_cannot_leave_the_folder(
    web: Publisher, tmp_path: Path, name: str
) -> None:
    wanted = replace(source(web, "data.csv"), url=f"{web.url}/{name}")
    with pytest.raises(UserError, match="cannot be the name of a file"):
        get(tmp_path, wanted)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("note", [b"", b"{", b"[1]", b'{"url": 3}', b"null"])
def test_a_damaged_note_of_an_interrupted_download_is_ignored(
    web: Publisher, tmp_path: Path, note: bytes
) -> None:
    (tmp_path / "toy" / STATE).mkdir(parents=True)
    (tmp_path / "toy" / "data.csv.part").write_bytes(CONTENT[:1000])
    (tmp_path / "toy" / "data.csv.part.json").write_bytes(note)
    assert files(get(tmp_path, source(web, "data.csv"))) == {"data.csv": CONTENT}


@pytest.mark.parametrize(
    "record", ["", "[]", '{"sources": []}', '{"sources": {"a": null}}', "[" * 10**5]
)
def test_a_damaged_record_of_a_download_is_named(
    web: Publisher, tmp_path: Path, record: str
) -> None:
    get(tmp_path, source(web, "data.csv"))
    (tmp_path / "toy" / STATE / "download.json").write_text(record)
    with pytest.raises(UserError, match=r"download\.json: not the record of a download"):
        get(tmp_path, source(web, "data.csv"))
