"""From a recording to notes: cut into segments, transform, decode, join.

The recording is read in blocks and its segments are transformed when decoding wants them, so memory
does not grow with its length (but for the tokens, 2 kB per segment). Frames are made as the
checkpoint's training data were: with right_context "zeros" 256 frames of audio are cut and then
transformed, with right_context "audio" the spectrogram of the whole recording is sliced
(mt3data.audio.spectrogram). A segment's notes that sound on into the next are joined by its tie section
(mt3data.music.detokenizer).

As in MT3, frames missing in the last segment are 0.0 in the log-mel domain, which is not silence
but what the model was trained with, and a recording whose length is a whole number of hops has one
frame more. Segments start at exact multiples of their length, rounded down to a step of 10 ms;
the original's float32 arithmetic puts one segment in nine 10 ms early.

Source: mt3/inference.py, mt3/preprocessors.py split_full_chunk and mt3/models.py.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from mt3data.audio.load import BLOCK_SECONDS, audio_info, read_blocks, require_finite
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
from mt3train.model import MT3
from mt3train.transcription.decode import DecodingConfig, SegmentDecoder
from mt3train.weights.checkpoint import CheckpointInfo

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Transcription:
    """The notes of a recording, and what decoding met on the way.

    Attributes:
        notes: in order of onset, instruments numbered.
        n_segments: how many segments were decoded.
        invalid: events that made no sense where they stood and were skipped.
        dropped: tokens behind the end of their segment, which were skipped.
    """

    notes: Notes
    n_segments: int
    invalid: int
    dropped: int


def transcribe(
    model: MT3,
    info: CheckpointInfo,
    audio: str | Path | np.ndarray,
    decoding: DecodingConfig = DecodingConfig(),
    *,
    max_length: int | None = None,
    on_progress: Progress | None = None,
) -> Transcription:
    """The notes of a recording of any length.

    Args:
        model: the network, on the device that shall run it.
        info: what its checkpoint says about spectrogram, right_context, frames and vocabulary.
        audio: a file that libsndfile reads, or mono samples at info's sample rate, shape (n,),
            floating point in [-1, 1].
        decoding: how segments are decoded.
        max_length: most tokens per segment; None: as many as the longest target of its training.
        on_progress: called after each segment with (segments done, segments in all).
    Raises:
        UserError: the audio is missing, unreadable or empty, or holds NaN.
    """
    spectrogram = info.spectrogram
    if isinstance(audio, np.ndarray):
        n_samples, blocks = len(audio), _array_blocks(audio, spectrogram.sample_rate)
    else:
        header = audio_info(audio)
        n_samples = round(header.n_samples * spectrogram.sample_rate / header.rate)
        blocks = read_blocks(audio, spectrogram.sample_rate)
    total = -(-count_frames(n_samples, spectrogram.hop) // info.frames)
    mels = segment_mels(blocks, spectrogram, info.right_context, info.frames)
    starts = (k * info.frames for k in range(1 << 62))
    report = (lambda done: on_progress(done, max(done, total))) if on_progress else None
    return transcribe_segments(
        model, info.vocabulary, zip(starts, mels, strict=False), decoding,
        max_length=max_length or info.max_target_length, on_segment=report,
    )  # fmt: skip


def transcribe_segments(
    model: MT3,
    vocabulary: VocabularyConfig,
    segments: Iterable[tuple[int, np.ndarray]],
    decoding: DecodingConfig = DecodingConfig(),
    *,
    max_length: int = 1024,
    on_segment: Callable[[int], None] | None = None,
) -> Transcription:
    """The notes of one track, decoded from its segments.

    Args:
        model: the network, on the device that shall run it; put into evaluation mode for the call.
        vocabulary: what its tokens mean.
        segments: (start frame, log-mel [frames, n_mels]), in time order, all of one length; as many are taken as are decoded next.
        decoding: how segments are decoded.
        max_length: most tokens per segment.
        on_segment: called after each segment with the number of segments done.
    """
    starts: list[int] = []

    def mels() -> Iterator[np.ndarray]:
        for start_frame, mel in segments:
            starts.append(start_frame)
            yield mel

    remaining = mels()
    first = next(remaining, None)
    if first is None:
        return Transcription(Notes.empty(), 0, 0, 0)
    was_training = model.training
    decoder = SegmentDecoder(
        model, vocabulary, decoding, n_frames=len(first), max_length=max_length
    )
    decoded: list[tuple[float, np.ndarray]] = []
    try:
        for segment in decoder.decode(chain([first], remaining)):
            start = segment_start(starts[segment.index], vocabulary)
            decoded.append((start, segment.tokens.astype(np.int16)))
            if on_segment:
                on_segment(len(decoded))
    finally:
        model.train(was_training)
    result = decode_segments(decoded, vocabulary)
    notes = result.notes
    if decoding.programs:
        notes = decoding.programs.select(notes, vocabulary)
    return Transcription(notes.sorted(), len(decoded), result.invalid, result.dropped)


def segment_mels(
    blocks: Iterable[np.ndarray], config: SpectrogramConfig, right_context: str, frames: int
) -> Iterator[np.ndarray]:
    """Cut a track that arrives in blocks of samples into segments of log-mel.

    Args:
        blocks: mono samples, each float32 of shape (n,).
        config: how frames are computed.
        right_context: "zeros" (cut, then transform) or "audio" (transform, then cut).
        frames: frames per segment.
    Yields:
        float32 [frames, n_mels]; the last one is padded with 0.0.
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
