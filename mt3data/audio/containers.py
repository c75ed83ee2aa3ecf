"""Finds the streams of sound in a file, because libsndfile reads the first one and returns no error.

An Ogg file may be a chain of streams, and MP3 files are often joined to one. Each of their streams
is found here as a range of bytes. Pages of Ogg that are damaged or missing are errors. Frames of MP3
are counted, because the number in the header may be too small. Uncompressed files state how many
bytes of samples they have. A statement that differs from what is there is an error, except for the
values that writers to a pipe use because the length is not known yet.

Files are mapped, so memory does not grow with their length.
"""

from __future__ import annotations

import io
import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from mt3data import system
from mt3data.errors import UserError

ID3_HEADER = 10  # bytes
ID3V1_SIZE, APE_HEADER = 128, 32
MAX_LEFTOVER = 8192  # bytes behind the sound that may be anything: padding, unknown tags
UNCOUNTED_FRAMES = 2  # of an MP3 stream that its header may leave out
SOUND = re.compile(  # beginnings of other files
    rb"OggS\x00\x02|fLaC[\x00\x80]\x00\x00\x22|(RIF[FX]|RF64|BW64)....WAVE|FORM....AIF|"
    rb"riff\x2e\x91\xcf|caff\x00\x01\x00\x00|\.snd\x00\x00\x00",
    re.DOTALL,
)
MAX_JUNK = 1 << 16  # bytes in front of the first frame of an MP3 file
MAX_BIT_RATIO = 64  # of the first frames of an MP3 stream to all: 320 to 8, and some room
TWO_MP3_FRAMES = 2 * 1441  # bytes, at most
BIT_RATES = (  # of layer III in MPEG-2 and MPEG-1, 1000 bits per second
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)
PIPE_SIZES = ((1 << 31, 1 << 16), (1 << 32, 1 << 16))  # centre and tolerance; see `_is_from_a_pipe`


class Part(NamedTuple):
    """One stream of sound in a file.

    Attributes:
        start, end: its bytes in the file.
        knows_length: whether its header gives the number of samples.
    """

    start: int
    end: int
    knows_length: bool = True


class Section(io.RawIOBase):
    """The bytes [start, end) of a file, as a file of their own."""

    def __init__(self, path: Path, start: int, end: int) -> None:
        self._file, self._start, self._end = path.open("rb"), start, end
        self._file.seek(start)

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to `offset` from `whence` (see io) and returns the place in the section."""
        origin = (self._start, self._file.tell(), self._end)[whence]
        return self._file.seek(max(self._start, origin + offset)) - self._start

    def tell(self) -> int:
        """Returns the place in the section."""
        return self._file.tell() - self._start

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Reads into `buffer` and returns the number of bytes; 0 at the end of the section."""
        left = max(0, self._end - self._file.tell())
        return self._file.readinto(memoryview(buffer)[:left])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


class OpenEnd(Section):
    """An MP3 stream that seems to be far longer than it is, so that libsndfile reads all of it.

    Where the header does not give the number of samples, libsndfile estimates it from the bit rate of
    the first frames and reads no further: it ended a recording of 20 s after 5 s
    (tests/mt3data/audio/test_audio.py). Its `frames` have no meaning.
    """

    def __init__(self, path: Path, start: int, end: int) -> None:
        super().__init__(path, start, end)
        self._seeming = start + MAX_BIT_RATIO * (end - start) + ID3V1_SIZE

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to `offset` from `whence`, where the end is the seeming one."""
        if whence == io.SEEK_END:
            offset, whence = self._seeming - self._start + offset, io.SEEK_SET
        return super().seek(offset, whence)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Reads into `buffer`. At the seeming end are zeros, where libsndfile looks for a tag."""
        if self._file.tell() < self._seeming - ID3V1_SIZE:
            return super().readinto(buffer)
        memoryview(buffer)[:] = bytes(len(buffer))
        return len(buffer)


