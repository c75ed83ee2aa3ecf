"""Unpacks zip and tar.gz archives safely, and resumes where a killed run stopped.

Every member is checked before a byte of it is written. No name may lead out of the folder. Links and
devices are refused. The total size is limited, so a small archive cannot fill the disk. A member is
written to NAME.part, flushed to the disk and renamed, and then gets a line in a log of JSON lines.
`mt3data verify` takes the list of files from this log. MT3 has no counterpart.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, Protocol, cast

from mt3data import system
from mt3data.download.state import ExtractionLog
from mt3data.errors import UserError
from mt3data.files import file_has_size, require_space
from mt3data.terminal import progress

BLOCK_BYTES = 1 << 20
MB = 1e6
MAX_RATIO = 50  # unpacked to packed; annotations reach 10, deflate could reach 1032
MAX_RATIO_FREE_BYTES = 64 << 20  # below this size, the ratio is not checked
MAX_BYTES = 1 << 40  # if the size of the archive is unknown
MAX_MEMBERS = 1_000_000


class Readable(Protocol):
    """A stream that is read in order. Only an empty read is its end."""

    def read(self, n_bytes: int = ..., /) -> bytes:
        """Reads at most n_bytes."""


class DamagedArchive(UserError):
    """The archive is not the published one: broken, unsafe, or not what an earlier run read."""


@dataclass(frozen=True)
class Placement:
    """Where the members of an archive go.

    Attributes:
        folder: of the dataset. Paths in the log are relative to it.
        into: folder below it.
        strip: number of leading folders that are removed from member names. A file above that depth
            (a README beside the folder of data) keeps its bare name.
        select: patterns of paths below `folder`. Other members are ignored; empty selects all.
        packed_bytes: size of the archive, which limits what may come out of it; 0 if unknown.
    """

    folder: Path
    into: str = ""
    strip: int = 0
    select: tuple[str, ...] = ()
    packed_bytes: int = 0

    def path_of(self, name: str) -> str:
        """Returns the path of a member below `folder`, with "/" on every system.

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
        if system.WINDOWS and not all(map(system.is_portable_name, kept)):
            raise UserError(f"the archive names a member {name!r}, which Windows cannot store")
        return str(PurePosixPath(self.into, *kept))

    def selects(self, path: str) -> bool:
        """Returns whether a path below `folder` is selected."""
        return not self.select or any(fnmatchcase(path, pattern) for pattern in self.select)

    @property
    def max_bytes(self) -> int:
        """Limit of the unpacked size."""
        if not self.packed_bytes:
            return MAX_BYTES
        return max(MAX_RATIO_FREE_BYTES, MAX_RATIO * self.packed_bytes)


def unpack_zip(file: Path | BinaryIO, place: Placement, log: ExtractionLog) -> int:
    """Unpacks the selected members of a zip and returns their number.

    Args:
        file: a path or a seekable file, such as a SeekableHttpFile.
        place: where the members go.
        log: members in it are not written again.
    Raises:
        DamagedArchive: the archive is damaged or unsafe.
        UserError: the disk is too small.
    """
    with _damage_named("zip"), zipfile.ZipFile(file) as archive:
        infos = [(i, info) for i, info in enumerate(archive.infolist()) if not info.is_dir()]
        for _, info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise _special(info.filename, is_link=kind == stat.S_IFLNK)
        paths = [place.path_of(info.filename) for _, info in infos]
        _check_size(sum(info.file_size for _, info in infos), len(infos), place)
        selected = [pair for pair, path in zip(infos, paths, strict=True) if place.selects(path)]
        done = {i for i, info in selected if _is_unpacked(i, info.filename, place, log)}
        left = sum(info.file_size for i, info in selected if i not in done)
        require_space(place.folder, left, "to unpack the archive")
        total = sum(info.file_size for _, info in selected)
        with progress(total / MB, "unpack", "MB", done=(total - left) / MB) as bar:
            for index, info in selected:
                if index not in done:
                    with archive.open(info) as content:
                        _extract(content, index, info.filename, info.file_size, place, log, bar)
    return len(selected)


