"""docs/shards.md is enough to read shards, and states what builds hold.

The reader here was written from the page alone: the standard library, no numpy. The notes that it
reads give the tokens of every window and crop by the plain definition, mt3data/music/tokenizer.py.
"""

import json
import math
import re
import shutil
import struct
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.music.notes import Notes
from mt3data.music.tokenizer import tokenize
from mt3data.music.vocabulary import (
    NUM_EXTRA_IDS,
    NUM_SPECIAL_IDS,
    VocabularyConfig,
    get_codec,
    vocabulary_size,
)
from mt3data.shards.format import (
    FILE_NAME,
    OUTCOME,
    SCHEMA_VERSION,
    SHARD_NAME,
    index_schema,
    read_build_manifest,
    read_npy,
    references_schema,
    tracks_schema,
)
from mt3data.shards.index import ShardSet
from mt3data.shards.reader import IndexedShards
from mt3data.shards.windows import NOTE_MARGIN_SECONDS, WindowConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "shards.md").read_text(encoding="utf-8")

# --- a reader, from the page ---------------------------------------------------------------------

NUMBERS = {"<f2": "e", "<i2": "h", "<f8": "d"}


def plain_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a tar."""
    with path.open("rb") as file:
        while (header := file.read(512)).strip(b"\0"):
            assert header[257:265] == b"ustar\x0000" and header[156:157] == b"0"
            spaced = header[:148] + b" " * 8 + header[156:]
            assert sum(spaced) == int(header[148:156].rstrip(b"\0 "), 8)
            size = int(header[124:136].rstrip(b"\0"), 8)
            yield header[:100].rstrip(b"\0").decode("ascii"), file.read(size)
            file.read(-size % 512)


def plain_array(data: bytes) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and numbers of a .npy file."""
    assert data[:8] == b"\x93NUMPY\x01\x00"
    (length,) = struct.unpack_from("<H", data, 8)
    header = literal_eval(data[10 : 10 + length].decode("ascii"))
    assert not header["fortran_order"] and (10 + length) % 64 == 0
    count = math.prod(header["shape"])
    return header["shape"], struct.unpack_from(
        f"<{count}{NUMBERS[header['descr']]}", data, 10 + length
    )


