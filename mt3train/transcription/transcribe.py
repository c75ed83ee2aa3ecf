"""Transcribes recordings: cuts them into segments, decodes the segments and joins the notes.

A recording is read in blocks and its segments are transformed when the decoder needs them. Memory
does not grow with the length of the recording, except for the tokens (2 kB per segment). Frames are
computed as in the checkpoint's training data. With right_context "zeros" the audio is cut into
segments, which are then transformed. With right_context "audio" the spectrogram of the whole
recording is cut (mt3data.audio.spectrogram). The tie section of a segment continues the notes of the
segment before it (mt3data.music.detokenizer).

As in MT3, frames missing in the last segment are 0.0 in the log-mel domain, which the model knows
from its training and which is not silence. A recording whose length is a whole number of hops has
one frame more. Segments start at exact multiples of their length, rounded down to 10 ms. The float32
arithmetic of the original puts one segment in nine 10 ms early.

Source: mt3/inference.py, mt3/preprocessors.py split_full_chunk and mt3/models.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count
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
from mt3data.music.notes import Notes, separate_equal_pitches
from mt3data.music.tokenizer import segment_start
from mt3data.music.vocabulary import VocabularyConfig
from mt3train.device import choose_device
from mt3train.model import MT3
from mt3train.transcription.decode import DecodingConfig, SegmentDecoder
from mt3train.weights.checkpoint import CheckpointInfo, load_model
from mt3train.weights.pretrained import demo_weights

REPEAT_SECONDS = 0.05  # no player repeats a pitch faster; of onsets in labels 1.4 % are that close
MIN_SECONDS = 0.001  # shortest note that a MIDI file holds

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
        decoding: how segments are decoded, see `transcribe_segments`.
        max_length: largest number of tokens per segment; None: the longest target of the training.
        on_progress: called after each segment with (segments done, total).
    Raises:
        UserError: the audio is missing, unreadable or empty, or holds NaN.
    """
    spectrogram, n_read = info.spectrogram, 0
    if isinstance(audio, np.ndarray):
        n_samples, blocks = len(audio), _array_blocks(audio, spectrogram.sample_rate)
    else:
        header = audio_info(audio)
        n_samples = round(header.n_samples * spectrogram.sample_rate / header.rate)
        blocks = read_blocks(audio, spectrogram.sample_rate)

    def counted_blocks() -> Iterator[np.ndarray]:
        nonlocal n_read
        for block in blocks:
            n_read += len(block)
            yield block

    total = -(-count_frames(n_samples, spectrogram.hop) // info.frames)
    mels = segment_mels(counted_blocks(), spectrogram, info.right_context, info.frames)
    report = (lambda done: on_progress(done, max(done, total))) if on_progress else None
    result = transcribe_segments(
        model, info.vocabulary, zip(count(0, info.frames), mels, strict=False), decoding,
        max_length=max_length or info.max_target_length, on_segment=report,
    )  # fmt: skip
    notes = merge_repeats(result.notes, MIN_SECONDS)
    seconds = n_read / spectrogram.sample_rate
    return replace(result, notes=cut_notes(separate_equal_pitches(notes), seconds), seconds=seconds)


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
        if (
            earlier is not None and notes.onset[i] - notes.onset[earlier] <= seconds + 1e-6
        ):  # of rounding
            offset[earlier] = max(offset[earlier], offset[i])
        else:
            first[key] = i
            kept.append(i)
    return replace(notes, offset=offset)[np.array(kept, np.int64)]


def cut_notes(notes: Notes, end: float) -> Notes:
    """Removes notes that begin after `end` seconds, and ends those there that end later."""
    cut = replace(notes, offset=np.minimum(notes.offset, end))
    return cut[cut.offset - cut.onset >= MIN_SECONDS]


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
    notes = notes.sorted()
    if decoding.constrained:
        notes = merge_repeats(notes, REPEAT_SECONDS)
    return Transcription(notes, len(decoded), result.invalid, result.dropped)


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
