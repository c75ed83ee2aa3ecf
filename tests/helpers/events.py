"""Waits for events, and stops programs at named points, so that no test depends on a machine's speed.

A point is a file operation that Python reports to its audit hooks, such as the rename of a shard. A
process that reaches the point connects to the test and waits until the test lets it go on. So a kill,
a signal, a full disk or a second process comes at exactly that moment.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HANG_SECONDS = 600.0  # ends a test that hangs; no test may need a tenth of it on an idle machine

HOOK = """
import os, pathlib, re, signal, socket, sys, time

IS_DRIVER = "build" in sys.orig_argv
ROLES = ("any", "driver" if IS_DRIVER else "worker")
if any("multiprocessing-fork" in word or "loky" in word for word in sys.orig_argv):
    ROLES += ("spawned",)
{setup}
WHO, EVENT, PATTERN, ADDRESS = {point!r}

def stop(path):
    try:
        with socket.socket() as test:
            test.connect(ADDRESS)
            test.sendall(f"{{os.getpid()}} {{path}}\\n".encode())
            test.recv(1)
    except OSError:  # the test no longer waits for anyone
        pass

def listen(event, arguments):
    if event not in ("open", "os.rename"):
        return
    path = str(arguments[event == "os.rename"])
    if event == "open" and path.endswith(".mid") and not IS_DRIVER:
        track = pathlib.Path(path).parent.parent.name
        time.sleep({slow!r})
        {action}
    if event == EVENT and re.search(PATTERN, path) and WHO in ROLES:
        stop(path)

sys.addaudithook(listen)
"""


@dataclass(frozen=True)
class Point:
    """A place in a program, named by an operation on a file.

    Attributes:
        event: "open", or "os.rename" for the moment before a rename.
        pattern: regular expression for the path; for a rename, for its target.
        who: "driver" for the process of `mt3data build`, "worker" for all others, "spawned" for those
            that multiprocessing or joblib starts, "any" for all.
    """

    event: str
    pattern: str
    who: str = "any"


@dataclass
class Pause:
    """Holds every process that comes to a point until the body of `with` ends.

    Attributes:
        point: where processes stop.
    """

    point: Point
    _held: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))

    @property
    def settings(self) -> tuple[str, str, str, tuple[str, int]]:
        """Returns what the hook in a process needs to know."""
        point = self.point
        return point.who, point.event, point.pattern, self._listener.getsockname()

    def wait(self, process: subprocess.Popen[Any], nth: int = 1) -> int:
        """Lets n - 1 arrivals go on and holds the next one. Returns the id of the process.

        Args:
            process: whose output explains why nothing arrived, if it ends first.
            nth: counts the arrivals of all processes since the last call.
        """
        for number in range(nth):
            connection = self._accept(process)
            pid = int(connection.makefile().readline().split()[0])
            if number < nth - 1:
                connection.close()
        self._held.append(connection)
        return pid

    def _accept(self, process: subprocess.Popen[Any]) -> socket.socket:
        self._listener.settimeout(0.05)
        for _ in polls():
            try:
                return self._listener.accept()[0]
            except TimeoutError:
                if process.poll() is not None:
                    printed = process.communicate()[0]
                    raise AssertionError(f"it ended before {self.point}: {printed}") from None
        raise AssertionError(f"nobody came to {self.point}")

    def go_on(self) -> None:
        """Lets the processes go on that were held so far. Later ones stop again."""
        for connection in self._held:
            connection.close()
        self._held.clear()

    def release(self) -> None:
        """Lets all processes go on. None stops any more."""
        self._listener.close()
        self.go_on()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def environment(
    folder: Path, pause: Pause | None = None, action: str = "pass", setup: str = "", slow: float = 0
) -> dict[str, str]:
    """Returns the environment of a program that Python prepares with a hook of ours.

    Args:
        folder: gets a `sitecustomize.py`, which Python runs when it starts.
        pause: where the program stops.
        action: a statement that a worker runs just before it opens a MIDI file. It may use `track`,
            such as "Track00003", and the modules os, signal, sys, time and pathlib.
        setup: statements that every process runs when it starts.
        slow: seconds that a worker sleeps before the action.
    """
    folder.mkdir(parents=True, exist_ok=True)
    point = pause.settings if pause else ("nobody", "", "", ("", 0))
    (folder / "sitecustomize.py").write_text(
        HOOK.format(point=point, action=action, setup=setup, slow=slow)
    )
    paths = [str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    known = os.pathsep.join(path for path in paths if path)
    return os.environ | {"PYTHONPATH": known, "OMP_NUM_THREADS": "1"}


def polls() -> Any:
    """Yields again and again until a test must be taken to hang."""
    end = time.monotonic() + HANG_SECONDS
    while time.monotonic() < end:
        yield


def wait_until(happened: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> Any:
    """Waits until a function returns something true, and returns that.

    Args:
        happened: is called again and again.
        process: which should not end before.
    """
    for _ in polls():
        ended = process is not None and process.poll() is not None
        if what := happened():
            return what
        assert not ended, "the process ended before that"
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def wait_for_end(*pids: int) -> None:
    """Waits until processes are gone, children of other processes included."""
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
