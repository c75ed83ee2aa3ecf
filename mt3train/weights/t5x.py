"""Reads the parameters of a T5X checkpoint without JAX, tensorstore or T5X.

    checkpoint_1000000/checkpoint                            msgpack: the tree of all arrays; small
                                                             ones inline, the others by their folder
    checkpoint_1000000/target.encoder.encoder_norm.scale/    one zarr (version 2) folder per array:
        .zarray                                              its shape, chunks and type, as JSON
        0                                                    a chunk, gzipped, padded at the edges

Only parameters are read; the state of the optimizer is ignored. Unknown settings are errors that name
them, because a guess could give a model that runs and is wrong. A missing chunk is an error too, since
it comes from an incomplete copy. (In zarr it would stand for zeros.)

Source: t5x/checkpoints.py, flax/serialization.py, the zarr specification, version 2.
"""

import itertools
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.errors import UserError
from mt3data.files import read_limited
from mt3data.terminal import kind_of

TREE = "checkpoint"  # the msgpack file
FLAX_ARRAYS = (1, 3)  # msgpack extension types of flax: arrays and numpy scalars
KNOWN = {"version", "optimizer", "flax_mutables", "target", "state"}
GZIP = 16 + zlib.MAX_WBITS
MAX_ELEMENTS = 1 << 24  # of an array; MT3's largest has 851,968
MAX_DIMENSIONS, MAX_DEPTH = 8, 32
MAX_TREE_BYTES = 1 << 26  # MT3's has 894,205


