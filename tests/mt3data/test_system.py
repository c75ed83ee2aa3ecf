"""What differs between Linux, macOS and Windows."""

import errno
import io
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path, PureWindowsPath

import pytest
from events import HANG_SECONDS

from mt3data import system
from mt3data.audio.load import read_audio, require_file
from mt3data.download.address import is_address
from mt3data.download.unpack import Placement
from mt3data.errors import UserError


@pytest.mark.parametrize("has_preadv", [True, False])
def test_threads_read_one_file_at_places_of_their_own(
    has_preadv: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_preadv:
        monkeypatch.delattr(os, "preadv", raising=False)
    content = bytes(range(256)) * 400  # line ends of all kinds, and the end mark of Windows' texts
    (tmp_path / "file").write_bytes(content)
    file, wrong = system.SharedFile(tmp_path / "file"), list[int]()

    def read(first: int) -> None:
        for offset in range(first, len(content), 997):
            buffer = bytearray(1000)
            n_bytes = file.read_into(memoryview(buffer), offset)
            if buffer[:n_bytes] != content[offset : offset + 1000]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    assert wrong == []
    assert file.read_into(memoryview(bytearray(10)), len(content) - 3) == 3
    assert file.read_into(memoryview(bytearray(10)), len(content)) == 0


@pytest.mark.parametrize("code", [errno.EACCES, errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_synced_is_no_error_but_a_broken_disk_is(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    if code == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(code)):
            system.sync_folder(tmp_path)
    else:
        system.sync_folder(tmp_path)


def in_use(path: Path) -> OSError:
    error = PermissionError(errno.EACCES, "in use", str(path))
    error.winerror = 32  # type: ignore[attr-defined, unused-ignore]
    return error


def test_a_rename_is_repeated_while_a_program_has_the_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, failures = Path.replace, [in_use(tmp_path), in_use(tmp_path)]

    def replace(source: Path, target: Path) -> object:
        if failures:
            raise failures.pop()
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "old").write_bytes(b"old")
    system.replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"new"
    failures.append(PermissionError(errno.EACCES, "not yours"))
    with pytest.raises(PermissionError, match="not yours"):  # at once
        system.replace(tmp_path / "old", tmp_path / "new")
    monkeypatch.setattr(system, "RENAME_SECONDS", 0.0)
    failures.append(in_use(tmp_path))
    with pytest.raises(PermissionError, match="in use"):
        system.replace(tmp_path / "old", tmp_path / "new")


@pytest.mark.parametrize(
    "name", ["aux", "CON", "nul.mid", "Com1.wav", "a:b", "what?", "end.", "end ", "tab\t"]
)
def test_names_that_windows_cannot_store(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not system.is_portable_name(name)
    place = Placement(Path("folder"))
    assert place.path_of(f"x/{name}") == f"x/{name}"
    monkeypatch.setattr(system, "WINDOWS", True)
    with pytest.raises(UserError, match="Windows cannot store"):
        place.path_of(f"x/{name}")


@pytest.mark.parametrize(
    "name", ["auxiliary", "Track00001.mid", "con-1", "été.wav", ".hidden", "a b"]
)
def test_names_that_every_system_can_store(name: str) -> None:
    assert system.is_portable_name(name)


@pytest.mark.parametrize(
    "build, expected",
    [(r"C:\shards", False), ("d:/shards", False), (PureWindowsPath(r"C:\shards\slakh"), False),
     (r"\\server\shards", False), ("https://host/shards", True), ("HTTP://host", True)],
)  # fmt: skip
def test_a_drive_is_no_address(build: str, expected: bool) -> None:
    assert is_address(build) == expected


def test_an_address_is_recognised_in_a_windows_path() -> None:
    path: Path = PureWindowsPath("https://host/song.mp3")  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"^https://host/song\.mp3: a web address"):
        require_file(path)


@pytest.mark.parametrize("windows, expected", [(True, '"my song.m4a"'), (False, "'my song.m4a'")])
def test_commands_in_messages_can_be_typed(
    windows: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "WINDOWS", windows)
    assert system.quote(Path("my song.m4a")) == expected


def test_redirected_output_is_utf_8_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for windows, expected in ((False, "cp1252"), (True, "utf-8")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(system, "WINDOWS", windows)
        monkeypatch.delenv("PYTHONIOENCODING", raising=False)
        system.use_utf8_streams()
        assert stream.encoding == expected


def test_a_file_without_descriptors_for_libraries_gives_the_same_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    import soundfile

    path = tmp_path / "song.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (30000, 2)), 44100)
    expected = read_audio(path)
    monkeypatch.setattr(system, "WINDOWS", True)
    assert np.array_equal(read_audio(path), expected)
    path.write_bytes(path.read_bytes() + bytes(20000))  # what follows the sound is still noticed
    with pytest.raises(UserError, match="follow the samples"):
        read_audio(path)


def end_with_parent(connection: object) -> None:
    threading.Thread(target=connection.send, args=("started",)).start()  # type: ignore[attr-defined]
    system.wait_for_parent(os.getppid())
    os._exit(0)


def start_and_wait(connection: object) -> None:
    context = multiprocessing.get_context("spawn")
    context.Process(target=end_with_parent, args=(connection,)).start()
    signal.pause() if hasattr(signal, "pause") else threading.Event().wait()


def test_a_worker_ends_after_its_parent_was_killed() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    parent = context.Process(target=start_and_wait, args=(theirs,))
    parent.start()
    theirs.close()
    assert ours.recv() == "started"
    parent.kill()
    with pytest.raises(EOFError):  # the last process that holds the other end has ended
        ours.recv()


def test_the_largest_memory_is_known_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert system.peak_memory_gb() is None
    monkeypatch.undo()
    if sys.platform != "win32":
        memory = system.peak_memory_gb()
        assert memory is not None and 0.01 < memory < 1000
