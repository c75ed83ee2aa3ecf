"""Transcribes recordings: cuts them into segments, decodes the segments and joins the notes.

A recording is read in blocks and its segments are transformed when the decoder needs them. Memory
does not grow with the length of the recording, except for its notes. Frames are computed as in the
checkpoint's training data. With right_context "zeros" the audio is cut into segments, which are then
transformed. With right_context "audio" the spectrogram of the whole recording is cut
(mt3data.audio.spectrogram). The tie section of a segment continues the notes of the segment before it
(mt3data.music.detokenizer).

As in MT3, frames missing in the last segment are 0.0 in the log-mel domain, which the model knows
from its training and which is not silence. A recording whose length is a whole number of hops has
one frame more. Segments start at exact multiples of their length, rounded down to 10 ms. The float32
arithmetic of the original puts one segment in nine 10 ms early.

Source: mt3/inference.py, mt3/preprocessors.py split_full_chunk and mt3/models.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, tee, zip_longest
from pathlib import Path

import numpy as np

from mt3data.audio.load import BLOCK_SECONDS, read_blocks, require_finite, stated_seconds
from mt3data.audio.spectrogram import (
    LogMelStream,
    SpectrogramConfig,
    count_frames,
    log_mel,
    pad_to_frames,
)
from mt3data.errors import UserError
from mt3data.music.detokenizer import decode_segments
from mt3data.music.notes import Notes
from mt3data.music.tokenizer import segment_start
from mt3data.music.vocabulary import VocabularyConfig
from mt3train.device import choose_device
from mt3train.model import MT3
from mt3train.transcription.decode import DecodedSegment, DecodingConfig, SegmentDecoder
from mt3train.transcription.note_stream import (
    MIN_SECONDS,
    REPEAT_SECONDS,
    ROUNDING,
    NoteStream,
    earliest,
)
from mt3train.transcription.voting import NoteVote
from mt3train.weights.checkpoint import CheckpointInfo, load_model
from mt3train.weights.pretrained import demo_weights

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Transcription:
    """Holds the notes of a recording and what the decoder emitted in vain.

    Attributes:
        notes: in order of onset, instruments numbered.
        n_segments: number of segments that were decoded.
        invalid: number of events that had no meaning where they were emitted. They are ignored.
        dropped: number of tokens after the end of their segment. They are ignored.
        seconds: length of the recording; 0.0 where only its segments were given.
    """

    notes: Notes
    n_segments: int
    invalid: int
    dropped: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Transcriber:
    """Transcribes recordings with one checkpoint.

        notes = Transcriber.from_pretrained("runs/mine")("song.wav")

    Attributes:
        model: the network, on the device that runs it.
        info: its spectrogram, right_context, frames and vocabulary.
        decoding: how segments are decoded.
    """

    model: MT3
    info: CheckpointInfo
    decoding: DecodingConfig = DecodingConfig(constrained=True)

    @staticmethod
    def from_pretrained(
        checkpoint: str | Path | None = None,
        decoding: DecodingConfig = DecodingConfig(constrained=True),
        device: str = "auto",
        precision: str = "auto",
    ) -> Transcriber:
        """Loads a checkpoint.

        Args:
            checkpoint: a .safetensors file, the folder of a run, whose newest checkpoint is loaded,
                or as a str the name of published weights, such as "mt3", which are downloaded at
                their first use; None: the weights that come with the package.
            decoding: how segments are decoded.
            device: "auto" (the GPU if there is one, else the CPU), "cpu", "cuda", "mps", or one of
                several, such as "cuda:1".
            precision: "float32", "bf16", "fp16", or "auto": that of `decoding`.
        Raises:
            UserError: no checkpoint there, a damaged one, or no such device.
        """
        chosen = choose_device(device)
        model, info = load_model(demo_weights()[0] if checkpoint is None else checkpoint)
        if precision != "auto":
            decoding = replace(decoding, precision=precision)
        return Transcriber(model.to(chosen), info, decoding)

    def __call__(self, audio: str | Path | np.ndarray) -> Notes:
        """Returns the notes of a recording; see `transcribe`."""
        return self.transcribe(audio).notes

    def stream(self, audio: str | Path | np.ndarray) -> Iterator[Notes]:
        """Yields the notes of a recording as its segments are decoded.

            for notes in transcriber.stream("song.wav"):
                print(notes.onset, notes.pitch)

        Memory does not grow with the length of the recording. All notes together, sorted, are those
        of `transcribe`. Each part is in order of onset, and is never empty. A note comes when it has
        ended and nothing can change it, so a long one comes after others that began later.

        Raises:
            UserError: see `transcribe`. A fault behind the beginning of a file is raised at its place.
        """
        for notes, _ in stream(self.model, self.info, audio, self.decoding):
            if len(notes):
                yield notes

    def transcribe(
        self, audio: str | Path | np.ndarray, on_progress: Progress | None = None
    ) -> Transcription:
        """Transcribes a recording; see `transcribe` of this module."""
        return transcribe(self.model, self.info, audio, self.decoding, on_progress=on_progress)


def transcribe(
    model: MT3,
    info: CheckpointInfo,
    audio: str | Path | np.ndarray,
    decoding: DecodingConfig = DecodingConfig(),
    *,
    max_length: int | None = None,
    on_progress: Progress | None = None,
) -> Transcription:
    """Transcribes a recording of any length.

    No note begins after the end of the recording, and notes that sound there end there. Of one pitch
    and instrument only one note sounds at a time, as in a MIDI file.

    Args:
        model: the network, on the device that runs it.
        info: its spectrogram, right_context, frames and vocabulary.
        audio: an audio file (see mt3data.audio.load), or mono samples at info's sample rate, shape (n,),
            floating point in [-1, 1].
        decoding: how segments are decoded.
        max_length: largest number of tokens per segment; None: the longest target of the training.
        on_progress: called after each segment with (segments done, total). The total is an estimate
            for files that FFmpeg decodes, and exact in the last call.
    Raises:
        UserError: the audio is missing, unreadable or empty, or holds NaN.
    """
    found = stream(model, info, audio, decoding, max_length=max_length, on_progress=on_progress)
    parts, counts = zip(*found, strict=True)
    return replace(counts[-1], notes=Notes.concat(parts).sorted())


def stream(
    model: MT3,
    info: CheckpointInfo,
    audio: str | Path | np.ndarray,
    decoding: DecodingConfig = DecodingConfig(),
    *,
    max_length: int | None = None,
    on_progress: Progress | None = None,
) -> Iterator[tuple[Notes, Transcription]]:
    """Transcribes a recording and yields its notes as its segments are decoded.

    Memory does not grow with the length of the recording. Arguments and errors are those of
    `transcribe`, which returns the same notes.

    Yields:
        The notes that became known, in order of onset. A note that was held long comes after others
        that began later. With them the counts so far, without notes; `seconds` is 0.0 before the end.
    """
    spectrogram, n_read = info.spectrogram, 0
    if isinstance(audio, np.ndarray):
        n_samples, blocks = len(audio), _array_blocks(audio, spectrogram.sample_rate)
    else:  # the number of samples is for `on_progress` alone, so an estimate serves
        n_samples = round((stated_seconds(audio) or 0.0) * spectrogram.sample_rate)
        blocks = read_blocks(audio, spectrogram.sample_rate)

    def counted_blocks() -> Iterator[np.ndarray]:
        nonlocal n_read
        for block in blocks:
            n_read += len(block)
            yield block

    n_passes = decoding.passes_of(model, info.right_context)
    passes = [
        _Pass(info, decoding, info.frames * number // n_passes, own_blocks)
        for number, own_blocks in enumerate(tee(counted_blocks(), n_passes))
    ]
    vote = NoteVote(n_passes, info.vocabulary.encoding != "onsets") if n_passes > 1 else None
    places: dict[int, tuple[int, int]] = {}  # of queued segments: the pass, and the place there
    n_queued = 0

    def queued_mels() -> Iterator[np.ndarray]:
        nonlocal n_queued
        for group in zip_longest(*(one.mels for one in passes)):
            for number, mel in enumerate(group):
                if mel is not None:
                    places[n_queued] = number, passes[number].n_queued
                    passes[number].n_queued += 1
                    n_queued += 1
                    yield mel

    def counts(seconds: float = 0.0) -> Transcription:
        joined = [one.joiner for one in passes]
        return Transcription(
            Notes.empty(),
            sum(joiner.n_segments for joiner in joined),
            sum(joiner.invalid for joiner in joined),
            sum(joiner.dropped for joiner in joined),
            seconds,
        )

    total = sum(
        -(-count_frames(n_samples + one.delay, spectrogram.hop) // info.frames) for one in passes
    )
    decoded = _decode(
        model, info.vocabulary, queued_mels(), decoding, max_length or info.max_target_length
    )
    for n_done, segment in enumerate(decoded, 1):
        number, place = places.pop(segment.index)
        passes[number].waiting[place] = segment.tokens
        if on_progress:
            on_progress(n_done, max(n_queued, total))
        for notes in passes[number].push_all():
            if vote is None:
                yield notes, counts()
            else:
                vote.push(number, notes)
                held = earliest(chain.from_iterable(one.held.items() for one in passes))
                yield vote.settle(min(one.settled for one in passes), held), counts()
    if on_progress and n_queued < total:  # the header states more than the recording has
        on_progress(n_queued, n_queued)
    seconds = n_read / spectrogram.sample_rate
    for number, one in enumerate(passes):
        for notes in one.finish(seconds):
            if vote is None:
                yield notes, counts(seconds)
            else:
                vote.push(number, notes)
    if vote is not None:
        yield vote.finish(), counts(seconds)


class _Pass:
    """One pass over a recording: its segments, the tokens that wait for earlier ones, and its notes.

    The first segment begins with silence, so that all others begin earlier than those of the first pass.
    """

    def __init__(
        self,
        info: CheckpointInfo,
        decoding: DecodingConfig,
        n_silent: int,
        blocks: Iterator[np.ndarray],
    ) -> None:
        """Takes the blocks of a recording and the number of silent frames before it."""
        self.info, self.delay = info, n_silent * info.spectrogram.hop
        self.silence = self.delay / info.spectrogram.sample_rate
        silence = [np.zeros(self.delay, np.float32)] if self.delay else []
        self.mels = segment_mels(
            chain(silence, blocks), info.spectrogram, info.right_context, info.frames
        )
        self.joiner = NoteStream(info.vocabulary, decoding)
        self.waiting: dict[int, np.ndarray] = {}
        self.n_queued = 0

    @property
    def settled(self) -> float:
        """Seconds before which no note begins that was not returned, but for those of `held`."""
        return self._start(self.joiner.n_segments) - self.silence

    @property
    def held(self) -> dict[tuple[int, bool], float]:
        """The onset of the first note that was not returned, by pitch and is_drum."""
        unknown = self.joiner.unknown().items()
        return {key: onset - self.silence for key, onset in unknown}

    def push_all(self) -> Iterator[Notes]:
        """Yields the notes that became known. The newest segment waits, as it may be the last one."""
        while self.joiner.n_segments in self.waiting and self.joiner.n_segments + 1 < self.n_queued:
            yield self._push(is_last=False)

    def finish(self, seconds: float) -> Iterator[Notes]:
        """Yields the rest of the notes of a recording of this length."""
        while self.waiting:
            is_last = self.joiner.n_segments + 1 == self.n_queued
            yield self._push(is_last)
        yield self._shifted(self.joiner.finish(seconds + self.silence))

    def _push(self, is_last: bool) -> Notes:
        index = self.joiner.n_segments
        after = None if is_last else self._start(index + 1)
        return self._shifted(self.joiner.push(self.waiting.pop(index), self._start(index), after))

    def _start(self, index: int) -> float:
        return segment_start(index * self.info.frames, self.info.vocabulary)

    def _shifted(self, notes: Notes) -> Notes:
        """Moves notes from the time of the pass to that of the recording."""
        if not self.silence:
            return notes
        onset = np.maximum(notes.onset - self.silence, 0.0)
        moved = replace(notes, onset=onset, offset=notes.offset - self.silence)
        return moved[moved.offset - moved.onset >= MIN_SECONDS]


def merge_repeats(notes: Notes, seconds: float) -> Notes:
    """Merges notes of one pitch, program and kind that begin within `seconds` of each other.

    The first note stays and ends with the last one of them.

    Args:
        notes: in order of onset.
        seconds: largest distance from the onset that stays.
    """
    offset, first, kept = notes.offset.copy(), dict[tuple[int, ...], int](), []
    keys = zip(notes.pitch.tolist(), notes.program.tolist(), notes.is_drum.tolist(), strict=True)
    for i, key in enumerate(keys):
        earlier = first.get(key)
        if earlier is not None and notes.onset[i] - notes.onset[earlier] <= seconds + ROUNDING:
            offset[earlier] = max(offset[earlier], offset[i])
        else:
            first[key] = i
            kept.append(i)
    return replace(notes, offset=offset)[np.array(kept, np.int64)]


def transcribe_segments(
    model: MT3,
    vocabulary: VocabularyConfig,
    segments: Iterable[tuple[int, np.ndarray]],
    decoding: DecodingConfig = DecodingConfig(),
    *,
    max_length: int = 1024,
    on_segment: Callable[[int], None] | None = None,
) -> Transcription:
    """Decodes the segments of one track and joins their notes.

    Args:
        model: the network, on the device that runs it. It is in evaluation mode during the call.
        vocabulary: the meaning of its tokens.
        segments: (start frame, log-mel [frames, n_mels]) in time order, all of one length. They are
            consumed as the decoder needs them.
        decoding: how segments are decoded. If it is constrained, onsets of one pitch and program
            within 50 ms are merged as well.
        max_length: largest number of tokens per segment.
        on_segment: called after each segment with the number of segments done.
    """
    starts: list[int] = []

    def mels() -> Iterator[np.ndarray]:
        for start_frame, mel in segments:
            starts.append(start_frame)
            yield mel

    decoded: list[tuple[float, np.ndarray]] = []
    for segment in _decode(model, vocabulary, mels(), decoding, max_length):
        start = segment_start(starts[segment.index], vocabulary)
        decoded.append((start, segment.tokens.astype(np.int16)))
        if on_segment:
            on_segment(len(decoded))
    result = decode_segments(decoded, vocabulary)
    notes = result.notes
    if decoding.programs:
        notes = decoding.programs.select(notes, vocabulary)
    notes = notes.sorted()
    if decoding.constrained:
        notes = merge_repeats(notes, REPEAT_SECONDS)
    return Transcription(notes, len(decoded), result.invalid, result.dropped)


def _decode(
    model: MT3, vocabulary: VocabularyConfig, mels: Iterator[np.ndarray], decoding: DecodingConfig,
    max_length: int,
) -> Iterator[DecodedSegment]:  # fmt: skip
    """Decodes segments of one length. The model is in evaluation mode meanwhile."""
    first = next(mels, None)
    if first is None:
        return
    was_training = model.training
    try:
        decoder = SegmentDecoder(
            model, vocabulary, decoding, n_frames=len(first), max_length=max_length
        )
        yield from decoder.decode(chain([first], mels))
    finally:
        model.train(was_training)


def segment_mels(
    blocks: Iterable[np.ndarray], config: SpectrogramConfig, right_context: str, frames: int
) -> Iterator[np.ndarray]:
    """Cuts a track into segments of log-mel.

    Args:
        blocks: mono samples of the track in order, each float32 of shape (n,).
        config: how frames are computed.
        right_context: "zeros" (cut, then transform) or "audio" (transform, then cut).
        frames: frames per segment.
    Yields:
        float32 [frames, n_mels]. The last one is padded with 0.0.
    """
    cut = _cut_then_transform if right_context == "zeros" else _transform_then_cut
    for mel in cut(blocks, config, frames):
        missing = frames - len(mel)
        yield np.pad(mel, ((0, missing), (0, 0))) if missing else mel


def _cut_then_transform(
    blocks: Iterable[np.ndarray], config: SpectrogramConfig, frames: int
) -> Iterator[np.ndarray]:
    size = frames * config.hop
    pending = np.zeros(0, np.float32)
    for block in blocks:
        pending = np.concatenate([pending, block])
        while len(pending) >= size:
            yield log_mel(pending[:size], config)
            pending = pending[size:]
    yield log_mel(pad_to_frames(pending, config.hop), config)


def _transform_then_cut(
    blocks: Iterable[np.ndarray], config: SpectrogramConfig, frames: int
) -> Iterator[np.ndarray]:
    stream = LogMelStream(config)
    pending = np.zeros((0, config.n_mels), np.float32)
    n_samples = 0
    for block in blocks:
        n_samples += len(block)
        pending = np.concatenate([pending, stream.push(block)])
        while len(pending) >= frames:
            yield pending[:frames]
            pending = pending[frames:]
    padding = count_frames(n_samples, config.hop) * config.hop - n_samples
    last = [stream.push(np.zeros(padding, np.float32)), stream.finish()]
    pending = np.concatenate([pending, *last])
    for start in range(0, len(pending), frames):
        yield pending[start : start + frames]


def _array_blocks(samples: np.ndarray, rate: int) -> Iterator[np.ndarray]:
    if len(samples) == 0:
        raise UserError("the audio array holds 0 samples; expected mono audio, shape (n,)")
    size = int(BLOCK_SECONDS * rate)
    for start in range(0, len(samples), size):
        block = samples[start : start + size]
        require_finite(block, "the audio array", rate, start)
        yield block
