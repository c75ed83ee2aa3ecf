"""Build manifests and indexes that are damaged or hostile: one line that names file and field."""

import copy
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.errors import UserError
from mt3data.shards.format import find_builds, parse_build_manifest
from mt3data.shards.index import ShardSet, references, track_rows
from mt3data.shards.reader import IndexedShards
from mt3data.shards.windows import WindowConfig
from mt3data.system import peak_memory_gb

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    splits = {"Track00001": "train", "Track00002": "test"}
    root = fakes.slakh_tree(folder / "root", "demo", splits, seconds=3.0)
    return build(make_plan(BuildConfig("demo", root, folder, windows=WindowConfig(256)))).folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def reads(data: bytes, seconds: float = 2.0, megabytes: float = 100) -> str:
    """Returns the message with which a build manifest is refused, "" if it is accepted."""
    before, began = peak_memory_gb() or 0.0, time.process_time()
    try:
        parse_build_manifest(data, "here/manifest.json")
        message = ""
    except UserError as error:
        message = str(error)
        assert message.startswith("here/manifest.json: ")
        assert "\n" not in message
        assert len(message) < 1000
    grown = ((peak_memory_gb() or 0.0) - before) * 1000
    assert time.process_time() - began < seconds
    assert grown < megabytes
    return message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", "../../escaped"), ("dataset", "/abs/path"), ("dataset", ""), ("dataset", None),
        ("right_context", "evil"), ("window", -1), ("window", 1e9), ("window", True),
        ("spectrogram.hop", 0), ("spectrogram.hop", 10**5), ("spectrogram.fmax", "7600"),
        ("vocabulary.encoding", "other"), ("splits.train.hours", float("nan")),
        ("splits.train.hours", -1.0), ("splits.train.records", 9), ("features", {"mel": {}}),
        ("features.mel.shape", [1, 512]), ("shards", {}), ("shards", [None]), ("files", [{}]),
        ("shards.0.split", "dev"), ("shards.0.records", 0), ("shards.0.records", 10**9),
        ("shards.0.bytes", -1), ("shards.0.sha256", "00"), ("shards.0.name", "a/b.tar"),
        ("shards.0.name", "pipe:touch planted"), ("shards.0.name", "../a.tar"),
        ("shards.0.name", "/etc/passwd"), ("shards.0.name", "http://host/a.tar"),
        ("shards.0.name", ".a.tar"), ("shards.0.name", ""), ("files.0.name", "manifest.json"),
        ("files.0.name", "build.log.jsonl"), ("title", "\ud800"), ("title", "\x1b[2J"), ("seed", 1.5), ("schema", "2"),
        ("schema", 1), ("schema", 3), ("tracks", []), ("environment", {"numpy": 2}),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_field(whole: Path, field: str, value: Any) -> None:
    manifest = json.loads((whole / "manifest.json").read_bytes())
    assert reads(json.dumps(manifest).encode()) == ""
    *parents, last = (int(name) if name.isdigit() else name for name in field.split("."))
    inside = manifest
    for name in parents:
        inside = inside[name]
    inside[last] = value
    message = reads(json.dumps(manifest).encode())
    assert (
        str(last) in message
        or str(parents[-1]) in message
        or "features" in message
        or ("NaN" in message)
    )


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 10**5, b'{"schema":' * 10**5, b"9" * 10**6,
     b'{"schema":2}', b'{"schema":1e999}', b'{"a":' + b"[[]," * 10**6 + b"0", b"[" + b"[]," * 5_000_000,
     b" " * (17 << 20), b'{"schema":"\x1b[2J"}'],
    ids=range(14),
)  # fmt: skip
def test_a_document_of_another_kind_is_one_line(data: bytes) -> None:
    assert reads(data) != ""
    assert "\x1b" not in reads(data)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths to all values of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [
        each
        for key, item in items
        for each in [(*path, key), *(places(item, (*path, key)) if isinstance(item, (dict, list)) else [])]
    ]  # fmt: skip


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([2**63, -1, 0, 1e300, "../x", "/x", "\x1b[2J", "\0", "x" * 10_000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_document_makes_a_traceback(whole: Path, data: st.DataObject) -> None:
    text = (whole / "manifest.json").read_bytes()
    manifest = json.loads(text)
    kind = data.draw(st.sampled_from(["value", "lost", "cut", "bytes"]))
    if kind in ("value", "lost"):
        *parents, last = data.draw(st.sampled_from(places(manifest)))
        inside = changed = copy.deepcopy(manifest)
        for name in parents:
            inside = inside[name]
        if kind == "lost" and isinstance(inside, dict):
            del inside[last]
        else:
            inside[last] = data.draw(ANYTHING)
        text = json.dumps(changed).encode()
    elif kind == "cut":
        text = text[: data.draw(st.integers(0, len(text) - 1))]
    else:
        at = data.draw(st.integers(0, len(text) - 1))
        text = text[:at] + data.draw(st.binary(max_size=4)) + text[at + 1 :]
    reads(text)


def change_index(folder: Path, change: Callable[[list[dict[str, Any]], pa.Schema], Any]) -> None:
    path = folder / "index" / "train.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    changed = change(rows, table.schema)
    schema = changed if isinstance(changed, pa.Schema) else table.schema
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def set_to(column: str, value: Any) -> Callable[[list[dict[str, Any]], pa.Schema], None]:
    return lambda rows, schema: rows[0].update({column: value})


def with_type(column: str, kind: pa.DataType) -> Callable[[list[dict[str, Any]], pa.Schema], Any]:
    def change(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Schema:
        for row in rows:
            row[column] = None
        return schema.set(schema.get_field_index(column), pa.field(column, kind))

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (set_to("programs", None), "programs"), (set_to("key", None), "key"),
        (set_to("track_frames", -5), "track_frames"), (set_to("track_frames", 2**62), "track_frames"),
        (set_to("start_frame", 10**6), "begin after the end"), (set_to("frames", 9), "256 frames"),
        (set_to("mel_offset", 255), "mel_offset"), (set_to("mel_offset", 0), "mel_offset"),
        (set_to("mel_size", 0), "mel_size"), (set_to("mel_size", 100_000), "mel_size"),
        (set_to("mel_offset", 2**60), "mel_offset"), (set_to("notes_size", 2**40), "notes_size"),
        (set_to("notes_offset", -1), "notes_offset"), (set_to("n_tokens", 0), "n_tokens"),
        (set_to("shard", "other.tar"), "names other.tar"), (set_to("shard", None), "shard"),
        (with_type("mel_offset", pa.string()), "mel_offset"), (with_type("programs", pa.int64()), "programs"),
        (lambda rows, schema: rows.pop(), "1 rows"), (lambda rows, schema: rows.clear(), "0 rows"),
    ],
)  # fmt: skip
def test_a_wrong_index_is_refused_with_its_column(
    copied: Path, change: Callable[[list[dict[str, Any]], pa.Schema], Any], named: str
) -> None:
    change_index(copied, change)
    with pytest.raises(UserError, match=named) as refused:
        use(copied)
    assert "train.parquet" in str(refused.value)


def use(folder: Path) -> None:
    """Reads all columns of an index, and whole batches."""
    shards = IndexedShards([folder])
    source = shards.sources[0]
    for name in source.index.names:
        if name != "shard":
            source.index[name]
    for step in range(2):
        shards.batch(step, 4, frames=256)
    for name in ("json", "mel", "notes", "tokens"):
        for row in range(len(source)):
            source.member(row, name)


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("tracks", "status", None), ("tracks", "problems", None), ("references-test", "onset", -1.0),
        ("references-test", "offset", float("nan")), ("references-test", "pitch", None),
        ("references-test", "velocity", 200), ("references-test", "track", None),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_with_its_column(
    copied: Path, name: str, column: str, value: Any
) -> None:
    path = copied / f"{name}.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(UserError, match=rf"{name}\.parquet: .*({column}|finite)"):
        track_rows(copied), references(copied, "test")
    pq.write_table(table.drop_columns([column]), path)
    with pytest.raises(UserError, match=rf"{name}\.parquet has no column {column}"):
        track_rows(copied), references(copied, "test")


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(at=st.integers(0, 10**6), new=st.binary(min_size=1, max_size=8), cut=st.booleans())
def test_no_damage_of_an_index_makes_a_traceback(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, at: int, new: bytes, cut: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    path = folder / "index" / "train.parquet"
    data = path.read_bytes()
    at %= len(data)
    path.write_bytes(data[:at] if cut else data[:at] + new + data[at + len(new) :])
    try:
        use(folder)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["d[1]", "d*", "d?", "[d]"])
def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(
    whole: Path, tmp_path: Path, name: str
) -> None:
    for other in (name, "d1", "d"):
        shutil.copytree(whole, tmp_path / other)
    assert find_builds(tmp_path / name) == [tmp_path / name]
    assert find_builds(tmp_path / "d[0-9]") == [tmp_path / "d1"]


def test_a_record_with_broken_notes_is_one_line(copied: Path) -> None:
    source = ShardSet(copied, "train")
    shard = copied / "train-00000-of-00001.tar"
    data = bytearray(shard.read_bytes())
    at = int(source.index["tokens_offset"][0])
    data[at : at + 4] = b"\x80\x04N."
    shard.write_bytes(data)
    with pytest.raises(UserError, match="tokens of demo-Track00001.*version 1.0"):
        for step in range(2):
            IndexedShards([copied]).batch(step, 4, frames=256)
    assert np.isfinite(source.index["frames"]).all()
