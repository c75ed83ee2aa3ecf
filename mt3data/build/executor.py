"""Runs tasks in processes on this machine, or on the workers of a dask cluster.

Both yield results as they come. Neither retries a task whose worker crashed: run.py does. Locally,
loky stops all workers when one crashes. On a cluster the scheduler gives the task to another worker,
and gives up at the fourth crash.

Of joblib only its process pool, loky, is used. joblib's dask backend waits for ever for a task that
keeps crashing its workers, and joblib runs a single worker inside this process, which a bad track
would crash.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import contextmanager
from itertools import islice
from typing import Any

from mt3data import system
from mt3data.errors import UserError, require_package

LOCAL = "local"
ADDRESS = re.compile(r"((tcp|tls|ucx|wss?)://)?[^/\s]+:[0-9]+/?")
IDLE_SECONDS = 300  # after which a local worker ends; the next build in this process may use it
CONNECT_SECONDS = 10
WORKERLESS_SECONDS = 600.0  # a cluster's queue may be slow, but a driver should not wait for ever
POLL_SECONDS = 5.0

Task = Callable[..., Any]
OnMessage = Callable[[str], None]


class WorkerCrashed(Exception):
    """Workers crashed without a result; their tasks must be done again."""


def require_engine(engine: str) -> None:
    """Raises a UserError for an engine that is neither "local" nor the address of a scheduler.

    dask would take 20 s to refuse it, and print a traceback.
    """
    if engine != LOCAL and not ADDRESS.fullmatch(engine):
        raise UserError(
            f"--engine {engine}: expected local, or the address of a dask scheduler such as "
            "tcp://host:8786"
        )


def run(
    engine: str, workers: int, task: Task, jobs: Sequence[tuple[Any, ...]], on_message: OnMessage
) -> Generator[Any, None, None]:
    """Calls `task(*job)` for each job on other processes; yields results in the order of their end.

    Args:
        engine: "local", or the address of a dask scheduler.
        workers: processes, where local.
        task, jobs: a picklable function, and its arguments for each call.
        on_message: called with one line that the user should know, such as waiting for workers.
    Raises:
        WorkerCrashed: some results are lost. All local workers have ended.
        UserError: a cluster that cannot be used.
        Whatever the task raises. Other tasks are then cancelled, and local workers stopped.
    """
    require_engine(engine)
    if engine == LOCAL:
        most = max(4, 2 * (os.cpu_count() or 1))
        if workers > most:
            on_message(
                f"--workers {workers}: this machine has {os.cpu_count()} cores; using {most}"
            )
        yield from _run_here(min(workers, most), task, jobs)
    else:
        yield from _run_on_cluster(engine, task, jobs, on_message)


def _run_here(
    workers: int, task: Task, jobs: Sequence[tuple[Any, ...]]
) -> Generator[Any, None, None]:
    # joblib keeps one pool per process; this call shares it with joblib.Parallel.
    from joblib.executor import get_memmapping_executor

    workers = min(workers, len(jobs))
    pool = get_memmapping_executor(
        workers, timeout=IDLE_SECONDS, initializer=prepare_worker, initargs=(os.getpid(),)
    )
    left, waiting = iter(jobs), set[Future[Any]]()
    try:
        while True:
            # No more at a time: loky fails at its end if it has jobs that it did not queue yet.
            room = 2 * workers - len(waiting)
            with system.interrupts_delayed():
                waiting |= {pool.submit(task, *job) for job in islice(left, room)}
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenExecutor as error:
        pool.shutdown(wait=True, kill_workers=True)
        raise WorkerCrashed(" ".join(str(error).split())) from error
    except BaseException:
        pool.shutdown(wait=True, kill_workers=True)
        raise


def prepare_worker(driver: int) -> None:
    """Makes this worker ignore Ctrl-C, which its driver handles, and end soon after its driver.

    After kill -9 of the driver, loky's workers would wait for more work for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes

    def follow() -> None:
        system.wait_for_parent(driver)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _run_on_cluster(
    address: str, task: Task, jobs: Sequence[tuple[Any, ...]], on_message: OnMessage
) -> Generator[Any, None, None]:
    with _client(address) as client:
        pool = client.get_executor(pure=False)
        try:
            waiting: set[Future[Any]] = {pool.submit(task, *job) for job in jobs}
            threads = max(client.nthreads().values(), default=1)
            if threads > 1:
                on_message(
                    f"workers of {address} have up to {threads} threads, and a build uses one of each; "
                    f"`dask worker {address} --nthreads 1 --nworkers {threads}` uses all"
                )
            lost = yield from _results(client, address, waiting, on_message)
        except CancelledError as error:
            raise UserError(
                f"{address}: the scheduler is gone; repeat the command when it is back: it goes on "
                "from here"
            ) from error
        except ModuleNotFoundError as error:
            raise UserError(
                f"a worker of {address} cannot import {error.name}; install mt3kit with its "
                "dependencies on every worker, in the versions of this machine"
            ) from error
        finally:
            pool.shutdown(wait=False)
    if lost:
        raise WorkerCrashed(f"{lost} shards lost four workers each")


def _results(
    client: Any, address: str, waiting: set[Future[Any]], on_message: OnMessage
) -> Generator[Any, None, int]:
    """Yields results as they come; returns how many are lost. Raises where no worker is left."""
    from distributed import KilledWorker

    lost, idle_since = 0, 0.0
    while waiting:
        done, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
        if done or _has_workers(client, address):
            idle_since = 0.0
        elif not idle_since:
            idle_since = time.monotonic()
            on_message(f"{address} has no worker now; waiting for `dask worker {address}`")
        elif time.monotonic() - idle_since > WORKERLESS_SECONDS:
            raise UserError(
                f"{address}: no worker for {WORKERLESS_SECONDS:g} s; start some with `dask worker "
                f"{address}` and repeat the command: it goes on from here"
            )
        for future in done:
            try:
                yield future.result()
            except KilledWorker:
                lost += 1
    return lost


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """Connects to a scheduler; a lost connection gives one line in place of dask's log."""
    require_package("distributed", "dask", f"--engine {address}")
    from distributed import Client

    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--engine {address}: no dask scheduler answers there ({' '.join(str(error).split())}); "
            "expected local or an address such as tcp://host:8786"
        ) from error
    try:
        yield client
    finally:
        client.close(timeout=CONNECT_SECONDS)


def _has_workers(client: Any, address: str) -> bool:
    try:
        return bool(client.nthreads())
    except (OSError, TimeoutError) as error:
        raise UserError(
            f"{address}: the scheduler does not answer any more; repeat the command when it does: it "
            "goes on from here"
        ) from error
