"""Reads the records of one split of one build by number, and whole tracks.

The index holds the byte position of every member of a record, so reading one takes one `pread`, and
nothing here unpickles anything. Columns of the index are read when they are first used, and strings
stay in arrow's buffers: a set of a million records opens in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mt3data import system
from mt3data.errors import UserError
from mt3data.music.notes import Notes, validate
from mt3data.shards.cache import CachedShard, shard_cache
from mt3data.shards.format import (
    index_schema,
    read_build_manifest,
    read_npy,
    references_schema,
    tracks_schema,
)

# Open shards of this process, whatever the number of builds. Systems allow 1,024 files, macOS 256.
MAX_OPEN_SHARDS = 128
MAX_TRACK_FRAMES = 1 << 31  # 199 days
TAR_BLOCK, MAX_NPY_HEADER = 512, 1024  # bytes
# The range of the numbers of an index; other numbers come from damage, or from an attack.
COLUMN_RANGES = {
    "variant": (0, 1 << 31), "start_frame": (0, MAX_TRACK_FRAMES), "frames": (1, 1 << 20),
    "track_frames": (1, MAX_TRACK_FRAMES), "n_notes": (0, 1 << 31), "n_tokens": (1, 1 << 31),
}  # fmt: skip


class LazyStrings(Sequence[str]):
    """A column of strings in arrow's buffers, a fifth of the size of a list."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        """Returns the string of a row; for an array of rows, a list of their strings."""
        if isinstance(row, np.ndarray):
            return [self._column[i].as_py() for i in row.tolist()]
        return self._column[int(row)].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self._column.to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


class Index:
    """Columns of an index by name, each read when it is first used.

    Integers are numpy arrays, strings `LazyStrings`, and anything else is a list.
    """

    def __init__(self, path: Path) -> None:
        """Opens the parquet file of an index."""
        self.path, self._columns = path, dict[str, Any]()
        with open_parquet(path) as file:
            self._n_rows, self.schema = file.metadata.num_rows, file.schema_arrow
        self.names = self.schema.names

    def __len__(self) -> int:
        return self._n_rows

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Any:
        if name not in self._columns:
            import pyarrow as pa

            column = self._read(name)
            if pa.types.is_dictionary(column.type):
                column = column.cast(pa.string())
            if pa.types.is_string(column.type):
                self._columns[name] = LazyStrings(column.combine_chunks())
            elif pa.types.is_integer(column.type):
                numbers = _numbers(column.combine_chunks())
                low, high = COLUMN_RANGES.get(name, (0, 2**63))
                if len(numbers) and not (low <= numbers.min() and numbers.max() <= high):
                    raise UserError(
                        f"{self.path}: {name} is {numbers.min()} to {numbers.max()}; expected {low} to "
                        f"{high}. Get the build again"
                    )
                self._columns[name] = numbers
            else:
                self._columns[name] = column.to_pylist()
        return self._columns[name]

    def dictionary_codes(self, name: str) -> tuple[np.ndarray, list[str]]:
        """Returns a column of few different strings as numbers, and the strings."""
        array = self._read(name).unify_dictionaries().combine_chunks()
        return _numbers(array.indices), array.dictionary.to_pylist()

    def rows_by_shard(self) -> dict[str, list[dict[str, Any]]]:
        """Returns all rows as dictionaries, by the shard of their records."""
        rows: dict[str, list[dict[str, Any]]] = {}
        with open_parquet(self.path) as file:
            for row in file.read(use_threads=False).to_pylist():
                rows.setdefault(row["shard"], []).append(row)
        return rows

    def _read(self, name: str) -> Any:
        import pyarrow as pa

        with open_parquet(self.path) as file:
            column = file.read(columns=[name], use_threads=False)[name]
            nulls = column.null_count
            column.validate(full=True)
        if nulls or len(column) != self._n_rows:
            fault = f"is null in {nulls}" if nulls else f"has {len(column)}"
            raise UserError(
                f"{self.path}: {name} {fault} of {self._n_rows} rows; get the build again"
            )
        pa.default_memory_pool().release_unused()  # unpacking took as much as the column
        return column


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Opens a parquet file of a build.

    Raises:
        UserError: it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq  # its read_table would import pyarrow.dataset, for 0.3 s

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except UserError:
        raise
    except (OSError, pa.ArrowException, ValueError, KeyError, MemoryError) as error:
        raise UserError(
            f"{path}: missing or damaged ({' '.join(str(error).split())}); `mt3data check` finds what "
            "else is wrong with the build"
        ) from error


