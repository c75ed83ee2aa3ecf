"""The processes that train together: how they start, add up, agree, and end.

No rank may wait for another that has given up. So whatever all must do alike is decided by numbers
summed over all of them: that a signal stops the run, that one of them failed, that all have their
batch. These sums are of few numbers and on the host (gloo); gradients are DDP's affair.

Without RANK and WORLD_SIZE in the environment (torchrun sets them) there is one process, and
nothing here communicates.
"""

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from mt3data.errors import UserError
from mt3data.terminal import is_path_error, path_error_message
from mt3train.training.device import own_device

# A rank waits for the others no longer than a step, a checkpoint, a compilation or a batch being
# decoded takes. It need not be short: a process that died is noticed by its closed connection.
PATIENCE = timedelta(minutes=30)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # clusters announce an end with these


class Stopped(Exception):
    """A signal to one of the ranks ends the run: every rank raises it, at the same place."""


@dataclass
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: 0 writes files and speaks.
        world_size: number of processes.
        device: what this one computes on.
        caught: signals that it got.
        interrupted: whether the run was stopped by SIGINT (Ctrl-C), to any rank.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    caught: list[int] = field(default_factory=list)
    interrupted: bool = False
    _ended: bool = False

    def sum(self, *values: float) -> list[float]:
        """The values summed over all ranks, on the host."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in their order."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def meet(self, *values: float, error: Exception | None = None) -> list[float]:
        """The values summed over all ranks, if none of them failed and no signal came.

        Args:
            error: what this rank failed with.
        Raises:
            Stopped: a signal came, to whichever rank.
            Exception: `error` itself; on the other ranks a UserError that tells it.
        """
        flags = error is not None, len(self.caught), self.caught.count(signal.SIGINT)
        n_failed, n_signals, n_interrupts, *sums = self.sum(*flags, *values)
        if n_failed:
            self._fail(error)
        if n_signals:
            self._ended, self.interrupted = True, n_interrupts > 0
            raise Stopped
        return sums

    def pace(self) -> None:
        """Meet the others after a piece of work, with more to come; see `sharing`."""
        self.meet(1.0)

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Each rank does its share in the body and calls pace() after every piece of it.

        So none waits long for another, though their shares differ, and a signal is soon heard. A
        rank that is through with its own meets the others until they are, too.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as failure:
            if self._ended:  # raised by meet, on all ranks
                raise
            error = failure
        while self.meet(0.0, error=error)[0]:
            pass

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails in the body on one rank is raised on all; a full disk is a UserError."""
        error: Exception | None = None
        try:
            yield
        except UserError as mistake:
            error = mistake
        except OSError as refused:
            error = UserError(path_error_message(refused)) if is_path_error(refused) else refused
        if self.sum(error is not None)[0]:
            self._fail(error)

    def _fail(self, error: Exception | None) -> NoReturn:
        self._ended = True
        texts = self.gather(None if error is None else _told(error))
        first = next(rank for rank, text in enumerate(texts) if text is not None)
        if error is not None and (not isinstance(error, UserError) or texts[0] == _told(error)):
            raise error
        raise UserError(f"{texts[first]} (process {first} of {self.world_size})") from error


@contextmanager
def connected() -> Iterator[Ranks]:
    """The ranks of this run, with SIGINT, SIGTERM and SIGUSR1 caught until the body ends.

    Whoever uses DDP lets go of it inside the body: gloo's threads need the interpreter to drop
    tensors, and its destructor waits for them while holding it.

    Raises:
        UserError: more processes than GPUs, or some that did not come.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    ranks = Ranks(rank, world_size, own_device())
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if ranks.device.type == "cuda" else "gloo"
        store = _unused_store(rank, world_size)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=PATIENCE
        )
    previous = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        for number in SIGNALS:
            previous[number] = signal.signal(number, lambda n, _frame: ranks.caught.append(n))
    try:
        yield ranks
        if world_size > 1:
            dist.barrier()
            dist.destroy_process_group()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _unused_store(rank: int, world_size: int) -> dist.Store:
    """Keys for meeting that no process used before.

    When torchrun restarts processes, its store may still hold the addresses of those that died (so
    in torch 2.13; pytorch issue 135712), and every machine counts restarts for itself. So rank 0
    draws a name, tells it to each process under a key that this process drew itself, and waits
    until each has thanked for this very name: what is left from before is never heard.
    """
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    if rank:
        question = uuid.uuid4().hex
        store.set(f"mt3train/question/{rank}", question)
        name = store.get(f"mt3train/answer/{question}").decode()
        store.set(f"mt3train/{name}/{rank}", "thanks")
        return dist.PrefixStore(name, store)
    name, waiting = uuid.uuid4().hex, set(range(1, world_size))
    end = time.monotonic() + PATIENCE.total_seconds()
    while waiting:
        for other in tuple(waiting):
            if store.check([f"mt3train/{name}/{other}"]):
                waiting.remove(other)
            elif store.check([f"mt3train/question/{other}"]):
                question = store.get(f"mt3train/question/{other}").decode()
                store.set(f"mt3train/answer/{question}", name)
        if time.monotonic() > end:
            raise UserError(
                f"processes {sorted(waiting)} of {world_size} did not come; start them all"
            )
        time.sleep(0.01)
    return dist.PrefixStore(name, store)


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
