"""From shards to micro-batches: which builds, which members, padding, reading one step ahead.

The original pads every target to 1,024 tokens. Here a rank's members are sorted by length and cut
into micro-batches that cost about the same, each padded to its longest member. Losses are summed
over tokens, and padding has weight 0, so the gradient is the same up to rounding.
"""

import bisect
import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mt3data.errors import UserError
from mt3data.reader import Batch, IndexedShards
from mt3data.shards import find_builds, read_manifest
from mt3data.spectrogram import SpectrogramConfig
from mt3data.vocabulary import PAD_ID, VocabularyConfig
from mt3train.config import Config, DataConfig
from mt3train.features import log_mel_of_crops
from mt3train.mixing import MixedShards
from mt3train.streamed import StreamedShards

PAD_TO = 16  # lengths of targets are multiples of it, so that few shapes occur


class Segments(Protocol):
    """Training data: mt3data.reader.IndexedShards, or anything with these."""

    spectrogram: SpectrogramConfig
    vocabulary: VocabularyConfig
    edge: str
    member: str
    builds: list[Path]
    n_records: int

    def batch(
        self, step: int, global_batch: int, rank: int = 0, world: int = 1, frames: int = 256
    ) -> Batch:
        """This rank's members of a global batch."""


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Segments that run through the network at once.

    Attributes:
        sound: log-mel frames, float16 [B, F, M]; or the audio to compute them from, int16 or
            float32 [B, samples].
        n_frames: frames of each segment before its track's end, int32 [B].
        targets: token ids int64 [B, L], EOS last, then 0.
        keys: the records' names.
        n_tokens: number of targets that count.
        n_skipped: members of the batch that were too long, told by its first micro-batch.
        frames: F.
        spectrogram: how audio becomes frames.
    """

    sound: Tensor
    n_frames: Tensor
    targets: Tensor
    keys: list[str]
    n_tokens: int
    n_skipped: int
    frames: int
    spectrogram: SpectrogramConfig


def open_shards(config: DataConfig, seed: int) -> Segments:
    """The shards that a configuration names for training.

    Raises:
        UserError: there are none, or a set of the mixture has no build.
    """
    if config.reader == "webdataset":
        return _open_streamed(config, seed)
    builds, temperature = mixture_builds(builds_at(config.train, config.cache), config)
    shards = IndexedShards(
        builds,
        config.split,
        seed=seed,
        temperature=temperature,
        weights=weights_of(builds, config),
        member="audio" if config.mix_examples else None,
    )
    return MixedShards(shards, config.mix_examples) if config.mix_examples else shards


def _open_streamed(config: DataConfig, seed: int) -> Segments:
    builds: Sequence[str | Path]
    if "://" in config.train and not config.cache:
        builds, temperature = config.train.split(","), config.temperature
        if config.mixture:
            raise UserError(
                "data.mixture chooses among builds on this machine; give data.cache=DIR"
            )
    else:
        builds, temperature = mixture_builds(builds_at(config.train, config.cache), config)
    if len(builds) > 1 and temperature != 1.0:
        raise UserError(
            f"data.reader=webdataset reads every record of {len(builds)} builds once per epoch, which "
            f"is data.temperature=1, not {temperature:g}; set that, or take data.reader=indexed"
        )
    return StreamedShards(builds, config.split, seed)


def builds_at(where: str, cache: str) -> list[Path]:
    """The builds that a setting names, on this machine.

    Args:
        where: a build, a pattern of builds, or addresses with commas.
        cache: folder into which builds with an address are copied, unless they are there.
    Raises:
        UserError: nothing is there, or an address without a cache.
    """
    if "://" not in where:
        return find_builds(where)
    if not cache:
        raise UserError(
            f"{where} is an address, where single crops cannot be read: copy it with data.cache=DIR; "
            "or train with data.reader=webdataset, and evaluate on data.eval=DIR or not at all "
            "(eval_every=0)"
        )
    from mt3data.cache import cached  # brings requests, which other training does without

    return [cached(address, Path(cache)) for address in where.split(",")]


def weights_of(builds: Sequence[Path], config: DataConfig) -> list[float] | None:
    """The configured weight of each build; None where none is configured.

    Raises:
        UserError: the names of the weights are not those of the builds.
    """
    if not config.weights:
        return None
    names = [build.name for build in builds]
    if sorted(names) != sorted(config.weights):
        raise UserError(
            f"data.weights has {', '.join(config.weights)}; the builds are {', '.join(names)}; "
            "name each of them once, by its folder's name"
        )
    return [config.weights[name] for name in names]


def mixture_builds(builds: list[Path], config: DataConfig) -> tuple[list[Path], float]:
    """The builds that belong to the configured mixture, and the temperature at which to mix them.

    Raises:
        UserError: there is no such mixture, or no build of one of its sets.
    """
    from mt3data.manifest import load_mixture

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
    if config.eval:
        builds = builds_at(config.eval, config.cache)
    else:
        builds = mixture_builds(builds_at(config.train, config.cache), config)[0]
    builds = [build for build in builds if config.eval_split in read_manifest(build)["splits"]]
    if not builds:
        return None
    shards = IndexedShards(builds, config.eval_split, seed=0, member=like.member)
    for key in ("spectrogram", "vocabulary", "edge"):
        if getattr(shards, key) != getattr(like, key):
            raise UserError(
                f"{builds[0]}: its {key} is {getattr(shards, key)}, that of the training shards "
                f"{getattr(like, key)}; give data.eval a build with the same settings"
            )
    shards.batch(0, 1, frames=config.frames)  # better now than after hours
    return shards


def read_step(
    segments: Segments, step: int, global_batch: int, config: Config, rank: int, world: int
) -> list[MicroBatch]:
    """One rank's share of a global batch, in micro-batches; at least one."""
    batch = segments.batch(step, global_batch, rank, world, config.data.frames)
    return micro_batches(batch, config.micro_batch, config.data, segments.spectrogram)


