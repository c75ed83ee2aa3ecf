"""Defines the shard format: files, arrays, tables and the build manifest.

A build is a folder of WebDataset tar shards. One parquet index per split holds the byte position of
every member. `tracks.parquet` has one row per track, and `references-SPLIT.parquet` holds the untrimmed
notes of each evaluation split. `manifest.json`, the build manifest, is written last and names every file
with its size and sha256. A record is these members of one key, in this order; it has mel, audio or both:

    KEY.audio.npy   int16 [frames * hop + fft_size - hop]: the samples of all frames, full scale 32767
    KEY.json        where the record comes from
    KEY.mel.npy     float16 [frames, n_mels], C order, so that a crop is one contiguous byte range
    KEY.notes.npy   float64 [n, 7]: the columns of Notes
    KEY.tokens.npy  int16 [n], EOS last

Tars are USTAR with fixed time, owner and mode and without compression, so the same input gives the
same bytes. Nothing in a shard is pickled.
"""

from __future__ import annotations

import glob
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.download.address import scheme_of
from mt3data.errors import UserError
from mt3data.files import write_atomically
from mt3data.music.vocabulary import VocabularyConfig
from mt3data.schema import MAX_BYTES, Limits, parse_document
from mt3data.terminal import kind_of

SCHEMA_VERSION = 2
BUILD_MANIFEST, LOG = "manifest.json", "build.log.jsonl"
# Fields of a build manifest that its fingerprint does not cover.
OUTCOME = {"fingerprint", "licence", "licence_url", "redistribution", "citation", "title", "splits",
           "shards", "files", "quarantined", "environment", "version"}  # fmt: skip
NPY_MAGIC = b"\x93NUMPY\x01\x00"
RECORD_BYTES = 3 * 512  # at least: the headers of its members

Sha256 = Annotated[str, Limits(pattern="[0-9a-f]{64}")]
Name = Annotated[str, Limits(pattern="[A-Za-z0-9_-]{1,64}")]  # one safe component of a path
Text = Annotated[str, Limits(length=10_000)]
Count = Annotated[int, Limits()]
Positive = Annotated[int, Limits(1)]
# "pipe:" would be a command to webdataset, and ".." leads out of the folder.
SHARD_NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.tar"
FILE_NAME = r"(index/)?[A-Za-z0-9_-]+\.(parquet|md)"


@dataclass(frozen=True)
class SpectrogramFields:
    """Limits the values of a SpectrogramConfig from a file."""

    sample_rate: Annotated[int, Limits(1, 1e6)]
    hop: Annotated[int, Limits(1, 1e5)]
    fft_size: Annotated[int, Limits(1, 1e6)]
    n_mels: Annotated[int, Limits(1, 1e4)]
    fmin: Annotated[float, Limits(0, 1e6)]
    fmax: Annotated[float, Limits(0, 1e6)]


@dataclass(frozen=True)
class VocabularyFields:
    """Limits the values of a VocabularyConfig from a file."""

    num_velocity_bins: Annotated[int, Limits(1, 127)]
    steps_per_second: Annotated[int, Limits(1, 1e4)]
    max_shift_seconds: Annotated[int, Limits(1, 1e3)]
    encoding: Literal["ties", "noties", "onsets"]
    granularity: Literal["full", "midi_class", "flat"]


@dataclass(frozen=True)
class _Feature:
    dtype: Literal["float16", "int16", "float64"]
    shape: list[Positive | None]


@dataclass(frozen=True)
class _Totals:
    tracks: Count
    records: Count
    frames: Count
    hours: Annotated[float, Limits(0, 1e7)]
    notes: Count
    tokens: Count
    max_tokens: Count
    targets_too_long: Count | None
    quarantined: Count


@dataclass(frozen=True)
class _Shard:
    name: Annotated[str, Limits(pattern=SHARD_NAME, length=200)]
    split: Name
    records: Positive
    bytes: Count
    sha256: Sha256


@dataclass(frozen=True)
class _File:
    name: Annotated[str, Limits(pattern=FILE_NAME, length=200)]
    bytes: Count
    sha256: Sha256


@dataclass(frozen=True)
class _Tracks:
    count: Count
    planned: Sha256
    built: Sha256


@dataclass(frozen=True)
class _BuildManifest:
    """The fields of a build manifest that readers use, see docs/shards.md."""

    bytes_version: Positive
    dataset: Name
    title: Text
    licence: Text
    licence_url: Text
    redistribution: Text
    citation: Text
    version: Text
    fingerprint: Sha256
    split_scheme: Text
    window: Annotated[int, Limits(1, 1e6)]
    right_context: Literal["zeros", "audio"]
    variants: Positive
    seed: Annotated[int, Limits(0, 2.0**64)]
    align: Literal["measure", "off", "shift", "dtw"]
    profile: Text
    subsets: dict[Text, int | Text] | None
    spectrogram: SpectrogramFields
    vocabulary: VocabularyFields
    features: dict[Literal["mel", "audio", "notes", "tokens"], _Feature]
    tracks: _Tracks
    splits: dict[Name, _Totals]
    shards: list[_Shard]
    files: list[_File]
    quarantined: Count
    environment: dict[Text, Text]


