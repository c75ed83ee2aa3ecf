"""Weights as others keep them, written here: T5X checkpoints, and mt3-pytorch's state dict."""

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mt3train.model import MT3, ModelConfig
from mt3train.weights.convert import from_t5x

SMALL = ModelConfig(
    emb_dim=16, num_heads=2, head_dim=4, num_encoder_layers=1, num_decoder_layers=2, mlp_dim=12
)


def t5x_parameters(model: MT3) -> dict[str, tuple[torch.Tensor, bool]]:
    """The original's name of every parameter: {name: (tensor, stored transposed there)}.

    Names look like "encoder/layers_0/attention/query/kernel"; kernels are [in, out] in the
    original and [out, in] in torch.
    """
    renamed: dict[str, tuple[torch.Tensor, bool]] = {}
    for name, parameter in model.named_parameters():
        path = re.sub(r"layers\.(\d+)", r"layers_\1", name).replace(".", "/")
        if path.endswith("token_embedder/weight"):
            renamed[path.replace("/weight", "/embedding")] = (parameter, False)
        else:
            renamed[path.replace("/weight", "/kernel")] = (parameter, path.endswith("/weight"))
    return renamed


def load_t5x(model: MT3, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy the original's parameters, named as in a T5X checkpoint, into a model."""
    model.load_state_dict(from_t5x(arrays)[0])


def randomised_model(config: ModelConfig = SMALL) -> MT3:
    """All parameters different, norms too, so that no two could be exchanged unnoticed."""
    torch.manual_seed(5)
    model = MT3(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return model


def arrays_of(model: MT3) -> dict[str, np.ndarray]:
    """Its parameters as the original would keep them."""
    return {
        name: (parameter.T if transposed else parameter).detach().numpy().copy()
        for name, (parameter, transposed) in t5x_parameters(model).items()
    }


def write_zarr(folder: Path, array: np.ndarray, chunks: tuple[int, ...], **changes: Any) -> None:
    folder.mkdir()
    dtype = "bfloat16" if array.dtype == np.uint16 else "<f4"
    facts = {"shape": array.shape, "chunks": chunks, "dtype": dtype, "order": "C",
             "compressor": {"id": "gzip", "level": 1}, "fill_value": None, "filters": None,
             "zarr_format": 2} | changes  # fmt: skip
    (folder / ".zarray").write_text(json.dumps(facts))
    separator = facts.get("dimension_separator", ".")
    for place in np.ndindex(*(-(-n // c) for n, c in zip(array.shape, chunks, strict=True))):
        part = array[tuple(slice(i * c, (i + 1) * c) for i, c in zip(place, chunks, strict=True))]
        padded = np.full(chunks, 7, array.dtype)
        padded[tuple(map(slice, part.shape))] = part
        file = folder / separator.join(map(str, place))
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(
            gzip.compress(padded.tobytes()) if facts["compressor"] else padded.tobytes()
        )


def write_t5x(
    folder: Path, arrays: Mapping[str, np.ndarray], step: int = 7, inline: tuple[str, ...] = ()
) -> Path:
    """A checkpoint as T5X writes them, every array in one chunk.

    Arrays whose names end with one of `inline` are stored in the tree itself, as in Google's checkpoints.
    """
    import msgpack

    folder.mkdir(parents=True)
    target: dict[str, Any] = {}
    for name, array in arrays.items():
        path = f"target.{name.replace('/', '.')}"
        *above, last = name.split("/")
        node = target
        for key in above:
            node = node.setdefault(key, {})
        if name.endswith(inline):
            packed = msgpack.packb((array.shape, "float32", array.tobytes()))
            node[last] = msgpack.ExtType(1, packed)
            continue
        write_zarr(folder / path, array, array.shape)
        node[last] = {"driver": "zarr", "dtype": "float32", "metadata": {"shape": array.shape},
                      "kvstore": {"driver": "gfile", "path": f"gs://somewhere/{path}/"}}  # fmt: skip
    number = msgpack.ExtType(1, msgpack.packb(((), "int32", np.int32(step).tobytes())))
    tree = {"version": 3, "optimizer": {"target": target, "state": {"step": number}}}
    (folder / "checkpoint").write_bytes(msgpack.packb(tree))
    return folder


def pth_state(model: MT3) -> dict[str, torch.Tensor]:
    """The names under which mt3-pytorch keeps a model, written out one by one."""
    ours = model.state_dict()
    state = {
        "proj.weight": ours["encoder.continuous_inputs_projection.weight"],
        "decoder_embed_tokens.weight": ours["decoder.token_embedder.weight"],
        "encoder.embed_tokens.weight": ours["encoder.continuous_inputs_projection.weight"],
        "encoder.pos_emb.inv_freq": torch.rand(8),
        "encoder.final_layer_norm.weight": ours["encoder.encoder_norm.scale"],
        "decoder.embed_tokens.weight": ours["decoder.token_embedder.weight"],
        "decoder.pos_emb.inv_freq": torch.rand(8),
        "decoder.final_layer_norm.weight": ours["decoder.decoder_norm.scale"],
        "lm_head.weight": ours["decoder.logits_dense.weight"],
    }
    letters = {"q": "query", "k": "key", "v": "value", "o": "out"}
    sizes = model.config
    for side, layers in (
        ("encoder", sizes.num_encoder_layers),
        ("decoder", sizes.num_decoder_layers),
    ):
        own = "attention" if side == "encoder" else "self_attention"
        last = 1 if side == "encoder" else 2
        for i in range(layers):
            block, here = f"{side}.block.{i}.layer", f"{side}.layers.{i}"
            for letter, word in letters.items():
                state[f"{block}.0.SelfAttention.{letter}.weight"] = ours[
                    f"{here}.{own}.{word}.weight"
                ]
                if side == "decoder":
                    state[f"{block}.1.EncDecAttention.{letter}.weight"] = ours[
                        f"{here}.encoder_decoder_attention.{word}.weight"
                    ]
            for name in ("wi_0", "wi_1", "wo"):
                state[f"{block}.{last}.DenseReluDense.{name}.weight"] = ours[
                    f"{here}.mlp.{name}.weight"
                ]
            state[f"{block}.0.layer_norm.weight"] = ours[f"{here}.pre_{own}_layer_norm.scale"]
            state[f"{block}.{last}.layer_norm.weight"] = ours[f"{here}.pre_mlp_layer_norm.scale"]
            if side == "decoder":
                state[f"{block}.1.layer_norm.weight"] = ours[
                    f"{here}.pre_cross_attention_layer_norm.scale"
                ]
    return state
