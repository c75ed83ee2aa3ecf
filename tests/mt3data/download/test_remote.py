"""Files of object stores: read whole, resumed, and refused with the reason."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote import FaultyFileSystem, put
from toys import QUICK

from mt3data.datasets.manifest import Source
from mt3data.download import remote
from mt3data.download.address import folder_address, is_address, local_path
from mt3data.download.fetch import fetch, file_checksums
from mt3data.download.remote import StoredFile
from mt3data.errors import UserError

DATA = bytes(range(256)) * 100
ADDRESS = "faulty://bucket/a.bin"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyFileSystem]]:
    FaultyFileSystem.reset()
    monkeypatch.setattr(remote, "BLOCK_BYTES", 10_000)
    put("faulty://bucket", {"a.bin": DATA})
    yield FaultyFileSystem
    FaultyFileSystem.reset()


def opened(**options: object) -> StoredFile:
    return StoredFile(ADDRESS, retry_policy=QUICK, **options)  # type: ignore[arg-type]


def test_a_file_is_read_in_blocks(store: type[FaultyFileSystem]) -> None:
    with opened() as file:
        assert file.total == len(DATA)
        assert file.read() == DATA
    spans = [(start, end) for _, start, end in store.requests]
    assert spans == [(0, 10_000), (10_000, 20_000), (20_000, 25_600)]


def test_requests_that_fail_are_repeated_where_they_failed(store: type[FaultyFileSystem]) -> None:
    store.faults = [ConnectionError("reset"), TimeoutError(), KeyError("of a library")]
    with opened() as file:
        assert file.read() == DATA
    assert [start for _, start, _ in store.requests] == [0, 0, 0, 0, 10_000, 20_000]


def test_a_short_answer_is_repeated(store: type[FaultyFileSystem]) -> None:
    store.short = 2
    with opened() as file:
        assert file.read() == DATA


def test_a_lasting_fault_is_reported_with_the_address_and_the_reason(
    store: type[FaultyFileSystem],
) -> None:
    store.faults = [ConnectionError("reset by peer")] * 4
    with opened() as file, pytest.raises(UserError, match=f"^{ADDRESS}: reset by peer$"):
        file.read()
    assert len(store.requests) == QUICK.retries + 1


def test_missing_permission_is_reported_at_once(store: type[FaultyFileSystem]) -> None:
    store.faults = [PermissionError("Access Denied")]
    with opened() as file, pytest.raises(UserError, match=f"^{ADDRESS}: Access Denied$"):
        file.read()
    assert len(store.requests) == 1


def test_a_missing_file_is_reported_at_once(store: type[FaultyFileSystem]) -> None:
    with pytest.raises(UserError, match="^faulty://bucket/b.bin: no such file"):
        StoredFile("faulty://bucket/b.bin", retry_policy=QUICK)
    with pytest.raises(UserError, match="^faulty://bucket: no file"):
        StoredFile("faulty://bucket", retry_policy=QUICK)


def test_another_length_than_expected_is_refused(store: type[FaultyFileSystem]) -> None:
    with pytest.raises(UserError, match="the server has 25,600 bytes, expected 7"):
        opened(expected_bytes=7)


def test_reading_resumes_unless_the_file_has_changed(store: type[FaultyFileSystem]) -> None:
    with opened() as file:
        version = file.validator
    with opened(offset=20_000, validator=version) as file:
        assert (file.position, file.read()) == (20_000, DATA[20_000:])
    put("faulty://bucket", {"a.bin": DATA[::-1]})
    with opened(offset=20_000, validator=version) as file:
        assert (file.position, file.read()) == (0, DATA[::-1])
    with opened(offset=30_000) as file:  # it was longer
        assert file.position == 0


def test_an_interrupted_fetch_resumes(store: type[FaultyFileSystem], tmp_path: Path) -> None:
    put("faulty://bucket", {"b.bin": DATA})
    path = tmp_path / "a.bin"
    facts = {"bytes": len(DATA), "sha256": known_sha256(tmp_path), "status": "verified"}
    source = Source("a", "faulty://bucket/b.bin", **facts)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "cat_file", failing_from(20_000, store.cat_file))
        with pytest.raises(UserError, match="broken"):
            fetch(source, path, QUICK)
    assert path.with_name("a.bin.part").stat().st_size == 20_000
    store.requests.clear()
    fetch(source, path, QUICK)
    assert path.read_bytes() == DATA
    assert [start for _, start, _ in store.requests] == [20_000]


def known_sha256(folder: Path) -> str:
    (folder / "known").write_bytes(DATA)
    return str(file_checksums(folder / "known")["sha256"])


def failing_from(offset: int, cat_file):  # type: ignore[no-untyped-def]
    def cat(self, path, start=None, end=None, **rest):  # type: ignore[no-untyped-def]
        if start >= offset:
            raise PermissionError("broken")
        return cat_file(self, path, start, end, **rest)

    return cat


@pytest.mark.parametrize(
    "address", ["s3://bucket/demo", "hf://datasets/a/b", "memory://a", "local:///a"]
)
def test_addresses_of_object_stores_are_known(address: str) -> None:
    assert is_address(address)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("S3://bucket/Demo//", "s3://bucket/Demo"),
        ("s3://bucket/a b%20c?d", "s3://bucket/a b%20c?d"),
        ("HTTPS://host/demo/", "https://host/demo"),
        ("hf://datasets/a/b@main", "hf://datasets/a/b@main"),
    ],
)
def test_an_address_of_a_folder_gets_its_usual_form(address: str, expected: str) -> None:
    assert folder_address(address) == expected


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://host/demo?token=1", "cannot follow .token=1; expected the address of a folder"),
        ("http://host/demo#a", "cannot follow #a"),
        ("s3://", "names no folder"),
        ("s3://bucket/*", "patterns are for folders on this machine"),
    ],
)
def test_an_address_that_is_no_folder_is_refused(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        folder_address(address)


def test_a_slash_too_few_is_no_folder_of_that_name(tmp_path: Path) -> None:
    for address in ("s3:/bucket/demo", "local:x", "https:host/demo"):
        with pytest.raises(UserError, match="is not read; expected a folder, or an address"):
            is_address(address)


def test_a_path_may_have_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_address(Path("run:2/shards"))
    assert local_path(Path("file:2")) == Path("file:2")
    with pytest.raises(UserError):
        is_address("run:2")
    try:
        Path("run:2").mkdir()
    except OSError:
        pytest.skip("this system has no colons in names")
    assert not is_address("run:2")


def test_the_protocol_may_be_in_upper_case(store: type[FaultyFileSystem]) -> None:
    with StoredFile("FAULTY://bucket/a.bin") as file:
        assert file.read() == DATA


@pytest.mark.parametrize("size", [None, -1, "12", 1.5])
def test_a_size_that_is_no_number_of_bytes_is_reported(
    store: type[FaultyFileSystem], monkeypatch: pytest.MonkeyPatch, size: object
) -> None:
    monkeypatch.setattr(store, "info", lambda self, path: {"type": "file", "size": size})
    with pytest.raises(UserError, match=f"^{ADDRESS}: no file of known size"):
        opened()


@pytest.mark.parametrize(
    ("method", "result"),
    [
        ("info", None),
        ("ukey", ZeroDivisionError("of a library")),
        ("cat_file", "x" * 10_000),
        ("cat_file", DATA[:10_001]),
        ("cat_file", None),
    ],
)
def test_invalid_results_of_a_file_system_are_reported_with_the_address(
    store: type[FaultyFileSystem], monkeypatch: pytest.MonkeyPatch, method: str, result: object
) -> None:
    def answer(self: object, path: str, **rest: object) -> object:
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(store, method, answer)
    with pytest.raises(UserError, match=f"^{ADDRESS}: "):
        opened().read()


def test_a_file_address_is_a_path(tmp_path: Path) -> None:
    assert local_path(tmp_path.as_uri().replace("file:", "FILE:")) == tmp_path
    assert not is_address(tmp_path.as_uri())
    assert local_path(tmp_path.as_uri()) == tmp_path


def test_a_missing_package_of_a_protocol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match="^s3://bucket/a: Install s3fs"):
        StoredFile("s3://bucket/a", retry_policy=QUICK)
