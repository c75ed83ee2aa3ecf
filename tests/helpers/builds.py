"""Runs real builds in subprocesses, and disturbs them."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pyarrow.parquet as pq
import soundfile
from events import HANG_SECONDS, Pause, environment, wait_until

# How fast builds are in these tests: `pytest --speed NAME`. The slow one sleeps at every MIDI file. The
# tracks of the fast one are so short that a build ends as soon as its workers have started.
SPEEDS = ("normal", "slow", "fast")
SLOW_SECONDS = 0.5
# 14 windows of 256 frames, of which 30 make a shard of 8 MiB: two tracks to a shard.
SECONDS, FAST_SECONDS, NOTED_SECONDS = 28.0, 4.0, 8.0
TRACKS = {f"Track{n:05d}": split for split, numbers in (
    ("train", range(1, 10)), ("validation", (1501, 1502, 1503)), ("test", (1877,)),
) for n in numbers}  # fmt: skip
BAD = "Track00003"  # the track to which harm is done
KILL_AT_BAD = f'track == "{BAD}" and os.kill(os.getpid(), signal.SIGKILL)'  # an action
Row = Callable[[str, str], None]  # puts a row into the table of faults
MT3DATA = [sys.executable, "-m", "mt3data.cli.main"]


def source_tree(root: Path, seconds: float) -> Path:
    """Makes 13 tracks in Slakh's layout. With 28 s each, a build has eight shards."""
    noted = min(seconds, NOTED_SECONDS)
    folder = fakes.slakh_tree(root, "redux", TRACKS, seconds=noted)
    for mix in sorted(folder.glob("*/*/mix.flac")):
        samples, rate = soundfile.read(mix)
        noise = np.random.default_rng(int(mix.parent.name[5:])).normal(
            0, 0.01, max(round(seconds * rate), len(samples))
        )
        noise[: len(samples)] += samples
        soundfile.write(mix, noise, rate)
    return root


@dataclass
class Build:
    """One run of `mt3data build slakh` with windows of 256 frames, as a user types it.

    Attributes:
        root, out: as the command has them.
        process: of the driver, which leads a process group of its own.
    """

    root: Path
    out: Path
    process: subprocess.Popen[str]

    @property
    def folder(self) -> Path:
        return self.out / "slakh"

    def end(self) -> tuple[int, str]:
        """Waits for the driver. Returns its exit code, and all that it printed."""
        try:
            printed = self.process.communicate(timeout=HANG_SECONDS)[0]
        except subprocess.TimeoutExpired:
            end_group(self.process)
            raise
        return self.process.returncode, printed

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Lines of the build's log of one kind."""
        log = self.folder / "build.log.jsonl"
        lines = log.read_text().splitlines() if log.is_file() else []
        return [entry for entry in map(json.loads, lines) if entry["event"] == kind]

    def workers(self) -> list[int]:
        """Returns the processes below the driver that have a track in hand, and so a marker open."""
        return [pid for pid in below(self.process.pid) if _has_marker(pid)]


speed = SPEEDS[0]  # set by tests/conftest.py


