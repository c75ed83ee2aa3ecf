"""Logs a training run: config.json and metrics.jsonl in its folder, text and a progress bar on stderr.

A line of metrics.jsonl is one JSON object. Every log_every steps: step (updates done), loss and
accuracy per target token over the steps since the last line (accuracy with the true tokens before
as input), lr, gradient_norm of the last step, tokens, skipped (segments with too long targets),
overflows (updates that fp16 left out), segments_per_second, data_wait (share of the time in which
this process waited for its next batch), memory_gb (largest so far: of the GPU, or of the process;
null on Windows without a GPU), seconds. Every eval_every and transcribe_every steps: step, and eval_loss, eval_accuracy or the F1 scores.

TensorBoard, where it is installed, gets the same numbers in the folder tensorboard/. With log.wandb=true,
Weights & Biases gets them too. A resumed run continues the same run there. Its id is in wandb-id.
"""

import dataclasses
import io
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mt3data import system
from mt3data.errors import printable
from mt3data.files import format_bytes, write_atomically
from mt3train.config import Config
from mt3train.data.builds import TrainingData


class SafeStderr(io.TextIOBase):
    """Writes text to stderr, and drops it where stderr is closed, a broken pipe or a lost terminal.

    Training must never stop because nobody reads its progress.
    """

    def __init__(self) -> None:
        if sys.stderr is None:  # it was closed; another file must not get its descriptor
            sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        self._stream = sys.stderr

    def write(self, text: str) -> int:
        """Writes a text. Returns its length."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()
        return len(text)

    def fileno(self) -> int:
        """Returns the file descriptor, which tqdm asks for the width of the terminal."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Returns whether stderr is a terminal."""
        with suppress(OSError, ValueError):
            return self._stream.isatty()
        return False