def find_parts(path: Path) -> list[Part]:
    """Returns the streams of sound in a file that is not empty.

    Returns:
        One part for each stream, in order. A file of unknown kind is one part.
    Raises:
        UserError: the file ends early, or holds more than its header states.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        whole = Part(0, len(data))
        if data[:4] == b"OggS":
            return _ogg_streams(data, path)
        start = _skip_tags(data, 0)
        if _is_mp3_frame(data, start):
            return _mp3_streams(data, start, path)
        if data[:4] == b".snd":
            _check_au(data, path)
        elif data[:4] in CHUNKS:
            _check_chunks(data, path)
        elif path.suffix.lower() == ".mp3" and data[start : start + 4] != b"fLaC":
            for place in range(start, min(len(data), start + MAX_JUNK)):
                if _is_mp3_frame(data, place) and _mp3_header(data, place) is not None:
                    return _mp3_streams(data, place, path)
            return [Part(0, len(data), knows_length=False)]
        return [whole]


def is_ffmpeg_format(path: Path) -> bool:
    """Returns whether a file begins as a format that libsndfile does not read and FFmpeg does.

    These are MP4, Matroska and WebM, AAC packets (ADTS), ASF (WMA), AVI, FLV and transport streams.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[4:8] == b"ftyp" or data[:4] in (b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75"):
            return True
        if data[:3] == b"FLV" or (data[:4] == b"RIFF" and data[8:12] == b"AVI "):
            return True
        if len(data) > 188 and data[0] == data[188] == 0x47:  # packets of a transport stream
            return True
        head = data[(place := _skip_tags(data, 0)) : place + 2]
        return len(head) == 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0  # no layer


def has_second_stream(path: Path) -> bool:
    """Returns whether another FLAC stream, or other sound near the end, is in a FLAC file.

    Reads the whole file.
    """
    marker = b"fLaC\x00\x00\x00\x22"  # and the header of its 34 bytes of stream info
    n_found, block = 0, b""
    with path.open("rb") as file:
        while content := file.read(1 << 20):
            block = block[1 - len(marker) :] + content  # a marker may be split between two blocks
            n_found += block.count(marker)
        file.seek(max(len(marker), file.tell() - 2 * MAX_LEFTOVER))
        return n_found > 1 or SOUND.search(file.read()) is not None


def conversion(path: Path) -> str:
    """Returns a command that converts a file to WAV."""
    return f"`ffmpeg -i {system.quote(path)} converted.wav`"


# --- Ogg -----------------------------------------------------------------------------------------


def _ogg_streams(data: mmap.mmap, path: Path) -> list[Part]:
    """Returns the links of a chain. A link begins with pages that begin a stream (flag 2).

    Libogg drops a page whose checksum is wrong, and decoders continue behind a page that is missing.
    """
    starts, place, was_first = [0], 0, True
    numbers: dict[bytes, int] = {}  # of the next page of every stream that has sound and no end yet
    unended: set[bytes] = set()
    while place >= 0:
        header = data[place : place + 27]
        n_segments = header[26] if len(header) == 27 else 0
        sizes = data[place + 27 : place + 27 + n_segments]
        end = place + 27 + n_segments + sum(sizes)
        if len(header) < 27 or len(sizes) < n_segments or end > len(data):
            raise UserError(f"{path}: ends within a page of Ogg; copy or download it again")
        is_first, stream = bool(header[5] & 2), header[14:18]
        number, checksum = struct.unpack("<II", header[18:26])
        if checksum != _ogg_checksum(data[place:end]) or numbers.get(stream, number) != number:
            raise UserError(
                f"{path}: a page of Ogg is damaged or missing at byte {place:,}; copy or download it again"
            )
        if is_first and not was_first:
            _require_ends(unended, path)
            starts.append(place)
        was_first = is_first
        unended.add(stream)
        if header[5] & 4:  # the last page of its stream
            unended.discard(stream)
            numbers.pop(stream, None)
        elif int.from_bytes(header[6:14], "little", signed=True) > 0:  # not a page of headers
            numbers[stream] = (number + 1) % (1 << 32)
        place = data.find(b"OggS", end, end + MAX_LEFTOVER)
    _require_ends(unended, path)
    _require_no_more(data, end, path)
    return [Part(a, b) for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


def _ogg_checksum(page: bytes) -> int:
    """Returns the checksum of a page: CRC-32 with the bits of all bytes in the other order than zlib's."""
    bits = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED)
    crc = zlib.crc32(bits, 0xFFFFFFFF) ^ 0xFFFFFFFF  # begins with 0 and ends without a change
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED))


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _require_ends(unended: set[bytes], path: Path) -> None:
    """Raises a UserError if a stream of Ogg has no last page."""
    if unended:
        raise UserError(
            f"{path}: ends early: no page is marked as the last one of its stream of Ogg; copy or "
            f"download it again, or try {conversion(path)}"
        )


