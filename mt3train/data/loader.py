"""From a batch to the device: micro-batches, padding, log-mel, reading one step ahead.

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

import numpy as np
import torch
from torch import Tensor

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.music.vocabulary import PAD_ID
from mt3data.shards.reader import Batch
from mt3train.config import Config, DataConfig
from mt3train.data.augment import Retuning, augment_audio, frames_to_read, retune
from mt3train.data.builds import TrainingData
from mt3train.data.log_mel import log_mel_of_crops

AUGMENT_STREAM = 4  # of random numbers; the reader and the mixing of examples have 0 to 3
PAD_TO = 16  # lengths of targets are multiples of it, so that few shapes occur


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
        retuning: how the audio is to be changed at random; None: not at all.
    """

    sound: Tensor
    n_frames: Tensor
    targets: Tensor
    keys: list[str]
    n_tokens: int
    n_skipped: int
    frames: int
    spectrogram: SpectrogramConfig
    retuning: Retuning | None = None


def read_step(
    segments: TrainingData,
    step: int,
    global_batch: int,
    config: Config,
    rank: int,
    world_size: int,
    augment: bool = False,
) -> list[MicroBatch]:
    """Reads one rank's share of a global batch, in micro-batches; at least one.

    Args:
        augment: change audio and labels at random, as config.augment describes.
    """
    data, mel = config.data, segments.spectrogram
    if not (augment and config.augment.is_on):
        batch = segments.batch(step, global_batch, rank, world_size, data.frames)
        return micro_batches(batch, config.micro_batch, data, mel)
    frames = frames_to_read(data.frames, config.augment, mel)
    batch = segments.batch(step, global_batch, rank, world_size, frames)
    rng = np.random.default_rng([config.seed, AUGMENT_STREAM, step, rank])
    batch, retuning = retune(
        batch, frames, data.frames, config.augment, mel, segments.vocabulary, rng
    )
    return micro_batches(batch, config.micro_batch, data, mel, retuning)


def micro_batches(
    batch: Batch,
    size: int,
    data: DataConfig,
    spectrogram: SpectrogramConfig,
    retuning: Retuning | None = None,
) -> list[MicroBatch]:
    """One rank's members, cut into micro-batches of similar lengths and about equal cost.

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
                retuning=None if retuning is None else retuning[some],
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
        if micro.retuning is not None:
            sound = augment_audio(sound, micro.retuning.to(device), micro.spectrogram.sample_rate)
        n_frames_B = micro.n_frames.to(device, non_blocking=True)
        sound = log_mel_of_crops(sound, n_frames_B, micro.frames, micro.spectrogram)
    return sound.to(dtype), targets_BL


class Ahead:
    """Calls load(step) in a thread for the step after the one asked for, up to the `last`.

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
