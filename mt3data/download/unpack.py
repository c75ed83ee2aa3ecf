"""Unpacks zip and tar.gz archives of strangers safely, and goes on where a killed run stopped.

Every member is judged before a byte of it is written: no name may lead out of the folder, links and
devices are refused, and the total size is bounded, so that a small archive cannot fill the disk. A
member is written to NAME.part, made durable, renamed and only then entered in a log of JSON lines;
the log also serves `mt3data verify` as the list of what must lie there. MT3 has no counterpart.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Protocol, cast

from mt3data.download.state import ExtractionLog
from mt3data.errors import UserError
from mt3data.files import file_has_size

BLOCK_BYTES = 1 << 20
MAX_RATIO = 50  # unpacked to packed; annotations reach 10, deflate could 1032
MAX_RATIO_FREE_BYTES = 64 << 20  # below this much, no ratio is asked for
MAX_BYTES = 1 << 40  # where the size of the archive is not known
MAX_MEMBERS = 1_000_000


class Readable(Protocol):
    """What is read in order; a short read is not the end, an empty one is."""

    def read(self, n_bytes: int = ..., /) -> bytes:
        """At most n_bytes."""


class DamagedArchive(UserError):
    """The archive is not what was published: broken, unsafe, or another than an earlier run read."""


@dataclass(frozen=True)
class Placement:
    """Where the members of an archive go.

    Attributes:
        folder: of the dataset. Paths in the log are relative to it.
        into: folder below it.
        strip: leading folders of member names that are left out. A file that lies above that depth
            (a README beside the folder of data) keeps its bare name.
        select: only members whose path below `folder` matches one of these patterns; empty: all.
        packed_bytes: size of the archive, which bounds what may come out of it; 0: unknown.
    """

    folder: Path
    into: str = ""
    strip: int = 0
    select: tuple[str, ...] = ()
    packed_bytes: int = 0

    def path_of(self, name: str) -> str:
        """The path below `folder` of a member, with "/" on every system.

        Raises:
            DamagedArchive: the name is absolute or leads out of the folder.
        """
        parts = [part for part in name.split("/") if part not in ("", ".")]
        wrong = name.startswith("/") or ".." in parts or not parts
        if wrong or "\\" in name or "\0" in name or (len(name) > 1 and name[1] == ":"):
            raise DamagedArchive(
                f"the archive names a member {name!r}, which would leave {self.folder}; "
                "it was not written. This is not the published file"
            )
        kept = parts[min(self.strip, len(parts) - 1) :]
        return str(PurePosixPath(self.into, *kept))

    def wants(self, path: str) -> bool:
        """Whether a path below `folder` is selected."""
        return not self.select or any(fnmatchcase(path, pattern) for pattern in self.select)

    @property
    def max_bytes(self) -> int:
        """What may come out of the archive at most."""
        if not self.packed_bytes:
            return MAX_BYTES
        return max(MAX_RATIO_FREE_BYTES, MAX_RATIO * self.packed_bytes)


@dataclass(frozen=True)
class Member:
    """One file in an archive. Its content must be read before the next member is asked for."""

    index: int
    name: str
    size: int
    open: Callable[[], IO[bytes]]


def unpack_zip(
    file: Path | BinaryIO, place: Placement, log: ExtractionLog,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> int:  # fmt: skip
    """Unpacks a zip, or the selected members of it; returns how many members were selected.

    Names, kinds and the total size are judged before the first member is written.

    Args:
        file: a file, or anything that can be read and sought, such as a SeekableHttpFile.
        on_bytes: called with the size of each part of a member that was written or passed over.
    Raises:
        DamagedArchive: the archive is damaged or unsafe.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = [(i, info) for i, info in enumerate(archive.infolist()) if not info.is_dir()]
            for _, info in infos:
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG):
                    raise DamagedArchive(
                        _special(info.filename, "a link" if kind == stat.S_IFLNK else "")
                    )
            paths = [place.path_of(info.filename) for _, info in infos]
            _check_size(sum(info.file_size for _, info in infos), len(infos), place)
            wanted = [pair for pair, path in zip(infos, paths, strict=True) if place.wants(path)]
            members = (
                Member(i, info.filename, info.file_size, lambda info=info: archive.open(info))  # type: ignore[misc]
                for i, info in wanted
            )
            _unpack(members, place, log, on_bytes)
            return len(wanted)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        raise DamagedArchive(
            f"the zip archive is damaged or of an unknown kind: {error}"
        ) from error


