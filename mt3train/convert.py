"""The names under which the original (a T5X checkpoint) keeps the network's parameters."""

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mt3train.model import MT3


def t5x_parameters(model: MT3) -> dict[str, tuple[Tensor, bool]]:
    """The original's name of every parameter: {name: (tensor, stored transposed there)}.

    Names look like "encoder/layers_0/attention/query/kernel"; kernels are [in, out] in the
    original and [out, in] in torch.
    """
    renamed: dict[str, tuple[Tensor, bool]] = {}
    for name, parameter in model.named_parameters():
        path = re.sub(r"layers\.(\d+)", r"layers_\1", name).replace(".", "/")
        if path.endswith("token_embedder/weight"):
            renamed[path.replace("/weight", "/embedding")] = (parameter, False)
        else:
            renamed[path.replace("/weight", "/kernel")] = (parameter, path.endswith("/weight"))
    return renamed


@torch.no_grad()
def load_t5x(model: MT3, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy the original's parameters, named as in a T5X checkpoint ("target/" optional).

    Raises:
        ValueError: names or shapes are not exactly those of the model.
    """
    given = {name.removeprefix("target/"): array for name, array in arrays.items()}
    wanted = t5x_parameters(model)
    if given.keys() != wanted.keys():
        differ = sorted(given.keys() ^ wanted.keys())
        raise ValueError(f"{len(differ)} parameters are not in both, such as {differ[0]}")
    for name, (parameter, transposed) in wanted.items():
        there = parameter.T if transposed else parameter
        if given[name].shape != there.shape:
            raise ValueError(f"{name}: shape {given[name].shape}, expected {tuple(there.shape)}")
        there.copy_(torch.from_numpy(np.ascontiguousarray(given[name])))