def _numbers(array: Any) -> np.ndarray:
    """Returns an arrow array of integers as numpy's; its to_numpy would import pandas if present."""
    return np.from_dlpack(array)


class ShardKey(NamedTuple):
    """The file of a shard; another file under the same path has another inode or time."""

    path: str
    inode: int
    mtime_ns: int

    @property
    def is_here(self) -> bool:
        """True: it need not be fetched, see CachedShard."""
        return True

    def open(self) -> system.SharedFile:
        """Opens it, see open_shard."""
        return open_shard(self)


@lru_cache(MAX_OPEN_SHARDS)
def open_shard(shard: ShardKey) -> system.SharedFile:
    """Opens a shard, or returns it if it is among the shards that were used last."""
    try:
        return system.SharedFile(shard.path)
    except OSError as error:
        raise UserError(
            f"{shard.path} cannot be opened ({error.strerror}); run `mt3data check "
            f"{Path(shard.path).parent}`"
        ) from error


class PendingRead(NamedTuple):
    """A read of bytes of a shard from an offset on, and the buffer that they fill."""

    shard: ShardKey | CachedShard
    offset: int
    into: memoryview
    record: tuple[ShardSet, int]  # for the message

    def run(self, file: system.SharedFile | None = None) -> None:
        """Reads.

        Args:
            file: the shard, where it is open already.
        Raises:
            UserError: the shard cannot be opened, or ends too early.
        """
        file = file or self.shard.open()
        if file.read_into(self.into, self.offset) != len(self.into):
            shard_set, row = self.record
            raise UserError(
                f"{self.shard.path}: ends inside record {shard_set.index['key'][row]}; run "
                f"`mt3data check {shard_set.folder}`"
            )


def run_by_shard(reads: Sequence[PendingRead]) -> None:
    """Runs reads, those of shards that are here first. Each shard is opened once.

    Raises:
        UserError: a shard cannot be opened or fetched, or ends too early.
    """
    of_shard: dict[ShardKey | CachedShard, list[PendingRead]] = {}
    for read in reads:
        of_shard.setdefault(read.shard, []).append(read)
    for shard in sorted(of_shard, key=lambda shard: not shard.is_here):
        file = shard.open()
        for read in of_shard[shard]:
            read.run(file)


