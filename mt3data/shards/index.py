"""The records of one split of one build, by number: any member of any record, and whole tracks.

The index says at which byte of which shard each member lies, so reading one costs one `pread`, and
nothing here unpickles anything. Columns of the index are read when they are first asked for, and
strings stay in arrow's buffers: a set of a million records opens in milliseconds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mt3data.errors import UserError
from mt3data.music.notes import Notes
from mt3data.shards.format import index_schema, read_build_manifest, read_npy

OPEN_SHARDS = 128  # per split; systems allow 1,024 open files by default


class LazyStrings(Sequence[str]):
    """A column of strings in arrow's buffers, a fifth of the size of a list of them."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        """The string of a row; the strings of an array of rows, as a list."""
        if isinstance(row, np.ndarray):
            return [self._column[i].as_py() for i in row.tolist()]
        return self._column[int(row)].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self._column.to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


class Index:
    """Columns of an index by name, each read when it is first asked for.

    Integers are numpy arrays, strings `LazyStrings`, and anything else is a list.
    """

    def __init__(self, path: Path) -> None:
        """Opens the parquet file of an index."""
        self._path, self._columns = path, dict[str, Any]()
        with open_parquet(path) as file:
            self._n_rows, self.names = file.metadata.num_rows, file.schema_arrow.names

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
                self._columns[name] = _numbers(column.combine_chunks())
            else:
                self._columns[name] = column.to_pylist()
        return self._columns[name]

    def dictionary_codes(self, name: str) -> tuple[np.ndarray, list[str]]:
        """The column of a name, of few different strings: their numbers and the strings; not kept."""
        array = self._read(name).unify_dictionaries().combine_chunks()
        return _numbers(array.indices), array.dictionary.to_pylist()

    def _read(self, name: str) -> Any:
        import pyarrow as pa

        with open_parquet(self._path) as file:
            column = file.read(columns=[name], use_threads=False)[name]
        pa.default_memory_pool().release_unused()  # what unpacking took: as much as the column
        return column


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A parquet file of a build for reading; a UserError where it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq  # its read_table would import pyarrow.dataset, for 0.3 s

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: missing or damaged ({error}); `mt3data check` tells what else is wrong with "
            "the build"
        ) from error


def _numbers(array: Any) -> np.ndarray:
    """An arrow array of integers as numpy's; its to_numpy would import pandas where that is."""
    return np.from_dlpack(array)


