"""From shards to micro-batches: which builds, which members, padding, reading one step ahead."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mt3data.errors import UserError
from mt3data.shards import find_builds
from mt3data.spectrogram import SpectrogramConfig
from mt3data.vocabulary import PAD_ID, VocabularyConfig
from mt3train.config import DataConfig

PAD_TO = 16  # lengths of targets are multiples of it, so that few shapes occur


class Segments(Protocol):
    """Training data: mt3data.reader.IndexedShards, or anything with these."""

    spectrogram: SpectrogramConfig
    vocabulary: VocabularyConfig
    edge: str
    n_records: int

    def batch(
        self, step: int, global_batch: int, rank: int = 0, world: int = 1, frames: int = 256
    ) -> Any:
        """This rank's members of a global batch, see mt3data.reader.Batch."""


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Segments that run through the network at once.

    Attributes:
        mel: log-mel frames, float16 [B, F, M].
        targets: token ids int64 [B, L], EOS last, then 0; a row of zeros was too long.
        keys: the records' names.
        n_tokens: number of targets that count.
        n_skipped: rows that were too long.
    """

    mel: Tensor
    targets: Tensor
    keys: list[str]
    n_tokens: int
    n_skipped: int


def open_shards(config: DataConfig, seed: int) -> Segments:
    """The shards that a configuration names for training.

    Raises:
        UserError: there are none, or a set of the mixture has no build.
    """
    from mt3data.reader import IndexedShards

    builds, temperature = mixture_builds(find_builds(config.train), config)
    return IndexedShards(builds, config.split, seed=seed, temperature=temperature)


def mixture_builds(builds: list[Path], config: DataConfig) -> tuple[list[Path], float]:
    """The builds that belong to the configured mixture, and the temperature at which to mix them.

    Raises:
        UserError: there is no such mixture, or no build of one of its sets.
    """
    from mt3data.manifest import load_mixture
    from mt3data.shards import read_manifest

    if not config.mixture:
        return builds, config.temperature
    mixture = load_mixture(config.mixture)
    sets = {build: read_manifest(build)["dataset"] for build in builds}
    if missing := [name for name in mixture.datasets if name not in sets.values()]:
        raise UserError(
            f"the mixture {mixture.name} needs builds of {', '.join(mixture.datasets)}; "
            f"{config.train} has none of {', '.join(missing)}; make them with "
            f"`mt3data build {missing[0]}` and so on, or leave out data.mixture"
        )
    return [build for build in builds if sets[build] in mixture.datasets], mixture.temperature


def open_evaluation(config: DataConfig, like: Segments) -> Segments | None:
    """The shards of the evaluation loss, in a fixed order; None if no build has that split.

    Args:
        config: names builds and split.
        like: the shards of training.
    Raises:
        UserError: the builds are not made as those of training.
    """
    from mt3data.reader import IndexedShards
    from mt3data.shards import read_manifest

    builds = (
        find_builds(config.eval)
        if config.eval
        else mixture_builds(find_builds(config.train), config)[0]
    )
    builds = [build for build in builds if config.eval_split in read_manifest(build)["splits"]]
    if not builds:
        return None
    shards = IndexedShards(builds, config.eval_split, seed=0)
    for key in ("spectrogram", "vocabulary", "edge"):
        if getattr(shards, key) != getattr(like, key):
            raise UserError(
                f"{builds[0]}: its {key} is {getattr(shards, key)}, that of the training shards "
                f"{getattr(like, key)}; give data.eval a build with the same settings"
            )
    shards.batch(0, 1, frames=config.frames)  # better now than after hours
    return shards


def micro_batches(batch: Any, size: int, max_target_length: int) -> list[MicroBatch]:
    """Cut one rank's members into micro-batches of at most `size`, similar lengths together.

    The order of members changes nothing but rounding, as their losses are summed. A target of
    max_target_length tokens or more (EOS not counted) stays in place without its tokens: no rank
    may run out of work while the others wait for it.
    """
    lengths = batch.lengths
    too_long = lengths > max_target_length
    order = np.argsort(np.where(too_long, 0, lengths), kind="stable")
    cut = []
    for rows in (order[i : i + size] for i in range(0, len(order), size)):
        kept = [row for row in rows if not too_long[row]]
        longest = max((int(lengths[row]) for row in kept), default=1)
        padded = np.full((len(rows), -(-longest // PAD_TO) * PAD_TO), PAD_ID, dtype=np.int64)
        for place, row in enumerate(rows):
            if not too_long[row]:
                padded[place, : lengths[row]] = batch.tokens[row, : lengths[row]]
        cut.append(
            MicroBatch(
                mel=torch.from_numpy(batch.mel[rows]),
                targets=torch.from_numpy(padded),
                keys=[batch.keys[row] for row in rows],
                n_tokens=int(lengths[kept].sum()),
                n_skipped=len(rows) - len(kept),
            )
        )
    return cut


def to_device(micro: MicroBatch, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the network takes: log-mel frames [B, F, M] in dtype, and targets [B, L], on a device."""
    targets_BL = micro.targets.to(device, non_blocking=True)
    return micro.mel.to(device, non_blocking=True).to(dtype), targets_BL


class Ahead:
    """Calls load(step) in a thread for the step after the one asked for.

    `load` must depend on the step alone; steps may be asked for in any order.
    """

    def __init__(self, load: Callable[[int], list[MicroBatch]], last: int) -> None:
        self._load, self._last = load, last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="next-batch")
        self._next: tuple[int, Future[list[MicroBatch]]] | None = None

    def __call__(self, step: int) -> list[MicroBatch]:
        """What load(step) returns; its exceptions are raised here."""
        if self._next is None or self._next[0] != step:
            self._next = (step, self._thread.submit(self._load, step))
        loaded = self._next[1].result()
        if step < self._last:
            self._next = (step + 1, self._thread.submit(self._load, step + 1))
        return loaded

    def close(self) -> None:
        """Stop the thread; a batch that is being read is waited for."""
        self._thread.shutdown(cancel_futures=True)