def hooks(pause: Pause | None = None, action: str = "pass", setup: str = "") -> dict[str, str]:
    """Returns the environment of a build at the chosen speed; see `events.environment`."""
    folder = Path(tempfile.mkdtemp(prefix="mt3kit-hooks-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return environment(folder, pause, action, setup, SLOW_SECONDS if speed == "slow" else 0.0)


# Setup of the tests of time limits: no limit but that of BAD counts, however slow the machine is.
ONLY_BAD_IS_TIMED = f"""
import faulthandler
limit = faulthandler.dump_traceback_later
def limit_bad(seconds, file, **options):
    if pathlib.Path(file.name).name.endswith(".{BAD}"):
        limit(seconds, file=file, **options)
faulthandler.dump_traceback_later = limit_bad
"""


def start(
    root: Path, out: Path, *words: object, pause: Pause | None = None, action: str = "pass",
    setup: str = "", file_limit: int = -1,
) -> Build:  # fmt: skip
    """Starts a build.

    Args:
        words: further options.
        pause, action, setup: what happens in its processes, see `events.environment`.
        file_limit: bytes to which files may grow; -1: any.
    """

    def before() -> None:
        import resource

        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where pytest itself runs in the back
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    command = [*MT3DATA, "build", "slakh", "--root", root, "--out", out, "--window", 256,
               "--no-download", *words]  # fmt: skip
    process = subprocess.Popen(
        [str(word) for word in command], text=True, env=hooks(pause, action, setup),
        preexec_fn=before if os.name == "posix" else None,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    return Build(root, out, process)


def one_second(folder: Path) -> tuple[object, ...]:
    """Returns the options by which a track may take one second; writes their file."""
    path = folder / "build.toml"
    path.write_text("track_timeout = 1\n", encoding="utf-8")
    return "--config", path


def run(root: Path, out: Path, *words: object, **options: object) -> tuple[int, str]:
    """Exit code and output of a whole build."""
    return start(root, out, *words, **options).end()  # type: ignore[arg-type]


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a build but its log."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "build.log.jsonl"
    }


def shard_of(folder: Path, track: str) -> str:
    """Name of the shard into which a finished build put a track."""
    rows = pq.read_table(folder / "index" / "train.parquet", columns=["track", "shard"]).to_pylist()
    return next(row["shard"] for row in rows if row["track"] == track)


def quarantine(folder: Path) -> dict[str, tuple[str, str]]:
    """Stage and error of the tracks that a build left out."""
    rows = pq.read_table(folder / "tracks.parquet").to_pylist()
    return {r["track"]: (r["stage"], r["error"]) for r in rows if r["status"] != "ok"}


def copy_of(source: Path, root: Path) -> Path:
    """A copy in which files may be replaced; not changed, for they are hard links."""
    shutil.copytree(source, root, copy_function=os.link)
    return root / "slakh2100_flac_redux" / "train" / BAD


def assert_as_if_listed(build: Build, tmp_path: Path, undisturbed: Path, stage: str) -> None:
    """Holds a build that quarantined BAD against one in which it is listed, and the undisturbed."""
    left_out = quarantine(build.folder)
    assert {track: stage for track, (stage, _) in left_out.items()} == {BAD: stage}
    assert str(tmp_path) not in str(left_out)
    listed = tmp_path / "bad.tsv"
    listed.write_text("".join("\t".join([t, *told]) + "\n" for t, told in left_out.items()))
    code, printed = run(build.root, tmp_path / "listed", "--workers", 2, "--exclude", listed)
    assert code == 1, printed
    ours, theirs = digests(build.folder), digests(undisturbed)
    assert ours == digests(tmp_path / "listed" / "slakh")
    differ = {name for name in theirs if name.endswith(".tar") and ours[name] != theirs[name]}
    assert differ == {shard_of(undisturbed, BAD)}


def assert_goes_on(root: Path, out: Path, undisturbed: Path, *words: object) -> None:
    """Gives the command again and holds the build against the undisturbed one."""
    code, printed = run(root, out, *words or ("--workers", 2))
    assert code == 0, printed
    assert digests(out / "slakh") == digests(undisturbed)


def below(pid: int) -> list[int]:
    """All processes that descend from one."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = re.sub(r"\(.*\)", "x", status.read_text()).split()
        except OSError:  # it has just ended
            continue
        parents[int(fields[0])] = int(fields[3])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def _has_marker(pid: int) -> bool:
    try:
        files = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return any("/.state/run-" in file for file in files)


class Cluster:
    """A dask scheduler and its workers, with a thread each: processes of their own on loopback.

    Attributes:
        address: of the scheduler.
        processes: the scheduler first; each leads a process group.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._env = folder, environment
        self.processes = [self._dask("scheduler", "--host", "127.0.0.1", "--port", 0)]

    def _dask(self, *words: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", *map(str, words), "--no-dashboard",
                   "--scheduler-file", str(self.folder / "scheduler.json")]  # fmt: skip
        with (self.folder / "dask.log").open("a") as log:
            return subprocess.Popen(
                command, env=self._env, stdout=log, stderr=log, start_new_session=True
            )

    def has_address(self) -> bool:
        """Whether the scheduler has written its file; it is empty for a moment before."""
        with suppress(OSError, ValueError):
            return bool(self.address)
        return False

    @property
    def address(self) -> str:
        return json.loads((self.folder / "scheduler.json").read_text())["address"]

    def add_worker(self, *options: str) -> None:
        """Starts one; options: "--nanny", which starts another where it dies, or "--no-nanny"."""
        scratch = self.folder / "scratch"
        self.processes.append(
            self._dask("worker", "--nthreads", 1, "--local-directory", scratch, *options)
        )

    def living(self) -> list[int]:
        """The workers, or their nannies, that have not ended."""
        return [process.pid for process in self.processes[1:] if process.poll() is None]

    def workers_at_work(self) -> list[int]:
        """The processes that have a track in hand."""
        pids = [pid for process in self.living() for pid in (process, *below(process))]
        return [pid for pid in pids if _has_marker(pid)]


@contextmanager
def cluster(
    folder: Path, *options: str, workers: int = 2, pause: Pause | None = None, action: str = "pass",
    setup: str = "",
) -> Iterator[Cluster]:  # fmt: skip
    """Starts a scheduler and workers.

    Args:
        options: as for `Cluster.add_worker`.
        pause, action, setup: what happens in the workers, as for `start`.
    """
    dask = Cluster(folder, hooks(pause, action, setup))
    try:
        wait_until(dask.has_address, dask.processes[0])
        for _ in range(workers):
            dask.add_worker(*options)
        yield dask
    finally:
        for process in dask.processes:
            end_group(process)


def end_group(process: subprocess.Popen[Any]) -> None:
    """Kills a process that leads a group, with all of the group, at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
    process.wait()
