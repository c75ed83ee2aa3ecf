"""Whole datasets from a publisher on 127.0.0.1: archives, streams, selections, kills, locks."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import needs
import pytest
from events import HANG_SECONDS, wait_until
from server import Fault, Publisher, publisher
from toys import CONTENT, MEMBERS, UNPACKED, a_tar_gz, a_zip, files, get, manifest, source

from mt3data import files as disk
from mt3data.datasets.manifest import Source
from mt3data.download.dataset import needs_download
from mt3data.download.state import STATE, read_download_record
from mt3data.download.verify import verify
from mt3data.errors import UserError


@pytest.fixture
def web() -> Iterator[Publisher]:
    with publisher({"/data.csv": CONTENT}) as served:
        yield served


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
    assert sum(sizes) < 1_500_000
    assert verify(manifest(wanted), tmp_path) == []


def test_single_members_arrive_whole_in_spite_of_drops(web: Publisher, tmp_path: Path) -> None:
    web.files["/a.zip"] = a_zip(MEMBERS)
    web.faults["/a.zip"] = [Fault(), Fault(drop_after=10), Fault(), Fault(status=503), Fault()]
    folder = get(tmp_path, source(web, "a.zip", seekable=True), select=("*",))
    assert files(folder) == UNPACKED


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


def test_two_archives_of_one_source_are_refused(web: Publisher, tmp_path: Path) -> None:
    web.files["/a.zip"] = a_zip(MEMBERS)
    mine = (tmp_path / "a.zip", tmp_path / "other.zip")
    for path in mine:
        path.write_bytes(web.files["/a.zip"])
    with pytest.raises(UserError, match=r"a\.zip and --from .*other\.zip may both be a\.zip"):
        get(tmp_path, source(web, "a.zip"), archives=mine)
    assert not (tmp_path / "toy").exists()


def test_a_full_disk_is_reported_before_anything_starts(
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
from toys import QUICK, DownloadOptions, download, manifest
from mt3data.datasets.manifest import Source
source = Source(**eval(sys.argv[2]))
download(manifest(source), Path(sys.argv[1]), DownloadOptions(retry_policy=QUICK, stream=sys.argv[3] == "stream"))
"""


def child(root: Path, wanted: Source, how: str = "", before: str = "") -> subprocess.Popen[str]:
    """Another process that downloads."""
    paths = os.pathsep.join(
        [
            str(Path(__file__).resolve().parents[3] / "tests" / "helpers"),
            str(Path(__file__).resolve().parents[3]),
        ]
    )
    return subprocess.Popen(
        [sys.executable, "-c", before + SCRIPT, str(root), repr(vars(wanted)), how],
        env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@needs.posix
def test_a_killed_download_continues_where_it_was(web: Publisher, tmp_path: Path) -> None:
    web.faults["/data.csv"] = [Fault(hang_after=600_000)]
    process = child(tmp_path, source(web, "data.csv"))
    part = tmp_path / "toy" / "data.csv.part"
    assert web.hanging.wait(HANG_SECONDS)
    wait_until(lambda: part.exists() and part.stat().st_size, process)
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
from mt3data.download.state import ExtractionLog
add = ExtractionLog.add
def dying(self, entry):
    if len(self.entries) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, entry)
ExtractionLog.add = dying
"""


@needs.posix
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
    assert read_download_record(tmp_path / "toy") == {}
    folder = get(tmp_path, source(web, name), stream=how == "stream")
    assert files(folder) == UNPACKED
    assert len(web.requests) == (2 if how == "stream" else 1)
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert verify(manifest(source(web, name)), tmp_path) == []


def test_two_runs_at_once_do_not_collide(web: Publisher, tmp_path: Path) -> None:
    web.faults["/data.csv"] = [Fault(hang_after=600_000)]
    process = child(tmp_path, source(web, "data.csv"))
    assert web.hanging.wait(HANG_SECONDS)
    with pytest.raises(UserError, match="another download uses it"):
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
