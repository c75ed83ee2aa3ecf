"""Builds on a dask cluster: the same bytes, whatever happens to its workers and its scheduler."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import needs
import pytest
from builds import (
    BAD,
    KILL_AT_BAD,
    ONLY_BAD_IS_TIMED,
    Row,
    assert_as_if_listed,
    assert_goes_on,
    cluster,
    digests,
    end_group,
    one_second,
    run,
    start,
)
from events import Pause, Point, wait_until

from mt3data.build.crash_guard import Run, environment
from mt3data.build.executor import require_engine
from mt3data.build.executor import run as run_tasks
from mt3data.errors import UserError

pytestmark = needs.proc

A_TRACK_IS_BEGUN = Point("open", r"/S00\.mid$", "worker")
A_SHARD_IS_WRITTEN = Point("os.rename", r"\.tar$", "worker")

pytest.importorskip("distributed", reason="needs the extra [dask]")


def test_kill_9_of_one_of_two_dask_workers(
    long_source: Path, undisturbed: Path, tmp_path: Path, row: Row
) -> None:
    with (
        Pause(A_TRACK_IS_BEGUN) as pause,
        cluster(tmp_path / "dask", "--no-nanny", pause=pause) as dask,
    ):
        build = start(long_source, tmp_path, "--engine", dask.address)
        os.kill(pause.wait(build.process), signal.SIGKILL)
        pause.release()
        code, printed = build.end()
    assert code == 0, printed
    assert digests(build.folder) == digests(undisturbed)
    row("kill -9 of a worker (dask, 2 processes)", "the other one went on, equal")


@pytest.mark.slow
def test_one_worker_two_workers_and_two_dask_workers_write_the_same_bytes(
    long_source: Path, undisturbed: Path, tmp_path: Path, row: Row
) -> None:
    code, printed = run(long_source, tmp_path / "one", "--workers", 1)
    assert code == 0, printed
    with (
        Pause(A_TRACK_IS_BEGUN) as pause,
        cluster(tmp_path / "dask", "--nanny", pause=pause) as dask,
    ):
        build = start(long_source, tmp_path / "dask", "--engine", dask.address)
        workers = [pause.wait(build.process) for _ in range(2)]  # both are at work
        pause.release()
        code, printed = build.end()
    assert code == 0, printed
    assert {entry["pid"] for entry in build.events("shard")} == set(workers)
    assert digests(tmp_path / "one" / "slakh") == digests(undisturbed)
    assert digests(build.folder) == digests(undisturbed)
    row("none: 1 worker, 2 workers, 2 dask workers", "equal")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--nanny", "--no-nanny"])
def test_a_track_that_always_kills_its_dask_worker(
    long_source: Path, undisturbed: Path, tmp_path: Path, row: Row, how: str
) -> None:
    with cluster(tmp_path / "dask", how, action=KILL_AT_BAD) as dask:
        build = start(long_source, tmp_path, "--engine", dask.address)
        if how == "--no-nanny":  # both die, and no nanny begins new ones
            wait_until(lambda: not dask.living(), build.process)
            dask.add_worker(how)
        code, printed = build.end()
    assert code == 1, printed
    assert_as_if_listed(build, tmp_path, undisturbed, "worker")
    row(f"a track always kills its worker (dask, {how})", "quarantined, equal to listed")


@pytest.mark.slow
def test_a_track_that_hangs_on_a_cluster(
    long_source: Path, undisturbed: Path, tmp_path: Path, row: Row
) -> None:
    hang = f'track == "{BAD}" and os.read(os.pipe()[0], 1)'
    with cluster(tmp_path / "dask", "--nanny", action=hang, setup=ONLY_BAD_IS_TIMED) as dask:
        build = start(long_source, tmp_path, "--engine", dask.address, *one_second(tmp_path))
        code, printed = build.end()
    assert code == 1, printed
    assert_as_if_listed(build, tmp_path, undisturbed, "hang")
    row("a track hangs (dask)", "stopped after track_timeout, quarantined, equal to listed")


@pytest.mark.slow
@pytest.mark.parametrize("who", ["driver", "scheduler"])
def test_kill_9_of_driver_or_scheduler_of_a_cluster(
    long_source: Path, undisturbed: Path, tmp_path: Path, row: Row, who: str
) -> None:
    with (
        Pause(A_SHARD_IS_WRITTEN) as pause,
        cluster(tmp_path / "dask", "--nanny", pause=pause) as dask,
    ):
        build = start(long_source, tmp_path, "--engine", dask.address)
        pause.wait(build.process, nth=2)
        if who == "driver":
            build.process.kill()
            build.end()
            pause.release()
            outcome = "continued on the same cluster, equal"
            assert_goes_on(long_source, tmp_path, undisturbed, "--engine", dask.address)
        else:
            end_group(dask.processes[0])
            pause.release()
            code, printed = build.end()
            assert code == 2
            assert "the scheduler is gone" in printed or "does not answer" in printed
            assert "Traceback" not in printed
            outcome = "one line, exit 2; continued with local workers, equal"
            assert_goes_on(long_source, tmp_path, undisturbed)
    row(f"kill -9 of the {who} (dask)", outcome)


@pytest.mark.slow
def test_ctrl_c_on_a_cluster(
    long_source: Path, undisturbed: Path, tmp_path: Path, row: Row
) -> None:
    with (
        Pause(A_SHARD_IS_WRITTEN) as pause,
        cluster(tmp_path / "dask", "--nanny", pause=pause) as dask,
    ):
        build = start(long_source, tmp_path, "--engine", dask.address)
        pause.wait(build.process, nth=2)
        os.killpg(build.process.pid, signal.SIGINT)
        code, printed = build.end()
        assert code == 130
        assert "Traceback" not in printed
        pause.release()
        wait_until(lambda: not dask.workers_at_work())  # each stops at its next track at the latest
        assert_goes_on(long_source, tmp_path, undisturbed, "--engine", dask.address)
    row("Ctrl-C (dask)", "one line, exit 130, workers idle; continued, equal")


# --- mistakes ------------------------------------------------------------------------------------


def results(engine: str, report: Callable[[str], None] = print) -> list[object]:
    return list(run_tasks(engine, 1, pow, [(2, 3)], report))


def test_without_dask_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"--engine tcp://.* needs distributed.*'\.\[dask\]'"):
        results("tcp://127.0.0.1:8786")


def test_an_address_where_no_scheduler_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mt3data.build.executor.CONNECT_SECONDS", 0.3)
    with pytest.raises(
        UserError, match="--engine tcp://127.0.0.1:1: no dask scheduler answers there"
    ):
        results("tcp://127.0.0.1:1")


@pytest.mark.parametrize("engine", ["spark", "127.0.0.1", "", "tcp://", "http://host:80", "a b:1"])
def test_what_is_no_address_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)  # is not asked
    with pytest.raises(UserError, match=f"--engine {engine}: expected local, or the address"):
        results(engine)


@pytest.mark.parametrize("engine", ["local", "tcp://host:8786", "host:8786", "tls://[::1]:8786/"])
def test_what_may_be_an_address_is_accepted(engine: str) -> None:
    require_engine(engine)


def test_a_cluster_without_workers_is_waited_for_and_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mt3data.build.executor.POLL_SECONDS", 0.1)
    monkeypatch.setattr("mt3data.build.executor.WORKERLESS_SECONDS", 0.5)
    told: list[str] = []
    with (
        cluster(tmp_path, workers=0) as dask,
        pytest.raises(UserError, match=r"no worker for 0\.5 s; start some with `dask worker tcp:"),
    ):
        results(dask.address, told.append)
    assert len(told) == 1
    assert "has no worker now; waiting for `dask worker tcp:" in told[0]


@pytest.fixture
def here(tmp_path: Path) -> Run:
    (tmp_path / "root" / "track").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run", tmp_path / "root", 0.0, environment())


def test_a_worker_that_sees_the_same_is_accepted(here: Run) -> None:
    here.require_same_place()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"folder": Path("/nowhere/run")},
            "no folder /nowhere/run; every worker must see the folder",
        ),
        ({"root": Path("/nowhere/data")}, "nothing in /nowhere/data; every worker must see --root"),
        (
            {"environment": environment() | {"numpy": "1.0"}},
            r"has numpy .*, this machine 1\.0; bytes",
        ),
    ],
)
def test_a_worker_that_sees_something_else_says_so(
    here: Run, change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(UserError, match=f"worker on .*{complaint}"):
        replace(here, **change).require_same_place()  # type: ignore[arg-type]


def test_workers_with_several_threads_are_told_of(tmp_path: Path) -> None:
    told: list[str] = []
    with cluster(tmp_path, "--nthreads", "3", "--no-nanny", workers=1) as dask:
        assert results(dask.address) == [8]  # the worker has come
        assert results(dask.address, told.append) == [8]
        assert told == [
            f"workers of {dask.address} have up to 3 threads, and a build uses one of each; `dask "
            f"worker {dask.address} --nthreads 1 --nworkers 3` uses all"
        ]