class ShardSet:
    """One split of one build: its index, and its shards.

    Attributes:
        folder: of the build.
        split: its name.
        manifest: the build manifest.
        index: columns of the split's index by name.
        cache: fetches the shards of a remote build when they are read; None if they are here.
        shard_numbers: the number of each record's shard, int32 [records].
        shard_names: their names, by number.

    Raises:
        UserError: no finished build, no such split, an index that differs from the build manifest, or
            a shard that is missing or has another size.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split, self.manifest = folder, split, read_build_manifest(folder)
        if split not in self.manifest["splits"]:
            known = ", ".join(self.manifest["splits"]) or "none"
            raise UserError(f"{folder} has no split {split!r}; it has {known}")
        stated = {s["name"]: s for s in self.manifest["shards"] if s["split"] == split}
        self.cache = shard_cache(folder)
        keys: dict[str, ShardKey | CachedShard] = {
            name: CachedShard(self.cache, name)
            if self.cache
            else self._key(folder / name, shard["bytes"])
            for name, shard in stated.items()
        }
        self.index = Index(folder / "index" / f"{split}.parquet")
        for field in index_schema(self.manifest["features"]):
            if (
                field.name not in self.index
                or self.index.schema.field(field.name).type != field.type
            ):
                self._disagree(f"has no column {field.name} of {field.type}")
        if len(self.index) != self.manifest["splits"][split]["records"]:
            records = self.manifest["splits"][split]["records"]
            self._disagree(f"has {len(self.index)} rows, the build manifest states {records}")
        self.shard_numbers, self.shard_names = self.index.dictionary_codes("shard")
        if foreign := sorted(set(self.shard_names) - set(stated)):
            self._disagree(f"names {foreign[0]}, which is no shard of this build")
        self._shards = [keys[name] for name in self.shard_names]
        self.shard_bytes = np.array([stated[n]["bytes"] for n in self.shard_names], np.int64)
        self._checked = set[str]()
        if not (self.index["frames"] == self.manifest["window"]).all():
            self._disagree(f"has windows of other than {self.manifest['window']} frames")
        if not (self.index["start_frame"] < self.index["track_frames"]).all():
            self._disagree("has windows that begin after the end of their track")

    def __len__(self) -> int:
        return len(self.index)

    def member(self, row: int, name: str) -> bytes:
        """Returns the bytes of one member of the record in a row of the index.

        Its name is "mel", "audio", "tokens", "notes" or "json".
        """
        ((data, read),) = self.member_reads(np.array([row]), name)
        read.run()
        return bytes(data)

    def array(self, row: int, name: str) -> np.ndarray:
        """Returns one array of the record in a row of the index.

        Raises:
            UserError: the record holds something else than the build manifest states.
        """
        try:
            return read_feature(self.member(row, name), self.manifest["features"][name])
        except ValueError as error:
            key = self.index["key"][row]
            raise UserError(
                f"{self.folder}: {name} of {key}: {error}; get the build again"
            ) from error

    def member_reads(self, rows: np.ndarray, name: str) -> list[tuple[bytearray, PendingRead]]:
        """Returns, for the record in each row, a buffer for a member and the read that fills it."""
        offsets, sizes = self._places(name)
        places = (self.shard_numbers[rows].tolist(), offsets[rows].tolist(), sizes[rows].tolist(),
                  rows.tolist())  # fmt: skip
        reads = []
        for shard, offset, size, row in zip(*places, strict=True):
            data = bytearray(size)
            read = PendingRead(self._shards[shard], offset, memoryview(data), (self, row))
            reads.append((data, read))
        return reads

    def crops(
        self, rows: np.ndarray, name: str, first: np.ndarray, into: Sequence[memoryview]
    ) -> list[PendingRead]:
        """Returns the reads of a part of an array of fixed shape from each record.

        Args:
            rows: of the index, one for each record.
            name: of the array, "mel" or "audio".
            first: byte of each array's data at which to begin.
            into: the buffers to fill.
        """
        stored = self.manifest["features"][name]
        n_bytes = math.prod(stored["shape"]) * np.dtype(stored["dtype"]).itemsize
        offsets, sizes = self._places(name)
        begin = offsets[rows] + sizes[rows] - n_bytes + first
        places = (self.shard_numbers[rows].tolist(), begin.tolist(), into, rows.tolist())
        return [
            PendingRead(self._shards[shard], offset, view, (self, row))
            for shard, offset, view, row in zip(*places, strict=True)
        ]

    def _places(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns offset and size of a member of all records."""
        offsets, sizes = self.index[f"{name}_offset"], self.index[f"{name}_size"]
        if name not in self._checked:
            ends = self.shard_bytes[self.shard_numbers]
            if not ((sizes <= ends) & (offsets <= ends - sizes)).all():
                self._disagree(f"has {name}_offset or {name}_size beyond the end of a shard")
            if (offsets % TAR_BLOCK).any() or not offsets.all():
                self._disagree(f"has {name}_offset where no member of a tar file begins")
            stored = self.manifest["features"].get(name, {"shape": [None]})
            if None not in stored["shape"]:
                n_bytes = math.prod(stored["shape"]) * np.dtype(stored["dtype"]).itemsize
                if not ((n_bytes < sizes) & (sizes <= n_bytes + MAX_NPY_HEADER)).all():
                    self._disagree(f"has {name}_size other than the {n_bytes:,} bytes of a window")
            self._checked.add(name)
        return offsets, sizes

    def _disagree(self, fault: str) -> None:
        raise UserError(
            f"{self.index.path} {fault}, so it is of another build or damaged; run `mt3data check "
            f"{self.folder}`"
        )

    def _key(self, path: Path, n_bytes: int) -> ShardKey:
        try:
            stat = path.stat()
        except OSError:
            stat = None
        if stat is None or stat.st_size != n_bytes:
            seen = "is missing" if stat is None else f"has {stat.st_size:,} bytes"
            raise UserError(
                f"{path} {seen}; the manifest states {n_bytes:,}. Run `mt3data check {self.folder}`"
            )
        return ShardKey(str(path.absolute()), stat.st_ino, stat.st_mtime_ns)


