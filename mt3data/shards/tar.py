"""Reads the files of a tar as mt3kit writes it: plain USTAR files with short names.

It is three times as fast as `tarfile` from front to back, and reports damaged headers and a tar that
ends early, which `tarfile` ignores.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = tarfile.BLOCKSIZE
BUFFER_BYTES = 1 << 20


class DamagedTar(ValueError):
    """A tar has no header of a plain file where one must be."""


class TarFile(NamedTuple):
    """A file of a tar: its name and its content."""

    name: str
    data: bytes


class TarReader:
    """Reads a tar once.

    Attributes:
        position: number of bytes read so far.
    """

    def __init__(self, file: BinaryIO, *, most_bytes: int) -> None:
        """Args: file: unread. most_bytes: the largest size of a file in the tar."""
        self._file, self._most_bytes, self.position = file, most_bytes, 0

    def files(self) -> Iterator[TarFile]:
        """Yields the files in order, to the end of the archive or of the file.

        A file that is cut short is not yielded. Compare `position` with the size, after `rest`.

        Raises:
            DamagedTar: a header is invalid.
        """
        while any(header := self._read(BLOCK)) and len(header) == BLOCK:
            size = _plain_size(header)
            if not 0 <= size <= self._most_bytes:
                raise DamagedTar(f"no header of a plain file at byte {self.position - BLOCK:,}")
            name, data = header[:100].rstrip(b"\0").decode("ascii", "replace"), self._read(size)
            self._read(-size % BLOCK)
            if len(data) < size:
                return
            yield TarFile(name, data)

    def rest(self) -> None:
        """Reads the bytes after the files, or after the damage."""
        while self._read(BUFFER_BYTES):
            pass

    def _read(self, n_bytes: int) -> bytes:
        data = self._file.read(n_bytes)
        self.position += len(data)
        return data


def _plain_size(header: bytes) -> int:
    """Returns the size of the file after a USTAR header; -1 if it is damaged or no plain file's."""
    try:
        stated, size = (
            int(field.rstrip(b"\0 "), 8) for field in (header[148:156], header[124:136])
        )
    except ValueError:
        return -1
    is_plain = header[156:157] == b"0" and header[257:262] == b"ustar" and not header[345]
    # The sum of all bytes, with those of the sum itself counted as eight spaces.
    return size if is_plain and stated == sum(header) - sum(header[148:156]) + 256 else -1
