"""What a training run says: config.json and metrics.jsonl in its folder, progress on stderr.

A line of metrics.jsonl is one JSON object. Every log_every steps: step (updates done), loss and
accuracy per target token over the steps since the last line (accuracy with the true tokens before
as input), lr, gradient_norm of the last step, tokens, skipped (segments with too long targets),
segments_per_second, seconds. Every eval_every steps: step, eval_loss, eval_accuracy.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from mt3train.config import Config, as_dict


class Log:
    """metrics.jsonl and the progress line on stderr, of rank 0.

    Lines of steps after the one that the run continues from are dropped: they come again.
    """

    def __init__(self, config: Config, done: int, rank: int) -> None:
        self.config, self.rank, self.terminal = config, rank, sys.stderr.isatty()
        self.first, self.begin = done, time.monotonic()
        self.logged, self.logged_at, self.shown_at = done, self.begin, self.begin
        if rank:
            return
        run = Path(config.run)
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(json.dumps(as_dict(config), indent=1) + "\n")
        path = run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= done]
        part = path.with_name(path.name + ".part")
        part.write_text("".join(line + "\n" for line in kept))
        part.replace(path)
        self.file = path.open("a")

    def say(self, text: str, end: str = "\n") -> None:
        """Print on stderr."""
        if self.rank == 0:
            print(text, end=end, file=sys.stderr, flush=True)

    def progress(self, done: int, loss: float, accuracy: float, lr: float, norm: float) -> None:
        """Say where the run is, if the last time was a while ago."""
        now = time.monotonic()
        every = 1.0 if self.terminal else 10.0  # seconds
        if self.rank or (now - self.shown_at < every and done < self.config.steps):
            return
        self.shown_at = now
        pace = (now - self.begin) / (done - self.first)  # seconds per step
        left = pace * (self.config.steps - done)
        text = (
            f"step {done}/{self.config.steps}  loss {loss:.4f}  accuracy {accuracy:.3f}"
            f"  lr {lr:.2e}  gradient {norm:.3g}  {self.config.batch / pace:.1f} segments/s"
            f"  {left / 60:.0f} min left"
        )
        end = "\r" if self.terminal and done < self.config.steps else "\n"
        self.say(text.ljust(110) if self.terminal else text, end)

    def write(self, done: int, sums: dict[str, float], lr: float, norm: float) -> None:
        """One line about the steps since the last: means per token, and the last step's norm."""
        now = time.monotonic()
        pace = (done - self.logged) * self.config.batch / (now - self.logged_at)
        tokens = max(1.0, sums["tokens"])
        self._line(
            step=done, loss=sums["loss"] / tokens, accuracy=sums["correct"] / tokens, lr=lr,
            gradient_norm=norm, tokens=int(sums["tokens"]), skipped=int(sums["skipped"]),
            segments_per_second=round(pace, 2), seconds=round(now - self.begin, 1),
        )  # fmt: skip
        self.logged, self.logged_at = done, now

    def write_evaluation(self, done: int, scores: dict[str, float]) -> None:
        """One line about an evaluation."""
        self._line(step=done, **scores)
        self.say(f"step {done}  " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))

    def _line(self, **values: Any) -> None:
        if self.rank == 0:
            self.file.write(json.dumps(values) + "\n")
            self.file.flush()

    def close(self) -> None:
        """Close metrics.jsonl."""
        if self.rank == 0:
            self.file.close()