class Log:
    """Writes metrics.jsonl, messages and a progress bar. Only rank 0 writes.

    Lines of steps after the one that the run resumes from are removed: these steps run again.

    Args:
        config: of the run.
        done: updates done so far.
        device: whose memory is measured.
        is_writer: whether this is rank 0.
    """

    def __init__(self, config: Config, done: int, device: torch.device, is_writer: bool) -> None:
        self.config, self.device, self.is_writer = config, device, is_writer
        self.begin = self.logged_at = time.monotonic()
        self.logged, self.waited = done, 0.0
        self.bar = tqdm(
            total=max(config.steps, done), initial=done, unit="step", dynamic_ncols=True,
            disable=None if is_writer else True,  # None: where stderr is no terminal
        )  # fmt: skip
        if not is_writer:
            return
        run = Path(config.run)
        settings = json.dumps(dataclasses.asdict(config), indent=1) + "\n"
        write_atomically(run / "config.json", settings.encode())
        self.path = run / "metrics.jsonl"
        kept = [json.dumps(line) + "\n" for line in read_metrics(self.path) if line["step"] <= done]
        write_atomically(self.path, "".join(kept).encode())
        self.board = _tensorboard(run / "tensorboard", done)
        self.wandb = _wandb(config) if config.log.wandb else None

    def start(
        self, data: TrainingData, validation: TrainingData | None, n_parameters: int,
        precision: str, world_size: int, messages: list[str],
    ) -> None:  # fmt: skip
        """Prints what is trained, on what, and which steps, and then the messages."""
        steps = f"{self.logged} to {max(self.logged, self.config.steps)}"
        names = ", ".join(build.name for build in data.builds) or "memory"
        self.say(
            f"{self.config.run}: {n_parameters:,} parameters in {precision} on {world_size} x"
            f" {self.device.type}, steps {steps} of {self.config.batch} segments from"
            f" {data.n_records} records of {names}"
        )
        for message in messages:
            self.say(message)
        if validation is None and (self.config.eval_every or self.config.transcribe_every):
            self.say(f"no build has tracks in split {self.config.data.eval_split!r} to evaluate")
        if self.logged >= self.config.steps:
            self.say(f"the run already has {self.logged} steps; steps=N asks for more")

    def say(self, text: str) -> None:
        """Prints a line on stderr."""
        if self.is_writer:
            tqdm.write(printable(text), file=sys.stderr)

    def step(self, loss: float, accuracy: float, waited: float) -> None:
        """Moves the bar on by one update.

        Args:
            loss, accuracy: per token of the batch.
            waited: seconds that this process waited for the batch.
        """
        self.waited += waited
        self.bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.3f}", refresh=False)
        self.bar.update()

    def write(self, done: int, sums: dict[str, float], lr: float, norm: float) -> None:
        """Writes a line about the steps since the last one.

        Args:
            done: updates so far.
            sums: over these steps and all ranks, of loss, correct, tokens, skipped and overflows.
            lr, norm: learning rate and norm of the gradient at the last step.
        """
        now, memory = time.monotonic(), self._memory()
        seconds, tokens = now - self.logged_at, max(1.0, sums["tokens"])
        line: dict[str, float | None] = {
            "loss": sums["loss"] / tokens, "accuracy": sums["correct"] / tokens, "lr": lr,
            "gradient_norm": norm, "tokens": int(sums["tokens"]), "skipped": int(sums["skipped"]),
            "overflows": int(sums["overflows"]),
            "segments_per_second": round((done - self.logged) * self.config.batch / seconds, 2),
            "data_wait": round(self.waited / seconds, 4),
            "memory_gb": None if memory is None else round(memory, 3),
            "seconds": round(now - self.begin, 1),
        }  # fmt: skip
        minutes = (self.config.steps - done) * seconds / (done - self.logged) / 60
        left = f"  {f'{minutes / 60:.1f} h' if minutes > 90 else f'{minutes:.0f} min'} left"
        steps = f"{done}/{self.config.steps}"
        if self.config.hours:  # they end the run, not its steps
            steps, left = f"{done}", ""
        self._line(done, line)
        self.say(
            f"step {steps}  loss {line['loss']:.4f}  accuracy {line['accuracy']:.3f}"
            f"  lr {lr:.2e}  gradient {norm:.3g}  {line['segments_per_second']:.1f} segments/s"
            f"  data wait {line['data_wait']:.0%}{'' if memory is None else f'  {memory:.1f} GB'}{left}"
        )
        self.logged, self.logged_at, self.waited = done, now, 0.0

    def write_evaluation(self, done: int, scores: dict[str, float]) -> None:
        """Writes a line about the scores of an evaluation after so many updates."""
        self._line(done, scores)
        self.say(f"step {done}  " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))

    def close(self, outcome: str, checkpoint: Path, traffic: Sequence[float]) -> None:
        """Closes the bar and TensorBoard's file. Prints how the run ended, and its checkpoint.

        Args:
            outcome: how it ended.
            checkpoint: the newest.
            traffic: shards fetched, their bytes, and shards removed, by all ranks together.
        """
        self.bar.close()
        fetched, n_bytes, evicted = traffic
        if fetched:
            self.say(
                f"{self.config.data.cache or self.config.data.train}: fetched {fetched:,.0f} shards, {format_bytes(n_bytes)};"
                f" removed {evicted:,.0f}"
            )
        self.say(f"{checkpoint}: {outcome}")
        if self.is_writer and self.board:
            self.board.close()
        if self.is_writer and self.wandb:
            self.wandb.finish()

    def _memory(self) -> float | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return system.peak_memory_gb()

    def _line(self, step: int, values: Mapping[str, float | None]) -> None:
        if not self.is_writer:
            return
        # JSON has no infinity: the norm of an update that fp16 left out is null.
        finite = {
            key: value if math.isfinite(value or 0) else None for key, value in values.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        finite = {name: value for name, value in finite.items() if value is not None}
        for name, value in finite.items() if self.board else ():
            self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(finite, step=step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a file metrics.jsonl that hold a step and numbers.

    A kill or a power failure may leave others.
    """
    whole = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError, RecursionError):
            whole.append(json.loads(line))
    return [line for line in whole if isinstance(line, dict) and _is_numeric(line)]


def _is_numeric(line: dict[str, Any]) -> bool:
    """Checks that the step is a whole number and every other value a finite number or null."""
    values = [value for value in line.values() if value is not None]
    return type(line.get("step")) is int and all(
        type(value) in (int, float) and math.isfinite(value) for value in values
    )


def _tensorboard(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=done + 1)


def _wandb(config: Config) -> Any:
    import wandb

    run = Path(config.run)
    path = run / "wandb-id"
    if not path.is_file():
        write_atomically(path, secrets.token_hex(8).encode())
    return wandb.init(
        project=config.log.project, name=run.name, dir=config.run, config=dataclasses.asdict(config),
        id=path.read_text(encoding="ascii"), resume="allow",
    )  # fmt: skip
