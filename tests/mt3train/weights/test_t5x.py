"""mt3train.weights.t5x: msgpack and zarr, read without the libraries that wrote them."""

import json
import os

import msgpack
import needs
import numpy as np
import pytest
import torch
from foreign import write_t5x, write_zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
        ({"chunks": (0, 7)}, "is not valid"),
        ({"shape": (1 << 20, 1 << 20)}, "larger than any array"),
    ],
)
def test_zarr_of_another_kind_is_refused_by_name(tmp_path, changes, message):
    write_zarr(tmp_path / "a", np.zeros((5, 7), np.float32), (5, 7))
    facts = json.loads((tmp_path / "a" / ".zarray").read_text())
    (tmp_path / "a" / ".zarray").write_text(json.dumps(facts | changes))
    with pytest.raises(UserError, match=message):
        read_zarr(tmp_path / "a")


@needs.posix
@pytest.mark.parametrize("name", ["checkpoint", "target.a.scale/.zarray", "target.a.scale/0"])
@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "huge"])
def test_a_device_a_pipe_or_a_huge_file_is_refused_at_once(tmp_path, name, kind):
    source = write_t5x(tmp_path / "c", {"a/scale": np.ones(3, np.float32)})
    file = source / name
    assert file.is_file()
    file.unlink()
    if kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        with file.open("wb") as sparse:
            sparse.truncate(1 << 40)
    with pytest.raises(UserError) as caught:
        read_t5x(source)
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(), st.text(max_size=4),
              st.binary(max_size=4), st.sampled_from(["zarr", "target.a.scale", "..", "/", "driver"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["driver", "path", "kvstore", "metadata", "shape", "a", "step"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_tree_gives_arrays_or_one_line(tmp_path, data):
    source = tmp_path / "c"
    if not source.exists():
        write_t5x(source, {"a/scale": np.ones(3, np.float32)})
        (source / "original").write_bytes((source / "checkpoint").read_bytes())
    tree = msgpack.unpackb((source / "original").read_bytes())
    nodes = [tree]
    for node in nodes:
        nodes += [value for value in node.values() if isinstance(value, dict)]
    node = data.draw(st.sampled_from(nodes))
    node[data.draw(st.sampled_from([*node, "state", "driver", "target"]))] = data.draw(ANYTHING)
    packed = msgpack.packb(tree)
    if data.draw(st.booleans()):
        packed = packed[: data.draw(st.integers(0, len(packed)))]
    (source / "checkpoint").write_bytes(packed)
    try:
        arrays, step = read_t5x(source)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert isinstance(step, int) and all(array.dtype == np.float32 for array in arrays.values())


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(key=st.sampled_from(["shape", "chunks", "dtype", "compressor", "order", "zarr_format"]),
       value=ANYTHING | st.sampled_from([[1 << 40], [1, 1 << 24], [True], [True, True], [1.5], [0]]))  # fmt: skip
def test_any_description_of_a_zarr_array_gives_an_array_or_one_line(tmp_path, key, value):
    if not (tmp_path / "a").exists():
        write_zarr(tmp_path / "a", np.ones((5, 7), np.float32), (5, 7))
        (tmp_path / "original").write_bytes((tmp_path / "a" / ".zarray").read_bytes())
    facts = json.loads((tmp_path / "original").read_text()) | {key: repr_bytes(value)}
    (tmp_path / "a" / ".zarray").write_text(json.dumps(facts))
    try:
        assert read_zarr(tmp_path / "a").dtype == np.float32
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("key", ["shape", "chunks"])
def test_a_size_of_a_zarr_array_that_is_no_number_is_refused(tmp_path, key):
    write_zarr(tmp_path / "a", np.ones((5, 7), np.float32), (5, 7))
    facts = json.loads((tmp_path / "a" / ".zarray").read_text()) | {key: [True, True]}
    (tmp_path / "a" / ".zarray").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"\(True, True\).* is not valid"):
        read_zarr(tmp_path / "a")


def repr_bytes(value: object) -> object:
    """Returns a value in which JSON can hold everything: bytes become text."""
    if isinstance(value, bytes):
        return repr(value)
    if isinstance(value, list):
        return [repr_bytes(item) for item in value]
    if isinstance(value, dict):
        return {name: repr_bytes(item) for name, item in value.items()}
    return value
