"""What a machine can do to a build, and that nothing is lost: each fault is done to the real command.

After each fault the same command is given again. In the end every file is byte for byte that of a
build that nobody disturbed. Where a track was quarantined, every shard without it is, and the whole
is that of a build in which the track is listed as bad.

The summary of a run of these tests has the table of faults. Faults come at points of the build and
not at times, so `--speed slow` and `--speed fast` (builds that sleep, and tiny ones) print the same.
"""

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import builds
import needs
import pytest
from builds import (
    BAD,
    KILL_AT_BAD,
    Row,
    assert_as_if_listed,
    assert_goes_on,
    copy_of,
    digests,
    run,
    start,
)
from events import Pause, Point

pytestmark = needs.proc

# --- processes that die --------------------------------------------------------------------------

A_SHARD_IS_BEGUN = Point("open", r"\.tar\.tmp-", "worker")
A_SHARD_IS_WRITTEN = Point("os.rename", r"\.tar$", "worker")
A_TRACK_IS_READ = Point("open", rf"{BAD}/MIDI/\w+\.mid$", "worker")
# Moments of a build, in their order, and how often each comes: once, for each track, or for each shard.
MOMENTS = {
    "in planning": (Point("open", r"metadata\.yaml$", "driver"), "track"),
    "before the plan's rename": (Point("os.rename", r"/plan\.json$", "driver"), "once"),
    "before a shard": (A_SHARD_IS_BEGUN, "shard"),
    "in a track": (Point("open", r"/S00\.mid$", "worker"), "track"),
    "before a shard's rename": (A_SHARD_IS_WRITTEN, "shard"),
    "before a shard's record": (Point("open", r"\.tar\.json\.tmp-", "worker"), "shard"),
    "before a record's rename": (Point("os.rename", r"\.tar\.json$", "worker"), "shard"),
    "before a line of the log": (Point("open", r"/build\.log\.jsonl$", "driver"), "shard"),
    "before the index's rename": (Point("os.rename", r"/train\.parquet$", "driver"), "once"),
    "before the manifest's rename": (Point("os.rename", r"/manifest\.json$", "driver"), "once"),
}
IN_EVERY_RUN = ("in planning", "before a shard's rename", "before a record's rename")


@pytest.mark.parametrize(
    "moment", [m if m in IN_EVERY_RUN else pytest.param(m, marks=pytest.mark.slow) for m in MOMENTS]
)
def test_kill_9_of_the_driver_at_a_random_moment(
    long_source: Path, undisturbed: Path, tmp_path: Path, row: Row, moment: str
) -> None:
    point, how_often = MOMENTS[moment]
    n_shards = len(list(undisturbed.glob("*.tar")))
    most = {"once": 1, "track": len(builds.TRACKS), "shard": n_shards}[how_often]
    nth = random.Random(moment).randint(1, most)
    with Pause(point) as pause:
        build = start(long_source, tmp_path, "--workers", 2, pause=pause)
        pause.wait(build.process, nth)
        build.process.kill()  # the driver alone: its workers may be at work when the next one starts
        build.process.wait()
    done = len(list((build.folder / ".state").glob("*.tar.json")))
    assert not (build.folder / "manifest.json").exists()
    assert_goes_on(long_source, tmp_path, undisturbed)
    build.end()
    row(f"kill -9 of the driver {moment} ({nth} of {most})",
        f"{done} of {n_shards} shards were done; continued, equal")  # fmt: skip


@pytest.mark.slow
def test_kill_9_of_a_worker(long_source: Path, undisturbed: Path, tmp_path: Path, row: Row) -> None:
    with Pause(A_TRACK_IS_READ) as pause:
        build = start(long_source, tmp_path, "--workers", 2, pause=pause)
        os.kill(pause.wait(build.process), signal.SIGKILL)
    code, printed = build.end()
    assert code == 0, printed
    assert len(build.events("death")) == 1
    assert digests(build.folder) == digests(undisturbed)
    row("kill -9 of a worker (loky)", "went on by itself, equal")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_track_that_always_kills_its_worker(
    long_source: Path, undisturbed: Path, tmp_path: Path, row: Row, workers: int
) -> None:
    build = start(long_source, tmp_path, "--workers", workers, action=KILL_AT_BAD)
    code, printed = build.end()
    assert code == 1, printed
    deaths = [entry["tracks"] for entry in build.events("death")]
    assert deaths.count([BAD]) == 2  # alone; before that, another worker may have died with it
    assert len(deaths) <= 1 + workers
    assert_as_if_listed(build, tmp_path, undisturbed, "worker")
    row(f"a track always kills its worker (loky, {workers})",
        f"{len(deaths)} deaths, quarantined alone, equal to listed")  # fmt: skip


