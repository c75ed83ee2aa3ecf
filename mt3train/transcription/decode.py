"""From log-mel segments to tokens: batches that refill themselves.

Segments wait in a line. As many as a batch has slots are decoded side by side, token by token
(stepper.py), greedily or by beam search (search.py); a segment that is done leaves and the next
one takes its slot, so that nothing waits for the longest of a batch. At the end of the line the
batch shrinks. What is found for a segment does not depend on its neighbours, but for rounding.

The original decodes by beam search with one beam; on the golden data greedy tokens are the same.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mt3data.music.vocabulary import EOS_ID
from mt3train.model import MT3
from mt3train.transcription.cached_decoder import Stepper
from mt3train.transcription.grammar import Grammar
from mt3train.transcription.search import Beam, Greedy

PRECISIONS = ("auto", "float32", "bf16")
STEPS_PER_QUESTION = 16  # on a GPU, between asking it which segments are done
NEVER = -torch.inf  # the logit of a token that must not be said


@dataclass(frozen=True)
class DecodeOptions:
    """How segments are decoded.

    Attributes:
        batch: segments side by side.
        max_length: most tokens per segment, EOS included; at most 2048.
        beams: of a beam search; 0: greedy.
        forbidden: tokens that are never said.
        precision: "bf16", "float32", or "auto": bf16 on a GPU that has it, else as the weights are.
            Logits are always computed in the precision of the weights.
        compile: torch.compile the decoder, on a GPU with CUDA graphs; takes a minute at first.
    """

    batch: int = 8
    max_length: int = 1024
    beams: int = 0
    forbidden: tuple[int, ...] = ()
    precision: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r}; expected one of {PRECISIONS}")
        if self.batch < 1 or self.beams < 0:
            raise ValueError(f"batch={self.batch}, beams={self.beams}; expected 1 and 0 or more")


@dataclass(frozen=True)
class Found:
    """What was decoded from one segment.

    Attributes:
        index: the segment's place in the line, from 0.
        sequences: token ids int64 [n, length], EOS included, padded with 0: one if greedy, else one
            per beam. A sequence without EOS was cut at max_length.
        scores: of the sequences, float32 [n], ascending; 0 if greedy.
    """

    index: int
    sequences: np.ndarray
    scores: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """The best sequence, without padding."""
        best = self.sequences[-1]
        ends = np.flatnonzero(best == EOS_ID)
        return best[: ends[0] + 1] if len(ends) else best


class SegmentDecoder:
    """A model that is ready to decode; it keeps its buffers from one call to the next.

    Source: t5x/models.py predict_batch_with_aux.
    """

    def __init__(self, model: MT3, options: DecodeOptions, n_frames: int) -> None:
        """Takes segments of n_frames frames; the model is put into evaluation mode."""
        self.model, self.options = model.eval(), options
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        on_gpu = self.device.type == "cuda"
        self.in_bf16 = options.precision == "bf16" or (
            options.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported()
        )
        self.search = (
            Beam(options.batch, options.beams, options.max_length, self.device)
            if options.beams
            else Greedy(options.batch, options.max_length, self.device)
        )
        self.stepper = Stepper(
            model, options.batch, self.search.width, options.max_length, n_frames,
            torch.bfloat16 if self.in_bf16 else None, options.compile,
        )  # fmt: skip
        # One segment keeps the cores busy; a GPU wants many.
        self.encode_at_once = options.batch if on_gpu else 1
        self.steps_per_question = STEPS_PER_QUESTION if on_gpu else 1

    @torch.inference_mode()
    def decode(
        self,
        mels: Iterable[np.ndarray | Tensor],
        grammar: Callable[[int], Grammar] | None = None,
    ) -> Iterator[Found]:
        """Decode segments.

        Args:
            mels: log-mel frames [n_frames, n_mels] of each; as many are taken as are needed next.
            grammar: gives, for the index of a segment, what may follow in it.
        Yields:
            What was found, in the order in which segments are done.
        """
        batch = _Batch(self, _Line(self, mels), grammar)
        while batch.live:
            yield from batch.advance()

    def encoded(self, mels: list[np.ndarray | Tensor]) -> Tensor:
        """Encoded frames [B, F, D] of segments, given by their mels [F, M]."""
        mel_BFM = torch.stack([torch.as_tensor(mel) for mel in mels]).to(self.device, self.dtype)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bf16):
            return self.model.encode(mel_BFM)


class _Line:
    """The segments that wait, encoded a few at a time."""

    def __init__(self, decoder: SegmentDecoder, mels: Iterable[np.ndarray | Tensor]) -> None:
        self.decoder, self.mels = decoder, iter(mels)
        self.ready: deque[Tensor] = deque()
        self.taken = 0

    def next(self) -> tuple[int, Tensor] | None:
        """The next one's index and encoded frames [F, D]; None at the end of the line."""
        if not self.ready:
            mels = [
                mel for _, mel in zip(range(self.decoder.encode_at_once), self.mels, strict=False)
            ]
            if not mels:
                return None
            self.ready.extend(self.decoder.encoded(mels))
        self.taken += 1
        return self.taken - 1, self.ready.popleft()


