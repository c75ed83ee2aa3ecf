"""Reads and writes checkpoints: weights that describe themselves, and the state of their training.

    runs/demo/checkpoint-00000400.safetensors         weights; metadata: sizes of the model, settings of
                                                      spectrogram and tokens, the step
    runs/demo/checkpoint-00000400.optimizer.safetensors   optimizer state; metadata: progress
    runs/demo/best.safetensors                        weights of the best evaluation so far

Transcription and fine-tuning need the weights alone. Nothing is pickled. Files are written atomically,
the weights last, so a checkpoint whose weights exist is complete. Every file holds a checksum of its
content, which is compared when it is read. A damaged checkpoint is set aside, and the run continues
from the one before.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.errors import UserError
from mt3data.files import write_atomically
from mt3data.music.vocabulary import VocabularyConfig, num_embeddings
from mt3data.schema import Limits, find_fault, parse_document
from mt3data.shards.format import Positive, SpectrogramFields, VocabularyFields
from mt3data.terminal import kind_of
from mt3train.model import MAX_POSITIONS, MT3, ModelConfig
from mt3train.weights import published

SCHEMA = 1  # of the metadata
METADATA_KEY = "mt3kit"
WEIGHTS, OPTIMIZER = ".safetensors", ".optimizer.safetensors"
BEST = "best.safetensors"
TRAINED = "trained"  # key of a weight in the optimizer file, where the checkpoint holds the average
# Checkpoints written before version 0.2 have the key "edge" with these values.
RIGHT_CONTEXT_OF_EDGE = {"segment": "zeros", "track": "audio"}
NAME = re.compile(r"checkpoint-(\d{8,})\.safetensors")  # of the weights of a run
HALF_MAX = torch.finfo(torch.float16).max  # 65,504


class Damaged(UserError):
    """Reports a file that was cut short, altered or lost. An earlier checkpoint may be complete."""


@dataclass(frozen=True)
class _ModelFields:
    vocab_size: Annotated[int, Limits(4, 1e5)]
    emb_dim: Annotated[int, Limits(2, 1e5)]
    num_heads: Annotated[int, Limits(1, 1000)]
    head_dim: Annotated[int, Limits(1, 1e4)]
    num_encoder_layers: Annotated[int, Limits(1, 200)]
    num_decoder_layers: Annotated[int, Limits(1, 200)]
    mlp_dim: Annotated[int, Limits(1, 1e5)]
    n_mels: Annotated[int, Limits(1, 1e4)]
    dropout_rate: Annotated[float, Limits(0, 0.999)]


@dataclass(frozen=True)
class _InfoFields:
    """Limits the fields of a CheckpointInfo from a file."""

    step: Annotated[int, Limits()]
    model: _ModelFields
    spectrogram: SpectrogramFields
    vocabulary: VocabularyFields
    frames: Annotated[int, Limits(1, MAX_POSITIONS)]
    max_target_length: Annotated[int, Limits(1, MAX_POSITIONS)]
    right_context: Literal["zeros", "audio"] | None = None
    edge: Literal["segment", "track"] | None = None


@dataclass(frozen=True)
class _AnyMetadata:
    schema: Positive
    checksum: str = ""


@dataclass(frozen=True)
class _AnyStep:
    step: Annotated[int, Limits()]


@dataclass(frozen=True)
class CheckpointInfo:
    """Describes a model.

    Attributes:
        step: number of updates.
        model: sizes of the network.
        spectrogram: settings of its input.
        vocabulary: settings of its tokens.
        right_context: what followed the last frame of a segment in training: "zeros" or "audio".
        frames: length of a segment.
        max_target_length: longest target of its training, EOS included.
    """

    step: int = 0
    model: ModelConfig = ModelConfig()
    spectrogram: SpectrogramConfig = SpectrogramConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    right_context: str = "zeros"
    frames: int = 256
    max_target_length: int = 1024


def save_weights(
    path: Path, model: MT3, info: CheckpointInfo, half: bool = False, made_by: str = ""
) -> None:
    """Writes a model's weights and their description to one file.

    Args:
        made_by: mark of the command that writes the file, see `files.mark`.
        half: as float16, in half the bytes; readers get float32 again.
    Raises:
        UserError: it cannot be written, or a weight has no float16.
    """
    tensors = dict(model.state_dict())
    if half:
        tensors = {name: _to_half(name, tensor) for name, tensor in tensors.items()}
    _write(path, tensors, dataclasses.asdict(info), made_by)


def _to_half(name: str, tensor: Tensor) -> Tensor:
    largest = float(tensor.abs().max())
    if not largest <= HALF_MAX:  # NaN too
        raise UserError(
            f"{name} holds {largest:g}; half precision ends at {HALF_MAX:g}: write it without --half"
        )
    return tensor.to(torch.float16)


def save(
    folder: Path,
    model: MT3,
    info: CheckpointInfo,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    average: MT3 | None = None,
) -> Path:
    """Writes the checkpoint of info.step into a run's folder.

    Args:
        average: the average of the weights over the run, if it is kept. It is written as the weights
            of the checkpoint, and the model's own weights beside the optimizer's state.
        optimizer: over those of model.parameters() that require gradients, in their order.
        progress: whatever else the run needs to go on, as JSON can hold it.
    Returns:
        The path of the weights.
    Raises:
        UserError: it cannot be written; earlier checkpoints stay as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, names = weights_path(folder, info.step), trainable(model)
    state = {
        f"{names[index]}/{key}": value
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }
    if average is not None:
        state |= {f"{name}/{TRAINED}": p.detach() for name, p in model.named_parameters()}
    _write(optimizer_file(path), state, {"progress": progress})
    save_weights(path, average or model, info)
    return path


