"""The files of a tar as mt3kit writes it: plain USTAR files with short names, one after the other.

Three times as fast as `tarfile` from front to back, as that is made for every kind of tar; and what it
passes over in silence (damaged headers, a tar that ends early) can be told here.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = tarfile.BLOCKSIZE
BUFFER_BYTES = 1 << 20


class DamagedTar(ValueError):
    """There is no header of a plain file where one should be."""


class TarFile(NamedTuple):
    """A file of a tar: its name, where its content begins, and that; empty where it is skipped."""

    name: str
    offset: int
    size: int
    data: bytes


class TarReader:
    """Walks through a tar once.

    Attributes:
        position: bytes that were read so far.
        digest: sha256 of them, if that was asked for.
    """

    def __init__(self, file: BinaryIO, *, most_bytes: int, hashed: bool = False) -> None:
        """Args: file: unread. most_bytes: no file of the tar is larger. hashed: keep a digest."""
        self._file, self._most_bytes = file, most_bytes
        self.position, self.digest = 0, hashlib.sha256() if hashed else None

    def files(self, bodies: bool = True) -> Iterator[TarFile]:
        """The files in order, to the end of the archive or of the file, whichever comes first.

        A file that is cut short is not among them; compare `position` with the size, after `rest`.

        Args:
            bodies: read the contents; without them the file must be seekable.
        Raises:
            DamagedTar: a header that is none.
        """
        while any(header := self._read(BLOCK)) and len(header) == BLOCK:
            size = _plain_size(header)
            if not 0 <= size <= self._most_bytes:
                raise DamagedTar(f"no header of a plain file at byte {self.position - BLOCK:,}")
            name, offset = header[:100].rstrip(b"\0").decode("ascii", "replace"), self.position
            if bodies:
                data = self._read(size)
                self._read(-size % BLOCK)
                if len(data) < size:
                    return
                yield TarFile(name, offset, size, data)
            else:
                self.position = self._file.seek(size + -size % BLOCK, 1)
                yield TarFile(name, offset, size, b"")

    def rest(self) -> None:
        """Reads what stands behind the files, or behind the damage."""
        while self._read(BUFFER_BYTES):
            pass

    def _read(self, n_bytes: int) -> bytes:
        data = self._file.read(n_bytes)
        self.position += len(data)
        if self.digest is not None:
            self.digest.update(data)
        return data


def _plain_size(header: bytes) -> int:
    """The size of the file behind a USTAR header, -1 where it is damaged or no plain file's."""
    try:
        stated, size = (
            int(field.rstrip(b"\0 "), 8) for field in (header[148:156], header[124:136])
        )
    except ValueError:
        return -1
    is_plain = header[156:157] == b"0" and header[257:262] == b"ustar" and not header[345]
    # The sum of all bytes, with those of the sum itself counted as eight spaces.
    return size if is_plain and stated == sum(header) - sum(header[148:156]) + 256 else -1
