"""The length of a run and its learning rate, by updates or by the clock."""

import math

from mt3train.config import Config
from mt3train.training.resume import Progress


def total_steps(config: Config, progress: Progress) -> int:
    """Returns the number of updates of a run: config.steps, or fewer if config.hours end before.

    With hours it is an estimate at the run's mean speed, which is exact when the time is over.
    """
    seconds = config.hours * 3600
    if not seconds or not progress.seconds:
        return config.steps
    if progress.seconds >= seconds:
        return progress.step
    return min(
        config.steps, max(progress.step + 1, round(progress.step * seconds / progress.seconds))
    )


def reason_to_end(config: Config, progress: Progress, stop: bool) -> str:
    """Returns why the run ends after progress.step updates; "" if it continues.

    Args:
        stop: a rank received a signal.
    """
    if stop:
        return "stopped; run again to resume"
    if 0 < config.patience <= progress.not_better:
        n = progress.not_better
        return f"ended by patience={config.patience}: no better score in {n} evaluations"
    return "done" if progress.step >= total_steps(config, progress) else ""


def learning_rate(config: Config, progress: Progress) -> float:
    """Returns the learning rate of the next update: linear warm-up, then constant or cosine.

    With "cosine" the rate falls from optim.lr after the warm-up to 10 % of it at the end of the run.
    config.py rejects other kinds of decay.
    """
    step, optim = progress.step, config.optim
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.decay == "constant":
        return optim.lr
    left = total_steps(config, progress) - optim.warmup_steps
    done = min(1.0, (step - optim.warmup_steps) / max(1, left))
    return optim.lr * (0.55 + 0.45 * math.cos(math.pi * done))
