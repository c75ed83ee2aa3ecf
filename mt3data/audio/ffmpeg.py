"""Decodes the sound of files that libsndfile does not read: M4A, AAC, Opus in any container, videos.

FFmpeg decodes them, through PyAV (the extra `video`) or, where that is missing, as the program
`ffmpeg` on the PATH. Samples have the times at which a player plays them, counted from the start of
the file. Samples that an encoder adds in front (its delay) are removed where the container states
their number, as MP4, Matroska, WebM and Ogg do. Files of bare AAC packets (.aac), transport streams
and AVI do not, so their notes are late by the encoder's delay (1,024 samples for FFmpeg's AAC). Sound
that begins later than the video is preceded by silence, and gaps of more than 0.1 s are filled.

A file may name other files and addresses in FFmpeg's playlist formats. Only the formats in DEMUXERS
are opened, which hold their own sound.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from mt3data.errors import UserError, install_hint

DEMUXERS = (
    "mov,matroska,aac,asf,avi,flv,mpegts,mpeg,amr,ape,ac3,eac3,dts,mp3,wav,w64,ogg,flac,aiff,caf"
)
# Formats whose header states an exact length, so that a file that was cut short is noticed.
EXACT_LENGTH = ("mov", "matroska")
GAP_SECONDS = 0.1  # a shorter one is imprecision of the time stamps
LENGTH_TOLERANCE = 1.0  # seconds; a last packet may be missing or longer than the sound in it
NO_SOUND = "no sound in it; expected a recording, or a video with sound"

Block = tuple[int, int, np.ndarray]  # rate in Hz, channels, mono samples float32 [n]


def find_decoder() -> str | None:
    """Returns "pyav", the path of the program ffmpeg, or None if neither is installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        return shutil.which("ffmpeg")
    return "pyav"


def missing_decoder_hint() -> str:
    """Returns what to install in order to read such files, for messages to users."""
    return f"for M4A, AAC and videos install PyAV ({install_hint('video')}) or the program ffmpeg (ffmpeg.org)"


def decode(path: Path, block_seconds: float) -> Iterator[Block]:
    """Yields the sound of a file in blocks of about `block_seconds`. Channels are averaged.

    Raises:
        UserError: no decoder is installed, or the file is not audio or video, has no sound, is
            damaged, or was cut short.
    """
    decoder = find_decoder()
    if decoder is None:
        raise UserError(f"{path}: not a format that libsndfile reads; {missing_decoder_hint()}")
    frames = _with_pyav(path) if decoder == "pyav" else _with_program(path, decoder)
    pending: list[np.ndarray] = []
    rate = channels = 0
    for new_rate, channels, samples in frames:
        if rate and new_rate != rate:
            raise UserError(
                f"{path}: its rate changes from {rate:,} to {new_rate:,} Hz; split or convert it"
            )
        rate = new_rate
        pending.append(samples)
        if sum(map(len, pending)) >= block_seconds * rate:
            yield rate, channels, np.concatenate(pending)
            pending.clear()
    if pending:
        yield rate, channels, np.concatenate(pending)


def stated_seconds(path: Path, exact: bool) -> float | None:
    """Returns the length of the sound of a file from its header. Nothing is decoded.

    Args:
        exact: return None also where FFmpeg estimates the length, as from the bit rate of .aac files.
    Returns:
        None where it is unknown, and always with the program ffmpeg.
    Raises:
        UserError: the file is not audio or video.
    """
    if find_decoder() != "pyav":
        return None
    import av

    with _opened(path) as container:
        stream = container.streams.best("audio")
        if stream is None or exact and not container.format.name.startswith(EXACT_LENGTH):
            return None
        if stream.duration:  # of the sound, which may end before the picture
            end = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
            return end - _start(container)
        return container.duration / av.time_base if container.duration else None


