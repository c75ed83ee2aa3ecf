"""Reads audio files as the model needs them: mono, 16 kHz, float32, in blocks.

It reads all formats of libsndfile (wav, flac, ogg, opus, mp3, aiff, ...), and with FFmpeg M4A, AAC and
the sound of videos (ffmpeg.py), at any rate and with any number of channels. Channels are averaged. Then soxr resamples with the recipe "HQ", as librosa.load
and therefore the original do. Memory does not grow with the length of the file. The size of the
blocks does not change the result, because soxr's stream gives the bytes of its one-shot function for
any split of the input (tests/mt3data/audio/test_audio.py).
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from mt3data import system
from mt3data.audio import ffmpeg
from mt3data.audio.containers import (
    OpenEnd,
    Part,
    Section,
    conversion,
    find_parts,
    has_second_stream,
    is_ffmpeg_format,
)
from mt3data.errors import UserError
from mt3data.terminal import kind_of

# Suffixes of recordings that libsndfile reads, and of those that FFmpeg decodes.
SNDFILE_SUFFIXES = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .aif .aiff .aifc .au .caf .w64 .rf64 .wv".split()
)
FFMPEG_SUFFIXES = frozenset(
    ".m4a .m4b .m4v .mp4 .aac .wma .ape .amr .3gp .mka .mkv .mov .webm .avi .flv .mpg .mpeg .mts .m2ts .wmv .ac3".split()
)
AUDIO_SUFFIXES = SNDFILE_SUFFIXES | FFMPEG_SUFFIXES  # of the recordings in a folder
TARGET_RATE = 16000  # Hz; mt3/spectrograms.py DEFAULT_SAMPLE_RATE
INT16_FULL_SCALE = 32767  # int16 value of a sample of 1.0
BLOCK_SECONDS = 10.0  # 3.5 MB of decoded stereo at 44.1 kHz
RATES = (1000, 1_000_000)  # Hz, of files; beyond them the header is damaged
MAX_SECONDS = 86400.0  # a day, of a recording; a short file may state any length
MAX_UNREAD = 8192  # bytes behind a FLAC stream that may be anything, such as tags
_UNKNOWN = 1 << 62  # samples; libsndfile returns 2^63 - 1 where the header gives no length


@dataclass(frozen=True)
class AudioInfo:
    """The facts in the header of an audio file."""

    n_samples: int  # per channel, at `rate`
    rate: int  # Hz
    channels: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.n_samples / self.rate


def audio_info(path: str | Path) -> AudioInfo:
    """Returns the length, rate and channels of an audio file from its header.

    An MP3 file is decoded if its header does not give its length. Files that FFmpeg decodes always are.

    Raises:
        UserError: the file is missing, is not audio, holds no samples, gives no length, or holds
            more or less than its header states.
    """
    n_samples = rate = channels = 0
    if needs_ffmpeg(path):
        for own_rate, n_channels, block in _decode_with_ffmpeg(Path(path), BLOCK_SECONDS):
            n_samples += len(block)
            rate, channels = own_rate, n_channels
        return AudioInfo(n_samples, rate, channels)
    for file in _open_parts(path):
        if isinstance(file.name, OpenEnd):
            n_samples += sum(map(len, _decode(file, path, BLOCK_SECONDS)))
        else:
            n_samples += file.frames
        rate, channels = file.samplerate, max(channels, file.channels)
    return AudioInfo(n_samples, rate, channels)


def stated_seconds(path: str | Path, exact: bool = False) -> float | None:
    """Returns the length of an audio file in seconds without letting FFmpeg decode it.

    Args:
        path: any file that libsndfile or FFmpeg reads.
        exact: return None also where FFmpeg estimates the length.
    Returns:
        None where the length is unknown before the file is decoded, or exceeds MAX_SECONDS.
    Raises:
        UserError: see `audio_info`. The end of a file that FFmpeg decodes is not checked.
    """
    if not needs_ffmpeg(path):
        return audio_info(path).seconds
    with _as_user_error(Path(path)):
        seconds = ffmpeg.stated_seconds(Path(path), exact)
    return seconds if seconds and 0 < seconds <= MAX_SECONDS else None


def read_blocks(
    path: str | Path, rate: int = TARGET_RATE, block_seconds: float = BLOCK_SECONDS
) -> Iterator[np.ndarray]:
    """Yields the audio of a file, mono and at `rate`, in blocks of about `block_seconds`.

    Args:
        path: any file that libsndfile or FFmpeg reads.
        rate: Hz.
        block_seconds: length of what is decoded at a time. Memory depends on it, the samples do not.
    Yields:
        float32, shape (n,), full scale 1.0; n varies and is never 0.
    Raises:
        UserError: see `audio_info`; or the file ends before the end that its header gives, or holds
            NaN or infinite samples (the message gives the second).
    """
    stream: soxr.ResampleStream | None = None
    for own_rate, block in _source_blocks(path, block_seconds):
        if stream is None and own_rate != rate:
            stream = soxr.ResampleStream(own_rate, rate, 1, dtype="float32", quality="HQ")
        resampled = stream.resample_chunk(block) if stream else block
        if len(resampled):
            yield resampled
    if stream:
        resampled = stream.resample_chunk(np.zeros(0, np.float32), last=True)
        if len(resampled):
            yield resampled


def _source_blocks(path: str | Path, block_seconds: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (rate, mono samples) of a file at its own rate, and checks its end."""
    if needs_ffmpeg(path):
        for rate, _, block in _decode_with_ffmpeg(Path(path), block_seconds):
            yield rate, block
        return
    for file in _open_parts(path):
        if file.format == "FLAC" and has_second_stream(Path(path)):
            raise UserError(
                f"{path}: a second file of sound begins inside it; expected one recording; split it or "
                f"try {conversion(Path(path))}"
            )
        for block in _decode(file, path, block_seconds):
            yield file.samplerate, block
        if file.format == "FLAC":
            is_descriptor = isinstance(file.name, int)
            place = os.lseek(file.name, 0, os.SEEK_CUR) if is_descriptor else file.name.tell()
            unread = Path(path).stat().st_size - place
            if unread > MAX_UNREAD:
                raise UserError(
                    f"{path}: {unread:,} bytes follow the samples that its header describes; expected "
                    f"one recording; try {conversion(Path(path))}"
                )