def plain_records(folder: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """KEY and members of every record of a split."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["schema"] == 2
    members = sorted(["json", *(f"{name}.npy" for name in manifest["features"])])
    for shard in manifest["shards"]:
        if shard["split"] != split:
            continue
        record: dict[str, Any] = {}
        for name, data in plain_files(folder / shard["name"]):
            key, _, member = name.partition(".")
            assert member == members[len(record)]
            record[member] = json.loads(data) if member == "json" else plain_array(data)
            if len(record) == len(members):
                yield key, record
                record = {}


# --- they find what ours find --------------------------------------------------------------------


@pytest.fixture(scope="module", params=["mel", "audio", "mel,audio"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tracks, in windows of 200 frames with the edges of the track."""
    folder = tmp_path_factory.mktemp("docs")
    tracks = {"Track00001": "train", "Track00002": "test"}
    root = fakes.slakh_tree(folder / "root", "demo", tracks, seconds=3.0)
    windows = WindowConfig(200, right_context="audio", features=tuple(request.param.split(",")))
    return build(make_plan(BuildConfig("demo", root, folder / "out", windows=windows))).folder


def test_a_reader_written_from_the_page_reads_what_ours_reads(folder: Path) -> None:
    ours, keys = ShardSet(folder, "train"), []
    for row, (key, record) in enumerate(plain_records(folder, "train")):
        keys.append(key)
        assert record.pop("json") == json.loads(ours.member(row, "json"))
        for member, (shape, numbers) in record.items():
            array = read_npy(ours.member(row, member.removesuffix(".npy")))
            assert shape == array.shape
            assert numbers == tuple(array.ravel().tolist())
    assert keys == list(ours.index["key"]) == [f"demo-Track00001-p0-{i:07d}" for i in (0, 200)]


def test_the_notes_of_a_window_give_its_tokens(folder: Path) -> None:
    vocabulary = VocabularyConfig(**read_build_manifest(folder)["vocabulary"])
    for _, record in plain_records(folder, "train"):
        facts, (shape, numbers) = record["json"], record["notes.npy"]
        notes = Notes.from_array(np.array(numbers).reshape(shape))
        n = min(facts["frames"], facts["track_frames"] - facts["start_frame"])
        found = tokenize(notes, facts["start_frame"], n, facts["track_frames"], vocabulary)
        assert found == list(record["tokens.npy"][1])


def test_the_notes_of_a_window_give_the_tokens_of_random_crops(folder: Path) -> None:
    shards = IndexedShards([folder], seed=3)
    batch = shards.batch(0, 12, frames=70)
    records = dict(plain_records(folder, "train"))
    vocabulary = VocabularyConfig(**read_build_manifest(folder)["vocabulary"])
    for i, key in enumerate(batch.keys):
        shape, numbers = records[key]["notes.npy"]
        notes = Notes.from_array(np.array(numbers).reshape(shape))
        last, start = records[key]["json"]["track_frames"], int(batch.start_frames[i])
        found = tokenize(notes, start, int(batch.n_frames[i]), last, vocabulary)
        assert found == batch.tokens[i, : batch.lengths[i]].tolist()


# --- the page's tables are those of the code -----------------------------------------------------


def table(heading: str) -> list[list[str]]:
    """The cells of the first table behind a text of the page, without head and ticks."""
    rows = re.search(r"(?:^\|.*\n)+", PAGE[PAGE.index(heading) :], re.MULTILINE)
    assert rows, heading
    return [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in rows[0].splitlines()[2:]
    ]


def named(heading: str) -> list[str]:
    """What the first column of a table names."""
    return [name for row in table(heading) for name in row[0].split(", ")]


def simple(kind: object) -> str:
    """An Arrow type in the page's words."""
    said = str(kind).replace("double", "float64")
    said = re.sub(r"list<item: (\w+)>", r"list of \1", said)
    return re.sub(r"dictionary<values=(\w+),.*", r"\1", said)


@pytest.mark.parametrize(
    "heading, schema",
    [
        ("`index/SPLIT.parquet`, rows", index_schema(["mel", "audio", "notes", "tokens"])),
        ("`tracks.parquet`, one row", tracks_schema()),
        ("`references-SPLIT.parquet`, one row", references_schema()),
    ],
)
def test_the_columns_of_a_table_are_those_that_are_documented(heading: str, schema: Any) -> None:
    documented = [(name, row[1]) for row in table(heading) for name in row[0].split(", ")]
    assert documented == [(field.name, simple(field.type)) for field in schema]


def test_the_fields_of_records_and_manifest_are_those_that_are_documented(folder: Path) -> None:
    _, record = next(plain_records(folder, "train"))
    assert set(named("**json** is one object")) == set(record["json"])
    manifest = read_build_manifest(folder)
    assert set(named("One object in UTF-8")) == set(manifest)
    assert set(manifest["features"]) <= {row[0].removesuffix(".npy") for row in table("## Members")}
    rows = {row[0]: row[1] for row in table("One object in UTF-8")}
    for field in ("spectrogram", "vocabulary"):
        assert set(rows[field].split(", ")) == set(manifest[field])
    totals = re.sub(r" \(.*?\)", "", rows["splits"]).partition("its totals: ")[2].split(", ")
    assert set(totals) == set(manifest["splits"]["train"])
    assert set(rows["shards"].removeprefix("list of ").partition(", in ")[0].split(", ")) == set(
        manifest["shards"][0]
    )


def test_what_the_fingerprint_leaves_out_is_documented() -> None:
    said = PAGE.partition("JSON of the manifest without")[2].partition(":")[0]
    assert set(re.findall(r"`(\w+)`", said)) == OUTCOME


@pytest.mark.parametrize("column, bins", [(3, 1), (4, 127)])
def test_the_ids_of_the_vocabulary_are_those_that_are_documented(column: int, bins: int) -> None:
    config = VocabularyConfig(bins)
    codec = get_codec(config)
    want = {kind: [i + NUM_SPECIAL_IDS for i in codec.type_range(kind)] for kind in codec.first}
    size = vocabulary_size(config)
    want["unused"] = [size - NUM_EXTRA_IDS, size - 1]
    rows = table("Tokens 0, 1 and 2")
    ends = {row[0]: [int(end) for end in row[column].split(" ... ")] for row in rows}
    assert {kind: [*found, found[-1]][:2] for kind, found in ends.items()} == want
    for row in rows:
        assert eval(row[2], {"M": 1000, "V": bins}) == want[row[0]][0]


def test_the_page_is_about_this_schema() -> None:
    assert PAGE.startswith(f"# The shard format, schema {SCHEMA_VERSION}\n")
    assert int(table("## Versions")[-1][0]) == SCHEMA_VERSION


def test_the_page_s_way_to_verify_a_build_finds_a_flipped_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    shutil.copytree(folder, tmp_path / "build")
    monkeypatch.chdir(tmp_path / "build")
    exec(code, {})  # raises where something is wrong
    (shard,) = Path().glob("train-*.tar")
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(AssertionError, match=shard.name):
        exec(code, {})


def test_names_and_margins_of_the_page_are_those_of_the_code() -> None:
    assert f"`{SHARD_NAME}`" in PAGE and f"`{FILE_NAME}`" in PAGE
    assert f"w / 125 - {NOTE_MARGIN_SECONDS} " in " ".join(PAGE.split())
