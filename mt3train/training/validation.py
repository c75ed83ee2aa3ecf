"""Evaluates the model while it trains: the loss on fixed segments, the notes of whole tracks.

The ranks share the work and meet in an all-reduce after each batch of segments, or after each track.
A signal to any rank ends the evaluation there.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from mt3data.shards.cache import build_names
from mt3train.config import Config
from mt3train.data.builds import TrainingData
from mt3train.data.loader import read_step, to_device
from mt3train.data.recordings import read_recordings
from mt3train.model import MT3
from mt3train.training.distributed import Ranks
from mt3train.training.logger import Log
from mt3train.training.loss import count_correct, loss_sum
from mt3train.training.resume import Progress
from mt3train.training.run_folder import save_if_best, set_aside_best
from mt3train.weights.checkpoint import CheckpointInfo


class _Stopped(Exception):
    """This rank received a signal while it transcribed."""


def evaluate_if_due(
    progress: Progress,
    model: MT3,
    info: CheckpointInfo,
    data: TrainingData | None,
    config: Config,
    ranks: Ranks,
    autocast: AbstractContextManager,
    log: Log,
) -> None:
    """Computes and logs the scores that are due after progress.step updates; saves the best weights.

    Most steps have no score due. A step is evaluated once. If a signal comes, nothing is logged or
    saved, and the resumed run begins with this evaluation.

    Args:
        data: segments of the evaluation loss; None: no build has that split.
        autocast: the precision of the training, for the loss.
    """
    if progress.evaluated >= progress.step or ranks.stop:
        return
    scores: dict[str, float] = {}
    if data is not None and config.eval_every and progress.step % config.eval_every == 0:
        with autocast:
            scores |= evaluation_loss(model, data, config, ranks)
    has_tracks = data is not None or config.data.validation_folder
    is_due = config.transcribe_every and progress.step % config.transcribe_every == 0
    if has_tracks and is_due and not ranks.stop:
        scores |= note_scores(model, info, data.builds if data else [], config, ranks)
    if ranks.stop:
        return
    if scores:
        is_worse = 0
        if ranks.rank == 0:
            log.write_evaluation(progress.step, scores)
            if message := set_aside_best(Path(config.run), _evaluated_on(config, data)):
                log.say(message)
            is_worse = not save_if_best(Path(config.run), model, info, scores)
        (n_worse,) = ranks.all_reduce(is_worse)  # rank 0 decides for all
        progress.not_better = progress.not_better + 1 if n_worse else 0
    progress.evaluated = progress.step


def _evaluated_on(config: Config, data: TrainingData | None) -> dict[str, Any]:
    """Describes the segments and tracks that are evaluated."""
    source = config.data
    builds = dict.fromkeys(build_names(data.builds), data.n_records) if data is not None else {}
    return {
        "builds": builds, "split": source.eval_split, "folder": source.validation_folder,
        "segments": config.eval_segments, "tracks": config.transcribe_tracks,
    }  # fmt: skip


@torch.no_grad()
def evaluation_loss(
    model: MT3, data: TrainingData, config: Config, ranks: Ranks
) -> dict[str, float]:
    """Computes cross entropy (without z-loss) and accuracy per token on the first segments of a set."""
    dtype = next(model.parameters()).dtype
    n_segments = min(config.eval_segments, data.n_records)
    size = min(config.batch, n_segments)
    totals = [0.0, 0.0, 0.0]
    model.eval()
    for step in range(n_segments // size):
        loss, n_correct, n_tokens = 0.0, 0, 0
        if ranks.rank < size:  # the others have no segment
            for micro in read_step(data, step, size, config, ranks.rank, ranks.world_size):
                mel_BFM, targets_BL = to_device(micro, ranks.device, dtype)
                logits_BLV = model(mel_BFM, targets_BL)
                loss += loss_sum(logits_BLV, targets_BL, z_loss=0.0).item()
                n_correct += int(count_correct(logits_BLV, targets_BL))
                n_tokens += micro.n_tokens
        sums = ranks.all_reduce(loss, n_correct, n_tokens)
        totals = [total + value for total, value in zip(totals, sums, strict=True)]
        if ranks.stop:
            break
    model.train()
    divisor = max(1.0, totals[2])
    return {"eval_loss": totals[0] / divisor, "eval_accuracy": totals[1] / divisor}


def note_scores(
    model: MT3, info: CheckpointInfo, builds: Sequence[Path], config: Config, ranks: Ranks
) -> dict[str, float]:
    """Scores the notes of recordings or of builds, as `mt3train evaluate`.

    Tracks are all recordings of data.validation_folder, or else the first ones of each build's
    evaluation split.

    Returns:
        onset_f1, onset_offset_f1, program_f1 and drum_f1: means over tracks, in [0, 1].
    """
    from mt3data.shards.index import read_tracks
    from mt3train.evaluation.evaluate import COLUMNS, mean_scores, score_track
    from mt3train.transcription.decode import DecodingConfig

    def stop_at_signal(_: int) -> None:
        if ranks.signals:
            raise _Stopped

    if config.data.validation_folder:
        tracks = read_recordings(Path(config.data.validation_folder), info.spectrogram)
    else:
        tracks = chain.from_iterable(
            islice(read_tracks(build, config.data.eval_split), config.transcribe_tracks)
            for build in builds
        )
    results, decoding = [], DecodingConfig(config.micro_batch)
    while of_round := list(islice(tracks, ranks.world_size)):  # one for each rank
        for track in of_round[ranks.rank : ranks.rank + 1]:
            with suppress(_Stopped):
                results.append(score_track(model, info, track, decoding, stop_at_signal))
        ranks.all_reduce()
        if ranks.stop:
            return {}
    means = mean_scores([result for share in ranks.gather(results) for result in share])
    return {name: means[name] for name in COLUMNS.values()}
