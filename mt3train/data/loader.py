"""Makes micro-batches of a batch, pads them, moves them to the device, and reads one step ahead.

The original pads every target to 1,024 tokens. Here a rank's segments are sorted by length and cut
into micro-batches that cost about the same, each padded to its longest member. Losses are summed
over tokens, and padding has weight 0, so the gradient is the same up to rounding.
"""

from __future__ import annotations

import bisect
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterable, Sequence

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
    """Holds segments that run through the network at once.

    Attributes:
        sound: log-mel frames, float16 [B, F, M]; or the audio to compute them from, int16 or
            float32 [B, samples].
        n_frames: frames of each segment before its track's end, int32 [B].
        targets: token ids int64 [B, L], EOS last, then 0.
        keys: the records' names.
        n_tokens: number of targets that count.
        n_skipped: segments of the batch that were too long; the first micro-batch has their number.
        frames: F.
        spectrogram: how audio becomes frames.
        retuning: random changes of the audio; None: none.
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

    def pin_memory(self) -> MicroBatch:
        """Copies the tensors to page-locked memory, from which a GPU copies without waiting."""
        tensors = {
            name: getattr(self, name).pin_memory() for name in ("sound", "n_frames", "targets")
        }
        return dataclasses.replace(self, **tensors)


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
    data, mel, retuning = config.data, segments.spectrogram, None
    if augment and config.augment.is_on:
        frames = frames_to_read(data.frames, config.augment, mel)
        batch = segments.batch(step, global_batch, rank, world_size, frames)
        rng = np.random.default_rng([config.seed, AUGMENT_STREAM, step, rank])
        batch, retuning = retune(
            batch, frames, data.frames, config.augment, mel, segments.vocabulary, rng
        )
    else:
        batch = segments.batch(step, global_batch, rank, world_size, data.frames)
    micros = micro_batches(batch, config.micro_batch, data, mel, retuning)
    return [micro.pin_memory() for micro in micros] if torch.cuda.is_available() else micros


def micro_batches(
    batch: Batch,
    size: int,
    data: DataConfig,
    spectrogram: SpectrogramConfig,
    retuning: Retuning | None = None,
) -> list[MicroBatch]:
    """Cuts one rank's segments into micro-batches of similar lengths and about equal cost.

    Cost is counted in positions: frames plus padded targets. A micro-batch has at most as many
    positions as `size` segments padded to data.max_target_length, which bounds its memory. The
    shorter its targets, the more segments it holds. The longest targets come first.

    Segments with more than data.max_target_length tokens, EOS included, are left out and counted.
    If none remains, one stays without its tokens, because other ranks wait for this rank's gradients.
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
    """Cuts rows into as few parts as a budget allows, and makes the most expensive part cheap.

    Args:
        padded: length of each row's targets, longest first.
        frames: added to the cost of each row.
        budget: largest number of rows times (frames + longest target) of a part. A single row may
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
    """Returns the network's input on a device: log-mel frames [B, F, M] in dtype, targets [B, L]."""
    targets_BL = micro.targets.to(device, non_blocking=True)
    sound = micro.sound.to(device, non_blocking=True)
    if sound.ndim == 2:
        if micro.retuning is not None:
            sound = augment_audio(sound, micro.retuning.to(device), micro.spectrogram.sample_rate)
        n_frames_B = micro.n_frames.to(device, non_blocking=True)
        sound = log_mel_of_crops(sound, n_frames_B, micro.frames, micro.spectrogram)
    return sound.to(dtype), targets_BL


class Prefetcher:
    """Calls load(step) for one step after the other in a thread, one step ahead of `get`.

    The thread is a daemon: a run that has to end does not wait for a disk that does not answer.

    Args:
        load: its result must depend on the step alone.
        steps: in which order.
    """

    def __init__(self, load: Callable[[int], list[MicroBatch]], steps: Iterable[int]) -> None:
        self._batches: queue.SimpleQueue[list[MicroBatch] | BaseException] = queue.SimpleQueue()
        self._wanted, self._is_closed = threading.Semaphore(1), False
        self._thread = threading.Thread(target=self._run, args=(load, steps), daemon=True)
        self._thread.start()

    def get(self, timeout: float | None = None) -> list[MicroBatch] | None:
        """Returns the batch of the next step; None if it is not there after `timeout` seconds.

        Raises:
            BaseException: what `load` raised.
        """
        try:
            batch = self._batches.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(batch, BaseException):
            raise batch
        self._wanted.release()
        return batch

    def close(self) -> None:
        """Ends the thread, or leaves it behind if it does not end within a second."""
        self._is_closed = True
        self._wanted.release()
        self._thread.join(timeout=1.0)

    def _run(self, load: Callable[[int], list[MicroBatch]], steps: Iterable[int]) -> None:
        for step in steps:
            self._wanted.acquire()
            if self._is_closed:
                return
            try:
                self._batches.put(load(step))
            except BaseException as error:  # whatever it is, get() raises it
                self._batches.put(error)
                return
