"""Reading shards: any crop of any record, by byte position.

`IndexedShards` serves training. What a global batch holds depends on (seed, step) alone: draw number
step * global_batch + i takes the next record of a seeded permutation of its source, so every record
is seen exactly once per epoch of its source, the order is the same for any number of processes, and a
run continues at any step without replaying what came before. Sources (builds) are mixed in exact
shares: a pattern of PATTERN draws holds each source as often as its weight says.

`read_tracks` serves evaluation: the windows of each track, in time order.

A crop of a [frames, n_mels] array in C order is one contiguous range of bytes, so a crop costs one
`pread`, and nothing here unpickles anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.errors import UserError
from mt3data.notes import Notes
from mt3data.shards import find_builds, read_manifest, read_npy
from mt3data.spectrogram import SpectrogramConfig
from mt3data.tokens import encode_notes
from mt3data.vocabulary import PAD_ID, VocabularyConfig

PATTERN = 10_000  # draws over which mixture shares are exact
OPEN_SHARDS = 128  # per source; systems allow 1,024 open files by default


@dataclass(frozen=True)
class Batch:
    """Some members of a global batch.

    Attributes:
        mel: float16 [members, frames, n_mels]; 0.0 behind the end of a track. None where the
            records hold audio instead.
        audio: int16 [members, samples], or None.
        tokens: int16 [members, longest]; each row ends with EOS and is padded with 0 behind it.
        lengths: int32 [members], tokens of each row, EOS included.
        keys: keys of the records.
        start_frames: int64 [members], first frame of each crop within its track.
        n_frames: int32 [members], frames of each crop that lie before its track's end.
    """

    mel: np.ndarray | None
    audio: np.ndarray | None
    tokens: np.ndarray
    lengths: np.ndarray
    keys: list[str]
    start_frames: np.ndarray
    n_frames: np.ndarray


class ShardSet:
    """One split of one build: its index in memory and its shards open for reading.

    Attributes:
        folder: of the build.
        manifest: the content of manifest.json.
        index: columns of the split's index by name; strings as lists.

    Raises:
        UserError: no finished build, no such split, or a shard that is missing or has another size.
    """

    def __init__(self, folder: Path, split: str) -> None:
        import pyarrow.parquet as pq

        self.folder, self.manifest = folder, read_manifest(folder)
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
        table = pq.read_table(folder / "index" / f"{split}.parquet")
        self.index: dict[str, Any] = {
            name: table[name].to_pylist() if name in ("shard", "key", "track", "programs")
            else table[name].to_numpy()
            for name in table.column_names
        }  # fmt: skip
        self._files: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.index["key"])

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def member(self, row: int, name: str) -> bytes:
        """The bytes of one member ("mel", "tokens", "notes" or "json") of a record."""
        return self._read(
            row, int(self.index[f"{name}_offset"][row]), int(self.index[f"{name}_size"][row])
        )

    def read_mel(self, row: int, start: int, out: np.ndarray) -> None:
        """Reads frames of a record from `start` on into `out`, float16 [frames, n_mels] in C order."""
        row_bytes = out.shape[1] * out.itemsize
        end = int(self.index["mel_offset"][row] + self.index["mel_size"][row])
        first = end - (int(self.index["frames"][row]) - start) * row_bytes
        read = os.preadv(self._file_of(row), [out.data.cast("B")], first)
        if read != out.nbytes:
            raise self._cut_short(row)

    def _read(self, row: int, offset: int, size: int) -> bytes:
        data = os.pread(self._file_of(row), size, offset)
        if len(data) != size:
            raise self._cut_short(row)
        return data

    def _file_of(self, row: int) -> int:
        name = self.index["shard"][row]
        if name not in self._files:
            if len(self._files) >= OPEN_SHARDS:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[name] = os.open(self.folder / name, os.O_RDONLY)
        return self._files[name]

    def _cut_short(self, row: int) -> UserError:
        return UserError(
            f"{self.folder / self.index['shard'][row]}: ends inside record "
            f"{self.index['key'][row]}; run `mt3data check {self.folder}`"
        )


class IndexedShards:
    """Seeded batches of random crops from one split of one or several builds.

    Args:
        dirs: builds, or folders of builds.
        split: which split of each.
        seed: of the order, the mixture pattern and the crops.
        weights: share of each build, in the order of `builds`; None takes n ** (1 / temperature)
            of its number of records n.
        temperature: 10/3 in MT3 (paper section 3.3).

    Attributes:
        builds: folder of each source.
        spectrogram, vocabulary, edge: what all of them agree on.
        window_frames: length of their records.
        n_records: records in all.

    Raises:
        UserError: no build, builds that disagree, or a split without records.
    """

    def __init__(
        self, dirs: Sequence[str | Path], split: str = "train", *, seed: int = 0,
        weights: Sequence[float] | None = None, temperature: float = 10 / 3,
    ) -> None:  # fmt: skip
        self.builds = [build for path in dirs for build in find_builds(path)]
        self.sources = [ShardSet(build, split) for build in self.builds]
        self.seed = seed
        sizes = np.array([len(source) for source in self.sources])
        if not self.sources or not sizes.all():
            raise UserError(
                f"no records in split {split!r} of {', '.join(map(str, self.builds)) or 'nothing'}"
            )
        manifests = [source.manifest for source in self.sources]
        for key in ("spectrogram", "vocabulary", "edge", "window"):
            values = [manifest[key] for manifest in manifests]
            for build, value in zip(self.builds, values, strict=True):
                if value != values[0]:
                    raise UserError(
                        f"{build} has {key} {value}, {self.builds[0]} has {values[0]}; builds can be "
                        "mixed only if they agree"
                    )
        self.spectrogram = SpectrogramConfig(**manifests[0]["spectrogram"])
        self.vocabulary = VocabularyConfig(**manifests[0]["vocabulary"])
        self.edge: str = manifests[0]["edge"]
        self.window_frames: int = manifests[0]["window"]
        self.n_records = int(sizes.sum())
        share = sizes ** (1 / temperature) if weights is None else np.asarray(weights, float)
        if len(share) != len(sizes) or not (share * PATTERN >= share.sum()).all():
            raise UserError(
                f"weights {share.tolist()} for {len(sizes)} builds; expected one each, none less "
                f"than 1/{PATTERN} of their sum"
            )
        self._pattern = _mixture_pattern(share / share.sum(), seed)
        one_hot = self._pattern[:, None] == np.arange(len(sizes))
        self._before = np.cumsum(one_hot, axis=0) - one_hot  # draws of each source so far
        self._per_round = one_hot.sum(axis=0)

    def plan(self, step: int, global_batch: int) -> list[tuple[int, int]]:
        """(source, record) of each member of a global batch; a pure function of (seed, step)."""
        draws = np.arange(step * global_batch, (step + 1) * global_batch)
        members = []
        for round_, place in zip(*np.divmod(draws, PATTERN), strict=True):
            source = int(self._pattern[place])
            nth = int(round_) * int(self._per_round[source]) + int(self._before[place, source])
            epoch, position = divmod(nth, len(self.sources[source]))
            order = _permutation(len(self.sources[source]), self.seed, source, epoch)
            members.append((source, int(order[position])))
        return members

    def batch(
        self, step: int, global_batch: int, rank: int = 0, world: int = 1, frames: int = 256
    ) -> Batch:
        """This rank's members of a global batch.

        The members are ordered by the number of tokens of their records, longest first, and dealt
        out like cards, so that all ranks have about equally much to do.

        Args:
            step: number of the update, from 0.
            global_batch: members over all ranks.
            rank, world: which part.
            frames: length of the crops. Records longer than that are cut at a random frame and
                tokenised anew; records of exactly that length come as they are.
        Raises:
            UserError: crops longer than the records, or random crops of edge "segment".
        """
        dealt = np.argsort(-self.n_tokens(step, global_batch), kind="stable")
        return self.read(step, global_batch, dealt[rank::world].tolist(), frames)

    def n_tokens(self, step: int, global_batch: int) -> np.ndarray:
        """Tokens of the records, whole, that the members of a global batch are cut from."""
        members = self.plan(step, global_batch)
        return np.array([self.sources[s].index["n_tokens"][row] for s, row in members])

    def read(
        self, step: int, global_batch: int, members: Sequence[int], frames: int = 256
    ) -> Batch:
        """Some members of a global batch by their number, 0 to global_batch - 1; see `batch`."""
        self._check_crops(frames)
        planned = self.plan(step, global_batch)
        phases = np.random.default_rng([self.seed, step]).random(global_batch)
        mel = np.empty((len(members), frames, self.spectrogram.n_mels), np.float16)
        tokens, keys, starts = [], [], np.zeros(len(members), np.int64)
        n_frames = np.zeros(len(members), np.int32)
        for slot, member in enumerate(members):
            source, row = planned[member]
            shard_set = self.sources[source]
            ids, starts[slot] = self._crop(shard_set, row, frames, phases[member], mel[slot])
            tokens.append(ids)
            keys.append(shard_set.index["key"][row])
            n_frames[slot] = min(frames, shard_set.index["track_frames"][row] - starts[slot])
        return Batch(mel, None, *pad_tokens(tokens), keys, starts, n_frames)

    def _check_crops(self, frames: int) -> None:
        if frames > self.window_frames:
            raise UserError(
                f"segments of {frames} frames do not fit into records of {self.window_frames}; "
                f"build with --window {frames} or more"
            )
        if frames < self.window_frames and self.edge == "segment":
            raise UserError(
                f"records of {self.window_frames} frames with edge 'segment' cannot be cut to {frames} "
                f"frames: build with --window {frames}, or with --edge track"
            )

    def _crop(
        self, source: ShardSet, row: int, frames: int, phase: float, out: np.ndarray
    ) -> tuple[np.ndarray, int]:
        """Reads one crop into `out`; returns its tokens and its first frame in the track."""
        window_start = int(source.index["start_frame"][row])
        track_frames = int(source.index["track_frames"][row])
        if frames == self.window_frames:
            source.read_mel(row, 0, out)
            return read_npy(source.member(row, "tokens")), window_start
        valid = min(self.window_frames, track_frames - window_start)
        offset = int(phase * (max(valid - frames, 0) + 1))
        source.read_mel(row, offset, out)
        start = window_start + offset
        notes = Notes.from_array(read_npy(source.member(row, "notes")))
        n_frames = min(frames, track_frames - start)
        return encode_notes(notes, start, n_frames, track_frames, self.vocabulary), start


def pad_tokens(tokens: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Lists of tokens as int16 [n, longest], padded with 0, and their lengths, int32 [n]."""
    lengths = np.array([len(ids) for ids in tokens], np.int32)
    padded = np.full((len(tokens), lengths.max(initial=0)), PAD_ID, np.int16)
    for row, ids in zip(padded, tokens, strict=True):
        row[: len(ids)] = ids
    return padded, lengths