def _start(container: Any) -> float:
    """Returns the time in seconds at which a player begins."""
    import av

    return float(max(0, container.start_time or 0) / av.time_base)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a file with PyAV."""
    import av

    with path.open("rb") as file:
        try:
            container = av.open(file, options={"format_whitelist": DEMUXERS})
        except (av.FFmpegError, ValueError) as error:
            raise UserError(
                f"{path}: neither libsndfile nor FFmpeg finds audio in it ({_reason(error)}); export or "
                "download it again"
            ) from error
        with container:
            yield container


def _with_pyav(path: Path) -> Iterator[Block]:
    with _opened(path) as container:
        stream = container.streams.best("audio")
        if stream is None:
            raise UserError(f"{path}: {NO_SOUND}")
        yield from _on_time(_frames(container, stream, path), path)


def _frames(container: Any, stream: Any, path: Path) -> Iterator[tuple[float | None, Any]]:
    """Yields (time of its first sample in seconds, frame of PyAV) of a stream."""
    import av

    start = _start(container)
    end, time = 0.0, 0.0
    try:
        for packet in container.demux():
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream == stream:
                for frame in packet.decode():
                    time = frame.time or time
                    yield None if frame.time is None else frame.time - start, frame
    except (av.FFmpegError, ValueError) as error:
        raise UserError(
            f"{path}: damaged after {time:.2f} s ({_reason(error)}); download or export it again"
        ) from error
    is_exact = container.format.name.startswith(EXACT_LENGTH)
    stated = start + (container.duration or 0) / av.time_base
    if is_exact and end < stated - LENGTH_TOLERANCE:
        raise UserError(
            f"{path}: ends after {end:.2f} s, its header gives {stated:.2f} s; download it again"
        )


def _on_time(frames: Iterator[tuple[float | None, Any]], path: Path) -> Iterator[Block]:
    """Yields the samples of frames, and silence where the time of a frame is later than its place."""
    n_done = 0
    for time, frame in frames:
        rate, channels = frame.sample_rate, len(frame.layout.channels)
        if rate < 1:
            raise UserError(f"{path}: its header gives {rate} Hz; export it again")
        missing = round((time or 0.0) * rate) - n_done
        if missing > (GAP_SECONDS * rate if n_done else 0):
            n_done += missing
            for first in range(0, missing, rate):
                yield rate, channels, np.zeros(min(rate, missing - first), np.float32)
        samples = _mono(frame.to_ndarray(), frame.format.is_planar, channels)
        n_done += len(samples)
        yield rate, channels, samples


def _mono(samples: np.ndarray, is_planar: bool, channels: int) -> np.ndarray:
    """Averages the channels of a frame and scales integers to full scale 1.0."""
    by_channel = samples if is_planar else samples.reshape(-1, channels).T
    mono = by_channel.mean(axis=0, dtype=np.float64)
    if samples.dtype.kind in "iu":
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        mono = mono / half - (samples.dtype.kind == "u")
    return mono.astype(np.float32)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).strip(" .")


def _with_program(path: Path, program: str) -> Iterator[Block]:
    """Decodes with the program ffmpeg, which writes the sound as an AU file into a pipe."""
    command = [
        program, "-nostdin", "-hide_banner", "-v", "error", "-xerror", "-format_whitelist", DEMUXERS,
        "-protocol_whitelist", "file", "-i", f"file:{path.absolute()}", "-map", "0:a:0",
        "-af", "aresample=async=1:first_pts=0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1",
    ]  # fmt: skip
    with TemporaryFile() as messages:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages) as process:
            try:
                assert process.stdout
                yield from _read_au(process.stdout)
                failed = process.wait() != 0
            finally:
                process.kill()  # if the caller needs no more
        messages.seek(0)
        text = messages.read().decode(errors="replace")
    if "matches no streams" in text:
        raise UserError(f"{path}: {NO_SOUND}")
    if failed or "prematurely" in text:
        last = (text.strip().splitlines() or ["no reason given"])[-1]
        reason = re.sub(r"\[[^]]* @ 0x\w+\] ", "", last)
        raise UserError(
            f"{path}: damaged, or not audio that ffmpeg decodes ({reason}); download or export it again"
        )


def _read_au(pipe: IO[bytes]) -> Iterator[Block]:
    header = pipe.read(24)
    if len(header) < 24:
        return
    offset, _, _, rate, channels = struct.unpack(">4x5I", header)
    pipe.read(offset - len(header))
    while data := pipe.read(4 * channels * rate):
        samples = np.frombuffer(data[: len(data) // (4 * channels) * 4 * channels], ">f4")
        yield rate, channels, samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