@dataclass
class _Batch:
    """The segments that are being decoded: index[slot] of the first `live` slots."""

    decoder: SegmentDecoder
    line: _Line
    grammar: Callable[[int], Grammar] | None
    index: list[int] = field(default_factory=list)
    rules: list[Grammar] = field(default_factory=list)  # of every row
    unasked: int = 0  # steps since the search was asked which slots are done

    def __post_init__(self) -> None:
        while len(self.index) < self.decoder.options.batch and self._fill(len(self.index)):
            pass
        forbidden = list(self.decoder.options.forbidden)
        self.forbidden = torch.tensor(forbidden, dtype=torch.int64, device=self.decoder.device)

    @property
    def live(self) -> int:
        """Slots in use, which are the first ones."""
        return len(self.index)

    def advance(self) -> Iterator[Found]:
        """One token more in every live slot; yields what is done, and fills its place."""
        decoder, search, stepper = self.decoder, self.decoder.search, self.decoder.stepper
        # Compiled code is for one shape, so that slots which are not in use run along.
        slots = decoder.options.batch if stepper.compiled else self.live
        logits_RV = stepper.step(search.last(slots))
        if len(self.forbidden):
            logits_RV = logits_RV.index_fill(1, self.forbidden, NEVER)
        if self.grammar:
            allowed = np.stack([rule.allowed(logits_RV.shape[1]) for rule in self.rules])
            rows = len(self.rules)
            barred = torch.from_numpy(~allowed).to(logits_RV.device)
            logits_RV[:rows] = logits_RV[:rows].masked_fill(barred, NEVER)
        search.choose(logits_RV)
        parent_R = search.parents()
        if parent_R is not None:
            stepper.reorder(parent_R)
        if self.grammar:
            self._follow(parent_R)
        self.unasked += 1
        at_end = max(stepper.positions[: self.live]) == decoder.options.max_length - 1
        if self.grammar or at_end or self.unasked >= decoder.steps_per_question:
            self.unasked = 0
            done = search.finished(self.live)
            for slot in reversed(range(self.live)):
                if done[slot]:
                    sequences, scores = (t.cpu().numpy().copy() for t in search.sequences(slot))
                    yield Found(self.index[slot], sequences, scores)
                    if not self._fill(slot):
                        self._close(slot)

    def _fill(self, slot: int) -> bool:
        """Gives a slot to the next segment; False if none waits."""
        following = self.line.next()
        if following is None:
            return False
        index, encoded_FD = following
        self.decoder.stepper.fill(slot, encoded_FD)
        self.decoder.search.start(slot)
        self.index[slot : slot + 1] = [index]
        if self.grammar:
            width = self.decoder.search.width
            self.rules[slot * width : (slot + 1) * width] = [
                self.grammar(index).copy() for _ in range(width)
            ]
        return True

    def _close(self, slot: int) -> None:
        """Takes a slot out of use; the last one moves to its place."""
        search, stepper, last = self.decoder.search, self.decoder.stepper, self.live - 1
        if slot != last:
            stepper.move(last, slot)
            search.move(last, slot)
            self.index[slot] = self.index[last]
            self.rules[slot * search.width : (slot + 1) * search.width] = self.rules[
                last * search.width :
            ]
        stepper.clear(last)
        search.start(last)
        del self.index[last], self.rules[last * search.width :]

    def _follow(self, parent_R: Tensor | None) -> None:
        """Tells every row's grammar what it said."""
        said = self.decoder.search.last(self.live).tolist()
        if parent_R is not None:
            self.rules = [self.rules[row].copy() for row in parent_R[: len(said)].tolist()]
        for rule, token in zip(self.rules, said, strict=True):
            rule.accept(token)