# --- MP3 -----------------------------------------------------------------------------------------


def _mp3_streams(data: mmap.mmap, start: int, path: Path) -> list[Part]:
    """Returns the parts of an MP3 file that was joined from several files, by their headers and frames."""
    parts: list[Part] = []
    if data[start + 1] & 6 == 2 and not _frame_size(data, start):  # layer III
        raise UserError(
            f"{path}: its MP3 frames do not give their bit rate (free format); try {conversion(path)}"
        )
    while start < len(data):
        header = _mp3_header(data, start)
        knows_length = header is not None and header.n_frames > 0
        if header and knows_length:
            end = min(start + header.n_bytes, len(data))
            n_frames = _end_of_frames(data, start, end)[1]
            knows_length = n_frames <= header.n_frames + UNCOUNTED_FRAMES
        if not knows_length:
            end = _end_of_frames(data, start)[0]
            start += _frame_size(data, start) if header else 0
        following = _skip_tags(data, end)
        left = len(data) - following
        is_joined = _frame_size(data, following) > 0 and (
            left > TWO_MP3_FRAMES or _mp3_header(data, following) is not None
        )
        parts.append(Part(start, following if is_joined else len(data), knows_length))
        if not is_joined:
            _require_no_more(data, following, path)
            break
        start = following
    return parts


class Mp3Header(NamedTuple):
    """What the frame states that some encoders write in front of the sound.

    Attributes:
        n_bytes: of all frames, the header's own frame included.
        n_frames: the same number in frames; 0: unknown.
    """

    n_bytes: int
    n_frames: int


def _mp3_header(data: mmap.mmap, start: int) -> Mp3Header | None:
    """Returns the Xing, Info or VBRI header of a stream; None if it has none.

    Libsndfile does not read the number of frames in a VBRI header, so it is unknown here, too.
    """
    if data[start + 36 : start + 40] == b"VBRI":
        return Mp3Header(0, 0)
    for place in (start + 13, start + 21, start + 36):  # depends on version and channels
        if data[place : place + 4] in (b"Xing", b"Info"):
            flags = data[place + 7] if place + 7 < len(data) else 0
            if not flags & 1:  # number of frames
                return Mp3Header(0, 0)
            n_bytes = int.from_bytes(data[place + 12 : place + 16]) if flags & 2 else 0
            n_frames = 1 + int.from_bytes(data[place + 8 : place + 12])  # the header is one more
            return Mp3Header(n_bytes or _size_of_frames(data, start, n_frames), n_frames)
    return None


def _size_of_frames(data: mmap.mmap, start: int, n_frames: int) -> int:
    """Returns the bytes of successive frames of layer III, fewer where no frame follows."""
    place = start
    for _ in range(n_frames):
        if not (size := _frame_size(data, place)):
            break
        place += size
    return place - start


