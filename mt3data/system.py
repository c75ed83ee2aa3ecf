"""Holds what differs between Linux, macOS and Windows. All other modules call this one.

A function that a system lacks is looked up where it is used, so tests can take it away
(tests/helpers/without/sitecustomize.py). `WINDOWS` decides only what no missing function shows.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WINDOWS = os.name == "nt"
# What ends a run: Ctrl-C, the end of a job on a cluster (SIGTERM, SIGUSR1), a closed terminal
# (SIGHUP), Ctrl-Break on Windows (SIGBREAK).
STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
)
RENAME_SECONDS = 5.0  # for which a rename is repeated while another program has the file open
FOLLOW_SECONDS = 1.0  # between looks for the parent process
# Windows' codes of "access is denied" and of sharing violations.
_IN_USE = (5, 32, 33)
# What systems return that cannot make the names in a folder durable.
_NO_FOLDER_SYNC = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EBADF, errno.EISDIR)
_WINDOWS_RESERVED = re.compile(
    r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE
)


class SharedFile:
    """A file that several threads read, each at places of its own.

    The file is open until nothing refers to it any more.

    Args:
        path: of the file.
    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        # Windows would translate line ends in a file that is not binary.
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock, self._close = threading.Lock(), os.close

    def __del__(self) -> None:
        if hasattr(self, "_close"):  # the file was opened
            self._close(self._descriptor)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fills a buffer with the bytes from an offset on.

        Returns:
            The number of bytes, less than the buffer holds at the end of the file.
        """
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [buffer], offset)
        with self._lock, io.FileIO(self._descriptor, closefd=False) as file:
            file.seek(offset)
            done = 0
            while done < len(buffer) and (n_bytes := file.readinto(buffer[done:])):
                done += n_bytes
            return done


def open_for_c_library(path: Path) -> int | io.BufferedReader:
    """Opens a file for a C library: a descriptor, or a Python file where it would have no meaning.

    On Windows each C library has descriptors of its own.
    """
    return path.open("rb") if WINDOWS else os.open(path, os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable, where the system can.

    Windows cannot open a folder; NTFS records names in its journal. Some network file systems refuse.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def replace(source: Path, target: Path) -> None:
    """Renames a file or folder; an existing target file is replaced.

    Windows refuses it while a program has one of the two open. Virus scanners and readers have files
    open for a moment, so the rename is repeated for RENAME_SECONDS.

    Raises:
        OSError: the rename failed.
    """
    end = time.monotonic() + RENAME_SECONDS
    while True:
        try:
            source.replace(target)
            return
        except OSError as error:
            if not is_in_use(error) or time.monotonic() >= end:
                raise
            time.sleep(0.05)


def is_in_use(error: OSError) -> bool:
    """Checks whether Windows refused to change a file because a program has it open."""
    return getattr(error, "winerror", None) in _IN_USE


def peak_memory_gb() -> float | None:
    """Returns the largest memory that this process had so far, in GB; None where it is unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # type: ignore[attr-defined]
    return float(largest * (1 if sys.platform == "darwin" else 1024) / 1e9)


@contextmanager
def interrupts_delayed() -> Iterator[None]:
    """Delays Ctrl-C during the body. Processes that start in the body never receive it.

    A terminal sends Ctrl-C to all processes, and workers that are starting would print tracebacks.
    Windows has no such masks: there a worker that is just starting may print one.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # else the first process starts it, which lets signals in
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # type: ignore[attr-defined]
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # type: ignore[attr-defined]


def wait_for_parent(pid: int) -> None:
    """Returns soon after the parent process has ended.

    Args:
        pid: of the parent.
    """
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None and getattr(parent, "_sentinel", None) is not None:
        parent.join()  # Windows keeps the number of a parent that has ended
        return
    while os.getppid() == pid:
        time.sleep(FOLLOW_SECONDS)


def holds_no_files(folder: Path) -> bool:
    """Checks whether a folder belongs to a file system without room for files, such as /proc."""
    return hasattr(os, "statvfs") and folder.is_dir() and not os.statvfs(folder).f_blocks


def is_portable_name(name: str) -> bool:
    """Checks whether a file or folder may have a name on Windows too."""
    return not (
        set(name) & set('<>:"/\\|?*')
        or any(ord(character) < 32 for character in name)
        or name.endswith((".", " "))
        or _WINDOWS_RESERVED.fullmatch(name)
    )


def ignores_case(folder: Path) -> bool:
    """Checks whether an existing folder is found by its name in the other case, as on macOS and Windows."""
    other = Path(str(folder.resolve()).swapcase())
    try:
        return other.samefile(folder)
    except OSError:
        return False


def quote(path: Path) -> str:
    """Returns a path as it is typed on a command line."""
    return subprocess.list2cmdline([str(path)]) if WINDOWS else shlex.quote(str(path))


def use_utf8_streams() -> None:
    """Makes standard output and error UTF-8 where they are redirected on Windows.

    Python would use the code page of the country, which lacks most letters.
    """
    for stream in (sys.stdout, sys.stderr):
        is_free = WINDOWS and "PYTHONIOENCODING" not in os.environ
        if is_free and isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            stream.reconfigure(encoding="utf-8")