def micro_batches(
    batch: Batch, size: int, data: DataConfig, spectrogram: SpectrogramConfig
) -> list[MicroBatch]:
    """Cut one rank's members into micro-batches of similar lengths and about equal cost.

    Cost is counted in positions, frames and padded targets together. A micro-batch has at most as
    many as `size` segments padded to data.max_target_length would have, which bounds its memory;
    the shorter its targets, the more segments it holds. Longest targets come first.

    Members with more than data.max_target_length tokens, EOS included, are left out and counted.
    If none remains, one stays without its tokens: no rank may lack work while others wait for it.
    """
    fits = batch.lengths <= data.max_target_length
    lengths = np.where(fits, batch.lengths, 0).astype(np.int64)
    rows = np.flatnonzero(fits) if fits.any() else np.array([0])
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    padded = np.maximum(-(-lengths[rows] // PAD_TO), 1) * PAD_TO
    budget = size * (data.frames + -(-data.max_target_length // PAD_TO) * PAD_TO)
    n_skipped, cut = int((~fits).sum()), list[MicroBatch]()
    sound = batch.audio if batch.mel is None else batch.mel
    assert sound is not None
    for part in cut_by_cost(padded.tolist(), data.frames, budget):
        some, longest = rows[part], int(padded[part.start])
        width = min(longest, batch.tokens.shape[1])
        targets = np.full((len(some), longest), PAD_ID, dtype=np.int64)
        targets[:, :width] = batch.tokens[some, :width]
        targets[lengths[some] == 0] = PAD_ID
        cut.append(
            MicroBatch(
                sound=torch.from_numpy(sound[some]),
                n_frames=torch.from_numpy(batch.n_frames[some]),
                targets=torch.from_numpy(targets),
                keys=[batch.keys[row] for row in some],
                n_tokens=int(lengths[some].sum()),
                n_skipped=0 if cut else n_skipped,
                frames=data.frames,
                spectrogram=spectrogram,
            )
        )
    return cut


def cut_by_cost(padded: Sequence[int], frames: int, budget: int) -> list[slice]:
    """Cut rows into as few parts as a budget allows, the dearest part as cheap as can be.

    Args:
        padded: length of each row's targets, longest first.
        frames: what each row costs besides.
        budget: largest number of rows times (frames + longest target) of a part; a single row may
            cost more.
    """

    def cut(largest: int) -> list[slice]:
        parts, begin = [], 0
        while begin < len(padded):
            n_rows = max(1, largest // (frames + padded[begin]))
            parts.append(slice(begin, min(begin + n_rows, len(padded))))
            begin += n_rows
        return parts

    n_parts = len(cut(budget))
    return cut(bisect.bisect_left(range(budget), -n_parts, key=lambda cost: -len(cut(cost))))


def to_device(micro: MicroBatch, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the network takes: log-mel frames [B, F, M] in dtype, and targets [B, L], on a device."""
    targets_BL = micro.targets.to(device, non_blocking=True)
    sound = micro.sound.to(device, non_blocking=True)
    if sound.ndim == 2:
        n_frames_B = micro.n_frames.to(device, non_blocking=True)
        sound = log_mel_of_crops(sound, n_frames_B, micro.frames, micro.spectrogram)
    return sound.to(dtype), targets_BL


class Ahead:
    """Calls load(step) in a thread for the step after the one asked for.

    `load` must depend on the step alone. The thread is a daemon: a run that has to end does not
    wait for a disk that does not answer.
    """

    def __init__(self, load: Callable[[int], list[MicroBatch]], last: int) -> None:
        self._load, self._last = load, last
        self._next: tuple[int, Future[list[MicroBatch]]] | None = None

    def wait(self, step: int, seconds: float | None = None) -> list[MicroBatch] | None:
        """What load(step) returns, or None if it is not there yet; its exceptions are raised here.

        Args:
            step: the same as before, if that was not there, or any other.
            seconds: how long to wait; None: until it is there.
        """
        if self._next is None or self._next[0] != step:
            self._begin(step)
        assert self._next is not None
        future = self._next[1]
        concurrent.futures.wait([future], seconds)
        if not future.done():
            return None
        if step < self._last and future.exception() is None:
            self._begin(step + 1)
        return future.result()

    def _begin(self, step: int) -> None:
        if self._next is not None:  # one load at a time
            concurrent.futures.wait([self._next[1]])
        future: Future[list[MicroBatch]] = Future()

        def run() -> None:
            try:
                future.set_result(self._load(step))
            except BaseException as error:  # whatever it is, wait() raises it
                future.set_exception(error)

        self._next = (step, future)
        threading.Thread(target=run, name="next-batch", daemon=True).start()

    def close(self) -> None:
        """Give the thread a moment to end; what it reads is not wanted any more."""
        if self._next is not None:
            concurrent.futures.wait([self._next[1]], timeout=1.0)
