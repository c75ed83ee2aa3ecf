"""Connects the processes (ranks) that train together, on one machine or several.

A rank must never wait for another that has given up. So every `all_reduce` of numbers also adds up
two flags: a rank failed, and a rank received a signal. All ranks see the same sums at the same place,
raise the same error there, or stop after the same update. These numbers are reduced on the host
(gloo). Gradients are reduced by DistributedDataParallel.

Without RANK and WORLD_SIZE in the environment, which torchrun sets, there is one process, and
nothing here communicates.
"""

import os
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from mt3data import system
from mt3data.errors import UserError
from mt3data.terminal import is_path_error, one_line, path_error_message
from mt3train.config import Config
from mt3train.data.loader import MicroBatch, Prefetcher
from mt3train.device import choose_device
from mt3train.training.logger import SafeStderr

# Longer than a step, a checkpoint, a compilation or the transcription of a track takes. It need not
# be short: the closed connection of a process that crashed is noticed at once.
TIMEOUT = timedelta(minutes=30)
MAX_VALUES = 5  # numbers of an all-reduce; a fixed size, so that a rank that failed can join any


class Ranks:
    """This process among those that train together.

    Attributes:
        rank: number of this process; rank 0 writes files and messages.
        world_size: number of processes.
        device: what this process computes on.
        signals: the signals that this process received.
        stop: whether any rank had received a signal at the last `all_reduce`.
        interrupted: whether one of these signals was SIGINT (Ctrl-C).
    """

    def __init__(self, rank: int = 0, world_size: int = 1, device: str | torch.device = "cpu"):
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self.signals: list[int] = []
        self._last_batch = time.monotonic()
        self.stop = self.interrupted = self._has_failed = False

    def all_reduce(self, *values: float) -> list[float]:
        """Sums up to five values over all ranks and updates `stop`.

        Raises:
            UserError: another rank failed; its message.
        """
        n_failed, sums = self._all_reduce(False, values)
        if n_failed:
            raise UserError(self._first_failure(None))
        return sums

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all ranks, in their order. No rank may fail just before."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def require_same(self, value: Any, what: str) -> None:
        """Checks that a value is the same on all ranks.

        Raises:
            UserError: the values differ; or another rank failed before, with its message.
        """
        self.all_reduce()
        if len(set(self.gather(value))) > 1:
            raise UserError(f"not all processes find the same {what}")

    def next_batch(
        self, batches: Prefetcher
    ) -> tuple[list[MicroBatch], float, float, float, float]:
        """Waits until all ranks have read their part of a batch, or until one received a signal.

        Returns:
            This rank's micro-batches, the target tokens and skipped segments of all ranks, the
            seconds that it took, and the seconds since the last batch, averaged over all ranks.
        """
        begin, batch = time.monotonic(), list[MicroBatch]()
        while True:
            batch = batch or batches.get(timeout=1.0) or []
            now = time.monotonic()
            n_ready, n_tokens, n_skipped, seconds = self.all_reduce(
                bool(batch), sum(m.n_tokens for m in batch), sum(m.n_skipped for m in batch),
                now - self._last_batch,
            )  # fmt: skip
            if self.stop or n_ready == self.world_size:
                self._last_batch = now
                return batch, n_tokens, n_skipped, now - begin, seconds / self.world_size

    def raise_with_records(self, what: str, keys: list[str]) -> NoReturn:
        """Raises UserError on every rank: `what` was seen, in the records with the keys of all."""
        named = [key for share in self.gather(keys) for key in share]
        more = f" and {len(named) - 16} more" if len(named) > 16 else ""
        raise UserError(f"{what}, nothing was updated; records: {', '.join(named[:16])}{more}")

    def announce(self, error: Exception) -> None:
        """Makes the next `all_reduce` of the other ranks raise an error of this rank."""
        if self.world_size > 1 and not self._has_failed:
            with suppress(RuntimeError):  # the others may have crashed
                self._all_reduce(True, ())
                self._first_failure(_user_message(error) or one_line(repr(error)))

    def _all_reduce(self, failed: bool, values: tuple[float, ...]) -> tuple[float, list[float]]:
        flags = float(failed), len(self.signals), self.signals.count(signal.SIGINT)
        padding = [0.0] * (MAX_VALUES - len(values))
        total = torch.tensor([*flags, *values, *padding], dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(total)
        n_failed, n_signals, n_interrupts, *sums = total.tolist()
        self.stop, self.interrupted = n_signals > 0, n_interrupts > 0
        return n_failed, sums[: len(values)]

    def _first_failure(self, message: str | None) -> str:
        self._has_failed = True
        messages = self.gather(message)
        rank = next(rank for rank, text in enumerate(messages) if text is not None)
        return f"{messages[rank]} (process {rank} of {self.world_size})"


@contextmanager
def connected(config: Config) -> Iterator[Ranks]:
    """Connects the ranks, sets torch up, and records signals until the body ends.

    A UserError or OSError of the body is raised on all ranks. Other errors are bugs: the process
    ends, and the others notice its closed connection.

    The body must let go of DistributedDataParallel: its destructor waits for gloo's threads.

    Raises:
        UserError: an environment that torchrun does not make, more processes than segments of a
            batch or than GPUs, or a process that did not start.
    """
    rank, world_size, local_rank = _ranks_in_environment()
    if config.batch < world_size:
        raise UserError(
            f"batch={config.batch} for {world_size} processes; expected at least one each"
        )
    ranks = Ranks(rank, world_size, _device(config.device, local_rank))
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if ranks.device.type == "cuda" else "gloo"
        store = _unused_store(rank, world_size)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    previous = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        for number in system.STOP_SIGNALS:
            is_hang_up = number == getattr(signal, "SIGHUP", None)
            if is_hang_up and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started by nohup
            previous[number] = signal.signal(number, lambda n, _frame: ranks.signals.append(n))
    try:
        yield ranks
        if world_size > 1:
            ranks.all_reduce()  # waits for all
            dist.destroy_process_group()
    except (UserError, OSError) as error:
        ranks.announce(error)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def print_error(error: Exception) -> int:
    """Prints one line about a user's mistake, or the traceback of a bug. Returns the exit code.

    All ranks raise the same mistake, so only the first rank of a machine prints it.
    """
    message = _user_message(error)
    stderr = SafeStderr()
    if message is None:
        traceback.print_exception(error, file=stderr)
        return 1
    is_other_rank = False
    with suppress(ValueError):
        local_rank, n = (int(os.environ.get(f"LOCAL_{name}", 0)) for name in ("RANK", "WORLD_SIZE"))
        is_other_rank = 0 < local_rank < n
    if not is_other_rank:
        print(f"Error: {message}", file=stderr)
    return 2


def _user_message(error: Exception) -> str | None:
    if isinstance(error, UserError):
        return one_line(str(error))
    if isinstance(error, OSError) and is_path_error(error):
        return path_error_message(error)
    return None


def _ranks_in_environment() -> tuple[int, int, int]:
    """Returns RANK, WORLD_SIZE and LOCAL_RANK."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    given = {name: os.environ[name] for name in names if name in os.environ}
    try:
        rank, world_size = int(given.get("RANK", 0)), int(given.get("WORLD_SIZE", 1))
        local_rank, n_local = int(given.get("LOCAL_RANK", 0)), int(given.get("LOCAL_WORLD_SIZE", 1))
        is_valid = 0 <= rank < world_size and local_rank >= 0 and n_local >= 1
    except ValueError:
        is_valid = False
    if not is_valid or (
        world_size > 1 and not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(given)
    ):
        seen = " ".join(f"{name}={one_line(value)}" for name, value in given.items())
        raise UserError(
            f"the environment has {seen}; expected RANK from 0 to WORLD_SIZE - 1, LOCAL_RANK,"
            " MASTER_ADDR and MASTER_PORT, as torchrun sets them; unset them to train in one process"
        )
    return rank, world_size, local_rank


def _device(wanted: str, local_rank: int) -> torch.device:
    """Returns what this process computes on: with CUDA a GPU of its own."""
    device = choose_device(wanted)
    n_processes = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
    if device.type == "mps" and n_processes > 1:
        raise UserError(f"{n_processes} processes with device='mps'; train in one process")
    if device.type != "cuda":
        return device
    n_devices = torch.cuda.device_count()
    if n_processes > n_devices:  # raised by all of them, also by the one that prints it
        raise UserError(
            f"{n_processes} processes on this machine find {n_devices} GPUs; start one process per"
            f" GPU: torchrun --nproc_per_node={n_devices}"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _unused_store(rank: int, world_size: int) -> dist.Store:
    """Returns a key-value store, shared by all ranks, under a prefix that was never used before.

    When torchrun restarts processes, its store may still hold the addresses of the old ones (torch
    2.13; pytorch issue 135712), and each machine counts restarts on its own. So rank 0 draws a
    random prefix. Every other rank asks for it under a random key of its own, and confirms it under
    the prefix. Rank 0 waits until all have confirmed. Keys of earlier processes cannot match.
    """
    try:
        store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    except (ValueError, RuntimeError) as error:
        place = f"{os.environ['MASTER_ADDR']} port {os.environ['MASTER_PORT']}"
        raise UserError(
            f"rank {rank} of {world_size} cannot meet the others at {place} ({one_line(str(error))});"
            " check MASTER_ADDR and MASTER_PORT"
        ) from error
    if rank:
        question = uuid.uuid4().hex
        store.set(f"mt3train/question/{rank}", question)
        prefix = store.get(f"mt3train/answer/{question}").decode()
        store.set(f"mt3train/{prefix}/{rank}", "confirmed")
        return dist.PrefixStore(prefix, store)
    prefix, waiting = uuid.uuid4().hex, set(range(1, world_size))
    end = time.monotonic() + TIMEOUT.total_seconds()
    while waiting:
        for other in tuple(waiting):
            if store.check([f"mt3train/{prefix}/{other}"]):
                waiting.remove(other)
            elif store.check([f"mt3train/question/{other}"]):
                question = store.get(f"mt3train/question/{other}").decode()
                store.set(f"mt3train/answer/{question}", prefix)
        if time.monotonic() > end:
            raise UserError(
                f"processes {sorted(waiting)} of {world_size} did not start; start all of them"
            )
        time.sleep(0.01)
    return dist.PrefixStore(prefix, store)
