"""The training loss: T5X's cross entropy with z-loss, as a sum over target tokens.

Sizes in tensor names are those of model.py.
"""

import math
from typing import Any

import torch
from torch import Tensor


class _TokenLoss(torch.autograd.Function):
    """Loss per token with its gradient written out: one pass over [B, L, V] instead of six."""

    @staticmethod
    def forward(
        ctx: Any, logits_BLV: Tensor, targets_BL: Tensor, z_loss: float, low: float
    ) -> Tensor:
        n_classes = logits_BLV.shape[-1]
        log_z_BL = logits_BLV.logsumexp(-1)
        ctx.save_for_backward(logits_BLV, targets_BL, log_z_BL)
        ctx.z_loss, ctx.low, ctx.high = z_loss, low, 1.0 - (n_classes - 1) * low
        hit_BL = logits_BLV.gather(-1, targets_BL[..., None])[..., 0] - log_z_BL
        loss_BL = z_loss * log_z_BL.square() - (ctx.high - low) * hit_BL
        if low:
            loss_BL -= low * (logits_BLV.sum(-1) - n_classes * log_z_BL)
        return loss_BL

    @staticmethod
    def backward(ctx: Any, gradient_BL: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        logits_BLV, targets_BL, log_z_BL = ctx.saved_tensors
        slope_BL = gradient_BL * (1.0 + 2.0 * ctx.z_loss * log_z_BL)
        out_BLV = (logits_BLV - log_z_BL[..., None]).exp_().mul_(slope_BL[..., None])
        if ctx.low:
            out_BLV -= ctx.low * gradient_BL[..., None]
        hit_BL1 = (-(ctx.high - ctx.low) * gradient_BL)[..., None]
        return out_BLV.scatter_add_(-1, targets_BL[..., None], hit_BL1), None, None, None


def token_losses(
    logits_BLV: Tensor, targets_BL: Tensor, z_loss: float = 1e-4, label_smoothing: float = 0.0
) -> Tensor:
    """Cross entropy plus z-loss of every token: [B, L], from logits and targets.

    It is -sum(p log q) + z_loss * log(Z)^2, less the entropy of the smoothed target p, so
    that a perfect prediction costs 0. label_smoothing is the share of p that goes, evenly, to all other
    tokens. Padding (target 0) costs 0.

    Source: t5x/losses.py compute_weighted_cross_entropy.
    """
    low = label_smoothing / (logits_BLV.shape[-1] - 1)  # what every wrong token gets
    loss_BL = _TokenLoss.apply(logits_BLV, targets_BL, z_loss, low)
    if label_smoothing:
        high = 1.0 - label_smoothing
        loss_BL = loss_BL + high * math.log(high) + label_smoothing * math.log(low + 1e-20)
    return loss_BL * (targets_BL > 0)


def loss_sum(
    logits_BLV: Tensor, targets_BL: Tensor, z_loss: float = 1e-4, label_smoothing: float = 0.0
) -> Tensor:
    """As `token_losses`, summed: the number that the original minimises."""
    return token_losses(logits_BLV, targets_BL, z_loss, label_smoothing).sum()


def count_correct(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """How many targets, padding excepted, have the largest logit: an integer tensor []."""
    hit_BL = logits_BLV.detach().gather(-1, targets_BL[..., None])[..., 0]
    correct_BL = (hit_BL >= logits_BLV.detach().amax(-1)) & (targets_BL > 0)
    return correct_BL.sum()