def _end_of_frames(data: mmap.mmap, start: int, end: int | None = None) -> tuple[int, int]:
    """Returns where successive frames of one kind end, and how many they are.

    Args:
        start: place of the first frame. If its size is unknown, everything behind it belongs to it.
        end: where to stop; None: the end of the file.
    """
    end = len(data) if end is None else end
    kind, place, n_frames = _frame_kind(data, start), start, 0
    while place < end and (size := _frame_size(data, place)) and _frame_kind(data, place) == kind:
        place += size
        n_frames += 1
    return (min(place, end), n_frames) if n_frames else (end, 0)


def _frame_kind(data: mmap.mmap, place: int) -> tuple[int, int, bool]:
    """Returns version and layer, sample rate, and whether it is mono, of a frame's header."""
    return data[place + 1] & 0xFE, data[place + 2] & 0x0C, data[place + 3] >> 6 == 3


def _frame_size(data: mmap.mmap, place: int) -> int:
    """Returns the bytes of the frame of layer III at a place; 0 if there is none or it gives no size."""
    if not _is_mp3_frame(data, place) or data[place + 1] & 6 != 2:  # layer III
        return 0
    version, index = data[place + 1] >> 3 & 3, data[place + 2]  # version 3: MPEG-1
    rate = (44100, 48000, 32000)[index >> 2 & 3] >> {3: 0, 2: 1, 0: 2}[version]
    kbps = BIT_RATES[version == 3][index >> 4]
    return kbps and (144 if version == 3 else 72) * kbps * 1000 // rate + (index >> 1 & 1)


def _has_two_frames(data: mmap.mmap, place: int) -> bool:
    """Returns whether two frames of one kind follow each other at a place."""
    size = _frame_size(data, place)
    return bool(size) and data[place : place + 2] == data[place + size : place + size + 2]


def _holds_mp3_frames(data: mmap.mmap, place: int) -> bool:
    """Returns whether two frames of one kind follow each other somewhere behind a place."""
    while (place := data.find(b"\xff", place)) >= 0:
        if _has_two_frames(data, place):
            return True
        place += 1
    return False


def _is_mp3_frame(data: mmap.mmap, place: int) -> bool:
    """Returns whether the header of a frame of MPEG audio is at a place."""
    head = data[place : place + 4]
    return (
        len(head) == 4
        and head[0] == 0xFF
        and head[1] & 0xE0 == 0xE0
        and head[1] & 0x18 != 0x08  # version
        and head[1] & 0x06 != 0x00  # layer
        and head[2] & 0xF0 != 0xF0  # bit rate
        and head[2] & 0x0C != 0x0C  # sample rate
    )


def _skip_tags(data: mmap.mmap, place: int) -> int:
    """Returns the place behind all ID3 and APE tags at a place."""
    while True:
        if data[place : place + 3] == b"ID3" and place + ID3_HEADER <= len(data):
            sizes = zip(data[place + 6 : place + 10], (21, 14, 7, 0), strict=True)
            place += ID3_HEADER + sum((byte & 127) << shift for byte, shift in sizes)
        elif data[place : place + 3] == b"TAG" and len(data) - place >= ID3V1_SIZE:
            place += ID3V1_SIZE
        elif data[place : place + 8] == b"APETAGEX" and len(data) - place >= APE_HEADER:
            size, flags = struct.unpack_from("<I4xI", data, place + 12)
            place += size + (APE_HEADER if flags >> 29 & 1 else 0)  # bit 29: this is the header
        else:
            return min(place, len(data))


# --- uncompressed files --------------------------------------------------------------------------


class Layout(NamedTuple):
    """How a kind of file stores its chunks: (id, size) headers, each followed by its content."""

    header: str  # struct format of id and size
    first: int  # place of the first chunk
    align: int
    samples: bytes  # beginning of the id of the chunk that holds the samples
    counts_header: bool = False  # whether the size includes the header


