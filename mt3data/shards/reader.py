"""Reads random crops of records for training, by byte position.

A global batch of `IndexedShards` depends on (seed, step) alone. Draw number step * global_batch + i
takes the next record of a seeded permutation of its source. So every record comes exactly once per
epoch of its source, the order is the same for any number of processes, and a run resumes at any step
without replaying earlier steps. Sources (builds) are mixed in exact shares: a cycle of MIXTURE_CYCLE
draws holds each source in proportion to its weight.

A build of `cached` with a size limit fetches its shards when a batch needs them. Records in random
order need all shards all the time. `shuffle_shards` shuffles the records of a few shards at a time, so
that a small cache suffices, and the shards that come next are fetched meanwhile.

A crop of a [frames, n_mels] array in C order is one contiguous range of bytes, and so is a crop of
audio: it takes one `pread` into the batch. The tokens of all crops are computed together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.errors import UserError
from mt3data.music.fast_tokenizer import encode_crops
from mt3data.music.vocabulary import PAD_ID
from mt3data.shards.cache import ShardCache
from mt3data.shards.compatibility import common_settings
from mt3data.shards.format import find_builds
from mt3data.shards.index import PendingRead, ShardSet, read_feature, run_by_shard

MIXTURE_CYCLE = 10_000  # draws over which mixture shares are exact
MAX_THREADS = 64


@dataclass(frozen=True)
class Batch:
    """Some examples of a global batch, in arrays.

    Attributes:
        mel: float16 [examples, frames, n_mels]; 0.0 after the end of a track. None where audio is
            read.
        audio: int16 [examples, samples], full scale 32767, or None. A crop of right_context "zeros" holds
            frames * hop samples, one of right_context "audio" fft_size - hop more, for its last frames.
        tokens: int16 [examples, longest]; each row ends with EOS and is padded with 0 behind it.
        lengths: int32 [examples], tokens of each row, EOS included.
        keys: keys of the records.
        start_frames: int64 [examples], first frame of each crop within its track.
        n_frames: int32 [examples], frames of each crop that lie before its track's end.
    """

    mel: np.ndarray | None
    audio: np.ndarray | None
    tokens: np.ndarray
    lengths: np.ndarray
    keys: list[str]
    start_frames: np.ndarray
    n_frames: np.ndarray


class IndexedShards:
    """Seeded batches of random crops from one split of one or several builds.

    Args:
        dirs: builds, or folders of builds.
        split: which split of each.
        seed: of the order, the mixture pattern and the crops.
        weights: share of each build, in the order of `builds`; None takes n ** (1 / temperature)
            of its number of records n.
        temperature: 10/3 in MT3 (paper section 3.3).
        feature: what to read, "mel" or "audio"; None: mel where all builds hold it.
        shuffle_shards: the records of so many shards are shuffled together, and read before those of
            other shards; 0 shuffles the records of all shards. The order of the shards is random.
        threads: number of threads that read at the same time, at most MAX_THREADS. Several hide the
            latency of a disk: a factor of 3 where shards are not in memory.

    Attributes:
        builds: folder of each source.
        spectrogram, vocabulary, right_context: common settings of the builds.
        feature: the feature that is read.
        window_frames: length of the records.
        n_records: number of records of all builds.

    Raises:
        UserError: no build, builds with different settings, or a split without records.
    """

    def __init__(
        self, dirs: Sequence[str | Path], split: str = "train", *, seed: int = 0,
        weights: Sequence[float] | None = None, temperature: float = 10 / 3,
        feature: str | None = None, threads: int = 4, shuffle_shards: int = 0,
    ) -> None:  # fmt: skip
        if not 1 <= threads <= MAX_THREADS:
            raise UserError(f"threads={threads}; expected 1 to {MAX_THREADS}")
        if shuffle_shards < 0:
            raise UserError(
                f"shuffle_shards={shuffle_shards}; expected 0 for all, or a number of shards"
            )
        self.builds = [build.absolute() for path in dirs for build in find_builds(path)]
        self._arguments = {
            "dirs": self.builds, "split": split, "seed": seed, "weights": weights,
            "temperature": temperature, "feature": feature, "threads": threads,
            "shuffle_shards": shuffle_shards,
        }  # fmt: skip
        self.sources = [ShardSet(build, split) for build in self.builds]
        self.seed, self._shuffle_shards = seed, shuffle_shards
        self._sizes = np.array([len(source) for source in self.sources])
        empty = [str(source.folder) for source in self.sources if not len(source)]
        if empty or not self.sources:
            raise UserError(f"no records in split {split!r} of {', '.join(empty) or 'nothing'}")
        self._agreed = common_settings([(s.folder, s.manifest) for s in self.sources], feature)
        self.spectrogram, self.vocabulary = self._agreed.spectrogram, self._agreed.vocabulary
        self.right_context, self.window_frames = (
            self._agreed.right_context,
            self._agreed.window_frames,
        )
        self.feature = self._agreed.feature
        self.n_records = int(self._sizes.sum())
        share = self._sizes ** (1 / temperature) if weights is None else np.asarray(weights, float)
        if len(share) != len(self._sizes) or not (share * MIXTURE_CYCLE >= share.sum()).all():
            raise UserError(
                f"weights {share.tolist()} for {len(share)} builds; expected one each, none less "
                f"than 1/{MIXTURE_CYCLE} of their sum"
            )
        self._pattern = _mixture_pattern(share / share.sum(), seed)
        one_hot = self._pattern[:, None] == np.arange(len(share))
        self._draws_before = np.cumsum(one_hot, axis=0) - one_hot  # draws of each source so far
        self._per_round = one_hot.sum(axis=0)
        # The epoch that runs and the one that a batch may reach into, of every source.
        self._order: Callable[[int, int], np.ndarray] = lru_cache(2 * len(share))(self._permutation)
        self._threads, self._pool_of = threads, 0
        self._is_remote = any(source.cache for source in self.sources)
        self._planned = range(0)  # draws before whose shards others were asked for

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the arguments: another process opens the same builds itself."""
        return _open_again, (self._arguments,)

    def draw_plan(self, step: int, global_batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns source and record of each example of a global batch; depends on (seed, step) alone."""
        return self._drawn(np.arange(step * global_batch, (step + 1) * global_batch))

    def _drawn(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns source and record of each draw, by its number."""
        rounds, places = np.divmod(draws, MIXTURE_CYCLE)
        sources = self._pattern[places]
        nth = rounds * self._per_round[sources] + self._draws_before[places, sources]
        epochs, rows = np.divmod(nth, self._sizes[sources])
        for source, epoch in sorted(set(zip(sources.tolist(), epochs.tolist(), strict=True))):
            chosen = (sources == source) & (epochs == epoch)
            rows[chosen] = self._order(source, epoch)[rows[chosen]]
        return sources, rows

    def n_tokens(self, step: int, global_batch: int) -> np.ndarray:
        """Returns the number of tokens of the whole record of each example of a global batch."""
        return self._column("n_tokens", *self.draw_plan(step, global_batch))

    def batch(
        self, step: int, global_batch: int, rank: int = 0, world_size: int = 1, frames: int = 256,
        out: np.ndarray | None = None,
    ) -> Batch:  # fmt: skip
        """Returns the examples of one rank of a global batch.

        The examples are sorted by the number of tokens of their records, longest first. Rank r takes
        numbers r, r + world_size, and so on, so that all ranks have about equal work.

        Args:
            step: number of the update, from 0.
            global_batch: examples over all ranks.
            rank, world_size: the number of this process and of all processes.
            frames: length of the crops. Records longer than that are cut at a random frame and
                tokenised anew; records of exactly that length come as they are.
            out: see `read`.
        Raises:
            UserError: crops longer than the records, or random crops of a mel of right_context "zeros".
        """
        dealt = np.argsort(-self.n_tokens(step, global_batch), kind="stable")
        return self.read(step, global_batch, dealt[rank::world_size].tolist(), frames, out)

    def read(
        self, step: int, global_batch: int, examples: Sequence[int], frames: int = 256,
        out: np.ndarray | None = None,
    ) -> Batch:  # fmt: skip
        """Returns some examples of a global batch by their number, 0 to global_batch - 1; see `batch`.

        Args:
            examples: their numbers.
            out: an array for the mel or audio, to whose first rows the batch refers; a new array
                takes a tenth more time. Shape (at least examples, ...) as in Batch.
        """
        self._agreed.check_crops(frames)
        chosen = np.asarray(examples, np.int64)
        phases = np.random.default_rng([self.seed, step]).random(global_batch)[chosen]
        sources, rows = (column[chosen] for column in self.draw_plan(step, global_batch))
        track_frames = self._column("track_frames", sources, rows)
        window_starts = self._column("start_frame", sources, rows)
        spare = np.minimum(self.window_frames, track_frames - window_starts) - frames
        starts = window_starts + (phases * (spare.clip(0) + 1)).astype(np.int64)
        if frames == self.window_frames:
            starts = window_starts
        n_frames = np.minimum(frames, track_frames - starts)
        sound = self._output_array(len(chosen), frames, out)
        whole = frames == self.window_frames
        labels = self._read_crops(
            sources, rows, starts - window_starts, sound, "tokens" if whole else "notes"
        )
        if self._is_remote:  # another process may still need the shards of this step
            self._fetch_ahead(step * global_batch)
        if whole:
            tokens, lengths = pad_tokens(labels)
        else:
            tokens, lengths = encode_crops(labels, starts, n_frames, track_frames, self.vocabulary)
        keys = self._column("key", sources, rows)
        mel, audio = (sound, None) if self.feature == "mel" else (None, sound)
        return Batch(mel, audio, tokens, lengths, keys, starts, n_frames.astype(np.int32))

    def _read_crops(
        self, sources: np.ndarray, rows: np.ndarray, offsets: np.ndarray, sound: np.ndarray,
        label: str,
    ) -> list[np.ndarray]:  # fmt: skip
        """Reads crops of mel or audio into `sound`; returns the records' notes or tokens."""
        hop, n_mels = self.spectrogram.hop, self.spectrogram.n_mels
        frame_bytes = n_mels * 2 if self.feature == "mel" else hop * 2  # float16, int16
        row_bytes, buffer = sound[:1].nbytes, sound.reshape(-1).view(np.uint8).data
        views = [buffer[i * row_bytes : (i + 1) * row_bytes] for i in range(len(rows))]
        reads: list[PendingRead] = []
        labels: list[bytearray] = [bytearray()] * len(rows)
        for source in np.unique(sources).tolist():
            places, shards = np.flatnonzero(sources == source), self.sources[source]
            into = [views[place] for place in places]
            reads += shards.crops(rows[places], self.feature, offsets[places] * frame_bytes, into)
            for place, (data, read) in zip(
                places.tolist(), shards.member_reads(rows[places], label), strict=True
            ):
                labels[place] = data
                reads.append(read)
        self._run(reads)
        try:
            stored = self.sources[0].manifest["features"][label]  # the same in all builds
            return [read_feature(bytes(data), stored) for data in labels]
        except ValueError as error:
            keys = ", ".join(self._column("key", sources, rows)[:3])
            raise UserError(f"{label} of {keys} or another record of the batch: {error}") from error

    def _fetch_ahead(self, draw: int) -> None:
        """Lets each cache fetch the shards of the draws from `draw` on, as many as fit into it."""
        if draw in self._planned:
            return
        n_shards = max(len(source.shard_names) for source in self.sources)
        remote = [number for number, source in enumerate(self.sources) if source.cache]
        limit = min(source.cache.max_bytes for source in self.sources if source.cache)
        n_bytes = sum(int(self.sources[number].shard_bytes.sum()) for number in remote)
        share = int(self._per_round[remote].sum()) / MIXTURE_CYCLE  # of all draws
        n_draws = min(self.n_records, int(int(self._sizes[remote].sum()) * limit / n_bytes / share))
        self._planned = range(draw, draw + max(1, n_draws // 8))
        sources, rows = self._drawn(np.arange(draw, draw + max(1, n_draws)))
        shards = np.empty(len(rows), np.int64)
        for number, source in enumerate(self.sources):
            shards[sources == number] = source.shard_numbers[rows[sources == number]]
        _, first = np.unique(sources * n_shards + shards, return_index=True)
        names: dict[ShardCache, list[str]] = {}
        for place in np.sort(first).tolist():
            source, shard = self.sources[sources[place]], int(shards[place])
            if source.cache:  # others take no room
                limit -= int(source.shard_bytes[shard])
                if limit >= 0:
                    names.setdefault(source.cache, []).append(source.shard_names[shard])
        for cache, wanted in names.items():
            cache.prefetch(wanted)

    def _run(self, reads: list[PendingRead]) -> None:
        if self._is_remote:
            run_by_shard(reads)
            return
        if self._threads == 1:
            _run_in_order(reads)
            return
        if self._pool_of != os.getpid():  # threads do not follow into a process that was forked
            self._pool = ThreadPoolExecutor(self._threads, "shards")
            self._pool_of = os.getpid()
        parts = [reads[i :: self._threads] for i in range(self._threads)]
        list(self._pool.map(_run_in_order, parts))

    def _output_array(self, n: int, frames: int, out: np.ndarray | None) -> np.ndarray:
        """Returns an array for the mel or the audio of n crops: rows of `out`, or a new one."""
        one, dtype = self._agreed.crop(frames)
        shape = (n, *one)
        if out is None:
            return np.empty(shape, dtype)
        if out.dtype != dtype or out.shape[1:] != shape[1:] or len(out) < n:
            raise ValueError(f"out is {out.dtype} {out.shape}; expected {dtype} {shape} or longer")
        if not out.flags.c_contiguous:
            raise ValueError("out is not contiguous; expected an array in C order")
        return out[:n]

    def _column(self, name: str, sources: np.ndarray, rows: np.ndarray) -> Any:
        """Returns a column of the index for some records: an array, or a list for keys."""
        parts = [
            (np.flatnonzero(sources == source), self.sources[source].index[name])
            for source in np.unique(sources)
        ]
        gathered: Any = np.empty(len(rows), object if name == "key" else np.int64)
        for places, column in parts:
            gathered[places] = column[rows[places]]
        return gathered.tolist() if name == "key" else gathered

    def _permutation(self, source: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 2, source, epoch])
        order = rng.permutation(self._sizes[source])
        if self._shuffle_shards:
            shard_of = self.sources[source].shard_numbers
            places_of_shards = rng.permutation(len(self.sources[source].shard_names))
            blocks = places_of_shards // self._shuffle_shards
            order = order[np.argsort(blocks[shard_of[order]], kind="stable")]
        return order.astype(np.int32)  # indices; a source of 2^31 records is beyond any disk


def _open_again(arguments: dict[str, Any]) -> IndexedShards:
    return IndexedShards(**arguments)


def _run_in_order(reads: Sequence[PendingRead]) -> None:
    for read in reads:
        read.run()


def pad_tokens(tokens: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns lists of tokens as int16 [n, longest], padded with 0, and their lengths, int32 [n]."""
    lengths = np.array([len(ids) for ids in tokens], np.int32)
    padded = np.full((len(tokens), lengths.max(initial=0)), PAD_ID, np.int16)
    for row, ids in zip(padded, tokens, strict=True):
        row[: len(ids)] = ids
    return padded, lengths


def _mixture_pattern(share: np.ndarray, seed: int) -> np.ndarray:
    """Returns MIXTURE_CYCLE source numbers in seeded order, in proportion to the shares."""
    counts = np.floor(share * MIXTURE_CYCLE).astype(int)
    counts[np.argsort(counts - share * MIXTURE_CYCLE)[: MIXTURE_CYCLE - counts.sum()]] += 1
    pattern = np.repeat(np.arange(len(share)), counts)
    return np.random.default_rng([seed, 1]).permutation(pattern)