class ShardFile:
    """A shard, given by its path, that is open for reading until nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class PendingRead(NamedTuple):
    """Bytes of a shard from an offset on, and the buffer that they fill."""

    file: ShardFile
    offset: int
    into: memoryview
    what: tuple[ShardSet, int]  # whose record, for the message

    def run(self) -> None:
        """Reads.

        Raises:
            UserError: the shard ends too early.
        """
        if os.preadv(self.file.descriptor, [self.into], self.offset) != len(self.into):
            shard_set, row = self.what
            shard = shard_set.index["shard"][row]
            raise UserError(
                f"{shard_set.folder / shard}: ends inside record "
                f"{shard_set.index['key'][row]}; run `mt3data check {shard_set.folder}`"
            )


class ShardSet:
    """One split of one build: its index, and its shards open for reading.

    Attributes:
        folder: of the build.
        split: its name.
        manifest: the content of manifest.json.
        index: columns of the split's index by name.

    Raises:
        UserError: no finished build, no such split, or a shard that is missing or has another size.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split, self.manifest = folder, split, read_build_manifest(folder)
        if split not in self.manifest["splits"]:
            known = ", ".join(self.manifest["splits"])
            raise UserError(f"{folder} has no split {split!r}; it has {known}")
        for shard in self.manifest["shards"]:
            path = folder / shard["name"]
            size = path.stat().st_size if path.is_file() else None
            if shard["split"] == split and size != shard["bytes"]:
                seen = "is missing" if size is None else f"has {size:,} bytes"
                raise UserError(
                    f"{path} {seen}; the manifest says {shard['bytes']:,}. Run `mt3data check {folder}`"
                )
        self.index = Index(folder / "index" / f"{split}.parquet")
        wanted = index_schema(self.manifest["features"]).names
        if lost := [name for name in wanted if name not in self.index]:
            raise UserError(
                f"{folder / 'index' / split}.parquet has no column {lost[0]}, so it is of another "
                f"build; run `mt3data check {folder}`"
            )
        self._shard_of, self._shards = self.index.dictionary_codes("shard")
        shards = {shard["name"] for shard in self.manifest["shards"] if shard["split"] == split}
        if foreign := sorted(set(self._shards) - shards):
            raise UserError(
                f"{folder / 'index' / split}.parquet names {foreign[0]}, which is no shard of this "
                f"build; run `mt3data check {folder}`"
            )
        self._files: dict[int, ShardFile] = {}

    def __len__(self) -> int:
        return len(self.index)

    def member(self, row: int, name: str) -> bytes:
        """The bytes of one member of the record in a row of the index.

        Its name is "mel", "audio", "tokens", "notes" or "json".
        """
        ((data, read),) = self.member_reads(np.array([row]), name)
        read.run()
        return bytes(data)

    def member_reads(self, rows: np.ndarray, name: str) -> list[tuple[bytearray, PendingRead]]:
        """For the record in each row: room for its member of a name, and the read that fills it."""
        planned = []
        where = (self._shard_of[rows].tolist(), self.index[f"{name}_offset"][rows].tolist(),
                 self.index[f"{name}_size"][rows].tolist(), rows.tolist())  # fmt: skip
        for shard, offset, size, row in zip(*where, strict=True):
            data = bytearray(size)
            read = PendingRead(self._open(shard), offset, memoryview(data), (self, row))
            planned.append((data, read))
        return planned

    def crops(
        self, rows: np.ndarray, name: str, first: np.ndarray, into: Sequence[memoryview]
    ) -> list[PendingRead]:
        """The reads that bring a stretch of an array of fixed shape from each record.

        Args:
            rows: of the index, one for each record.
            name: of the array, "mel" or "audio".
            first: byte of each array's data at which to begin.
            into: the buffers to fill.
        """
        stored = self.manifest["features"][name]
        n_bytes = math.prod(stored["shape"]) * np.dtype(stored["dtype"]).itemsize
        end = self.index[f"{name}_offset"][rows] + self.index[f"{name}_size"][rows]
        shards = self._shard_of[rows].tolist()
        where = (shards, (end - n_bytes + first).tolist(), into, rows.tolist())
        return [
            PendingRead(self._open(shard), offset, view, (self, row))
            for shard, offset, view, row in zip(*where, strict=True)
        ]

    def _open(self, shard: int) -> ShardFile:
        file = self._files.get(shard)
        if file is None:
            if len(self._files) >= OPEN_SHARDS:  # it is closed when its last read is done
                self._files.pop(next(iter(self._files)), None)
            file = self._files[shard] = ShardFile(self.folder / self._shards[shard])
        return file


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
    """The tracks of a split of a build, one after the other, from shards alone (variant 0 only).

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
        windows = [read_npy(source.member(row, "notes")) for row in rows]
        notes = untrimmed.get(track)
        if notes is None:  # neighbouring windows carry some of the same notes
            notes = Notes.from_array(np.unique(np.concatenate(windows), axis=0))
        name = "audio" if "audio" in source.manifest["features"] else "mel"
        sound = [read_npy(source.member(row, name)) for row in rows]
        yield TrackRecords(
            track,
            int(index["track_frames"][rows[0]]),
            [int(index["start_frame"][row]) for row in rows],
            sound if name == "mel" else [],
            sound if name == "audio" else [],
            notes,
        )


def references(folder: Path, split: str) -> dict[str, Notes]:
    """The untrimmed notes of each track of a build's evaluation split; none for other splits."""
    path = folder / f"references-{split}.parquet"
    if not path.is_file():
        return {}
    with open_parquet(path) as file:
        table = file.read()
    columns = {name: table[name].to_numpy() for name in table.column_names}
    names, first, counts = np.unique(columns.pop("track"), return_index=True, return_counts=True)
    return {  # the rows of a track stand together
        str(name): Notes.from_columns({c: column[i : i + n] for c, column in columns.items()})
        for name, i, n in zip(names, first, counts, strict=True)
    }


def track_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a build's tracks.parquet."""
    with open_parquet(folder / "tracks.parquet") as file:
        return list(file.read().to_pylist())
