"""Downloads from a publisher on 127.0.0.1: faults of the network, kills, and what is believed."""

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from server import Fault, Publisher, publisher

from mt3data import disk
from mt3data.download import Wishes, download, needs_download
from mt3data.errors import UserError
from mt3data.ledger import STATE, read_record
from mt3data.manifest import Manifest, Source, load
from mt3data.transport import Patience
from mt3data.verify import verify

QUICK = Patience(retries=3, backoff_seconds=0.0, timeout_seconds=5.0)
CONTENT = bytes(range(251)) * 4000  # 1 MB without a short period of a power of two
MEMBERS = {
    f"top/{split}/{n}.wav": bytes([n]) * 150_000 for split in ("train", "test") for n in (1, 2)
}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def web() -> Iterator[Publisher]:
    with publisher({"/data.csv": CONTENT}) as served:
        yield served


def a_zip(members: Mapping[str, bytes]) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def a_tar_gz(members: Mapping[str, bytes]) -> bytes:
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=0) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return packed.getvalue()


def source(web: Publisher, name: str, **changes: Any) -> Source:
    """The source that a publisher would describe truly."""
    content = web.files[f"/{name}"]
    kind = next((k for k in ("zip", "tar.gz") if name.endswith(k)), "file")
    facts: dict[str, Any] = {"bytes": len(content), "md5": hashlib.md5(content).hexdigest(), "status": "verified",
             "kind": kind, "strip": int(kind != "file")}  # fmt: skip
    return Source(name, f"{web.url}/{name}?download=1", **facts | changes)


def manifest(*sources: Source) -> Manifest:
    return replace(load("demo"), name="toy", folder="toy", sources=sources)


def get(root: Path, *sources: Source, **wishes: Any) -> Path:
    return download(manifest(*sources), root, Wishes(patience=QUICK, **wishes))


