"""Records by number: columns come when they are asked for, shards stay open while they are read."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mt3data.shards.format import index_schema
from mt3data.shards.index import Index
from mt3data.system import SharedFile

ROWS = 50_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of many rows in several row groups, each with a dictionary of its own."""
    numbers = np.arange(ROWS)
    schema = index_schema(("mel", "notes", "tokens"))
    columns = {
        field.name: numbers.astype(field.type.to_pandas_dtype())
        for field in schema
        if pa.types.is_integer(field.type)
    }
    columns["shard"] = [f"train-{n // 700:05d}.tar" for n in numbers]
    columns["key"] = [f"slakh-Track{n // 60:05d}-p0-{n:07d}" for n in numbers]
    columns["track"] = [f"Track{n // 60:05d}" for n in numbers]
    columns["programs"] = [[n % 5, 33] for n in numbers]
    columns["has_drums"] = numbers % 2 == 0
    path = tmp_path_factory.mktemp("large") / "train.parquet"
    table = pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
    pq.write_table(table, path, row_group_size=20_000)
    return path


def test_columns_of_every_kind_hold_what_was_written(large: Path) -> None:
    index = Index(large)
    assert len(index) == ROWS
    assert "mel_offset" in index and "audio_offset" not in index
    assert index["start_frame"][49_999] == 49_999
    assert index["shard"][49_999] == "train-00071.tar"
    assert index["key"][np.array([3, 61])] == ["slakh-Track00000-p0-0000003", "slakh-Track00001-p0-0000061"]  # fmt: skip
    assert index["key"].index("slakh-Track00001-p0-0000061") == 61
    assert index["programs"][7] == [2, 33]
    assert index["has_drums"][7] is False
    numbers, names = index.dictionary_codes("shard")
    assert [names[i] for i in numbers[[0, 699, 700, 49_999]]] == [
        "train-00000.tar", "train-00000.tar", "train-00001.tar", "train-00071.tar",
    ]  # fmt: skip


def test_a_column_is_read_once_and_only_when_it_is_asked_for(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, read = Index(large), list[str]()
    reading = Index._read
    monkeypatch.setattr(Index, "_read", lambda self, name: read.append(name) or reading(self, name))
    assert read == []
    assert index["start_frame"] is index["start_frame"]
    assert read == ["start_frame"]


def test_reading_an_index_loads_neither_pandas_nor_datasets_of_arrow(large: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from mt3data.shards.index import Index
import numpy
index = Index(Path({str(large)!r}))
index["key"][numpy.array([1])], index["start_frame"], index.dictionary_codes("shard"), index["has_drums"]
print([name for name in ("pandas", "pyarrow.dataset", "pyarrow.compute") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_shard_stays_open_while_something_refers_to_it(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"abc")
    file = SharedFile(tmp_path / "a.tar")
    descriptor, again = file._descriptor, file
    del file
    assert os.fstat(descriptor).st_size == 3
    del again
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
