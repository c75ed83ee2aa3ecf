"""What a training run says: config.json and metrics.jsonl in its folder, progress on stderr.

A line of metrics.jsonl is one JSON object. Every log_every steps: step (updates done), loss and
accuracy per target token over the steps since the last line (accuracy with the true tokens before
as input), lr, gradient_norm of the last step, tokens, skipped (segments with too long targets),
overflows (updates that fp16 left out), segments_per_second, data_wait (share of the time in which
this process waited for its next batch), memory_gb (largest so far: of the GPU, or of the process),
seconds. Every eval_every and transcribe_every steps: step, and eval_loss, eval_accuracy or the F1 scores.

Where TensorBoard is installed, the same numbers go to the folder tensorboard/.
"""

import json
import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mt3train.config import Config, as_dict


class Log:
    """metrics.jsonl and the progress line on stderr, of rank 0.

    Lines of steps after the one that the run continues from (`done`) are dropped: they come again.
    """

    def __init__(self, config: Config, done: int, rank: int, device: torch.device) -> None:
        self.config, self.rank, self.device = config, rank, device
        self.terminal = sys.stderr.isatty()
        self.first, self.begin = done, time.monotonic()
        self.logged, self.logged_at, self.shown_at = done, self.begin, self.begin
        self.waited = self.waited_all = 0.0
        if rank:
            return
        run = Path(config.run)
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(json.dumps(as_dict(config), indent=1) + "\n")
        path = run / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= done]
        part = path.with_name(path.name + ".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        part.replace(path)
        self.file = path.open("a")
        self.board = _tensorboard(run / "tensorboard", done)

    def say(self, text: str, end: str = "\n") -> None:
        """Print a text on stderr, and what ends it."""
        if self.rank == 0:
            print(text, end=end, file=sys.stderr, flush=True)

    def wait(self, seconds: float) -> None:
        """Add seconds to the time that this process waited for data."""
        self.waited += seconds
        self.waited_all += seconds

    def progress(self, done: int, loss: float, accuracy: float, lr: float, norm: float) -> None:
        """Say where the run is, if the last time was a while ago.

        Args:
            done: updates so far; of the last one the mean loss and the share of tokens that were right
                (accuracy), the learning rate (lr) and the norm of the gradient.
        """
        now = time.monotonic()
        every = 1.0 if self.terminal else 5.0  # seconds
        if self.rank or (now - self.shown_at < every and done < self.config.steps):
            return
        self.shown_at = now
        pace = (now - self.begin) / (done - self.first)  # seconds per step
        left = pace * (self.config.steps - done) / 60
        text = (
            f"step {done}/{self.config.steps}  loss {loss:.4f}  accuracy {accuracy:.3f}"
            f"  lr {lr:.2e}  gradient {norm:.3g}  {self.config.batch / pace:.1f} segments/s"
            f"  data wait {self.waited_all / (now - self.begin):.0%}  {self._memory():.1f} GB"
            f"  {f'{left / 60:.1f} h' if left > 90 else f'{left:.0f} min'} left"
        )
        end = "\r" if self.terminal and done < self.config.steps else "\n"
        self.say(text.ljust(130) if self.terminal else text, end)

    def write(self, done: int, sums: dict[str, float], lr: float, norm: float) -> None:
        """One line about the steps since the last: means per token, and the last step's lr and norm.

        Args:
            done: updates so far.
            sums: over these steps and all ranks, of loss, correct, tokens, skipped and overflows.
        """
        now = time.monotonic()
        seconds = now - self.logged_at
        tokens = max(1.0, sums["tokens"])
        self._line(
            step=done, loss=sums["loss"] / tokens, accuracy=sums["correct"] / tokens, lr=lr,
            gradient_norm=norm, tokens=int(sums["tokens"]), skipped=int(sums["skipped"]),
            overflows=int(sums["overflows"]),
            segments_per_second=round((done - self.logged) * self.config.batch / seconds, 2),
            data_wait=round(self.waited / seconds, 4), memory_gb=round(self._memory(), 3),
            seconds=round(now - self.begin, 1),
        )  # fmt: skip
        self.logged, self.logged_at, self.waited = done, now, 0.0

    def write_evaluation(self, done: int, scores: dict[str, float]) -> None:
        """One line about the scores of an evaluation, with so many updates done."""
        self._line(step=done, **scores)
        self.say(f"step {done}  " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))

    def _memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest * (1 if sys.platform == "darwin" else 1024) / 1e9

    def _line(self, step: int, **values: float) -> None:
        if self.rank:
            return
        # JSON has no infinity: the norm of an update that fp16 left out is null.
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.file.flush()
        for name, value in finite.items():
            if self.board and value is not None:
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close metrics.jsonl."""
        if self.rank == 0:
            self.file.close()
            if self.board:
                self.board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a file metrics.jsonl that are whole: a kill or a power failure may leave others."""
    whole = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError):
            whole.append(json.loads(line))
    return [line for line in whole if isinstance(line, dict) and "step" in line]


def _tensorboard(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=done + 1)
