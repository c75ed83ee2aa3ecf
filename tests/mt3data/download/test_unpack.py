"""Archives of strangers: what is refused, what is bounded, what continues."""

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import needs
import pytest

from mt3data.download import unpack
from mt3data.download.state import ExtractionLog, read_log
from mt3data.download.unpack import Placement, unpack_tar_gz, unpack_zip
from mt3data.errors import UserError

EVIL = ["../evil", "a/../../evil", "/evil", "C:/evil", "a\\..\\evil", "..", "\\\\host\\evil"]


def put_zip(members: dict[str, bytes], **links: str) -> io.BytesIO:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo()
            info.filename = name  # the constructor would mend it
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
        for name, target in links.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    return packed


def put_tar(members: dict[str, bytes], *special: tarfile.TarInfo) -> io.BytesIO:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in special:
            archive.addfile(info)
    packed.seek(0)
    return packed


def log(root: Path) -> ExtractionLog:
    return ExtractionLog(root / "log.jsonl", {"source": "a"})


def place(root: Path, **changes: object) -> Placement:
    (root / "out").mkdir(exist_ok=True)
    return Placement(root / "out", **changes)  # type: ignore[arg-type]


def outside(root: Path) -> list[str]:
    """Files below root that are neither in the folder nor the log."""
    there = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    return [name for name in there if name != "log.jsonl" and not name.startswith("out/good")]


@pytest.mark.parametrize("name", EVIL)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    members = {"good": b"1", name: b"evil"}
    with pytest.raises(UserError, match="which would leave"):
        unpack_zip(put_zip(members), place(tmp_path), log(tmp_path))
    assert not (tmp_path / "out" / "good").exists()  # a zip is judged before anything is written
    with pytest.raises(UserError, match="which would leave"):
        unpack_tar_gz(put_tar(members), place(tmp_path), log(tmp_path))
    assert outside(tmp_path) == []


@pytest.mark.parametrize("strip", [1, 2])
def test_stripping_folders_does_not_hide_a_way_out(tmp_path: Path, strip: int) -> None:
    with pytest.raises(UserError, match="which would leave"):
        unpack_zip(put_zip({"a/../../evil": b""}), place(tmp_path, strip=strip), log(tmp_path))


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the archive holds a link, 'way'"):
        unpack_zip(put_zip({}, way="/etc"), place(tmp_path), log(tmp_path))


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a link"), (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a special file"), (tarfile.FIFOTYPE, "a special file"),
    ],
)  # fmt: skip
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes, what: str) -> None:
    way = tarfile.TarInfo("way")
    way.type, way.linkname = kind, "/etc"
    with pytest.raises(UserError, match=f"{what}, 'way'"):
        unpack_tar_gz(put_tar({"good": b""}, way), place(tmp_path), log(tmp_path))
    assert outside(tmp_path) == []