@dataclass(frozen=True)
class _AnyVersion:
    schema: int


def tar_members(arrays: Iterable[str]) -> tuple[str, ...]:
    """Returns the suffixes of the members of a record in their order in a tar: "json", "mel.npy", ...

    Args:
        arrays: names of the arrays, as `features` of the build manifest has them.
    """
    return tuple(sorted(["json", *(f"{name}.npy" for name in arrays)]))


def npy_parts(array: np.ndarray) -> tuple[bytes, memoryview]:
    """Returns header and data of an array as a .npy file of version 1.0; the data are not copied.

    Raises:
        ValueError: the array holds Python objects.
    """
    array = np.ascontiguousarray(array)
    return _npy_header(array.dtype, array.shape), array.reshape(-1).view(np.uint8).data


@lru_cache(maxsize=4096)
def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    if dtype.hasobject:
        raise ValueError(f"dtype {dtype}: Python objects cannot be stored")
    buffer = io.BytesIO()
    fields = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def read_npy(data: bytes) -> np.ndarray:
    """Returns the array in the data of a version 1.0 .npy file, read-only; never unpickles.

    Raises:
        ValueError: other data, Python objects, or fewer bytes than the shape needs.
    """
    if data[:8] != NPY_MAGIC:
        raise ValueError(f"begins with {data[:8]!r}; expected a .npy file of version 1.0")
    start = 10 + int.from_bytes(data[8:10], "little")
    dtype, shape = _parse_npy_header(bytes(data[8:start]))
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


