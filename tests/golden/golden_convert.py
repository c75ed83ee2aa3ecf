"""Compares conversion with checkpoints that the original wrote (t5x_checkpoint*.tar).

Each check takes a folder laid out like tests/golden and returns (values compared, worst error as a
share of what is tolerated). The arrays of a converted checkpoint are the source's, byte for byte.
"""

import json
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from foreign import t5x_parameters

from mt3train.weights.checkpoint import load_model
from mt3train.weights.convert import convert


def unpack(archive: Path, into: Path) -> Path:
    """Unpacks a golden tar; returns the folder of its checkpoint."""
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")
    return next(into.glob("checkpoint_*"))


def heads(folder: Path) -> int:
    """Heads of the small golden network."""
    return json.loads(str(np.load(folder / "net_io.npz")["config"]))["num_heads"]


def check_checkpoint(folder: Path) -> tuple[int, float]:
    """t5x_checkpoint.tar: every parameter after three updates, through msgpack and zarr."""
    with tempfile.TemporaryDirectory() as scratch:
        source = unpack(folder / "t5x_checkpoint.tar", Path(scratch))
        return _same_bytes(source, folder), 0.0


def check_chunks(folder: Path) -> tuple[int, float]:
    """t5x_checkpoint_chunked_by_hand.tar: its arrays in place of those in one chunk."""
    with tempfile.TemporaryDirectory() as scratch:
        source = unpack(folder / "t5x_checkpoint.tar", Path(scratch) / "whole")
        chunked = unpack(folder / "t5x_checkpoint_chunked_by_hand.tar", Path(scratch) / "chunked")
        for array in chunked.iterdir():
            shutil.rmtree(source / array.name)
            shutil.copytree(array, source / array.name)
            assert len(list(array.glob("[0-9]*"))) > 1, f"{array.name} is in one chunk"
        return _same_bytes(source, folder), 0.0


def _same_bytes(source: Path, folder: Path) -> int:
    golden: Mapping[str, np.ndarray] = np.load(folder / "net_train.npz")
    out = source.with_suffix(".safetensors")
    done = convert(source, out, heads(folder))
    model, info = load_model(out)
    assert (done.family, info.step, info) == ("mt3", 3, done.info)
    ours = t5x_parameters(model)
    assert len(ours) == sum(key.startswith("after3/") for key in golden)
    for name, (parameter, transposed) in ours.items():
        array = (parameter.T if transposed else parameter).detach().numpy()
        assert array.tobytes() == golden[f"after3/{name}"].tobytes(), name
    return len(ours)


CHECKS = {
    "t5x_checkpoint.tar": check_checkpoint,
    "t5x_checkpoint_chunked_by_hand.tar": check_chunks,
}
