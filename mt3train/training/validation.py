"""How good the model is while it trains: the loss on fixed segments, the notes of whole tracks.

Every rank does a share and meets the others after each piece of it, a micro-batch or a batch of
segments that was decoded.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from mt3train.config import Config
from mt3train.data.builds import TrainingData
from mt3train.data.loader import read_step, to_device
from mt3train.model import MT3
from mt3train.training.distributed import Ranks
from mt3train.training.loss import count_correct, loss_sum
from mt3train.weights.checkpoint import CheckpointInfo

FINAL_SCORE = "program_f1"  # onset, offset and program: what the papers compare


def evaluate(
    step: int,
    model: MT3,
    info: CheckpointInfo,
    segments: TrainingData,
    config: Config,
    ranks: Ranks,
    autocast: AbstractContextManager,
) -> dict[str, float]:
    """The scores that are due after so many updates, equal on all ranks; none if nothing is due.

    Args:
        autocast: the precision of the training, for the loss.
    Raises:
        Stopped: a signal came.
    """
    scores: dict[str, float] = {}
    if config.eval_every and step % config.eval_every == 0:
        with autocast:
            scores |= evaluation_loss(model, segments, config, ranks)
    if config.transcribe_every and step % config.transcribe_every == 0:
        scores |= note_scores(model, info, segments.builds, config, ranks)
    return scores


def is_better(scores: dict[str, float], best: dict[str, float] | None) -> bool:
    """Whether scores beat the best so far: in F1 of notes if it was ever measured, else in loss."""
    if best is None:
        return True
    if FINAL_SCORE in scores or FINAL_SCORE in best:
        return scores.get(FINAL_SCORE, -1.0) > best.get(FINAL_SCORE, -0.5)
    return scores["eval_loss"] < best["eval_loss"]


@torch.no_grad()
def evaluation_loss(
    model: MT3, segments: TrainingData, config: Config, ranks: Ranks
) -> dict[str, float]:
    """Cross entropy (without z-loss) and accuracy per token on the first segments of a set.

    Raises:
        Stopped: a signal came.
    """
    dtype = next(model.parameters()).dtype
    size = min(config.batch, config.eval_segments, segments.n_records)
    n_steps = min(config.eval_segments, segments.n_records) // size
    sums = np.zeros(3)
    model.eval()
    with ranks.sharing():
        for step in range(n_steps if ranks.rank < size else 0):  # the others have no segment
            for micro in read_step(segments, step, size, config, ranks.rank, ranks.world_size):
                mel, targets = to_device(micro, ranks.device, dtype)
                logits = model(mel, targets)
                loss = loss_sum(logits, targets, z_loss=0.0).item()
                sums += (loss, count_correct(logits, targets).item(), micro.n_tokens)
                ranks.pace()
    model.train()
    loss_total, n_correct, n_tokens = ranks.sum(*sums.tolist())
    n_tokens = max(1.0, n_tokens)
    return {"eval_loss": loss_total / n_tokens, "eval_accuracy": n_correct / n_tokens}


def note_scores(
    model: MT3, info: CheckpointInfo, builds: Sequence[Path], config: Config, ranks: Ranks
) -> dict[str, float]:
    """F1 of notes in the first tracks of each build's evaluation split, as `mt3train evaluate`.

    Returns:
        onset_f1, onset_offset_f1, program_f1 and drum_f1: means over tracks, in [0, 1].
    Raises:
        Stopped: a signal came.
    """
    from mt3data.shards.index import read_tracks
    from mt3train.evaluation.evaluate import COLUMNS, mean_scores, score_track

    results, place = [], 0
    with ranks.sharing():
        for build in builds:
            for track in islice(
                read_tracks(build, config.data.eval_split), config.transcribe_tracks
            ):
                place += 1
                if place % ranks.world_size == ranks.rank:
                    results.append(
                        score_track(model, info, track, config.micro_batch, lambda _: ranks.pace())
                    )
    means = mean_scores([result for share in ranks.gather(results) for result in share])
    return {name: means[name] for name in COLUMNS.values()}