@lru_cache(maxsize=4096)  # parsing takes 50 us, and a build has few different headers
def _parse_npy_header(header: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    if dtype.hasobject or is_fortran:
        raise ValueError(f"dtype {dtype}, Fortran order {is_fortran}; expected numbers in C order")
    return dtype, shape


def write_listed(path: Path, data: bytes) -> dict[str, Any]:
    """Writes a file atomically; returns name, bytes and sha256 as a build manifest lists them."""
    write_atomically(path, data)
    return {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# --- tables --------------------------------------------------------------------------------------


def index_schema(arrays: Iterable[str]) -> Any:
    """Returns the columns of index/SPLIT.parquet, one row per record in the order of the shards.

    Args:
        arrays: names of a record's arrays, as `features` of the build manifest has them.
    """
    import pyarrow as pa

    from mt3data.shards.windows import SOUND

    arrays = set(arrays)
    columns = [
        ("shard", pa.dictionary(pa.int32(), pa.string())), ("key", pa.string()),
        ("track", pa.string()), ("variant", pa.int32()), ("start_frame", pa.int64()),
        ("frames", pa.int32()), ("track_frames", pa.int64()), ("n_notes", pa.int32()),
        ("n_tokens", pa.int32()), ("programs", pa.list_(pa.uint8())), ("has_drums", pa.bool_()),
        *((f"{name}_crc32", pa.uint32()) for name in sorted(SOUND) if name in arrays),
    ]  # fmt: skip
    for member in tar_members(arrays):
        name = member.removesuffix(".npy")
        columns += [(f"{name}_offset", pa.int64()), (f"{name}_size", pa.int64())]
    return pa.schema(columns)


def tracks_schema() -> Any:
    """Returns the columns of tracks.parquet, one row per track, quarantined ones included."""
    import pyarrow as pa

    return pa.schema([
        ("track", pa.string()), ("name", pa.string()), ("split", pa.string()),
        ("status", pa.string()), ("stage", pa.string()), ("error", pa.string()),
        ("seconds", pa.float64()), ("frames", pa.int64()), ("notes", pa.int64()),
        ("notes_after_audio", pa.int64()), ("records", pa.int64()),
        ("lag", pa.float64()), ("drift", pa.float64()), ("align_confidence", pa.float64()),
        ("aligned", pa.string()), ("variants", pa.list_(pa.string())),
        ("audio_sha256", pa.string()), ("labels_sha256", pa.string()),
        ("facts_sha256", pa.string()), ("source_bytes", pa.list_(pa.int64())),
        ("header_frames", pa.int64()),
        ("problems", pa.list_(pa.string())),
    ])  # fmt: skip


def references_schema() -> Any:
    """Returns the columns of references-SPLIT.parquet: the untrimmed notes of every track."""
    import pyarrow as pa

    return pa.schema([
        ("track", pa.string()), ("onset", pa.float64()), ("offset", pa.float64()),
        ("pitch", pa.uint8()), ("velocity", pa.uint8()), ("program", pa.uint8()),
        ("is_drum", pa.bool_()), ("instrument", pa.int32()),
    ])  # fmt: skip


def write_table(path: Path, rows: Iterable[dict[str, Any]], schema: Any) -> dict[str, Any]:
    """Writes rows to a parquet file atomically; returns its name, bytes and sha256."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    table = pa.Table.from_pylist(list(rows), schema=schema)
    pq.write_table(table, buffer, compression="zstd", store_schema=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_listed(path, buffer.getvalue())


def read_build_manifest(folder: Path) -> dict[str, Any]:
    """Reads the build manifest of the finished build in a folder.

    Raises:
        UserError: there is no build manifest (no build, or an unfinished one), or it is invalid.
    """
    path = folder / BUILD_MANIFEST
    if not path.is_file():
        if not folder.is_dir():
            text = folder.as_posix()
            if (scheme := scheme_of(text)) and text[len(scheme) :].startswith(":/"):
                address = text.replace(":/", "://", 1)  # Path removes one slash
                raise UserError(
                    f"{address}: an address; expected a folder on this machine. Copy the build with "
                    f"`mt3data download {address} --cache DIR`"
                )
            raise UserError(
                f"{folder}: {kind_of(folder) if folder.exists() else 'no such folder'}; expected a build, such as `mt3data build demo` makes"
            )
        inside = sorted(p.parent.name for p in folder.glob(f"*/{BUILD_MANIFEST}"))
        hint = f"; builds inside it: {', '.join(inside)}" if inside else ""
        raise UserError(
            f"{folder}: no {BUILD_MANIFEST}, so this is no finished build{hint}. An interrupted build is "
            "continued by the same `mt3data build` command"
        )
    with path.open("rb") as file:
        return parse_build_manifest(file.read(MAX_BYTES + 1), str(path))


def parse_build_manifest(data: bytes, where: str) -> dict[str, Any]:
    """Parses the data of a manifest.json and checks every field that a reader uses.

    Args:
        data: at most MAX_BYTES + 1 bytes of the file.
        where: path or address of the file, for messages.
    Raises:
        UserError: something else, another schema, or a value outside its range, such as a file name
            that leaves the folder of the build. The message names the field.
    """
    what = "manifest of a build"
    version = parse_document(data, _AnyVersion, where, what)["schema"]
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema {version}; this version of mt3kit reads {SCHEMA_VERSION}. Build it again"
        )
    manifest = parse_document(data, _BuildManifest, where, what)
    if fault := _inconsistency(manifest):
        raise UserError(f"{where}: not a {what} ({fault}); get it again")
    return manifest


def _inconsistency(manifest: dict[str, Any]) -> str:
    """Returns what is wrong with fields that are valid one by one; "" if nothing is."""
    from mt3data.shards.windows import SOUND, WindowConfig

    spectrogram = manifest["spectrogram"]
    if spectrogram["hop"] > spectrogram["fft_size"]:
        return f"spectrogram.hop is {spectrogram['hop']}; expected at most fft_size"
    if not spectrogram["fmin"] < spectrogram["fmax"] <= spectrogram["sample_rate"] / 2:
        return "spectrogram.fmax is not between fmin and half the sample_rate"
    try:
        windows = WindowConfig(
            manifest["window"],
            features=tuple(name for name in SOUND if name in manifest["features"]),
            spectrogram=SpectrogramConfig(**spectrogram),
            vocabulary=VocabularyConfig(**manifest["vocabulary"]),
        )
    except (ValueError, TypeError) as error:
        return str(error)
    if windows.schema != manifest["features"]:
        return "features are not those of its window and spectrogram"
    names = [entry["name"] for entry in manifest["shards"] + manifest["files"]]
    if len(set(names)) < len(names):
        return "it names a file twice"
    for shard in manifest["shards"]:
        if shard["split"] not in manifest["splits"]:
            return f"it has shards of {shard['split']}, which is no split of it"
        if shard["records"] * RECORD_BYTES > shard["bytes"]:
            return f"{shard['name']} has {shard['records']} records in {shard['bytes']} bytes"
    for split, totals in manifest["splits"].items():
        records = sum(s["records"] for s in manifest["shards"] if s["split"] == split)
        if records != totals["records"]:
            return f"splits.{split}.records is {totals['records']}, its shards have {records}"
    return ""


def identity_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a build manifest that its fingerprint covers."""
    return {name: value for name, value in manifest.items() if name not in OUTCOME}


def find_builds(pattern: str | Path) -> list[Path]:
    """Returns the finished builds that a path or a pattern such as `shards/*` names, in order.

    An existing path is that path, whatever characters it holds. A folder without build manifest
    means the builds directly inside it.

    Raises:
        UserError: there are none. The message names the paths seen, and the command that makes a build.
    """
    exists = Path(pattern).exists()
    named = [Path(pattern)] if exists else [Path(p) for p in sorted(glob.glob(str(pattern)))]  # noqa: PTH207 (may be absolute)
    inside = [child for path in named if path.is_dir() for child in sorted(path.iterdir())]
    for candidates in (named, inside):
        builds = [path for path in candidates if (path / BUILD_MANIFEST).is_file()]
        if builds:
            return builds
    if exists or not glob.has_magic(str(pattern)):
        read_build_manifest(Path(pattern))  # raises with the reason
    seen = (
        f"{len(named)} path(s) there, none with a {BUILD_MANIFEST}" if named else "nothing is there"
    )
    raise UserError(
        f"no build under {pattern} ({seen}); make one with `mt3data build demo --out shards/`"
    )
