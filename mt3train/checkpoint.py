"""Checkpoints: weights that describe themselves, and beside them what a run needs to go on.

    runs/demo/checkpoint-00000400.safetensors         weights; metadata: sizes of the model, how its
                                                      spectrogram and tokens were made, the step
    runs/demo/checkpoint-00000400.optimizer.safetensors   optimiser state; metadata: progress

The first file alone is what transcription needs. Nothing is pickled. Each file is written under
another name, synced and renamed, the weights last: when they are there, the checkpoint is whole.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mt3data.errors import UserError
from mt3data.spectrogram import SpectrogramConfig
from mt3data.vocabulary import VocabularyConfig
from mt3train.model import MT3, ModelConfig

SCHEMA = 1  # of the metadata
METADATA_KEY = "mt3kit"
WEIGHTS, OPTIMIZER = ".safetensors", ".optimizer.safetensors"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a model's weights mean.

    Attributes:
        step: number of updates done.
        model: sizes of the network.
        spectrogram: how its input is computed.
        vocabulary: what its tokens say.
        edge: "segment" or "track": what the last frames of a segment saw in training.
        frames: length of a segment.
        max_target_length: longest target of its training, EOS included.
    """

    step: int = 0
    model: ModelConfig = ModelConfig()
    spectrogram: SpectrogramConfig = SpectrogramConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    edge: str = "segment"
    frames: int = 256
    max_target_length: int = 1024

    def difference(self, other: "CheckpointInfo") -> tuple[str, Any, Any] | None:
        """The first setting, the step excepted, that differs: (name, ours, theirs)."""
        ours, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        for name in ("vocabulary", "spectrogram", "edge", "frames", "max_target_length", "model"):
            mine, other_s = ours[name], theirs[name]
            if mine != other_s and isinstance(mine, dict):
                key = next(key for key in mine if mine[key] != other_s[key])
                return f"{name}.{key}", mine[key], other_s[key]
            if mine != other_s:
                return name, mine, other_s
        return None


def save_weights(path: Path, model: MT3, info: CheckpointInfo) -> None:
    """Write a model's weights and their description to one file."""
    metadata = {"schema": SCHEMA, **dataclasses.asdict(info)}
    _write(path, dict(model.state_dict()), metadata)


def save(
    folder: Path,
    model: MT3,
    info: CheckpointInfo,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    keep: int = 3,
) -> Path:
    """Write the checkpoint of info.step into a run's folder and drop all but the `keep` newest.

    Args:
        optimizer: over model.parameters(), in their order.
        progress: whatever else the run needs to go on, as JSON can hold it.
    Returns:
        The path of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"checkpoint-{info.step:08d}"
    names = [name for name, _ in model.named_parameters()]
    state = {
        f"{names[index]}/{key}": value
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }
    _write(folder / (stem + OPTIMIZER), state, {"schema": SCHEMA, "progress": progress})
    save_weights(folder / (stem + WEIGHTS), model, info)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    kept = {path.stem for path in checkpoints(folder)}
    for path in folder.glob(f"checkpoint-*{OPTIMIZER}"):
        if path.name.removesuffix(OPTIMIZER) not in kept:
            path.unlink()
    return folder / (stem + WEIGHTS)


def checkpoints(folder: Path) -> list[Path]:
    """The weights of every whole checkpoint in a run's folder, oldest first."""
    found = folder.glob(f"checkpoint-*{WEIGHTS}")
    return sorted(path for path in found if not path.name.endswith(OPTIMIZER))


def read_info(path: Path) -> CheckpointInfo:
    """What the weights at `path` (a file, or a run's folder: its newest) mean."""
    return _read(_weights_file(path), with_tensors=False)[0]


def load_model(
    path: str | Path, vocabulary: VocabularyConfig | None = None
) -> tuple[MT3, CheckpointInfo]:
    """The model of a checkpoint, on the CPU and in evaluation mode.

    Args:
        path: a .safetensors file, or a run's folder, of which the newest checkpoint is taken.
        vocabulary: the one that the caller expects.
    Raises:
        UserError: nothing there, not a checkpoint of ours, cut short, or of another vocabulary.
    """
    file = _weights_file(Path(path))
    info, tensors = _read(file)
    if vocabulary is not None and vocabulary != info.vocabulary:
        raise UserError(
            f"{file} was trained with {info.vocabulary}, asked for was {vocabulary}; use another"
            " checkpoint"
        )
    with torch.device("meta"):  # no time spent on initial values
        model = MT3(info.model)
    _check(file, model, tensors)
    model.load_state_dict(tensors, assign=True)
    return model.eval(), info


def load_weights(file: Path, model: MT3) -> None:
    """Copy the weights of a checkpoint into a model of the same sizes."""
    tensors = _read(file)[1]
    _check(file, model, tensors)
    model.load_state_dict(tensors)


def read_progress(file: Path) -> dict[str, Any]:
    """What `save` was given as progress, from beside the weights `file`."""
    return _open(_beside(file), with_tensors=False)[0]["progress"]


def load_optimizer(file: Path, model: MT3, optimizer: torch.optim.Optimizer) -> None:
    """Fill the optimiser, over model.parameters(), from beside the weights `file`."""
    tensors = _open(_beside(file))[1]
    index = {name: i for i, (name, _) in enumerate(model.named_parameters())}
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        state.setdefault(index[name], {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _beside(file: Path) -> Path:
    beside = file.with_name(file.name.removesuffix(WEIGHTS) + OPTIMIZER)
    if not beside.is_file():
        raise UserError(f"{beside} is missing, so {file.name} cannot go on; start in another run=")
    return beside


def _weights_file(path: Path) -> Path:
    if path.is_dir():
        found = checkpoints(path)
        if not found:
            raise UserError(f"{path} holds no checkpoint-*.safetensors; expected a run's folder")
        return found[-1]
    if not path.is_file():
        raise UserError(f"no checkpoint {path}; expected a .safetensors file or a run's folder")
    return path


def _read(file: Path, with_tensors: bool = True) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    metadata, tensors = _open(file, with_tensors)
    try:
        info = CheckpointInfo(
            step=metadata["step"],
            model=ModelConfig(**metadata["model"]),
            spectrogram=SpectrogramConfig(**metadata["spectrogram"]),
            vocabulary=VocabularyConfig(**metadata["vocabulary"]),
            edge=metadata["edge"],
            frames=metadata["frames"],
            max_target_length=metadata["max_target_length"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} holds no model: its metadata lacks {error}") from None
    return info, tensors


def _open(file: Path, with_tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(METADATA_KEY)
            names = opened.keys() if with_tensors else []
            tensors = {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is not a whole safetensors file ({error}); copy it again"
        ) from None
    if text is None:
        raise UserError(
            f"{file} is not a checkpoint of mt3train: it has no {METADATA_KEY} metadata"
        )
    metadata = json.loads(text)
    if metadata.get("schema") != SCHEMA:
        raise UserError(
            f"{file} has metadata of schema {metadata.get('schema')}, this version reads {SCHEMA};"
            " use the version of mt3train that wrote it"
        )
    return metadata, tensors


def _check(file: Path, model: MT3, tensors: dict[str, Tensor]) -> None:
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        shapes = [tuple(t[name].shape) if name in t else None for t in (tensors, wanted)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{file}: {name} has shape {shapes[0]}, the model needs {shapes[1]}")


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(held, part, {METADATA_KEY: json.dumps(metadata)})
    _sync(part)
    part.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