def read_t5x(folder: Path) -> tuple[dict[str, np.ndarray], int]:
    """Reads the parameters of a checkpoint and its number of updates.

    Args:
        folder: of one checkpoint, or a folder that holds one `checkpoint_<step>`.
    Returns:
        Arrays by name, such as "decoder/layers_0/mlp/wi_0/kernel", float32; and the step.
    Raises:
        UserError: not a checkpoint, or one with something missing, damaged or unknown.
    """
    folder = _checkpoint_folder(folder)
    try:
        return _read_checkpoint(folder)
    except UserError:
        raise
    except (AttributeError, TypeError, ValueError, KeyError, OverflowError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"[:150]
        raise UserError(f"{folder} is no T5X checkpoint of MT3 ({reason}); copy it again") from None


def _read_checkpoint(folder: Path) -> tuple[dict[str, np.ndarray], int]:
    tree = _read_tree(folder / TREE)
    if unknown := sorted(map(str, tree.keys() - KNOWN)):
        raise UserError(
            f"{folder / TREE} holds {unknown[0]!r}, which is no part of a T5X checkpoint"
        )
    inside = tree.get("optimizer", tree)
    if not isinstance(inside, dict) or not isinstance(inside.get("target"), dict):
        raise UserError(f"{folder / TREE} has no parameters: expected optimizer/target in its tree")
    leaves = dict(_leaves(inside["target"]))
    named = {leaf["_folder"] for leaf in leaves.values() if isinstance(leaf, dict)}
    for path in sorted(folder.glob("target.*")):
        if path.name not in named:
            raise UserError(f"{path} is left over: the tree in {folder / TREE} does not name it")
    arrays = {name: _read_leaf(folder, name, leaf) for name, leaf in leaves.items()}
    step = np.asarray(inside.get("state", {}).get("step", 0))
    return arrays, int(step) if step.size == 1 else 0


def read_zarr(folder: Path) -> np.ndarray:
    """Reads an array of zarr version 2: one or many chunks, gzip or none, float32 or bfloat16.

    Returns:
        float32; bfloat16 is widened, which is exact.
    Raises:
        UserError: a file is missing or cut short, or has an unknown setting.
    """
    layout = _read_layout(folder / ".zarray")
    shape, chunks = layout.shape, layout.chunks
    kind = np.dtype("<u2" if layout.is_bfloat16 else "<f4")
    array = np.empty(shape, kind)
    counts = [range(-(-n // size)) for n, size in zip(shape, chunks, strict=True)]
    for place in itertools.product(*counts):
        path = folder / layout.separator.join(map(str, place or (0,)))
        data = _read_chunk(path, math.prod(chunks) * kind.itemsize, layout.compressed)
        region = tuple(
            slice(i * size, min((i + 1) * size, n))
            for i, size, n in zip(place, chunks, shape, strict=True)
        )
        inner = tuple(slice(part.stop - part.start) for part in region)  # the rest is padding
        array[region] = np.frombuffer(data, kind).reshape(chunks)[inner]
    return widen_bfloat16(array) if layout.is_bfloat16 else array


@dataclass(frozen=True)
class _Layout:
    """Holds the description of a zarr array."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    is_bfloat16: bool
    compressed: bool
    separator: str


def _read_layout(path: Path) -> _Layout:
    try:
        facts = json.loads(_read_file(path, 1 << 16))
        shape, chunks = tuple(facts["shape"]), tuple(facts["chunks"])
        compressor = (facts["compressor"] or {"id": "none"})["id"]
        kind = facts["dtype"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not the description of a zarr array ({error!r})") from None
    separator = facts.get("dimension_separator", ".")  # early T5X does not write it
    for key, seen, known in (
        ("zarr_format", facts.get("zarr_format"), (2,)),
        ("order", facts.get("order"), ("C",)),
        ("filters", facts.get("filters"), (None,)),
        ("compressor", compressor, ("gzip", "none")),
        ("dtype", kind, ("<f4", "bfloat16")),
        ("dimension_separator", separator, (".", "/")),
    ):
        if seen not in known:
            expected = " or ".join(map(repr, known))
            raise UserError(f"{path}: {key} is {seen!r}; expected {expected}")
    if not len(shape) == len(chunks) <= MAX_DIMENSIONS or not all(
        type(n) is int and 0 < n <= MAX_ELEMENTS  # true is an int, too
        for n in (*shape, *chunks)
    ):
        raise UserError(f"{path}: shape {shape!s:.60} in chunks of {chunks!s:.60} is not valid")
    if max(math.prod(shape), math.prod(chunks)) > MAX_ELEMENTS:
        raise UserError(f"{path}: shape {shape} is larger than any array of MT3")
    return _Layout(shape, chunks, kind == "bfloat16", compressor == "gzip", separator)


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Converts bfloat16, given as uint16, to float32, whose upper half it is."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _checkpoint_folder(folder: Path) -> Path:
    if (folder / TREE).is_file():
        return folder
    inside = sorted(path.parent for path in folder.glob(f"checkpoint_*/{TREE}"))
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(path.name for path in inside)
        raise UserError(f"{folder} holds {len(inside)} checkpoints ({names}); name one of them")
    if (folder / TREE).exists():
        raise UserError(
            f"{folder / TREE}: {kind_of(folder / TREE)}; expected the file of a T5X checkpoint"
        )
    raise UserError(
        f"{folder} is no T5X checkpoint: it has no file `{TREE}`; expected the folder that "
        f"holds it beside folders named target.*"
    )


def _read_tree(path: Path) -> dict[str, Any]:
    """Reads the msgpack file, with the arrays that flax wrote in it."""
    import msgpack

    def extension(code: int, data: bytes) -> np.ndarray:
        if code not in FLAX_ARRAYS:
            raise ValueError(f"extension type {code}")
        shape, kind, values = msgpack.unpackb(data, raw=False)
        if kind == "bfloat16":
            return widen_bfloat16(np.frombuffer(values, "<u2")).reshape(shape)
        dtype = np.dtype(kind)
        if dtype.hasobject:
            raise ValueError(f"an array of {kind}")
        return np.frombuffer(values, dtype).reshape(shape)

    try:
        tree = msgpack.unpackb(
            _read_file(path, MAX_TREE_BYTES), ext_hook=extension, raw=False, strict_map_key=False
        )
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path} is not the msgpack tree of a T5X checkpoint ({reason[:200]}); copy it again"
        ) from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} is not the msgpack tree of a T5X checkpoint: no mapping inside")
    return tree


def _leaves(tree: dict[str, Any], above: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields (name, inline array or description of a zarr folder) of everything below a node."""
    if depth > MAX_DEPTH:
        raise ValueError(f"a tree deeper than {MAX_DEPTH} levels")
    for key, node in tree.items():
        name = f"{above}{key}"
        if not isinstance(node, dict):
            yield name, node
        elif "driver" in node:
            path = node.get("path") or (node.get("kvstore") or {}).get("path") or ""
            # Only the last part: a checkpoint names the place where it was written.
            yield name, node | {"_folder": re.sub(r"/+$", "", str(path)).rpartition("/")[2]}
        else:
            yield from _leaves(node, name + "/", depth + 1)


def _read_leaf(folder: Path, name: str, leaf: Any) -> np.ndarray:
    where = f"{folder / TREE}: {name}"
    if isinstance(leaf, np.ndarray):
        if leaf.dtype != np.float32:
            raise UserError(f"{where} holds {leaf.dtype}; expected float32 or bfloat16")
        return leaf
    if not isinstance(leaf, dict) or leaf["driver"] != "zarr":
        seen = f"driver {leaf['driver']!r}" if isinstance(leaf, dict) else type(leaf).__name__
        raise UserError(f"{where} is stored as {seen}; expected zarr")
    if leaf["_folder"] in ("", ".", "..") or not (folder / leaf["_folder"]).is_dir():
        raise UserError(f"{where} should lie in {folder / leaf['_folder']}, which is missing")
    array = read_zarr(folder / leaf["_folder"])
    shape = (leaf.get("metadata") or {}).get("shape")
    if shape is not None and tuple(shape) != array.shape:
        raise UserError(f"{where} has shape {tuple(shape)}, its folder holds {array.shape}")
    return array


def _read_file(path: Path, limit: int) -> bytes:
    if (kind := kind_of(path)) != "a file":
        raise UserError(f"{path}: {kind}; expected a file, copy the checkpoint again")
    try:
        return read_limited(path, limit)
    except UserError as error:
        raise UserError(f"{error}; copy the checkpoint again") from None


def _read_chunk(path: Path, size: int, compressed: bool) -> bytes:
    """Reads a chunk of `size` bytes."""
    data = _read_file(path, size + size // 64 + 4096)  # gzip can make data longer by this much
    whole = True
    if compressed:
        unpacker = zlib.decompressobj(GZIP)
        try:
            data = unpacker.decompress(data, size + 1)
            whole = unpacker.eof and not unpacker.unused_data
        except zlib.error as error:
            raise UserError(f"{path}: damaged ({error}); copy the checkpoint again") from None
    if not whole or len(data) != size:
        seen = f"{len(data):,} bytes{'' if whole else ' and no end'}"
        raise UserError(f"{path}: {seen} in a chunk of {size:,}; copy the checkpoint again")
    return data