@pytest.mark.slow
def test_workers_that_die_outside_any_track_end_the_build_in_one_line(
    long_source: Path, undisturbed: Path, tmp_path: Path, row: Row
) -> None:
    # A worker begins a shard before its first track.
    setup = (
        "sys.addaudithook(lambda event, arguments: event == 'open' and not IS_DRIVER and"
        " '.tar.tmp-' in str(arguments[0]) and os._exit(1))"
    )
    code, printed = run(long_source, tmp_path, "--workers", 2, setup=setup)
    assert code == 2
    assert "Error: workers crashed 3 times outside any track" in printed
    assert "Traceback" not in printed
    assert_goes_on(long_source, tmp_path, undisturbed)
    row("workers die before any track", "ended after 3 deaths with one line; continued, equal")


HANGS = {
    "in a system call": "os.read(os.pipe()[0], 1)",
    "with the GIL held": '__import__("re").match("(a+)+$", 64 * "a" + "b")',  # would take years
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HANGS)
def test_a_track_that_hangs(
    long_source: Path, undisturbed: Path, tmp_path: Path, row: Row, how: str
) -> None:
    build = start(
        long_source, tmp_path, "--workers", 2, *builds.one_second(tmp_path),
        action=f'track == "{BAD}" and {HANGS[how]}', setup=builds.ONLY_BAD_IS_TIMED,
    )  # fmt: skip
    code, printed = build.end()
    assert code == 1, printed
    dumps = [dump for entry in build.events("death") for dump in entry["dumps"]]
    assert len(dumps) == 1
    assert "_add_track" in dumps[0]
    assert_as_if_listed(build, tmp_path, undisturbed, "hang")
    row(f"a track hangs {how}", "stopped after track_timeout, quarantined, equal to listed")


# --- disks ---------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A tmpfs of that size; skips where mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up(
    long_source: Path, undisturbed: Path, tmp_path: Path, row: Row
) -> None:
    with small_disk(tmp_path / "disk", 64) as out:
        with Pause(A_SHARD_IS_BEGUN) as pause:
            build = start(long_source, out, "--workers", 2, pause=pause)
            pause.wait(build.process)
            ballast = out / "ballast"
            with ballast.open("wb") as file:  # leaves half of what a shard needs
                free = os.statvfs(out).f_bavail * os.statvfs(out).f_frsize
                os.posix_fallocate(file.fileno(), 0, free - largest_shard(undisturbed) // 2)
        code, printed = build.end()
        assert code == 2, printed
        assert "cannot be written (No space left on device)" in printed
        assert "Traceback" not in printed
        assert not list(out.rglob("*.tmp-*"))
        code, printed = run(long_source, out, "--workers", 2)
        assert code == 2
        assert "needed for shards" in printed  # says so before any work
        ballast.unlink()
        assert_goes_on(long_source, out, undisturbed)
        row("ENOSPC (tmpfs of 64 MB)", "one line, exit 2; refused while full; continued, equal")


def largest_shard(folder: Path) -> int:
    """Returns the bytes of the largest shard of a build."""
    return max(path.stat().st_size for path in folder.glob("*.tar"))


def test_files_that_may_not_grow(
    long_source: Path, undisturbed: Path, tmp_path: Path, row: Row
) -> None:
    limit = largest_shard(undisturbed) // 2
    code, printed = run(long_source, tmp_path, "--workers", 2, file_limit=limit)
    assert code == 2
    assert "cannot be written (File too large)" in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.rglob("*.tmp-*"))
    assert_goes_on(long_source, tmp_path, undisturbed)
    row("EFBIG (RLIMIT_FSIZE of half a shard)", "one line, exit 2; continued, equal")


def test_a_folder_that_cannot_be_written(long_source: Path, row: Row) -> None:
    # Whoever one is, nobody makes folders in /sys.
    code, printed = run(long_source, Path("/sys"), "--workers", 2)
    assert code == 2
    assert printed.startswith("Error: /sys/slakh")
    assert printed.count("\n") == 1
    row("output folder where nobody may write (/sys)", "one line, exit 2")