def read_audio(path: str | Path, rate: int = TARGET_RATE) -> np.ndarray:
    """Reads a whole audio file, mono and at `rate`: float32, shape (n_samples,).

    Raises:
        UserError: see `read_blocks`.
    """
    return np.concatenate([np.zeros(0, np.float32), *read_blocks(path, rate)])


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Rounds samples to 16-bit integers. Values beyond full scale, 1.0, are clipped."""
    scaled = np.clip(samples, -1, 1) * np.float32(INT16_FULL_SCALE)
    return np.rint(scaled, out=scaled).astype(np.int16)


def from_int16(stored: np.ndarray) -> np.ndarray:
    """Converts the result of `to_int16` to float32 samples with full scale 1.0."""
    return stored.astype(np.float32) / np.float32(INT16_FULL_SCALE)


def require_finite(samples: np.ndarray, name: str, rate: int, first: int = 0) -> None:
    """Raises a UserError with the place of the first NaN or infinite sample, if there is one.

    Args:
        samples: shape (n,).
        name: of the file or array, for the message.
        rate: Hz.
        first: index of samples[0] in the whole audio.
    """
    finite = np.isfinite(samples)
    if not finite.all():
        at = (first + int(np.argmin(finite))) / rate
        raise UserError(f"{name}: NaN or infinite samples, first at {at:.3f} s; export it again")


def require_file(path: Path) -> None:
    """Raises a UserError that names what is there, unless a path is that of a file."""
    if re.match(r"(https?|ftp):/", path.as_posix()):
        address = path.as_posix().replace(":/", "://", 1)  # Path removes one slash
        raise UserError(f"{address}: a web address; expected a file on this machine; download it")
    if not path.is_file():
        raise UserError(
            f"{path}: {kind_of(path)}; expected an audio file (wav, flac, mp3, ogg, ...)"
        )


def needs_ffmpeg(path: str | Path) -> bool:
    """Returns whether FFmpeg decodes a file, by its name or its first bytes.

    Raises:
        UserError: the file is missing, empty, or cannot be opened.
    """
    path = Path(path)
    require_file(path)
    if path.stat().st_size == 0:
        raise UserError(f"{path}: empty file; record or download it again")
    if path.suffix.lower() in FFMPEG_SUFFIXES:
        return True
    with _as_user_error(path):
        return is_ffmpeg_format(path)


def _open_parts(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """Yields the streams of a file, open, one after the other; most files have one."""
    path = Path(path)
    with _as_user_error(path):
        parts = find_parts(path)
    rate = 0
    for number, part in enumerate(parts):
        with _open_part(path, part, len(parts)) as file:
            if number and file.samplerate != rate:
                raise UserError(
                    f"{path}: part {number + 1} of {len(parts)} has {file.samplerate} Hz, those "
                    f"before it {rate} Hz; expected one rate; try {conversion(path)}"
                )
            rate = file.samplerate
            yield file


@contextmanager
def _open_part(path: Path, part: Part, n_parts: int) -> Iterator[soundfile.SoundFile]:
    with ExitStack() as stack:
        with _as_user_error(path):
            if not part.knows_length:
                source: Any = stack.enter_context(OpenEnd(path, part.start, part.end))
            elif part.start or n_parts > 1:
                source = stack.enter_context(Section(path, part.start, part.end))
            else:
                source = system.open_for_c_library(path)
                if not isinstance(source, int):
                    stack.enter_context(source)
            file = stack.enter_context(soundfile.SoundFile(source, closefd=True))
        if not part.knows_length:
            yield file
            return
        if file.frames == 0:
            raise UserError(f"{path}: 0 samples of audio; record or download the file again")
        if file.frames >= _UNKNOWN:
            raise UserError(
                f"{path}: its header does not give its length, as when written to a pipe; "
                f"try {conversion(path)}"
            )
        _require_sane(path, file.samplerate, file.frames)
        yield file


def _require_sane(path: str | Path, rate: int, n_samples: int) -> None:
    """Raises a UserError for a rate or a length that no recording has: memory grows with both."""
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(
            f"{path}: its header gives {rate:,} Hz; expected {RATES[0]:,} to {RATES[1]:,} Hz; export it "
            "again"
        )
    if n_samples > MAX_SECONDS * rate:
        raise UserError(
            f"{path}: lasts {n_samples / rate:,.0f} s or more; expected at most a day "
            f"({MAX_SECONDS:,.0f} s); split it"
        )


@contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    """Converts the errors of opening a file to a UserError."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"{path}: not audio that libsndfile reads ({error.error_string.strip(' .')}); expected "
            f"wav, flac, mp3, ogg or the like; try {conversion(path)}"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); expected audio") from error


