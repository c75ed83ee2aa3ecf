"""Input files below folders, output files that are never lost, and one run at a time in a folder."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import needs
import pytest
from click.testing import CliRunner
from events import HANG_SECONDS

from mt3data import files
from mt3data.errors import UserError


def test_a_second_run_is_refused_in_one_line(tmp_path: Path) -> None:
    with (
        files.file_lock(tmp_path / "lock"),
        pytest.raises(UserError, match="^at work there; wait for it or stop it$"),
        files.file_lock(tmp_path / "lock", "at work there"),
    ):
        pass


@pytest.mark.parametrize("silently", [0.0, HANG_SECONDS])
def test_a_run_that_waits_long_prints_a_line(
    silently: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, printed, got = list[str](), threading.Event(), threading.Event()

    def echo(line: str, err: bool) -> None:
        lines.append(line)
        printed.set()

    def second() -> None:
        with files.file_lock(tmp_path / "lock"):
            got.set()

    monkeypatch.setattr(files, "WAIT_SILENTLY_SECONDS", silently)
    monkeypatch.setattr(files, "echo", echo)
    thread = threading.Thread(target=second)
    with files.file_lock(tmp_path / "lock"):
        thread.start()
        assert silently or printed.wait(HANG_SECONDS)
        assert not got.is_set()
    thread.join(HANG_SECONDS)
    assert got.is_set()
    line = f"{tmp_path}: another run uses this folder; waiting for it to end"
    assert lines == ([] if silently else [line])


HOLD = """
import sys
from pathlib import Path
from mt3data.files import file_lock
with file_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline().strip() == b"locked"
        with (
            pytest.raises(UserError, match="^at work there"),
            files.file_lock(tmp_path / "lock", "at work there"),
        ):
            pass
        other.kill()
    with files.file_lock(tmp_path / "lock", "at work there"):
        pass


REPORT = "mt3data report"
OURS = f"<html>{files.mark(REPORT)}</html>".encode()


def names_below(folder: Path) -> list[str]:
    found = files.walk(folder, {".wav"})
    return [path.relative_to(folder).as_posix() for path in found.files]