def files(folder: Path) -> dict[str, bytes]:
    """What a user sees below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and STATE not in path.parts
    }


UNPACKED = {name.removeprefix("top/"): content for name, content in MEMBERS.items()}


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


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (Fault(status=404), "the server answers 404 Not Found"),
        (Fault(status=503), "the server answers 503"),
        (Fault(truncate=1000), "the server has 1,000 bytes, expected 1,004,000"),
        (Fault(length=2_000_000), "the server has 2,000,000 bytes, expected 1,004,000"),
        (Fault(length=1_000_000), "the server has 1,000,000 bytes, expected 1,004,000"),
        (Fault(drop_after=0), "broke off at byte 0"),
        (Fault(wrong_bytes=True), "md5 is "),
    ],
    ids=["404", "503", "truncated", "length too long", "length too short", "drop", "wrong bytes"],
)
def test_a_lasting_fault_is_told_in_one_line(
    web: Publisher, tmp_path: Path, fault: Fault, complaint: str
) -> None:
    web.lasting["/data.csv"] = fault
    with pytest.raises(UserError, match=complaint):
        get(tmp_path, source(web, "data.csv"))
    assert "data.csv" not in files(tmp_path / "toy")


def test_a_file_with_a_wrong_checksum_is_kept_aside_and_both_values_are_said(
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
    [Fault(status=404), Fault(truncate=9), Fault(wrong_bytes=True), Fault(drop_after=0)],
    ids=["404", "truncated", "wrong bytes", "drops"],
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


@pytest.mark.parametrize(
    ("name", "stream"), [("a.zip", False), ("a.tar.gz", False), ("a.tar.gz", True)]
)
def test_an_archive_is_unpacked_without_its_top_folder_and_verifies(
    web: Publisher, tmp_path: Path, name: str, stream: bool
) -> None:
    web.files[f"/{name}"] = a_zip(MEMBERS) if name == "a.zip" else a_tar_gz(MEMBERS)
    wanted = source(web, name)
    assert needs_download(manifest(wanted), tmp_path)
    folder = get(tmp_path, wanted, stream=stream)
    assert files(folder) == UNPACKED
    assert verify(manifest(wanted), tmp_path) == []
    assert not needs_download(manifest(wanted), tmp_path)
    assert (folder / STATE / name).exists() == (not stream)


def test_a_dataset_that_is_complete_asks_the_network_for_nothing(
    web: Publisher, tmp_path: Path
) -> None:
    get(tmp_path, source(web, "data.csv"))
    web.requests.clear()
    get(tmp_path, source(web, "data.csv"))
    assert web.requests == []


def test_a_stream_goes_on_after_a_dropped_connection(web: Publisher, tmp_path: Path) -> None:
    web.files["/a.tar.gz"] = a_tar_gz(MEMBERS)
    web.faults["/a.tar.gz"] = [Fault(drop_after=200_000), Fault(drop_after=200_000)]
    assert files(get(tmp_path, source(web, "a.tar.gz"), stream=True)) == UNPACKED
    assert web.ranges("/a.tar.gz") == ["", "bytes=200000-", "bytes=400000-"]


def test_a_stream_with_a_wrong_checksum_does_not_count(web: Publisher, tmp_path: Path) -> None:
    web.files["/a.tar.gz"] = a_tar_gz(MEMBERS)
    wrong = source(web, "a.tar.gz", md5="0" * 32)
    with pytest.raises(UserError, match=f"md5 is .*, expected {'0' * 32}"):
        get(tmp_path, wrong, stream=True)
    assert needs_download(manifest(wrong), tmp_path)
    assert list((tmp_path / "toy" / STATE).glob("*.jsonl")) == []


def test_selected_members_of_a_zip_are_fetched_alone(web: Publisher, tmp_path: Path) -> None:
    members = MEMBERS | {"top/large.bin": os.urandom(5_000_000)}
    web.files["/a.zip"] = a_zip(members)
    wanted = source(web, "a.zip", seekable=True)
    folder = get(tmp_path, wanted, select=("train/*",))
    assert files(folder) == {k: v for k, v in UNPACKED.items() if k.startswith("train/")}
    sizes = [(int(b) - int(a) + 1) for a, b in (r[6:].split("-") for r in web.ranges("/a.zip"))]
    assert sum(sizes) < 4_000_000
    assert verify(manifest(wanted), tmp_path) == []


def test_a_selection_can_be_completed_later(web: Publisher, tmp_path: Path) -> None:
    web.files["/a.zip"] = a_zip(MEMBERS)
    wanted = source(web, "a.zip", seekable=True)
    get(tmp_path, wanted, select=("train/1.wav",))
    get(tmp_path, wanted, select=("train/2.wav",))
    assert set(files(tmp_path / "toy")) == {"train/1.wav", "train/2.wav"}
    assert files(get(tmp_path, wanted)) == UNPACKED


def test_a_selection_that_matches_nothing_is_an_error(web: Publisher, tmp_path: Path) -> None:
    web.files["/a.zip"] = a_zip(MEMBERS)
    with pytest.raises(UserError, match="--select 1999/. matches no member of toy"):
        get(tmp_path, source(web, "a.zip", seekable=True), select=("1999/*",))


def test_a_server_without_ranges_cannot_serve_single_members(
    web: Publisher, tmp_path: Path
) -> None:
    web.files["/a.zip"] = a_zip(MEMBERS)
    web.lasting["/a.zip"] = Fault(no_range=True)
    with pytest.raises(UserError, match="does not serve parts of a file"):
        get(tmp_path, source(web, "a.zip", seekable=True), select=("train/*",))


def test_an_archive_that_the_user_has_is_verified_and_unpacked(
    web: Publisher, tmp_path: Path
) -> None:
    web.files["/a.zip"] = a_zip(MEMBERS)
    wanted = source(web, "a.zip")
    mine = tmp_path / "renamed.zip"
    mine.write_bytes(web.files["/a.zip"][:-1])
    with pytest.raises(UserError, match=r"renamed.zip is not a.zip .* expected"):
        get(tmp_path, wanted, archives=(mine,))
    mine.write_bytes(web.files["/a.zip"])
    assert files(get(tmp_path, wanted, archives=(mine,))) == UNPACKED
    assert web.requests == []


def test_a_full_disk_is_told_before_anything_starts(
    web: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["/a.tar.gz"] = a_tar_gz(MEMBERS)
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 700_000)
    with pytest.raises(UserError, match=r"1.2 MB needed .*, 700.0 kB free; .*--stream"):
        get(tmp_path, source(web, "a.tar.gz"))
    assert web.requests == []
    assert files(get(tmp_path, source(web, "a.tar.gz"), stream=True)) == UNPACKED


def test_files_that_are_not_ours_are_not_written_over(web: Publisher, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "data.csv").write_text("mine")
    assert not needs_download(manifest(source(web, "data.csv")), tmp_path)
    with pytest.raises(UserError, match="was not made by `mt3data download`"):
        get(tmp_path, source(web, "data.csv"))


SCRIPT = """
import sys
from pathlib import Path
from test_download import QUICK, Wishes, download, manifest
from mt3data.manifest import Source
source = Source(**eval(sys.argv[2]))
download(manifest(source), Path(sys.argv[1]), Wishes(patience=QUICK, stream=sys.argv[3] == "stream"))
"""


def child(root: Path, wanted: Source, how: str = "", before: str = "") -> subprocess.Popen[str]:
    """Another process that downloads."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    return subprocess.Popen(
        [sys.executable, "-c", before + SCRIPT, str(root), repr(vars(wanted)), how],
        env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_killed_download_continues_where_it_was(web: Publisher, tmp_path: Path) -> None:
    web.faults["/data.csv"] = [Fault(hang_after=600_000)]
    process = child(tmp_path, source(web, "data.csv"))
    part = tmp_path / "toy" / "data.csv.part"
    assert web.hanging.wait(20)
    while not part.exists() or not part.stat().st_size:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = part.stat().st_size
    assert needs_download(manifest(source(web, "data.csv")), tmp_path)
    assert files(get(tmp_path, source(web, "data.csv"))) == {"data.csv": CONTENT}
    assert web.ranges("/data.csv") == ["", f"bytes={there}-"]


