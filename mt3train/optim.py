"""Adafactor as T5X has it, AdamW as the alternative, and the learning-rate schedule.

MT3 was trained with Adafactor at a constant rate of 1e-3, without warm-up. Every update is
divided by the root of a running mean of squared gradients (kept as a row and a column mean for
large matrices), clipped to an RMS of 1 and multiplied by the parameter's own RMS.
"""

import difflib
import fnmatch
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mt3data.errors import UserError

MIN_DIM_SIZE_TO_FACTOR = 128  # t5x/adafactor.py: smaller matrices keep the full second moment


class Adafactor(torch.optim.Optimizer):
    """Adafactor without momentum, equal to T5X's to float32 rounding.

    Differences from torch.optim.Adafactor: torch factors every matrix, this one those with both
    sides >= 128 (T5X ignores its logical_factor_rules for matrices); torch caps the rate at
    1/sqrt(step), here it is the schedule's alone; torch bounds the second moment from below by
    the square of eps1, here 1e-30 is added to the squared gradients; and torch waits for the
    device twice per parameter.

    Args:
        params: float32 or float64 parameters.
        lr: relative step size: an update's RMS is at most lr * max(RMS(parameter), 1e-3).
        decay_rate: the second moments' decay at step t = 1, 2, ... is 1 - t**-decay_rate.
        clipping_threshold: largest RMS of an update before it is scaled.
        epsilon1: added to squared gradients.
        epsilon2: smallest parameter scale, so that zeros can move.

    Source: t5x/adafactor.py; Shazeer and Stern 2018, algorithm 4.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        decay_rate: float = 0.8,
        clipping_threshold: float = 1.0,
        epsilon1: float = 1e-30,
        epsilon2: float = 1e-3,
    ) -> None:
        defaults = {
            "lr": lr,
            "decay_rate": decay_rate,
            "clipping_threshold": clipping_threshold,
            "epsilon1": epsilon1,
            "epsilon2": epsilon2,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; gradients are left as they are.

        Returns the number that the closure, which is called first, returns; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.int64)  # on the CPU: read at every step
            if parameter.ndim == 2 and min(parameter.shape) >= MIN_DIM_SIZE_TO_FACTOR:
                state["v_row"] = parameter.new_zeros(parameter.shape[0], 1)
                state["v_col"] = parameter.new_zeros(1, parameter.shape[1])
            else:
                state["v"] = torch.zeros_like(parameter)
        state["step"] += 1
        weight = float(state["step"]) ** -group["decay_rate"]  # of the new squares; 1 at first
        squares = gradient.square().add_(group["epsilon1"])
        if "v" in state:
            update = gradient * state["v"].lerp_(squares, weight).rsqrt()
        else:
            rows = state["v_row"].lerp_(squares.mean(1, keepdim=True), weight)
            columns = state["v_col"].lerp_(squares.mean(0, keepdim=True), weight)
            update = gradient * (rows / rows.mean()).rsqrt() * columns.rsqrt()
        # Tensors, not floats: on a GPU nothing here waits for the device.
        clip = (_rms(update) / group["clipping_threshold"]).clamp_(min=1.0)
        scale = _rms(parameter).clamp_(min=group["epsilon2"]) * group["lr"]
        parameter.sub_(update.mul_(scale / clip))


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt_()


def freeze(model: nn.Module, patterns: str) -> None:
    """Parameters whose names match one of the patterns get no gradients and no updates.

    Args:
        patterns: names with the wildcards *, ? and [], separated by commas, such as
            "encoder.*,decoder.token_embedder.weight"; empty: none.
    Raises:
        UserError: a pattern that matches nothing, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        matching = fnmatch.filter(parameters, pattern)
        if not matching:
            near = difflib.get_close_matches(pattern, parameters, n=1, cutoff=0.0)[0]
            raise UserError(f"freeze: {pattern!r} matches no parameter; names are such as {near}")
        for name in matching:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError(f"freeze={patterns!r} leaves no parameter to train")


def make_optimizer(
    parameters: Iterable[nn.Parameter], name: str, lr: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimiser `name` of parameters, "adafactor" or "adamw" (betas 0.9, 0.98), at learning rate lr.

    config.py refuses other names, and weight_decay with Adafactor.
    """
    if name == "adafactor":
        return Adafactor(parameters, lr=lr)
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)


def learning_rate(
    step: int, lr: float, warmup_steps: int = 0, decay: str = "constant", total_steps: int = 0
) -> float:
    """Learning rate of update `step` (0 is the first): linear warm-up, then constant or cosine.

    With "cosine" the rate falls from lr after warmup_steps to 10 % of it at total_steps. config.py
    refuses other kinds of decay.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if decay == "constant":
        return lr
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return lr * (0.55 + 0.45 * math.cos(math.pi * done))