def unpack_tar_gz(stream: Readable, place: Placement, log: ExtractionLog) -> int:
    """Unpacks a tar.gz that can only be read in order, from its start to its end.

    Members in the log are read again and compared, but not written. The stream is read beyond the
    last member so that a checksum of all of it can be taken.

    Returns:
        The number of selected members.
    Raises:
        DamagedArchive: the archive is damaged or unsafe, or differs from what an earlier run read.
    """
    n_selected = total = 0
    with (
        _damage_named("tar.gz"),
        closing(gzip.GzipFile(fileobj=cast(BinaryIO, stream), mode="rb")) as plain,
    ):
        with tarfile.open(fileobj=plain, mode="r|", bufsize=BLOCK_BYTES) as archive:  # type: ignore[call-overload]
            for index, info in enumerate(archive):
                if info.isdir():
                    continue
                path = place.path_of(info.name)
                if not info.isreg():
                    raise _special(info.name, is_link=info.issym() or info.islnk())
                total += info.size
                _check_size(total, index, place)
                if not place.selects(path):
                    continue
                n_selected += 1
                content = archive.extractfile(info)
                assert content is not None  # a regular file has content
                if not _is_unpacked(index, info.name, place, log):
                    _extract(content, index, info.name, info.size, place, log)
                elif _copy_and_hash(content)[1] != log.entries[index]["sha256"]:
                    raise DamagedArchive(
                        f"{info.name} is not what an earlier run read; start again"
                    )
        while plain.read(BLOCK_BYTES):
            pass
        while stream.read(BLOCK_BYTES):
            pass
    return n_selected


@contextmanager
def _damage_named(kind: str) -> Iterator[None]:
    """Raises a DamagedArchive for the errors of the libraries that read archives."""
    try:
        yield
    except (
        zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError,
    ) as error:  # fmt: skip
        raise DamagedArchive(
            f"the {kind} archive is damaged or of an unknown kind: {error}"
        ) from error


def _is_unpacked(index: int, name: str, place: Placement, log: ExtractionLog) -> bool:
    """Returns whether an earlier run has written a member and logged it."""
    known = log.entries.get(index)
    target = place.folder / place.path_of(name)
    return bool(known and known["name"] == name and file_has_size(target, known["bytes"]))


def _extract(
    content: IO[bytes], index: int, name: str, n_bytes: int, place: Placement, log: ExtractionLog,
    bar: Any = None,
) -> None:  # fmt: skip
    """Writes one member and then its line in the log."""
    path = place.path_of(name)
    target = place.folder / path
    if not target.parent.resolve().is_relative_to(place.folder.resolve()):
        raise DamagedArchive(
            f"{target.parent} leads out of {place.folder} by a link; remove the link"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    written, sha256 = write_file(content, target, bar)
    if written != n_bytes:
        raise DamagedArchive(f"{name}: has {written} bytes, the archive states {n_bytes}")
    log.add({"index": index, "name": name, "path": path, "bytes": written, "sha256": sha256})


def write_file(content: IO[bytes], target: Path, bar: Any = None) -> tuple[int, str]:
    """Writes a file atomically and returns its size and sha256; moves a progress bar in MB."""
    part = target.with_name(target.name + ".part")
    with part.open("wb") as file:
        written = _copy_and_hash(content, file, bar)
        file.flush()
        os.fsync(file.fileno())
    system.replace(part, target)
    return written


def _copy_and_hash(
    content: IO[bytes], file: IO[bytes] | None = None, bar: Any = None
) -> tuple[int, str]:
    digest, n_bytes = hashlib.sha256(), 0
    while block := content.read(BLOCK_BYTES):
        digest.update(block)
        n_bytes += len(block)
        if file is not None:
            file.write(block)
        if bar is not None:
            bar.update(len(block) / MB)
    return n_bytes, digest.hexdigest()


def _check_size(n_bytes: int, n_members: int, place: Placement) -> None:
    if n_bytes > place.max_bytes or n_members > MAX_MEMBERS:
        raise DamagedArchive(
            f"the archive of {place.packed_bytes:,} bytes would unpack to {n_bytes:,} bytes or more "
            f"in {n_members:,} members, expected at most {place.max_bytes:,} bytes. "
            "This is not the published file"
        )


def _special(name: str, is_link: bool) -> DamagedArchive:
    kind = "a link" if is_link else "a special file"
    return DamagedArchive(
        f"the archive holds {kind}, {name!r}; only files and folders are unpacked. "
        "This is not the published file"
    )