@pytest.mark.slow
def test_a_read_only_disk(long_source: Path, undisturbed: Path, tmp_path: Path, row: Row) -> None:
    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(tmp_path / "disk")], check=True)

    with small_disk(tmp_path / "disk", 64) as out:
        with Pause(A_SHARD_IS_WRITTEN) as pause:
            build = start(long_source, out, "--workers", 2, pause=pause)
            pause.wait(build.process, nth=2)  # half a build
            builds.end_group(build.process)
        build.end()
        remount("ro")
        code, printed = run(long_source, out, "--workers", 2)
        remount("rw")
        assert code == 2
        assert "Read-only file system" in printed
        assert printed.count("\n") == 1
        assert_goes_on(long_source, out, undisturbed)
        remount("ro")  # a finished build needs nothing written
        code, printed = run(long_source, out, "--workers", 2)
        assert code == 0, printed
        row("read-only output folder (tmpfs remounted)", "one line, exit 2; continued, equal")


# --- sources -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_truncated_flac(long_source: Path, undisturbed: Path, tmp_path: Path, row: Row) -> None:
    mix = copy_of(long_source, tmp_path / "root") / "mix.flac"
    whole = mix.read_bytes()
    mix.unlink()
    mix.write_bytes(whole[: 6 * len(whole) // 10])
    build = start(tmp_path / "root", tmp_path, "--workers", 2)
    code, printed = build.end()
    assert code == 1, printed
    assert f"quarantined {BAD} (audio): mix.flac: " in printed
    assert_as_if_listed(build, tmp_path, undisturbed, "audio")
    row("a truncated FLAC", "quarantined, equal to listed")


@pytest.mark.slow
def test_a_source_file_that_changes_during_the_build(
    long_source: Path, undisturbed: Path, tmp_path: Path, row: Row
) -> None:
    mix = copy_of(long_source, tmp_path / "root") / "mix.flac"
    whole = mix.read_bytes()
    mix.unlink()
    mix.write_bytes(whole)
    with Pause(A_TRACK_IS_READ) as pause:
        build = start(tmp_path / "root", tmp_path, "--workers", 2, pause=pause)
        pause.wait(build.process)
        with mix.open("ab") as file:
            file.write(b"x")
    code, printed = build.end()
    assert code == 1, printed
    assert f"quarantined {BAD} (source): mix.flac changed" in printed
    code, printed = run(build.root, build.out, "--workers", 2)
    assert code == 2  # the file has another size than in the build's fingerprint
    assert f"{BAD}/mix.flac: {len(whole)} bytes there, {len(whole) + 1} bytes here" in printed
    mix.write_bytes(whole)
    assert_as_if_listed(build, tmp_path, undisturbed, "source")
    row("a source file changes during the build", "quarantined, equal to listed")


# --- users ---------------------------------------------------------------------------------------


def test_two_builds_into_one_folder_at_once(
    long_source: Path, undisturbed: Path, tmp_path: Path, row: Row
) -> None:
    with Pause(A_SHARD_IS_WRITTEN) as pause:
        first = start(long_source, tmp_path, "--workers", 2, pause=pause)
        pause.wait(first.process)
        code, printed = run(long_source, tmp_path, "--workers", 2)
        assert first.process.poll() is None
    assert code == 2
    assert printed == (
        f"Error: {tmp_path}/slakh: another build is at work there; wait for it or stop it\n"
    )
    code, printed = first.end()
    assert code == 0, printed
    assert digests(first.folder) == digests(undisturbed)
    row("two builds into one folder at once", "the second is refused in one line; equal")


@pytest.mark.slow
def test_ctrl_c(long_source: Path, undisturbed: Path, tmp_path: Path, row: Row) -> None:
    with Pause(A_TRACK_IS_READ) as pause:
        build = start(long_source, tmp_path, "--workers", 2, pause=pause)
        pause.wait(build.process)
        assert (workers := build.workers())
        os.killpg(build.process.pid, signal.SIGINT)  # as a terminal does, to workers too
        code, printed = build.end()
    assert code == 130
    assert printed.splitlines()[-1].startswith("interrupted; the same command continues")
    assert "Traceback" not in printed
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not list(build.folder.rglob("*.tmp-*"))
    assert_goes_on(long_source, tmp_path, undisturbed)
    row("Ctrl-C (loky)", "one line, exit 130, no worker left; continued, equal")