CHUNKS = {
    b"RIFF": Layout("<4sI", 12, 2, b"data"),
    b"RIFX": Layout(">4sI", 12, 2, b"data"),
    b"RF64": Layout("<4sI", 12, 2, b"data"),
    b"BW64": Layout("<4sI", 12, 2, b"data"),
    b"FORM": Layout(">4sI", 12, 2, b"SSND"),
    b"riff": Layout("<16sQ", 40, 8, b"data", counts_header=True),
    b"caff": Layout(">4sQ", 8, 1, b"data"),
}  # fmt: skip


def _check_chunks(data: mmap.mmap, path: Path) -> None:
    """Raises a UserError unless the samples are as long as stated and only chunks follow them."""
    kind = bytes(data[:4])
    layout, long_size = CHUNKS[kind], 0
    for chunk in _chunks(data, layout.first, layout, layout.align):
        name, start, size = chunk
        if name == b"ds64":  # the sizes of RF64
            long_size = int.from_bytes(data[start + 8 : start + 16], "little")
        if name.startswith(layout.samples):
            break
    else:
        return  # libsndfile reports what is missing
    if kind in (b"RF64", b"BW64") and size == 0xFFFFFFFF:
        size = long_size
    there = len(data) - start
    if size > there:
        if not _is_from_a_pipe(size, kind):
            _raise_cut(path, size, there)
        return
    last = start + size
    for align in (layout.align, 1):  # some writers do not pad a chunk of odd size
        place = start + size + -size % align
        for name, begin, n_bytes in _chunks(data, place, layout, align):
            if n_bytes > len(data) - begin or not _is_name(name):
                break
            place = begin + n_bytes
        last = max(last, min(place, len(data)))
    _require_no_more(data, last, path)


def _chunks(
    data: mmap.mmap, place: int, layout: Layout, align: int
) -> Iterator[tuple[bytes, int, int]]:
    """Yields the id of every chunk from a place on, where its content begins, and its size."""
    head = struct.calcsize(layout.header)
    while place + head <= len(data):
        name, size = struct.unpack_from(layout.header, data, place)
        size = max(0, size - head) if layout.counts_header else size
        yield name, place + head, size
        place += head + size + -size % align


def _check_au(data: mmap.mmap, path: Path) -> None:
    """Raises a UserError unless the samples of an AU file are as long as its header states."""
    if len(data) < 24:
        return
    offset, size = struct.unpack_from(">4xII", data)
    there = max(0, len(data) - offset)
    if size == 0xFFFFFFFF:  # unknown
        return
    if size > there:
        _raise_cut(path, size, there)
    _require_no_more(data, offset + size, path)


def _raise_cut(path: Path, size: int, there: int) -> NoReturn:
    raise UserError(
        f"{path}: ends early: its header gives {size:,} bytes of samples, {there:,} are there; copy "
        "or download it again"
    )


def _require_no_more(data: mmap.mmap, end: int, path: Path) -> None:
    """Raises a UserError if much, or the beginning of other sound, follows the sound that was found.

    Args:
        end: where the sound ends.
    """
    left = len(data) - end
    if left > MAX_LEFTOVER or SOUND.search(data, end) or _holds_mp3_frames(data, end):
        raise UserError(
            f"{path}: {left:,} bytes follow the samples that its header describes; expected one "
            "recording whose header gives its length; export it again"
        )


def _is_from_a_pipe(size: int, kind: bytes) -> bool:
    """Returns whether a size is one that writers to a pipe use, which cannot know the length.

    They write nearly 2^31 or 2^32, less a header. CAF has -1.
    """
    if kind == b"caff":
        return size == (1 << 64) - 1
    return any(abs(size - centre) <= tolerance for centre, tolerance in PIPE_SIZES)


def _is_name(name: bytes) -> bool:
    """Returns whether bytes can be the id of a chunk, and not the beginning of another file."""
    return (
        name[:4] not in (*CHUNKS, b"OggS", b"fLaC")
        and len(name) >= 4
        and all(32 <= byte < 127 for byte in name[:4])
    )
