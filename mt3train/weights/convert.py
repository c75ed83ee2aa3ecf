"""Converts weights: T5X checkpoints of the original, mt3-pytorch's state dict, smaller copies.

    mt3train convert checkpoint_1000000/ -o mt3.safetensors
    mt3train convert mt3.pth -o mt3.safetensors
    mt3train convert runs/mine -o mine.safetensors --half      (ours, in half the bytes)

The original (magenta/mt3) stores kernels as [in, out], torch as [out, in]. mt3-pytorch
(kunato/mt3-pytorch) names the same arrays as Hugging Face's T5 does. Nothing else is changed. The
converted file describes the model: sizes come from the shapes; spectrogram, vocabulary and length of
segments come from the published model with this vocabulary. An array that is missing, unknown or of
another shape is an error that names it.
"""

import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mt3data.errors import UserError
from mt3data.files import STDOUT, inputs_of, mark, require_output
from mt3data.music.vocabulary import VocabularyConfig, num_embeddings
from mt3data.terminal import kind_of
from mt3train.model import MT3, ModelConfig
from mt3train.weights import checkpoint
from mt3train.weights.checkpoint import CheckpointInfo
from mt3train.weights.t5x import MAX_ELEMENTS, read_t5x

COMMAND = "mt3train convert"
# Vocabulary and frames of the published models (mt3/gin/mt3.gin and ismir2021.gin). Both cut segments
# before they transform them.
PUBLISHED = {
    "mt3": (VocabularyConfig(num_velocity_bins=1, encoding="ties"), 256),
    "ismir2021": (
        VocabularyConfig(num_velocity_bins=127, encoding="noties", granularity="flat"), 512,
    ),
}  # fmt: skip
# Columns of attention -> heads, each of 64 columns (mt3/gin/model.gin and ismir2022/base.gin).
PUBLISHED_HEADS = {384: 6, 768: 12}

