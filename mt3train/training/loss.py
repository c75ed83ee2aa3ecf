"""Computes the training loss of T5X: cross entropy with z-loss, summed over target tokens.

Sizes in tensor names are those of model.py.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from mt3data.music.vocabulary import PAD_ID


def token_losses(
    logits_BLV: Tensor, targets_BL: Tensor, z_loss: float = 1e-4, label_smoothing: float = 0.0
) -> Tensor:
    """Computes cross entropy plus z_loss * log(Z)^2 for every token: [B, L]. Padding costs 0.

    Args:
        label_smoothing: the share of the target distribution p that all other tokens get in equal
            parts. The entropy of p is subtracted, so that a perfect prediction costs 0.

    Source: t5x/losses.py compute_weighted_cross_entropy.
    """
    true_BL = logits_BLV.gather(-1, targets_BL[..., None])[..., 0]
    cross_entropy_BL = F.cross_entropy(
        logits_BLV.flatten(0, 1), targets_BL.flatten(), reduction="none"
    ).view_as(targets_BL)
    log_z_BL = cross_entropy_BL + true_BL
    loss_BL = cross_entropy_BL + z_loss * log_z_BL.square()
    if label_smoothing:
        n_others = logits_BLV.shape[-1] - 1
        others_BL = log_z_BL - (logits_BLV.sum(-1) - true_BL) / n_others  # mean of -log q
        loss_BL = loss_BL + label_smoothing * (others_BL - cross_entropy_BL)
        confidence = 1.0 - label_smoothing
        loss_BL = loss_BL + confidence * math.log(confidence)
        loss_BL = loss_BL + label_smoothing * math.log(label_smoothing / n_others + 1e-20)
    return loss_BL * (targets_BL != PAD_ID)


def loss_sum(
    logits_BLV: Tensor, targets_BL: Tensor, z_loss: float = 1e-4, label_smoothing: float = 0.0
) -> Tensor:
    """Sums `token_losses` over all tokens: the number that the original minimises."""
    return token_losses(logits_BLV, targets_BL, z_loss, label_smoothing).sum()


def count_correct(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """Counts the targets, padding excepted, that have the largest logit: an integer tensor []."""
    logits_BLV = logits_BLV.detach()
    true_BL = logits_BLV.gather(-1, targets_BL[..., None])[..., 0]
    return ((true_BL >= logits_BLV.amax(-1)) & (targets_BL != PAD_ID)).sum()
