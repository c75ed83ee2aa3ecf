"""What a run starts from: its own newest checkpoint, another's weights, or nothing."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mt3data.errors import UserError
from mt3data.music.vocabulary import num_embeddings
from mt3train.config import Config
from mt3train.data.builds import TrainingData
from mt3train.model import MT3
from mt3train.weights.checkpoint import (
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


def checkpoint_info(config: Config, shards: TrainingData) -> CheckpointInfo:
    """What the weights of a run mean before its first step."""
    sizes = dataclasses.replace(
        config.model,
        vocab_size=num_embeddings(shards.vocabulary),
        n_mels=shards.spectrogram.n_mels,
    )
    return CheckpointInfo(
        model=sizes,
        spectrogram=shards.spectrogram,
        vocabulary=shards.vocabulary,
        right_context=shards.right_context,
        frames=config.data.frames,
        max_target_length=config.data.max_target_length,
    )


@dataclass(frozen=True)
class Restored:
    """What a run continues from.

    Attributes:
        step: number of updates done.
        progress: as checkpoint.save was given it.
        damaged: newer checkpoints that are not whole: (weights, what is wrong).
    """

    step: int
    progress: dict[str, Any]
    damaged: list[tuple[Path, str]]


def resume(
    run: Path,
    info: CheckpointInfo,
    settings: dict[str, Any],
    model: MT3,
    optimizer: torch.optim.Optimizer,
) -> Restored | None:
    """Load the newest checkpoint of a run that is whole into a model and its optimiser.

    Args:
        run: its folder.
        info: what the weights shall mean, the step excepted.
        settings: what must be as before besides; compared with progress["settings"].
        model, optimizer: filled in place.
    Returns:
        None if there is no checkpoint.
    Raises:
        UserError: the run was made with other settings, or none of its checkpoints is whole.
    """
    damaged = []
    for file in reversed(checkpoints(run)):
        try:
            found, weights = read_weights(file)
            progress, state = read_state(file)
        except Damaged as error:
            damaged.append((file, str(error)))
            continue
        differ = _difference(found, info, *INPUT_AND_OUTPUT, "frames", "max_target_length", "model")
        for name, now in settings.items():
            if progress["settings"].get(name) != now:
                differ = differ or (name, progress["settings"].get(name), now)
        if differ:
            raise UserError(
                f"{run} was trained with {differ[0]} {differ[1]!r}, now asked for is {differ[2]!r};"
                " choose another folder with run=DIR"
            )
        require_arrays(file, model, weights)
        model.load_state_dict(weights)
        _fill(optimizer, trainable(model), state)
        return Restored(found.step, progress, damaged)
    if damaged:
        raise UserError(f"no checkpoint in {run} is whole; of the newest: {damaged[0][1]}")
    return None


def set_aside(file: Path) -> None:
    """Rename the file of a damaged checkpoint, so that it neither counts nor is lost."""
    for path in (file, optimizer_file(file)):
        if path.is_file():
            path.replace(path.with_name(path.name + ".damaged"))


def init_from_checkpoint(model: MT3, path: str | Path, info: CheckpointInfo) -> None:
    """Give a new run the weights of another; lengths and dropout may differ.

    Args:
        model: filled in place.
        path: a .safetensors file, or a run's folder, of which the newest checkpoint is taken.
        info: what the new run's weights will mean.
    Raises:
        UserError: no checkpoint, or one of another vocabulary, spectrogram, right_context or size.
    """
    file = weights_file(Path(path))
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
    """The first setting of those named that differs: (name, found, wanted)."""
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