# Parts of mt3-pytorch's names, and ours. Two of its arrays have two names.
PTH_ALIASES = {
    "encoder.embed_tokens.weight": "proj.weight",
    "decoder.embed_tokens.weight": "decoder_embed_tokens.weight",
}
PTH_IGNORED = re.compile(r"(en|de)coder\.pos_emb\.inv_freq")  # positions are computed, see model.py
PTH_NAMES = (
    (r"^proj\.weight$", "encoder.continuous_inputs_projection.weight"),
    (r"^decoder_embed_tokens\.weight$", "decoder.token_embedder.weight"),
    (r"^lm_head\.weight$", "decoder.logits_dense.weight"),
    (r"^(en|de)coder\.final_layer_norm\.weight$", r"\1coder.\1coder_norm.scale"),
    (r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.", r"encoder.layers.\1.attention."),
    (r"^encoder\.block\.(\d+)\.layer\.0\.layer_norm\.weight$",
     r"encoder.layers.\1.pre_attention_layer_norm.scale"),
    (r"^encoder\.block\.(\d+)\.layer\.1\.layer_norm\.weight$",
     r"encoder.layers.\1.pre_mlp_layer_norm.scale"),
    (r"^decoder\.block\.(\d+)\.layer\.0\.SelfAttention\.", r"decoder.layers.\1.self_attention."),
    (r"^decoder\.block\.(\d+)\.layer\.1\.EncDecAttention\.",
     r"decoder.layers.\1.encoder_decoder_attention."),
    (r"^decoder\.block\.(\d+)\.layer\.0\.layer_norm\.weight$",
     r"decoder.layers.\1.pre_self_attention_layer_norm.scale"),
    (r"^decoder\.block\.(\d+)\.layer\.1\.layer_norm\.weight$",
     r"decoder.layers.\1.pre_cross_attention_layer_norm.scale"),
    (r"^decoder\.block\.(\d+)\.layer\.2\.layer_norm\.weight$",
     r"decoder.layers.\1.pre_mlp_layer_norm.scale"),
    (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.", r"encoder.layers.\1.mlp."),
    (r"^decoder\.block\.(\d+)\.layer\.2\.DenseReluDense\.", r"decoder.layers.\1.mlp."),
    (r"\.q\.weight$", ".query.weight"), (r"\.k\.weight$", ".key.weight"),
    (r"\.v\.weight$", ".value.weight"), (r"\.o\.weight$", ".out.weight"),
)  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """Describes converted weights.

    Attributes:
        family: "mt3" or "ismir2021"; "mt3train" for a checkpoint that was ours before.
        info: the description in the new file.
        n_parameters: number of parameters.
        sha256: of names and values, see checkpoint.checksum. Equal weights have equal checksums,
            whatever their format was.
    """

    family: str
    info: CheckpointInfo
    n_parameters: int
    sha256: str


def convert(
    source: str | Path, out: str | Path, num_heads: int | None = None, half: bool = False,
    force: bool = False,
) -> Converted:  # fmt: skip
    """Writes weights as a checkpoint of mt3train.

    Args:
        source: a T5X checkpoint's folder, mt3-pytorch's .pth file, a checkpoint or a run of ours.
        out: the .safetensors file to write.
        num_heads: heads of its attention; None: 6, if it has the published models' sizes.
        half: store float16. The checksum is that of the weights as they will be read.
        force: replace a file of any origin.
    Raises:
        UserError: the source is missing, damaged, pickled code, not exactly MT3, or beyond float16;
            or the output may not be written.
    """
    source, out = Path(source), Path(out)
    require_output(out, COMMAND, force, inputs=inputs_of([source]))
    if out == STDOUT or (out.exists() and not out.is_file()):
        raise UserError(
            f"{out}: weights are read again after they were written; name a regular file"
        )
    if out.suffix != checkpoint.WEIGHTS:
        raise UserError(f"{out}: expected a name that ends in {checkpoint.WEIGHTS}")
    if source.suffix == checkpoint.WEIGHTS or (source.is_dir() and checkpoint.checkpoints(source)):
        if num_heads is not None:
            raise UserError(f"{source} states its number of heads; leave out --heads")
        family, (model, info) = "mt3train", checkpoint.load_model(source)
    else:
        family, model, info = _read_foreign(source, num_heads)
    target = Path(os.path.realpath(out))  # a link stays
    checkpoint.save_weights(target, model, info, half, mark(COMMAND))
    written = checkpoint.read_weights(out)[1]
    return Converted(
        family, info, sum(t.numel() for t in written.values()), checkpoint.checksum(written)
    )


def _read_foreign(source: Path, num_heads: int | None) -> tuple[str, MT3, CheckpointInfo]:
    if source.is_dir():
        arrays, step = read_t5x(source)
        tensors, theirs = from_t5x(arrays)
    else:
        step, (tensors, theirs) = 0, from_pth(read_pth(source), source)
    family, info = infer(source, tensors, num_heads, step)
    return family, checkpoint.model_of(source, tensors, info, theirs), info


def infer(
    source: Path, tensors: Mapping[str, Tensor], num_heads: int | None = None, step: int = 0
) -> tuple[str, CheckpointInfo]:
    """Returns name and settings of the published model that weights belong to, by their shapes.

    Args:
        source: for messages.
        tensors: by our names.
        num_heads: see `convert`.
        step: number of updates done.
    Raises:
        UserError: arrays that give the sizes are missing, or no published model has such sizes.
    """
    size = partial(_size, source, tensors)
    vocab_size = size("decoder.token_embedder.weight", 0)
    inner = size("decoder.layers.0.self_attention.query.weight", 0)
    family = _family(source, vocab_size)
    vocabulary, frames = PUBLISHED[family]
    num_heads = _heads(source, inner, num_heads)
    model = ModelConfig(
        vocab_size=vocab_size,
        emb_dim=size("decoder.token_embedder.weight", 1),
        num_heads=num_heads,
        head_dim=inner // num_heads,
        num_encoder_layers=_count_layers(tensors, "encoder"),
        num_decoder_layers=_count_layers(tensors, "decoder"),
        mlp_dim=size("decoder.layers.0.mlp.wi_0.weight", 0),
        n_mels=size("encoder.continuous_inputs_projection.weight", 1),
    )
    info = CheckpointInfo(step=step, model=model, vocabulary=vocabulary, frames=frames)
    checkpoint.parse_info(asdict(info), source)  # as a file of ours would be checked
    return family, info


def _size(source: Path, tensors: Mapping[str, Tensor], name: str, axis: int) -> int:
    """Rows (0) or columns (1) of a matrix that every MT3 model has."""
    tensor = tensors.get(name)
    if tensor is None or tensor.ndim != 2:
        raise UserError(f"{source} is no MT3 model: it has no matrix {name}")
    return tensor.shape[axis]


def _heads(source: Path, inner: int, wanted: int | None) -> int:
    """Returns the number of heads. Shapes do not show it, so it is known for published sizes only."""
    heads = wanted or PUBLISHED_HEADS.get(inner)
    if heads is None:
        known = " or ".join(f"{columns} in {n} heads" for columns, n in PUBLISHED_HEADS.items())
        raise UserError(
            f"{source}: attention has {inner} columns, the published models {known}; arrays do "
            "not show into how many heads they are split, so say --heads"
        )
    if inner % heads:
        raise UserError(f"{source}: {inner} columns of attention are not {heads} equal heads")
    return heads


def _family(source: Path, vocab_size: int) -> str:
    """Returns the published model with a vocabulary of this size."""
    known = {num_embeddings(vocabulary): name for name, (vocabulary, _) in PUBLISHED.items()}
    if vocab_size not in known:
        sizes = " or ".join(f"{n} ({name})" for n, name in known.items())
        raise UserError(f"{source}: a vocabulary of {vocab_size} words; expected {sizes}")
    return known[vocab_size]


def from_t5x(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Renames the original's arrays to our names and transposes kernels to [out, in].

    Args:
        arrays: named as in a T5X checkpoint, "target/" optional.
    Returns:
        The arrays, and the original's name of each.
    """
    tensors, theirs = {}, {}
    for name, array in arrays.items():
        path = name.removeprefix("target/").replace("/", ".")
        path = re.sub(r"\.layers_(\d+)\.", r".layers.\1.", path)
        stem, _, last = path.rpartition(".")
        ours = f"{stem}.weight" if last in ("kernel", "embedding") else path
        tensor = torch.from_numpy(
            np.array(array, np.float32)
        )  # a copy, because torch needs a writable array
        if last == "kernel" and tensor.ndim == 2:
            tensor = tensor.T.contiguous()
        tensors[ours], theirs[ours] = tensor, name
    return tensors, theirs


def from_pth(state: Mapping[str, Any], source: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Renames the arrays of mt3-pytorch's state dict to our names; see `from_t5x`.

    Raises:
        UserError: an entry that is no array, or two that should be one.
    """
    tensors: dict[str, Tensor] = {}
    theirs: dict[str, str] = {}
    for name, value in state.items():
        if PTH_IGNORED.fullmatch(str(name)):
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise UserError(
                f"{source}: {name} is no array of floating-point numbers; expected mt3-pytorch's state"
                " dict, which holds nothing else"
            )
        ours = PTH_ALIASES.get(name, str(name))
        for pattern, replacement in PTH_NAMES:
            ours = re.sub(pattern, replacement, ours)
        if value.numel() > MAX_ELEMENTS or value.layout != torch.strided or value.is_meta:
            raise UserError(f"{source}: {name} is larger than any array of MT3, or holds no values")
        tensor = value.to(torch.float32).contiguous()
        if ours in tensors and not torch.equal(tensors[ours], tensor):
            raise UserError(f"{source}: {name} and {theirs[ours]} differ; expected one array")
        tensors[ours], theirs[ours] = tensor, str(name)
    return tensors, theirs


def read_pth(path: Path) -> Mapping[str, Any]:
    """Reads a file of torch.save without executing anything in it.

    Raises:
        UserError: missing, damaged, holding pickled code, or no mapping.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: {kind_of(path)}; expected a T5X checkpoint's folder or a .pth file"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        seen = f"it refers to {found[1]}" if found else "it is damaged, or not of torch.save"
        raise UserError(
            f"{path} is refused: {seen}; expected a state dict, which holds nothing but arrays"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, LookupError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise UserError(
            f"{path} is no whole file of torch.save ({reason}); copy it again"
        ) from None
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}; expected a state dict")
    return state


def _count_layers(tensors: Mapping[str, Tensor], side: str) -> int:
    found = (re.match(rf"{side}\.layers\.(\d+)\.", name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