def _mixture_pattern(share: np.ndarray, seed: int) -> np.ndarray:
    """PATTERN source numbers in seeded order, each as often as its share says."""
    counts = np.floor(share * PATTERN).astype(int)
    counts[np.argsort(counts - share * PATTERN)[: PATTERN - counts.sum()]] += 1
    pattern = np.repeat(np.arange(len(share)), counts)
    return np.random.default_rng([seed, 1]).permutation(pattern)


@lru_cache(maxsize=64)
def _permutation(n: int, seed: int, source: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 2, source, epoch]).permutation(n)


@dataclass(frozen=True)
class TrackRecords:
    """One track as its shards hold it.

    Attributes:
        track: short id. name: the publisher's name.
        track_frames: frames of the track.
        starts: first frame of each window, ascending.
        mel: the windows, float16 [frames, n_mels] each, padded with 0.0 behind the track's end.
        notes: the track's notes: untrimmed references where the build has them (evaluation
            splits), else those of its windows.
    """

    track: str
    track_frames: int
    starts: list[int]
    mel: list[np.ndarray]
    notes: Notes


def read_tracks(folder: str | Path, split: str) -> Iterator[TrackRecords]:
    """The tracks of a split, one after the other, from shards alone (pass 0 only).

    Raises:
        UserError: see ShardSet.
    """
    source = ShardSet(Path(folder), split)
    index = source.index
    references = _references(Path(folder), split)
    rows_of: dict[str, list[int]] = {}
    for row, track in enumerate(index["track"]):
        if index["pass"][row] == 0:
            rows_of.setdefault(track, []).append(row)
    for track, rows in rows_of.items():
        rows.sort(key=lambda row: int(index["start_frame"][row]))
        windows = [read_npy(source.member(row, "notes")) for row in rows]
        notes = references.get(track)
        if notes is None:  # neighbouring windows carry some of the same notes
            notes = Notes.from_array(np.unique(np.concatenate(windows), axis=0))
        yield TrackRecords(
            track,
            int(index["track_frames"][rows[0]]),
            [int(index["start_frame"][row]) for row in rows],
            [read_npy(source.member(row, "mel")) for row in rows],
            notes,
        )


def _references(folder: Path, split: str) -> dict[str, Notes]:
    path = folder / f"references-{split}.parquet"
    if not path.is_file():
        return {}
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    names, first, counts = np.unique(columns.pop("track"), return_index=True, return_counts=True)
    return {  # the rows of a track stand together
        str(name): Notes.from_columns({c: column[i : i + n] for c, column in columns.items()})
        for name, i, n in zip(names, first, counts, strict=True)
    }
