"""Decodes log-mel segments into tokens, greedily and with continuous batching.

Each slot of a batch decodes one segment, one token per step. When a segment ends, the next one in
the queue takes its slot, so short segments never wait for long ones. When the queue is empty, the
batch shrinks. Apart from rounding, the tokens of a segment do not depend on the rest of its batch.

The original decodes by beam search with one beam. On the golden data greedy decoding gives the same
tokens. A sequence without EOS is cut at max_length in both.

Sizes in tensor names:  S slots · F frames · M mel bins · D width of the model · L tokens · V vocabulary
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from mt3data.music.vocabulary import EOS_ID, VocabularyConfig
from mt3train.device import PRECISIONS, choose_precision
from mt3train.model import MT3
from mt3train.transcription.cached_decoder import CachedDecoder
from mt3train.transcription.constraint import TokenConstraint
from mt3train.transcription.programs import ProgramFilter

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
GPU_STEPS_PER_CHECK = 16  # checking which segments have ended makes the CPU wait for the GPU
SMALL_PARAMETERS, SMALL_PASSES = 10_000_000, 5  # small models are fast, and gain most
START_ID = 0  # the first input of the decoder; model.shift_right


@dataclass(frozen=True)
class DecodingConfig:
    """Chooses how segments are decoded.

    Attributes:
        batch: number of segments that are decoded together.
        constrained: ends time steps in which the decoder loops (constraint.py). Off: as the original.
        programs: instruments that the decoder may emit; None: all.
        precision: "bf16", "fp16", "float32" (that of the weights), or "auto"; see
            mt3train.device.choose_precision. Logits are always computed in the precision of the weights.
        compile: compiles the decoder with torch.compile, on a GPU with CUDA graphs. Compiling takes
            about a minute.
        passes: number of times that a recording is transcribed, each time with other segments. Notes
            that most passes find are kept (voting.py). None: see `passes_of`.
    """

    batch: int = 16
    constrained: bool = False
    programs: ProgramFilter | None = None
    precision: str = "auto"
    compile: bool = False
    passes: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r}; expected one of {PRECISIONS}")
        if self.batch < 1:
            raise ValueError(f"batch={self.batch}; expected at least 1")
        if self.passes is not None and self.passes < 1:
            raise ValueError(f"passes={self.passes}; expected at least 1")

    def passes_of(self, model: MT3, right_context: str) -> int:
        """Returns the number of passes with a model.

        Without a number of its own: 5 if decoding is constrained, the model has fewer than 10 million
        parameters and its right_context is "audio", else 1, as the original. With "zeros" the segments
        of the training were cut at the same places in every epoch. A model that has learned few of them
        by heart knows no others.
        """
        if self.passes is not None:
            return self.passes
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        fits = n_parameters < SMALL_PARAMETERS and right_context == "audio"
        return SMALL_PASSES if self.constrained and fits else 1


@dataclass(frozen=True)
class DecodedSegment:
    """Holds the tokens of one segment.

    Attributes:
        index: position of the segment in the input, from 0.
        tokens: token ids, int64 [length]. EOS comes last, unless the sequence was cut at max_length.
    """

    index: int
    tokens: np.ndarray


class SegmentDecoder:
    """Decodes segments with one model. Its buffers are allocated once and used by every call.

    Source: t5x/models.py predict_batch_with_aux, t5x/decoding.py temperature_sample (temperature 0).
    """

    def __init__(
        self,
        model: MT3,
        vocabulary: VocabularyConfig,
        config: DecodingConfig,
        *,
        n_frames: int,
        max_length: int = 1024,
    ) -> None:
        """Puts the model into evaluation mode and allocates the buffers.

        Args:
            model: the network, on the device that runs it.
            vocabulary: the meaning of its tokens.
            config: how segments are decoded.
            n_frames: length of every segment.
            max_length: largest number of tokens per segment, EOS included; 1 to 2048.
        Raises:
            ValueError: max_length is out of range.
            UserError: the vocabulary has no programs to choose from (`ProgramFilter`), or fp16 on a CPU.
        """
        self.model, self.batch, self.max_length = model.eval(), config.batch, max_length
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        on_gpu = self.device.type != "cpu"
        self.half = HALF_TYPES.get(choose_precision(config.precision, self.device))
        self.cached = CachedDecoder(
            model, config.batch, max_length, n_frames, self.half, config.compile
        )
        forbidden = config.programs.forbidden(vocabulary) if config.programs else ()
        self.forbidden = torch.tensor(forbidden, dtype=torch.int64, device=self.device)
        self.constraint = (
            TokenConstraint(vocabulary, model.config.vocab_size, config.batch, self.device)
            if config.constrained
            else None
        )
        # One segment keeps the cores of a CPU busy. A GPU needs many.
        self.encoder_batch = config.batch if on_gpu else 1
        self.steps_per_check = GPU_STEPS_PER_CHECK if on_gpu else 1
        self.tokens_SL = torch.zeros(
            config.batch, max_length, dtype=torch.int64, device=self.device
        )
        self.last_S = torch.full_like(self.tokens_SL[:, 0], START_ID)
        self.ended_S = torch.zeros_like(self.last_S, dtype=torch.bool)
        self.slot_S = torch.arange(config.batch, device=self.device)

    @torch.inference_mode()
    def decode(self, mels: Iterable[np.ndarray | Tensor]) -> Iterator[DecodedSegment]:
        """Decodes segments.

        Args:
            mels: log-mel [n_frames, n_mels] of each segment. They are consumed as slots become free.
        Yields:
            The segments in the order in which they end.
        """
        queue = _SegmentQueue(self, mels)
        index: list[int] = []  # of the segment in each slot; the slots in use come first
        while len(index) < self.batch and (segment := queue.pop()):
            self._load(len(index), segment)
            index.append(segment[0])
        n_steps = 0
        while index:
            # Compiled code has a fixed shape, so unused slots are computed as well.
            self._step(self.batch if self.cached.compiled else len(index))
            n_steps += 1
            lengths = self.cached.lengths
            at_limit = max(lengths[: len(index)]) == self.max_length
            if n_steps % self.steps_per_check and not at_limit:
                continue
            ended = self.ended_S[: len(index)].tolist()
            for slot in reversed(range(len(index))):
                if ended[slot] or lengths[slot] == self.max_length:
                    yield DecodedSegment(index[slot], self._tokens(slot))
                    if segment := queue.pop():
                        self._load(slot, segment)
                        index[slot] = segment[0]
                    else:
                        self._close(slot, last=len(index) - 1)
                        index[slot] = index[-1]
                        index.pop()

    def encode(self, mels: list[np.ndarray | Tensor]) -> Tensor:
        """Encodes the log-mels [F, M] of segments into frames [S, F, D]."""
        mel_SFM = torch.stack([torch.as_tensor(mel) for mel in mels]).to(self.device, self.dtype)
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            return self.model.encode(mel_SFM)

    def _step(self, n_slots: int) -> None:
        """Decodes one token in each of the first slots."""
        slot_S = self.slot_S[:n_slots]
        position_S = self.cached.position_S[:n_slots].clone()
        logits_SV = self.cached.decode_step(self.last_S[:n_slots])
        if len(self.forbidden):
            logits_SV = logits_SV.index_fill(1, self.forbidden, -torch.inf)
        token_S = self.constraint.choose(logits_SV) if self.constraint else logits_SV.argmax(-1)
        self.tokens_SL[slot_S, position_S] = self.last_S[:n_slots] = token_S
        self.ended_S[:n_slots] |= token_S == EOS_ID

    def _tokens(self, slot: int) -> np.ndarray:
        """Returns the tokens of a slot up to its first EOS."""
        tokens = self.tokens_SL[slot, : self.cached.lengths[slot]].cpu().numpy().copy()
        ends = np.flatnonzero(tokens == EOS_ID)
        return tokens[: ends[0] + 1] if len(ends) else tokens

    def _load(self, slot: int, segment: tuple[int, Tensor]) -> None:
        """Puts a segment (index, encoded frames [F, D]) into a slot."""
        self.cached.load_segment(slot, segment[1])
        self.last_S[slot], self.ended_S[slot] = START_ID, False
        if self.constraint:
            self.constraint.reset(slot)

    def _close(self, slot: int, last: int) -> None:
        """Moves the last slot in use into a slot that has ended."""
        if slot != last:
            self.cached.copy_slot(last, slot)
            for state in (self.tokens_SL, self.last_S, self.ended_S):
                state[slot] = state[last]
            if self.constraint:
                self.constraint.copy_slot(last, slot)
        self.cached.reset(last)


class _SegmentQueue:
    """Holds the segments that wait for a slot. They are encoded a few at a time."""

    def __init__(self, decoder: SegmentDecoder, mels: Iterable[np.ndarray | Tensor]) -> None:
        self.decoder, self.mels = decoder, iter(mels)
        self.encoded: deque[Tensor] = deque()
        self.n_popped = 0

    def pop(self) -> tuple[int, Tensor] | None:
        """Returns the index and the encoded frames [F, D] of the next segment; None at the end."""
        if not self.encoded:
            mels = list(islice(self.mels, self.decoder.encoder_batch))
            if not mels:
                return None
            self.encoded.extend(self.decoder.encode(mels))
        self.n_popped += 1
        return self.n_popped - 1, self.encoded.popleft()
