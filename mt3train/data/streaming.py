"""Reads shards front to back for training: `data.reader=webdataset`.

Random reads are slow from a web server or an object store. Here every process reads its own shards,
cuts one random crop out of each record, and shuffles crops in a buffer. The disadvantages compared
with `IndexedShards`:

- Batches depend on the number of processes, and mixtures have no weights: each record comes once per
  epoch, as with data.temperature=1.
- An epoch has the same number of steps on every process, and no process may run out of records. The
  remaining records of an epoch are left out, and their number is printed.
- A run that resumes in the middle of an epoch reads that epoch's first records again, and prints it.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mt3data.errors import UserError
from mt3data.music.fast_tokenizer import encode_crops
from mt3data.shards.compatibility import CommonSettings, common_settings
from mt3data.shards.reader import Batch, pad_tokens

SHUFFLED_CROPS = 1000  # of 256 frames: 260 MB


class Crop(NamedTuple):
    """Holds a segment of a record: its mel or audio, and the tokens or notes of the record."""

    sound: np.ndarray
    label: np.ndarray
    key: str
    start_frame: int
    n_frames: int
    track_frames: int


class StreamedShards:
    """Returns batches in the order of the shards, with the interface of `IndexedShards`.

    Args:
        builds: folders, or addresses of builds.
        split: which split of each.
        seed: of the order of shards, of the crops and of the buffer.
    Raises:
        UserError: no build, builds that disagree, or a split without records.
    """

    def __init__(self, builds: Sequence[str | Path], split: str, seed: int) -> None:
        # Not at the top: they import requests and webdataset, which other training does not need.
        from mt3data.shards.stream import epoch_shards, open_builds

        self._where, self._split, self._seed = list(builds), split, seed
        manifests = list(open_builds(builds))
        self._agreed: CommonSettings = common_settings(manifests)
        self.spectrogram, self.vocabulary = self._agreed.spectrogram, self._agreed.vocabulary
        self.right_context, self.feature = self._agreed.right_context, self._agreed.feature
        self.builds = [Path(place) for place, _ in manifests]
        self._records = sorted(s.records for s in epoch_shards(builds, split, seed=seed, epoch=0))
        self.n_records = sum(self._records)
        self._crops: Iterator[Crop] = iter(())
        self._next_step = -1

    def steps_per_epoch(self, global_batch: int, world_size: int) -> int:
        """Returns the steps per epoch that any len(shards) // world_size shards suffice for.

        Raises:
            UserError: they do not suffice for one step.
        """
        least = sum(self._records[: len(self._records) // world_size])
        steps = least // -(-global_batch // world_size)
        if not steps:
            raise UserError(
                f"batch={global_batch} on {world_size} processes, which get {len(self._records)} shards; "
                f"one may get no more than {least} records, so data.reader=webdataset cannot fill a "
                "batch: take a smaller batch, fewer processes or data.reader=indexed"
            )
        return steps

    def batch(
        self, step: int, global_batch: int, rank: int = 0, world_size: int = 1, frames: int = 256
    ) -> Batch:
        """Returns the next crops of this process. A step other than the next one restarts its epoch."""
        self._agreed.check_crops(frames)
        steps = self.steps_per_epoch(global_batch, world_size)
        epoch, place = divmod(step, steps)
        if step != self._next_step or place == 0:
            if rank == 0 and step != self._next_step:
                self._say(epoch, place, steps, global_batch)
            self._crops = self._open(epoch, rank, world_size, frames)
        share = len(range(rank, global_batch, world_size))
        crops = list(islice(self._crops, share))
        assert len(crops) == share, (step, rank, world_size)
        self._next_step = step + 1
        return self._collate(crops, frames)

    def _say(self, epoch: int, place: int, steps: int, global_batch: int) -> None:
        again = f"; going on in step {place + 1} of epoch {epoch}, with its first records again"
        print(
            f"webdataset: steps per epoch: {steps}; records left out: "
            f"{self.n_records - steps * global_batch} of {self.n_records}{again if place else ''}",
            file=sys.stderr,
        )

    def _open(self, epoch: int, rank: int, world_size: int, frames: int) -> Iterator[Crop]:
        import webdataset

        from mt3data.shards.stream import stream

        records = stream(
            self._where, self._split, seed=self._seed, epoch=epoch, rank=rank, world_size=world_size
        )
        generator = np.random.default_rng([self._seed, 5, epoch, rank])
        order = random.Random(f"{self._seed} {epoch} {rank}")
        crops = (self._cut(record, frames, generator.random()) for record in records)
        return iter(webdataset.shuffle(SHUFFLED_CROPS, rng=order)(crops))

    def _cut(self, record: dict[str, Any], frames: int, phase: float) -> Crop:
        facts, agreed = record["json"], self._agreed
        whole = frames == agreed.window_frames
        left = facts["track_frames"] - facts["start_frame"]
        spare = max(min(agreed.window_frames, left) - frames, 0)
        offset = 0 if whole else int(phase * (spare + 1))
        n_rows = agreed.crop(frames)[0][0]
        first = offset * (1 if agreed.feature == "mel" else agreed.spectrogram.hop)
        return Crop(
            record[agreed.feature][first : first + n_rows].copy(),  # so that the record can go
            record["tokens" if whole else "notes"],
            record["key"],
            facts["start_frame"] + offset,
            min(frames, left - offset),
            facts["track_frames"],
        )

    def _collate(self, crops: Sequence[Crop], frames: int) -> Batch:
        labels = [crop.label for crop in crops]
        starts, n_frames, track_frames = np.array([crop[3:] for crop in crops], np.int64).T
        if frames == self._agreed.window_frames:
            tokens, lengths = pad_tokens(labels)
        else:
            tokens, lengths = encode_crops(labels, starts, n_frames, track_frames, self.vocabulary)
        sound = np.stack([crop.sound for crop in crops])
        mel, audio = (sound, None) if self.feature == "mel" else (None, sound)
        keys = [crop.key for crop in crops]
        return Batch(mel, audio, tokens, lengths, keys, starts, n_frames.astype(np.int32))