def weights_path(folder: Path, step: int) -> Path:
    """Where a run keeps the weights after so many updates."""
    return folder / f"checkpoint-{step:08d}{WEIGHTS}"


def trainable(model: MT3) -> list[str]:
    """Names of the parameters that an optimiser updates, in its order."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def checkpoints(folder: Path) -> list[Path]:
    """Returns the weights of every checkpoint in a run's folder, by step.

    Other names do not count, and neither does a copy under the name of another step: as the newest
    checkpoint it would begin every run at its own, older step.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    steps = {int(match[1]) for name in names if (match := NAME.fullmatch(name))}
    paths = {step: weights_path(folder, step) for step in sorted(steps)}
    return [path for step, path in paths.items() if path.is_file() and _has_step(path, step)]


def _has_step(file: Path, step: int) -> bool:
    """Checks that metadata hold this step. True for a damaged file, which its reader reports."""
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(METADATA_KEY, "")
        return (
            parse_document(text.encode(errors="replace"), _AnyStep, str(file), "")["step"] == step
        )
    except (SafetensorError, OSError, UserError):
        return True


def load_model(path: str | Path) -> tuple[MT3, CheckpointInfo]:
    """Loads the model of a checkpoint, on the CPU and in evaluation mode.

    Args:
        path: a .safetensors file, a run's folder, of which the newest checkpoint is taken, or as a
            str the name of published weights, such as "mt3".
    Raises:
        UserError: nothing there, not a checkpoint of ours, or a damaged one.
    """
    file = weights_file(path)
    info, tensors = read_weights(file)
    return model_of(file, tensors, info).eval(), info


def model_of(
    source: Path,
    tensors: Mapping[str, Tensor],
    info: CheckpointInfo,
    theirs: Mapping[str, str] | None = None,
) -> MT3:
    """Builds the model that consists of these arrays; see `require_arrays`."""
    with torch.device("meta"):  # no time spent on initial values
        model = MT3(info.model)
    require_arrays(source, model, tensors, theirs)
    model.load_state_dict(tensors, assign=True)
    return model


def weights_file(path: str | Path) -> Path:
    """Returns the file of weights at a path: the file itself, or the newest of a run's folder.

    Published weights, named by a str, are downloaded at their first use; see `published.resolve`.

    Raises:
        UserError: there are none.
    """
    path = published.resolve(path)
    if path.is_dir():
        found = checkpoints(path)
        if not found:
            raise UserError(
                f"{path} holds no checkpoint-*{WEIGHTS}; expected a run's folder (`mt3train convert`"
                " makes a checkpoint of a T5X one)"
            )
        return found[-1]
    if not path.is_file():
        raise UserError(f"{path}: {kind_of(path)}; expected a .safetensors file or a run's folder")
    if path.suffix != WEIGHTS:
        raise UserError(f"{path} is no {WEIGHTS} file; `mt3train convert` makes one of a .pth file")
    return path


