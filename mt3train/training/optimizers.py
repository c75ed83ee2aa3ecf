"""Adafactor as T5X has it, AdamW and Muon as alternatives.

MT3 was trained with Adafactor at a constant rate of 1e-3, without warm-up. Every update is
divided by the root of a running mean of squared gradients (kept as a row and a column mean for
large matrices), clipped to an RMS of 1 and multiplied by the parameter's own RMS.
"""

import difflib
import fnmatch
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mt3data.errors import UserError
from mt3train.model import MT3

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
    def step(self) -> None:  # type: ignore[override]
        """Updates all parameters that have gradients. Gradients keep their values."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
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


class Muon(torch.optim.Optimizer):
    """Updates matrices by their orthogonalized momentum, all other parameters by Adam.

    Orthogonalizing lets a matrix learn equally fast in every direction. The size of an update is that
    of Adam, so one learning rate serves both. In training the demo weights it had AdamW's loss of step
    400 at step 325 (the model card, mt3train/weights/README.md). torch has a Muon from 2.9 on, for matrices alone: the
    rest would need a second optimizer with a second state.

    Matrices of one shape are orthogonalized in one batched product. Where torch.distributed runs, each
    process orthogonalizes its share of them and all of them gather the results.

    Args:
        params: float32 or float64 parameters, the same on all processes.
        lr: root mean square of an update's values, over 0.2.
        weight_decay: each update first removes lr * weight_decay of a parameter.
        by_adam: matrices among params that are no maps between layers, such as embeddings.
        bf16: orthogonalize in bfloat16, which is faster where the processor multiplies it natively.

    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks; size of an
    update: Liu et al. 2025, Muon is scalable for LLM training, section 2.2.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        by_adam: Iterable[Tensor] = (),
        bf16: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._by_adam = {id(parameter) for parameter in by_adam}
        self._bf16 = bf16

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Updates all parameters that have gradients. Gradients keep their values."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in parameters if p.ndim == 2 and id(p) not in self._by_adam]
            updates = dict(zip(map(id, matrices), self._orthogonal(matrices), strict=True))
            for parameter in parameters:
                update, size = updates.get(id(parameter)), 0.2 * max(parameter.shape) ** 0.5
                if update is None:
                    update, size = self._adam(parameter, parameter.grad), 1.0
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update, alpha=group["lr"] * size)

    def _orthogonal(self, matrices: list[nn.Parameter]) -> list[Tensor]:
        """Returns the update of every matrix, before it is brought to the size of Adam's."""
        wide = []  # looked-ahead momenta, each with at least as many columns as rows
        for parameter in matrices:
            gradient = parameter.grad
            assert gradient is not None
            momentum = self._state(parameter, "momentum")["momentum"].lerp_(gradient, 0.05)
            looked_ahead = gradient.lerp(momentum, 0.95)
            if self._bf16:
                looked_ahead = looked_ahead.bfloat16()
            wide.append(looked_ahead.mT if _is_tall(parameter) else looked_ahead)
        by_shape: dict[torch.Size, list[int]] = {}
        for index, matrix in enumerate(wide):
            by_shape.setdefault(matrix.shape, []).append(index)
        for indices in by_shape.values():
            stacked = torch.stack([wide[index] for index in indices])
            for index, done in zip(indices, _newton_schulz_of_all(stacked), strict=True):
                wide[index] = done
        return [
            matrix.mT if _is_tall(parameter) else matrix
            for parameter, matrix in zip(matrices, wide, strict=True)
        ]

    def _adam(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        state = self._state(parameter, "momentum", "squares")
        momentum = state["momentum"].lerp_(gradient, 0.1)
        squares = state["squares"].lerp_(gradient.square(), 0.02)
        step = float(state["step"])
        return (momentum / (1 - 0.9**step)) / ((squares / (1 - 0.98**step)).sqrt() + 1e-8)

    def _state(self, parameter: Tensor, *means: str) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.int64)  # on the CPU: read at every step
            state |= {mean: torch.zeros_like(parameter) for mean in means}
        state["step"] += 1
        return state


def _is_tall(matrix: Tensor) -> bool:
    return matrix.shape[0] > matrix.shape[1]


def _newton_schulz_of_all(matrices_NRC: Tensor) -> Tensor:
    """Computes `newton_schulz` of N matrices, of which each process computes N / world_size."""
    world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world_size == 1:
        return newton_schulz(matrices_NRC)
    n_matrices = len(matrices_NRC)
    share = -(-n_matrices // world_size)
    padded_NRC = F.pad(matrices_NRC, (0, 0, 0, 0, 0, share * world_size - n_matrices))
    own_NRC = newton_schulz(padded_NRC[dist.get_rank() * share :][:share])
    gathered = [torch.empty_like(own_NRC) for _ in range(world_size)]
    dist.all_gather(gathered, own_NRC)
    return torch.cat(gathered)[:n_matrices]


def newton_schulz(matrices_NRC: Tensor) -> Tensor:
    """Brings all singular values of every matrix near 1 (0.7 to 1.2) by five Newton-Schulz steps.

    Singular values below about a hundredth of the largest remain smaller.

    Args:
        matrices_NRC: N matrices [R, C], fastest with R <= C.

    Source: Jordan et al. 2024, whose coefficients trade precision for speed.
    """
    x = matrices_NRC / (matrices_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        squared = x @ x.mT
        mixed = torch.baddbmm(squared, squared, squared, beta=-4.775, alpha=2.0315)
        x = torch.baddbmm(x, mixed, x, beta=3.4445)
    return x


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


def make_average(model: MT3, decay: float) -> AveragedModel | None:
    """Makes the exponential moving average of a model's weights. None if decay is 0."""
    if not decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


def make_optimizer(
    model: MT3, name: str, lr: float, weight_decay: float = 0.0, bf16: bool = False
) -> torch.optim.Optimizer:
    """Makes the optimizer `name` of the model's parameters that require gradients.

    Args:
        model: the network.
        name: "adafactor", "adamw" (betas 0.9, 0.98) or "muon"; config.py rejects other names.
        lr: learning rate.
        weight_decay: not used by Adafactor.
        bf16: let Muon orthogonalize in bfloat16.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "adafactor":
        return Adafactor(parameters, lr=lr)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    words = (model.decoder.token_embedder.weight, model.decoder.logits_dense.weight)
    return Muon(parameters, lr, weight_decay, by_adam=words, bf16=bf16)