def zip_sizes(file: Path | BinaryIO, place: Placement) -> dict[str, int]:
    """Bytes of each selected member of a zip file, by path; reads its directory alone.

    Raises:
        DamagedArchive: it has no directory, or an unsafe one.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {
                place.path_of(i.filename): i.file_size for i in archive.infolist() if not i.is_dir()
            }
    except zipfile.BadZipFile as error:
        raise DamagedArchive(f"the zip archive is damaged: {error}") from error
    return {path: size for path, size in sizes.items() if place.wants(path)}


def unpack_tar_gz(
    stream: Readable, place: Placement, log: ExtractionLog,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> int:  # fmt: skip
    """Unpacks a tar.gz that can only be read in order, from its start to its very end.

    Members in the log are read again and compared, but not written. The stream is read beyond the
    last member so that a checksum of all of it can be taken.

    Args:
        on_bytes: called with the size of each block that is read.
    Returns:
        How many members were selected.
    Raises:
        DamagedArchive: the archive is damaged or unsafe, or differs from what an earlier run read.
    """
    n_members, total = 0, 0

    def members(archive: tarfile.TarFile) -> Iterator[Member]:
        nonlocal n_members, total
        for index, info in enumerate(archive):
            if info.isdir():
                continue
            path = place.path_of(info.name)
            if not info.isreg():
                raise DamagedArchive(
                    _special(info.name, "a link" if info.issym() or info.islnk() else "")
                )
            total += info.size
            _check_size(total, index, place)
            if place.wants(path):
                n_members += 1
                yield Member(index, info.name, info.size, partial(_content, archive, info))

    try:
        with (
            closing(gzip.GzipFile(fileobj=cast(BinaryIO, stream), mode="rb")) as plain,
            tarfile.open(fileobj=plain, mode="r|", bufsize=BLOCK_BYTES) as archive,  # type: ignore[call-overload]
        ):
            _unpack(members(archive), place, log, on_bytes, compare=True)
            while plain.read(BLOCK_BYTES):
                pass
        while stream.read(BLOCK_BYTES):
            pass
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DamagedArchive(f"the tar.gz archive is damaged: {error}") from error
    return n_members


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(info)
    assert content is not None  # a regular file has content
    return content


def _unpack(
    members: Iterable[Member], place: Placement, log: ExtractionLog, on_bytes: Callable[[int], None],
    compare: bool = False,
) -> None:  # fmt: skip
    top = place.folder.resolve()
    for member in members:
        path = place.path_of(member.name)
        target = place.folder / path
        known = log.entries.get(member.index)
        if known and known["name"] == member.name and file_has_size(target, known["bytes"]):
            if compare:
                with member.open() as content:
                    if copy_and_hash(content, None, on_bytes)[1] != known["sha256"]:
                        raise DamagedArchive(
                            f"{member.name} is not what an earlier run read; start again"
                        )
            else:
                on_bytes(known["bytes"])
            continue
        if not target.parent.resolve().is_relative_to(top):
            raise DamagedArchive(
                f"{target.parent} leads out of {place.folder} by a link; remove the link"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as content:
            n_bytes, sha256 = write_file(content, target, on_bytes)
        if n_bytes != member.size:
            raise DamagedArchive(
                f"{member.name}: {n_bytes} bytes, the archive promised {member.size}"
            )
        log.add({"index": member.index, "name": member.name, "path": path, "bytes": n_bytes,
                 "sha256": sha256})  # fmt: skip


def write_file(
    content: IO[bytes], target: Path, on_bytes: Callable[[int], None] = lambda n: None
) -> tuple[int, str]:
    """Writes content to target, durable and whole or not at all; returns its size and sha256.

    `on_bytes` is called with the size of each block written.
    """
    part = target.with_name(target.name + ".part")
    with part.open("wb") as file:
        written = copy_and_hash(content, file, on_bytes)
        file.flush()
        os.fsync(file.fileno())
    part.replace(target)
    return written


def copy_and_hash(
    content: IO[bytes], file: IO[bytes] | None, on_bytes: Callable[[int], None]
) -> tuple[int, str]:
    """Reads content to its end, into file if there is one; returns the size and sha256.

    `on_bytes` is called with the size of each block.
    """
    digest, n_bytes = hashlib.sha256(), 0
    while block := content.read(BLOCK_BYTES):
        digest.update(block)
        n_bytes += len(block)
        if file is not None:
            file.write(block)
        on_bytes(len(block))
    return n_bytes, digest.hexdigest()


def _check_size(n_bytes: int, n_members: int, place: Placement) -> None:
    if n_bytes > place.max_bytes or n_members > MAX_MEMBERS:
        raise DamagedArchive(
            f"the archive of {place.packed_bytes:,} bytes would unpack to {n_bytes:,} bytes or more "
            f"in {n_members:,} members; at most {place.max_bytes:,} bytes are believed. "
            "This is not the published file"
        )


def _special(name: str, kind: str) -> str:
    return (
        f"the archive holds {kind or 'something that is no file'}, {name!r}; only files and folders "
        "are unpacked. This is not the published file"
    )