@needs.posix
def test_every_folder_is_read_once_and_links_are_followed(tmp_path: Path) -> None:
    music, elsewhere = tmp_path / "music", tmp_path / "elsewhere"
    for path in (music / "a/one.WAV", elsewhere / "two.wav", elsewhere / "notes.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (music / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(music)
    (music / "again").symlink_to(music / "a")
    assert names_below(music) == ["a/one.WAV", "linked/two.wav"]
    assert files.walk(music, {".wav"}).message == ""


@needs.posix
def test_what_is_skipped_is_named_and_counted(tmp_path: Path) -> None:
    for name in (".trash/old.wav", "song.wav", "._song.wav", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "lost.wav").symlink_to("nowhere.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    found = files.walk(tmp_path, {".wav"})
    assert [path.name for path in found.files] == ["song.wav"]
    assert found.skipped == [
        f"{tmp_path}/._song.wav (hidden)", f"{tmp_path}/.trash (hidden)",
        f"{tmp_path}/lost.wav (a broken link)", f"{tmp_path}/pipe.wav (a named pipe)",
    ]  # fmt: skip
    assert found.message.startswith("skipped 4: ")


def test_a_folder_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "song.wav").touch()
    listed = Path.iterdir

    def refuse(folder: Path) -> object:  # root may read everything, so permissions do not help
        if folder.name == "private":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    found = files.walk(tmp_path, {".wav"})
    assert [path.name for path in found.files] == ["song.wav"]
    assert found.skipped == [f"{tmp_path}/private (permission denied)"]


def test_many_skipped_paths_are_counted_and_the_first_are_named() -> None:
    message = files.Walk([], [f"{n} (hidden)" for n in range(1000)]).message
    assert message.startswith("skipped 1,000: 0 (hidden), 1 (hidden)")
    assert message.endswith("4 (hidden) and 995 more")


def test_a_file_of_another_origin_is_kept_unless_force(tmp_path: Path) -> None:
    out = tmp_path / "song.mid"
    out.write_bytes(b"labels by hand")
    with pytest.raises(UserError, match="not written by `mt3data report`.*--force"):
        files.write_output(out, OURS, REPORT)
    assert out.read_bytes() == b"labels by hand"
    files.write_output(out, OURS, REPORT, force=True)
    assert out.read_bytes() == OURS


@pytest.mark.parametrize("before", [b"", OURS, b"x" * 200_000 + OURS])
def test_a_file_of_the_same_command_and_an_empty_one_are_replaced(
    before: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    out.write_bytes(before)
    files.write_output(out, [b"new"], REPORT)
    assert out.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_file_of_another_command_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "song.html"
    out.write_text(files.mark("mt3train transcribe"))
    with pytest.raises(UserError, match="song.html exists"):
        files.require_output(out, REPORT)


@needs.posix
def test_output_goes_through_links_and_leaves_them(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link = tmp_path / "report.html"
    link.symlink_to("store/page.html")
    for _ in range(2):  # the target is absent, then there
        files.write_output(link, OURS, REPORT)
        assert link.is_symlink()
        assert (tmp_path / "store/page.html").read_bytes() == OURS


@needs.posix
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_an_input_is_no_output_under_any_name(tmp_path: Path, link: Callable[..., None]) -> None:
    source = tmp_path / "song.wav"
    source.write_bytes(OURS)  # not even if it has the mark
    link(tmp_path / "out.html", source)
    inputs = files.inputs_of([source, tmp_path / "absent.wav"])
    with pytest.raises(UserError, match="out.html is the input .*song.wav"):
        files.require_output(tmp_path / "out.html", REPORT, force=True, inputs=inputs)


@needs.posix
def test_below_an_input_folder_only_files_of_the_same_command_are_replaced(tmp_path: Path) -> None:
    build = tmp_path / "build"
    (build / "index").mkdir(parents=True)
    (build / "index/train.parquet").write_bytes(b"rows")
    (build / "report.html").write_bytes(OURS)
    (tmp_path / "link.html").symlink_to("build/index/train.parquet")
    inputs = files.inputs_of([build])
    for name in ("build/index/train.parquet", "link.html"):
        with pytest.raises(UserError, match="is a file in the input .*build"):
            files.require_output(tmp_path / name, REPORT, force=True, inputs=inputs)
    for name in ("build/report.html", "build/new.html"):
        files.require_output(tmp_path / name, REPORT, inputs=inputs)


@needs.posix
def test_links_in_a_circle_are_refused_and_stay(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UserError, match="circle"):
        files.write_output(tmp_path / "a", OURS, REPORT)
    assert (tmp_path / "a").is_symlink()


@needs.posix
def test_a_pipe_is_written_into_and_not_replaced(tmp_path: Path) -> None:
    pipe, received = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    files.write_output(pipe, [b"a", b"b"], REPORT)
    reader.join(HANG_SECONDS)
    assert (received, pipe.is_fifo()) == ([b"ab"], True)


def test_a_dash_is_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with CliRunner().isolation() as (out, *_):
        files.write_output(files.STDOUT, OURS, REPORT)
        assert out.getvalue() == OURS
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "absent/report.html"])
def test_a_folder_is_no_output_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder|does not exist"):
        files.require_output(tmp_path / name, REPORT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "\udcff" * 255])
def test_names_of_any_length_can_be_written(name: str, tmp_path: Path) -> None:
    files.write_atomically(tmp_path / name, b"content")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"content"


def test_names_with_composed_and_decomposed_accents_are_the_same() -> None:
    assert "Caf\u00e9" != "Cafe\u0301"
    assert files.same_name("Caf\u00e9") == files.same_name("Cafe\u0301")