def _decode(
    file: soundfile.SoundFile, path: str | Path, block_seconds: float
) -> Iterator[np.ndarray]:
    """Yields mono blocks at the file's own rate and checks them."""
    size = max(1, int(block_seconds * file.samplerate))
    done = 0
    while True:
        try:
            block = _mono(file.read(size, dtype="float32", always_2d=True))
        except soundfile.LibsndfileError as error:
            start, end = done / file.samplerate, min(done + size, file.frames) / file.samplerate
            raise UserError(
                f"{path}: damaged between {start:.2f} and {end:.2f} s; download or export it again, "
                f"or try {conversion(Path(path))}"
            ) from error
        require_finite(block, str(path), file.samplerate, done)
        if len(block) == 0:
            break
        done += len(block)
        _require_sane(path, file.samplerate, done)
        yield block
    if done == 0:
        raise UserError(f"{path}: 0 samples of audio; record or download the file again")
    if done < file.frames and not isinstance(file.name, OpenEnd):
        stated, got = file.frames / file.samplerate, done / file.samplerate
        raise UserError(
            f"{path}: ends after {got:.2f} s, its header gives {stated:.2f} s; download it again"
        )


def _decode_with_ffmpeg(path: Path, block_seconds: float) -> Iterator[ffmpeg.Block]:
    """Yields mono blocks at the file's own rate and checks them."""
    done = 0
    for rate, channels, block in ffmpeg.decode(path, block_seconds):
        require_finite(block, str(path), rate, done)
        done += len(block)
        _require_sane(path, rate, done)
        yield rate, channels, block
    if done == 0:
        raise UserError(f"{path}: 0 samples of audio; record or download the file again")


def _mono(samples: np.ndarray) -> np.ndarray:
    """Averages the channels of samples of shape (n, channels)."""
    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0]
    if channels == 2:  # ten times faster than mean(axis=1)
        return (samples[:, 0] + samples[:, 1]) * np.float32(0.5)
    return samples.mean(axis=1, dtype=np.float32)