@needs.posix
def test_a_link_that_lies_in_the_folder_already_is_not_followed_out(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    place(tmp_path).folder.joinpath("sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out of .* by a link"):
        unpack_zip(put_zip({"sub/evil": b"1"}), place(tmp_path), log(tmp_path))
    assert outside(tmp_path) == []


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_RATIO_FREE_BYTES", 100_000)
    members = {"good": bytes(10), "bomb": bytes(10_000_000)}
    packed = put_zip(members)
    with pytest.raises(UserError, match="would unpack to 10,000,010 bytes"):
        unpack_zip(packed, place(tmp_path, packed_bytes=len(packed.getvalue())), log(tmp_path))
    packed = put_tar(members)
    with pytest.raises(UserError, match="would unpack to 10,000,010 bytes"):
        unpack_tar_gz(packed, place(tmp_path, packed_bytes=len(packed.getvalue())), log(tmp_path))
    assert not (tmp_path / "out" / "bomb").exists()


def test_a_million_members_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_MEMBERS", 2)
    with pytest.raises(UserError, match="in 3 members"):
        unpack_zip(put_zip(dict.fromkeys("abc", b"")), place(tmp_path), log(tmp_path))


def test_members_go_where_the_manifest_says(tmp_path: Path) -> None:
    members = {"./top/01/a#1.wav": b"1", "top/b.csv": b"2", "README": b"3"}
    where = place(tmp_path, into="sub", strip=1)
    assert unpack_tar_gz(put_tar(members), where, log(tmp_path)) == 3
    there = {str(p.relative_to(where.folder)) for p in where.folder.rglob("*") if p.is_file()}
    assert there == {"sub/01/a#1.wav", "sub/b.csv", "sub/README"}


@pytest.mark.parametrize("cut", [10, 100, 1000])
def test_a_tar_that_ends_too_early_is_damaged(tmp_path: Path, cut: int) -> None:
    whole = put_tar({"good": bytes(range(256)) * 100}).getvalue()
    with pytest.raises(UserError, match=r"the tar.gz archive is damaged"):
        unpack_tar_gz(io.BytesIO(whole[:-cut][: len(whole) - cut]), place(tmp_path), log(tmp_path))


def test_a_wrong_byte_in_a_zip_is_found_by_its_crc(tmp_path: Path) -> None:
    packed = bytearray(put_zip({"good": b"0123456789" * 10}).getvalue())
    packed[40] ^= 1
    with pytest.raises(UserError, match="the zip archive is damaged"):
        unpack_zip(io.BytesIO(packed), place(tmp_path), log(tmp_path))
    assert not (tmp_path / "out" / "good").exists()


def test_what_is_no_archive_is_reported(tmp_path: Path) -> None:
    for call in (unpack_zip, unpack_tar_gz):
        with pytest.raises(UserError, match="archive is damaged"):
            call(io.BytesIO(b"<html>Sorry</html>"), place(tmp_path), log(tmp_path))  # type: ignore[operator]


def test_bytes_after_the_tar_are_read_for_the_checksum(tmp_path: Path) -> None:
    stream = io.BytesIO(put_tar({"good": b"1"}).getvalue() + gzip.compress(bytes(100_000)))
    unpack_tar_gz(stream, place(tmp_path), log(tmp_path))
    assert stream.read() == b""


def test_the_log_forgets_a_line_that_a_kill_cut_short(tmp_path: Path) -> None:
    unpack_zip(put_zip({"a": b"1", "b": b"2"}), place(tmp_path), log(tmp_path))
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert [entry["name"] for entry in read_log(path)] == ["a"]
    assert list(log(tmp_path).entries) == [0]
    unpack_zip(put_zip({"a": b"1", "b": b"2"}), place(tmp_path), log(tmp_path))
    assert [entry["name"] for entry in read_log(path)] == ["a", "b"]


def test_the_log_of_another_archive_is_begun_anew(tmp_path: Path) -> None:
    unpack_zip(put_zip({"a": b"1"}), place(tmp_path), log(tmp_path))
    assert ExtractionLog(tmp_path / "log.jsonl", {"source": "b"}).entries == {}


def test_a_member_that_is_logged_but_gone_is_written_again(tmp_path: Path) -> None:
    unpack_zip(put_zip({"a": b"1"}), place(tmp_path), log(tmp_path))
    (tmp_path / "out" / "a").unlink()
    unpack_zip(put_zip({"a": b"1"}), place(tmp_path), log(tmp_path))
    assert (tmp_path / "out" / "a").read_bytes() == b"1"


def test_a_second_reading_that_differs_from_the_first_is_not_believed(tmp_path: Path) -> None:
    unpack_tar_gz(put_tar({"a": b"1"}), place(tmp_path), log(tmp_path))
    with pytest.raises(UserError, match="a is not what an earlier run read"):
        unpack_tar_gz(put_tar({"a": b"2"}), place(tmp_path), log(tmp_path))