# Dies as by SIGKILL when the third member is to be entered in the log: its file is there, its entry
# is not.
DIE = """
import os, signal
from mt3data.ledger import MemberLog
add = MemberLog.add
def dying(self, entry):
    if len(self.entries) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, entry)
MemberLog.add = dying
"""


@pytest.mark.parametrize(("name", "how"), [("a.zip", ""), ("a.tar.gz", ""), ("a.tar.gz", "stream")])
def test_a_killed_unpacking_continues_and_skips_what_is_there(
    web: Publisher, tmp_path: Path, name: str, how: str
) -> None:
    web.files[f"/{name}"] = a_zip(MEMBERS) if name == "a.zip" else a_tar_gz(MEMBERS)
    process = child(tmp_path, source(web, name), how, DIE)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    first = tmp_path / "toy" / "train" / "1.wav"
    before = first.stat()
    assert read_record(tmp_path / "toy") == {}
    folder = get(tmp_path, source(web, name), stream=how == "stream")
    assert files(folder) == UNPACKED
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert verify(manifest(source(web, name)), tmp_path) == []


def test_two_runs_at_once_do_not_collide(web: Publisher, tmp_path: Path) -> None:
    web.faults["/data.csv"] = [Fault(hang_after=600_000)]
    process = child(tmp_path, source(web, "data.csv"))
    assert web.hanging.wait(20)
    with pytest.raises(UserError, match="another download is at work there"):
        get(tmp_path, source(web, "data.csv"))
    process.kill()
    process.communicate()


def test_one_source_may_need_what_another_has_brought(web: Publisher, tmp_path: Path) -> None:
    web.files["/a.zip"] = a_zip(MEMBERS)
    both = (source(web, "a.zip"), source(web, "data.csv", into="tables"))
    web.lasting["/data.csv"] = Fault(status=404)
    with pytest.raises(UserError, match="404"):
        get(tmp_path, *both)
    assert needs_download(manifest(*both), tmp_path)
    web.lasting.clear()
    web.requests.clear()
    assert files(get(tmp_path, *both)) == UNPACKED | {"tables/data.csv": CONTENT}
    assert [path for path, _, _ in web.requests] == ["/data.csv"]


def test_an_optional_source_is_fetched_when_it_is_named(web: Publisher, tmp_path: Path) -> None:
    web.files["/b.csv"] = b"b"
    both = (source(web, "data.csv"), source(web, "b.csv", optional=True))
    assert set(files(get(tmp_path, *both, only=("b.csv",)))) == {"b.csv"}
    assert not needs_download(manifest(*both), tmp_path)
    with pytest.raises(UserError, match="toy has no source 'c.csv'; it has b.csv, data.csv"):
        get(tmp_path, *both, only=("c.csv",))
