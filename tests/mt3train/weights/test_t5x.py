"""mt3train.weights.t5x: msgpack and zarr, read without the libraries that wrote them."""

import json

import msgpack
import numpy as np
import pytest
import torch
from foreign import write_t5x, write_zarr

from mt3data.errors import UserError
from mt3train.weights.t5x import read_t5x, read_zarr


@pytest.mark.parametrize("changes", [{}, {"dimension_separator": "/"}, {"compressor": None}])
@pytest.mark.parametrize("chunks", [(5, 7), (2, 7), (5, 3), (2, 3), (4, 4), (1, 1)])
def test_an_array_in_any_chunks_is_read_whole(tmp_path, chunks, changes):
    array = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    write_zarr(tmp_path / "a", array, chunks, **changes)
    assert read_zarr(tmp_path / "a").tobytes() == array.tobytes()


def test_bfloat16_is_widened_exactly(tmp_path):
    bits = np.array([0x3F80, 0xC000, 0x3EAA, 0x0000, 0x7F7F], np.uint16)
    write_zarr(tmp_path / "a", bits, (2,))
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert read_zarr(tmp_path / "a").tolist() == expected.tolist()
    assert expected[:3].tolist() == [1.0, -2.0, 0.33203125]


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_small_arrays_may_stand_in_the_tree_itself(tmp_path, kind):
    source = write_t5x(tmp_path / "c", {"a/scale": np.ones(3, np.float32)})
    tree = msgpack.unpackb((source / "checkpoint").read_bytes())
    values = np.array([1, 2], "<f4").tobytes()
    if kind == "bfloat16":
        values = np.array([0x3F80, 0x4000], "<u2").tobytes()
    tree["optimizer"]["target"]["b"] = msgpack.ExtType(1, msgpack.packb(((2,), kind, values)))
    (source / "checkpoint").write_bytes(msgpack.packb(tree))
    assert read_t5x(source)[0]["b"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"compressor": {"id": "blosc"}}, "compressor is 'blosc'; expected 'gzip' or 'none'"),
        ({"dtype": "<f8"}, "dtype is '<f8'"),
        ({"order": "F"}, "order is 'F'"),
        ({"zarr_format": 3}, "zarr_format is 3"),
        ({"chunks": (0, 7)}, "makes no sense"),
        ({"shape": (1 << 20, 1 << 20)}, "larger than any array"),
    ],
)
def test_zarr_of_another_kind_is_refused_by_name(tmp_path, changes, message):
    write_zarr(tmp_path / "a", np.zeros((5, 7), np.float32), (5, 7))
    facts = json.loads((tmp_path / "a" / ".zarray").read_text())
    (tmp_path / "a" / ".zarray").write_text(json.dumps(facts | changes))
    with pytest.raises(UserError, match=message):
        read_zarr(tmp_path / "a")