def read_weights(file: Path) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Reads the description and the tensors of a file of weights. Half precision becomes float32.

    Raises:
        Damaged: it was cut short or altered. UserError: it is not a checkpoint of ours.
    """
    metadata, tensors = _open(file)
    info = parse_info(metadata, file)
    return info, {n: t.float() if t.dtype == torch.float16 else t for n, t in tensors.items()}


def parse_info(metadata: Mapping[str, Any], source: Path) -> CheckpointInfo:
    """Checks the description of a model and returns it.

    Args:
        metadata: from a file, or the fields of a CheckpointInfo.
        source: its path, for messages.
    Raises:
        UserError: a field is missing, unknown, of another type, or out of range.
    """
    fault = find_fault(dict(metadata), _InfoFields)
    right_context = metadata.get("right_context") or RIGHT_CONTEXT_OF_EDGE.get(
        str(metadata.get("edge"))
    )
    if not fault and right_context is None:
        fault = "'right_context' is missing"
    try:
        if not fault:
            info = CheckpointInfo(
                step=metadata["step"],
                model=ModelConfig(**metadata["model"]),
                spectrogram=SpectrogramConfig(**metadata["spectrogram"]),
                vocabulary=VocabularyConfig(**metadata["vocabulary"]),
                right_context=str(right_context),
                frames=metadata["frames"],
                max_target_length=metadata["max_target_length"],
            )
            sizes = info.model.n_mels, info.model.vocab_size
            expected = info.spectrogram.n_mels, num_embeddings(info.vocabulary)
            if sizes == expected:
                return info
            fault = (
                f"model.n_mels and model.vocab_size are {sizes}; expected {expected}, as its "
                "spectrogram and vocabulary have them"
            )
    except (TypeError, ValueError) as error:
        fault = str(error)
    raise UserError(f"{source}: its metadata describes no model ({fault}); copy it again")


def require_arrays(
    source: Path,
    model: MT3,
    tensors: Mapping[str, Tensor],
    theirs: Mapping[str, str] | None = None,
) -> None:
    """Raises UserError unless arrays are named and shaped as the model's, with finite numbers.

    Args:
        source: their origin, for messages.
        tensors: the arrays, by our names.
        theirs: their names in the source; None: the same.
    """
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    called = theirs or {name: name for name in tensors}
    if left_over := sorted(called[name] for name in tensors.keys() - wanted.keys()):
        raise UserError(
            f"{source}: arrays left over: {len(left_over)}, such as {left_over[0]}; MT3 has no such"
            " parameter"
        )
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise UserError(
            f"{source}: arrays missing: {len(missing)}, such as the one for {missing[0]} "
            f"{wanted[missing[0]]}; copy the checkpoint again"
        )
    for name, tensor in sorted(tensors.items()):
        if not tensor.is_floating_point():
            raise UserError(
                f"{source}: {called[name]} holds {tensor.dtype}; expected floating point"
            )
        if list(tensor.shape) != wanted[name]:
            raise UserError(
                f"{source}: {called[name]} is {list(tensor.shape)} as [out, in]; a model of its "
                f"sizes has {wanted[name]}"
            )
        if not torch.isfinite(tensor.sum(dtype=torch.float64)):
            raise UserError(
                f"{source}: {called[name]} holds NaN or infinity, with which nothing can be "
                "transcribed; take an earlier checkpoint"
            )


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> str:
    """Computes the SHA-256 of metadata (as JSON, if any) and of name, shape and values of all tensors."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode() if metadata else b"")
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_state(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads the progress and optimizer state that `save` wrote with the weights `file`.

    Returns:
        The progress, and the state by "name of a parameter/key".
    Raises:
        Damaged: they are not there, cut short, or altered.
    """
    beside = optimizer_file(file)
    if not beside.is_file():
        raise Damaged(f"{beside} is missing, so training cannot continue from {file.name}")
    metadata, tensors = _open(beside)
    if not isinstance(metadata.get("progress"), dict):
        raise Damaged(f"{beside}: its metadata has no progress; copy it again")
    return metadata["progress"], tensors


def optimizer_file(file: Path) -> Path:
    """Returns the file of the optimizer state that belongs to the weights `file`."""
    return file.with_name(file.name.removesuffix(WEIGHTS) + OPTIMIZER)


def _open(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(METADATA_KEY)
            names = opened.keys()
            tensors = {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise Damaged(f"{file} is not a whole safetensors file ({error}); copy it again") from None
    if text is None:
        raise UserError(
            f"{file} is not a checkpoint of mt3train: it has no {METADATA_KEY} metadata"
        )
    try:
        metadata = parse_document(
            text.encode(errors="replace"), _AnyMetadata, str(file), "description of a checkpoint"
        )
    except UserError as error:
        raise Damaged(str(error)) from None
    if metadata.get("schema") != SCHEMA:
        raise UserError(
            f"{file} has metadata of schema {metadata.get('schema')}, this version reads {SCHEMA};"
            " use the version of mt3train that wrote it"
        )
    # Files that are older than this check have none.
    expected = metadata.pop("checksum", None)
    if expected is not None and expected != (found := checksum(tensors, metadata)):
        raise Damaged(
            f"{file} was altered: its content has the checksum {found[:12]}, not {expected:.12} as"
            " when it was written; copy it again"
        )
    return metadata, tensors


def _write(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any], made_by: str = ""
) -> None:
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"schema": SCHEMA, **metadata}
    metadata |= {"checksum": checksum(held, metadata)}
    try:
        header = {METADATA_KEY: json.dumps(metadata)} | ({"made_by": made_by} if made_by else {})
        write_atomically(path, to_bytes(held, header))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make room there, or choose another path:"
            " checkpoints that were there are whole"
        ) from error