@dataclass(frozen=True)
class TrackRecords:
    """One track as its shards hold it.

    Attributes:
        track: short id. name: the publisher's name.
        track_frames: frames of the track.
        starts: first frame of each window, ascending.
        mel: the windows, float16 [frames, n_mels] each, padded with 0.0 behind the track's end;
            empty where the records hold audio.
        audio: the windows, int16 [frames * hop + fft_size - hop] each, 0 behind the track's end;
            empty where the records hold none.
        notes: the track's notes: untrimmed references where the build has them (evaluation
            splits), else those of its windows.
    """

    track: str
    track_frames: int
    starts: list[int]
    mel: list[np.ndarray]
    audio: list[np.ndarray]
    notes: Notes


def read_tracks(folder: str | Path, split: str) -> Iterator[TrackRecords]:
    """Yields the tracks of a split of a build from its shards (variant 0 only).

    Raises:
        UserError: see ShardSet.
    """
    source = ShardSet(Path(folder), split)
    index = source.index
    untrimmed = references(Path(folder), split)
    rows_of: dict[str, list[int]] = {}
    for row, track in enumerate(index["track"]):
        if index["variant"][row] == 0:
            rows_of.setdefault(track, []).append(row)
    for track, rows in rows_of.items():
        rows.sort(key=lambda row: int(index["start_frame"][row]))
        windows = [source.array(row, "notes") for row in rows]
        notes = untrimmed.get(track)
        if notes is None:  # neighbouring windows carry some of the same notes
            notes = Notes.from_array(np.unique(np.concatenate(windows), axis=0))
        name = "audio" if "audio" in source.manifest["features"] else "mel"
        sound = [source.array(row, name) for row in rows]
        yield TrackRecords(
            track,
            int(index["track_frames"][rows[0]]),
            [int(index["start_frame"][row]) for row in rows],
            sound if name == "mel" else [],
            sound if name == "audio" else [],
            notes,
        )


def references(folder: Path, split: str) -> dict[str, Notes]:
    """Returns the untrimmed notes of each track of an evaluation split; empty for other splits.

    Raises:
        UserError: the table is damaged, or holds notes with values outside their ranges.
    """
    path = folder / f"references-{split}.parquet"
    if not path.is_file():
        return {}
    table = _read_table(path, references_schema(), references_schema().names)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    names, first, counts = np.unique(columns.pop("track"), return_index=True, return_counts=True)
    found = {  # the rows of a track are neighbours
        str(name): Notes.from_columns({c: column[i : i + n] for c, column in columns.items()})
        for name, i, n in zip(names, first, counts, strict=True)
    }
    for name, notes in found.items():
        try:
            validate(notes)
        except ValueError as error:
            raise UserError(f"{path}: {name}: {error}; get the build again") from error
    return found


def track_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of a build's tracks.parquet.

    Raises:
        UserError: the table is damaged.
    """
    known = (
        "track",
        "name",
        "split",
        "status",
        "stage",
        "error",
        "records",
        "variants",
        "problems",
    )
    return list(_read_table(folder / "tracks.parquet", tracks_schema(), known).to_pylist())


def _read_table(path: Path, schema: Any, known: Sequence[str]) -> Any:
    """Reads a table of a build; raises a UserError where a type differs, or a known column is null."""
    with open_parquet(path) as file:
        for field in schema:
            if field.name not in file.schema_arrow.names or (
                file.schema_arrow.field(field.name).type != field.type
            ):
                raise UserError(f"{path} has no column {field.name} of {field.type}; get it again")
        table = file.read(columns=schema.names)
        table.validate(full=True)
    for name in known:
        if nulls := table[name].null_count:
            raise UserError(f"{path}: {name} is null in {nulls} rows; get it again")
    return table


def read_feature(data: bytes, stored: dict[str, Any]) -> np.ndarray:
    """Returns an array of a record.

    Args:
        data: the .npy file.
        stored: dtype and shape that the build manifest states.
    Raises:
        ValueError: no .npy file, or another dtype or shape.
    """
    array = read_npy(data)
    fits = array.dtype == stored["dtype"] and array.ndim == len(stored["shape"])
    if not fits or any(
        m not in (None, n) for m, n in zip(stored["shape"], array.shape, strict=True)
    ):
        raise ValueError(
            f"it holds {array.dtype} {list(array.shape)}, not {stored['dtype']} {stored['shape']}"
        )
    return array
