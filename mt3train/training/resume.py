"""Loads what a run starts from: its own newest checkpoint, or the weights of another run."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from mt3data import system
from mt3data.errors import UserError
from mt3data.music.vocabulary import num_embeddings
from mt3train.config import Config
from mt3train.data.builds import TrainingData, data_order
from mt3train.model import MT3
from mt3train.weights.checkpoint import (
    NAME,
    TRAINED,
    CheckpointInfo,
    Damaged,
    checkpoints,
    optimizer_file,
    read_state,
    read_weights,
    require_arrays,
    trainable,
    weights_file,
)

INPUT_AND_OUTPUT = ("vocabulary", "spectrogram", "right_context")  # what weights cannot do without
# Settings that checkpoints of earlier versions do not state
ADDED_SETTINGS: dict[str, Any] = {"optim.ema": 0.0, "data.shuffle_shards": 0}
SUMS = ("loss", "tokens", "correct", "skipped", "overflows")  # of the steps since the last line


def checkpoint_info(config: Config, data: TrainingData) -> CheckpointInfo:
    """Returns what the weights of a run mean before its first step."""
    sizes = dataclasses.replace(
        config.model, vocab_size=num_embeddings(data.vocabulary), n_mels=data.spectrogram.n_mels
    )
    return CheckpointInfo(
        model=sizes,
        spectrogram=data.spectrogram,
        vocabulary=data.vocabulary,
        right_context=data.right_context,
        frames=config.data.frames,
        max_target_length=config.data.max_target_length,
    )


@dataclass
class Progress:
    """How far a run is. A checkpoint holds it as JSON.

    Attributes:
        settings: what must be the same when the run resumes.
        order: what decides which segments a step reads; a change is only reported.
        init_checkpoint: whose weights the run began with; a change is only reported.
        step: number of updates done.
        seconds: with config.hours, the duration of the training over all runs; otherwise 0.
        evaluated: the step of the last evaluation.
        not_better: the number of evaluations since the one with the best score.
        sums: of the steps since the last line of metrics.jsonl.
        scaler: state of the loss scale in fp16; otherwise empty.
    """

    settings: dict[str, Any]
    order: dict[str, Any]
    init_checkpoint: str = ""
    step: int = 0
    seconds: float = 0.0
    evaluated: int = 0
    not_better: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    scaler: dict[str, Any] = dataclasses.field(default_factory=dict)


def resume(
    config: Config,
    info: CheckpointInfo,
    data: TrainingData,
    model: MT3,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    rank: int = 0,
    average: AveragedModel | None = None,
) -> tuple[Progress, list[str]]:
    """Loads the newest whole checkpoint of a run, or else the weights of config.init_checkpoint.

    Args:
        info: what the weights must mean, the step excepted.
        data: of the training.
        model, optimizer, scaler: filled in place.
        rank: rank 0 renames damaged checkpoints.
        average: of the weights, filled in place.
    Returns:
        How far the run is, and messages about damaged checkpoints and changed data.
    Raises:
        UserError: the run was made with other settings, none of its checkpoints is whole, or
            config.init_checkpoint does not fit.
    """
    run = Path(config.run)
    settings = {
        "optim.name": config.optim.name, "freeze": config.freeze, "optim.ema": config.optim.ema
    }  # fmt: skip
    now = Progress(settings, data_order(config, data), config.init_checkpoint)
    damaged: list[tuple[Path, str]] = []
    whole = checkpoints(run)
    renamed = [
        f"{path} holds another step than its name and is ignored"
        for path in sorted(run.glob("checkpoint-*"))
        if NAME.fullmatch(path.name) and path.is_file() and path not in whole
    ]
    for file in reversed(whole):
        try:
            found, weights = read_weights(file)
            metadata, state = read_state(file)
        except Damaged as error:
            damaged.append((file, str(error)))
            continue
        before = _progress(file, metadata)
        differ = _difference(found, info, *INPUT_AND_OUTPUT, "frames", "max_target_length", "model")
        for name, value in settings.items():
            if (old := before.settings.get(name, ADDED_SETTINGS.get(name))) != value:
                differ = differ or (name, old, value)
        if differ:
            raise UserError(
                f"{run} was trained with {differ[0]} {differ[1]!r}, now asked for is {differ[2]!r};"
                " choose another folder with run=DIR"
            )
        require_arrays(file, model, weights)
        if average is not None:
            average.module.load_state_dict(weights)
            average.n_averaged.fill_(before.step)
            if lost := [name for name in weights if f"{name}/{TRAINED}" not in state]:
                raise UserError(f"{optimizer_file(file)} lacks {lost[0]}/{TRAINED}; copy it again")
            weights = {name: state.pop(f"{name}/{TRAINED}") for name in weights}
        model.load_state_dict(weights)
        _fill(optimizer, trainable(model), state)
        if before.scaler:  # empty in other precisions than fp16
            scaler.load_state_dict(before.scaler)
        if rank == 0:
            for path, _ in damaged:
                _set_aside(path)
        messages = [f"{what}; set aside, resuming from step {found.step}" for _, what in damaged]
        return dataclasses.replace(
            before, order=now.order, init_checkpoint=now.init_checkpoint
        ), renamed + messages + _changes(before, now)
    if damaged:
        raise UserError(f"no checkpoint in {run} is whole; of the newest: {damaged[0][1]}")
    if config.init_checkpoint:
        init_from_checkpoint(model, config.init_checkpoint, info)
    return now, []


def _progress(file: Path, metadata: dict[str, Any]) -> Progress:
    try:
        progress = Progress(**metadata)
        progress.sums = {name: float(progress.sums[name]) for name in SUMS}
        whole = progress.step, progress.evaluated, progress.not_better
        tables = progress.settings, progress.order, progress.scaler
        if not all(type(n) is int and n >= 0 for n in whole):
            raise TypeError("steps are whole numbers")
        if not all(isinstance(table, dict) for table in tables):
            raise TypeError("settings, order and scaler are tables")
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{file} holds no progress of a run ({error}); choose another folder with run=DIR"
        ) from None
    return progress


def _changes(before: Progress, now: Progress) -> list[str]:
    """Describes what differs from the steps before and does not prevent resuming."""
    messages = []
    order = ADDED_SETTINGS | before.order
    if changed := [
        f"{name}={order.get(name)!r}, now {value!r}"
        for name, value in now.order.items()
        if order.get(name) != value
    ]:
        messages.append(
            f"the steps before had {'; '.join(changed)}. Other data are read, or in another order:"
            " until the next epoch begins, records may come twice or not at all"
        )
    if before.init_checkpoint != now.init_checkpoint:
        messages.append(
            f"the run began with init_checkpoint={before.init_checkpoint!r}, now"
            f" {now.init_checkpoint!r}. It is resumed from its own checkpoint, so neither is read"
        )
    return messages


def _set_aside(file: Path) -> None:
    """Renames the files of a damaged checkpoint, so that it neither counts nor is lost."""
    for path in (file, optimizer_file(file)):
        if path.is_file():
            system.replace(path, path.with_name(path.name + ".damaged"))


def init_from_checkpoint(model: MT3, path: str | Path, info: CheckpointInfo) -> None:
    """Gives a new run the weights of another. Lengths and dropout may differ.

    Args:
        model: filled in place.
        path: a .safetensors file, a run's folder, whose newest checkpoint is taken, or as a str the
            name of published weights.
        info: what the new run's weights will mean.
    Raises:
        UserError: no checkpoint, or one of another vocabulary, spectrogram, right_context or size.
    """
    file = weights_file(path)
    found, weights = read_weights(file)
    sizes = dataclasses.replace(found.model, dropout_rate=info.model.dropout_rate)
    same_dropout = dataclasses.replace(found, model=sizes)
    differ = _difference(same_dropout, info, *INPUT_AND_OUTPUT, "model")
    if differ and differ[0].startswith("model."):
        name, theirs, ours = differ
        raise UserError(
            f"{file} has {name}={theirs}, this run {ours}; start it with {name}={theirs}"
        )
    if differ:
        raise UserError(
            f"{file} was trained with {differ[0]} {differ[1]!r}, the shards have {differ[2]!r};"
            " build shards with the checkpoint's settings, or leave out init_checkpoint"
        )
    require_arrays(file, model, weights)
    model.load_state_dict(weights)


def _difference(
    found: CheckpointInfo, wanted: CheckpointInfo, *names: str
) -> tuple[str, Any, Any] | None:
    """Returns the first of the named settings that differs: (name, found, wanted)."""
    for name in names:
        theirs, ours = (dataclasses.asdict(info)[name] for info in (found, wanted))
        if theirs != ours and isinstance(theirs, dict):
            key = next(key for key in theirs if theirs[key] != ours[key])
            return f"{name}.{key}", theirs[key], ours[key]
        if theirs != ours:
            return name, theirs, ours
    return None


def _fill(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, torch.Tensor]
) -> None:
    index = {name: i for i, name in enumerate(names)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        state.setdefault(index[name], {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
