"""Keeps the folder of a run: its lock, its checkpoints and its best weights.

    runs/demo/run.json              the steps of the run's checkpoints, and the scores of the best weights
    runs/demo/checkpoint-00000400.safetensors, checkpoint-00000400.optimizer.safetensors
    runs/demo/best.safetensors
    runs/demo/lock

Only checkpoints that run.json lists are ever removed. Other files in the folder stay as they are.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch

from mt3data import system
from mt3data.errors import UserError
from mt3data.files import file_lock, write_atomically
from mt3train.config import Config
from mt3train.model import MT3
from mt3train.training.resume import Progress
from mt3train.weights import checkpoint
from mt3train.weights.checkpoint import BEST, CheckpointInfo, checkpoints, weights_path

FACTS = "run.json"
FINAL_SCORE = "program_f1"  # onset, offset and program: what the papers compare
OWN_PART = re.compile(r"(checkpoint-\d{8,}(\.optimizer)?|best)\.safetensors\.tmp-[0-9a-f]{16,32}")


@contextmanager
def locked_run(config: Config, rank: int) -> Iterator[None]:
    """Locks a run's folder while the body runs. A folder in which nothing was written is removed.

    Only rank 0 locks, as only rank 0 writes.

    Raises:
        UserError: another process trains in this folder, or it holds results whose checkpoints are
            gone.
    """
    if rank:
        yield
        return
    run = Path(config.run)
    run.mkdir(parents=True, exist_ok=True)
    lock = run / "lock"
    with file_lock(lock, f"{run}: another process trains there"):
        _require_checkpoints(run)
        for part in run.iterdir():  # of a process that was killed while it wrote
            if OWN_PART.fullmatch(part.name):
                part.unlink()
        if not (run / FACTS).is_file():
            _write_facts(run, _read_facts(run))
        try:
            yield
        finally:
            if {path.name for path in run.iterdir()} == {lock.name, FACTS}:
                with suppress(OSError):
                    (run / FACTS).unlink()
                    lock.unlink()  # Windows refuses it; the empty file then stays
                    run.rmdir()


def save_checkpoint(
    config: Config,
    model: MT3,
    info: CheckpointInfo,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    average: MT3 | None = None,
) -> None:
    """Writes the checkpoint of info.step and removes the oldest of the run's own ones.

    Raises:
        UserError: it cannot be written. Earlier checkpoints stay as they are.
    """
    run = Path(config.run)
    facts = _read_facts(run)
    listed = facts["checkpoints"] + [facts["writing"]] * (facts["writing"] is not None)
    facts["writing"] = info.step  # a process that is killed now leaves files that are the run's own
    _write_facts(run, facts)
    state = dataclasses.asdict(progress) | {"scaler": scaler.state_dict()}
    checkpoint.save(run, model, info, optimizer, state, average)
    steps = sorted({*listed, info.step})
    whole = [step for step in steps if weights_path(run, step).is_file()]
    facts["checkpoints"] = whole[-config.keep_checkpoints :]
    for step in set(steps) - set(facts["checkpoints"]):
        weights_path(run, step).unlink(missing_ok=True)
        checkpoint.optimizer_file(weights_path(run, step)).unlink(missing_ok=True)
    _write_facts(run, facts | {"writing": None})


def set_aside_best(run: Path, evaluated: dict[str, Any]) -> str:
    """Renames best.safetensors if its scores were measured on other data, or are unknown.

    Args:
        evaluated: what scores are measured on from now on. Other scores cannot be compared with them.
    Returns:
        A message if it was renamed, else "".
    """
    facts, path, message = _read_facts(run), run / BEST, ""
    is_comparable = facts["best"] and facts.get("evaluated", evaluated) == evaluated
    if path.is_file() and not is_comparable:
        names = (run / f"{path.stem}-before{n or ''}{path.suffix}" for n in count())
        kept = next(name for name in names if not name.exists())
        system.replace(path, kept)
        facts |= {"best": None, "best_step": None}
        message = (
            f"{path.name} was measured on other data, or on unknown ones; it is now {kept.name}"
        )
    _write_facts(run, facts | {"evaluated": evaluated})
    return message


def save_if_best(run: Path, model: MT3, info: CheckpointInfo, scores: dict[str, float]) -> bool:
    """Writes best.safetensors unless the one that is there has better scores, or equal ones.

    Returns:
        Whether these weights are the best now, also if they were saved before a run was resumed, or the
        deciding score was not measured.
    """
    facts, path = _read_facts(run), run / BEST
    better = not path.is_file() or is_better(scores, facts["best"])
    if better:
        checkpoint.save_weights(path, model, info)
        _write_facts(run, facts | {"best": scores, "best_step": info.step})
    was_best = facts["best_step"] == info.step
    return (
        better or was_best or (FINAL_SCORE in (facts["best"] or {}) and FINAL_SCORE not in scores)
    )


def is_better(scores: dict[str, float], best: dict[str, float] | None) -> bool:
    """Returns whether scores beat the best so far: in F1 if it was ever measured, else in loss."""
    if best is None or any(map(math.isnan, best.values())):
        return True
    if FINAL_SCORE in scores or FINAL_SCORE in best:
        return scores.get(FINAL_SCORE, -1.0) > best.get(FINAL_SCORE, -0.5)
    return scores["eval_loss"] < best["eval_loss"]


def _require_checkpoints(run: Path) -> None:
    """Raises UserError if a run that had checkpoints has none left: it would start again at step 0."""
    results = [name for name in ("metrics.jsonl", BEST) if (run / name).is_file()]
    had_some = _read_facts(run)["checkpoints"] or (results and not (run / FACTS).is_file())
    if had_some and not checkpoints(run):
        raise UserError(
            f"{run} holds {' and '.join([FACTS, *results])} of a run whose checkpoints are gone;"
            " put its newest checkpoint back, or choose another folder with run=DIR"
        )


def _read_facts(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"checkpoints": [], "writing": None, "best": None, "best_step": None}
    path = run / FACTS
    if not path.is_file():
        return facts
    try:
        facts |= dict(json.loads(path.read_bytes()).items())
        steps = [*facts["checkpoints"], facts["writing"] or 0]
        if not all(type(step) is int and step >= 0 for step in steps):
            raise TypeError("steps of checkpoints are whole numbers")
        if facts["best"] is not None:
            facts["best"] = {name: float(score) for name, score in facts["best"].items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not what a run writes ({error}); remove it, or choose another folder with"
            " run=DIR"
        ) from None
    return facts


def _write_facts(run: Path, facts: dict[str, Any]) -> None:
    write_atomically(run / FACTS, json.dumps(facts, indent=1).encode() + b"\n")
