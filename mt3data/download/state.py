"""Reads and writes the state of a download: its folder, what was verified, which members exist.

The state lies beside the data in the hidden folder `.mt3kit`: the archives, one log per archive of the
members that were unpacked, a lock, and `download.json`. This file names a source only when all of it
is there and was verified.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mt3data.datasets.manifest import DatasetManifest, safe_name
from mt3data.errors import UserError
from mt3data.files import format_bytes

STATE = ".mt3kit"
DOWNLOAD_RECORD = "download.json"


def dataset_folder(manifest: DatasetManifest, root: Path) -> Path:
    """Returns the folder of the dataset: root itself if it has the folder's name, else below it."""
    name = manifest.folder or manifest.name
    return root if root.resolve().name == name else root / name


def read_download_record(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads which sources were downloaded whole: id -> bytes, checksums, select, members.

    Raises:
        UserError: the record is damaged.
    """
    path = folder / STATE / DOWNLOAD_RECORD
    if not path.is_file():
        return {}
    try:
        sources = json.loads(path.read_text(encoding="utf-8"))["sources"]
        if all({"md5", "sha256", "select"} <= entry.keys() for entry in sources.values()):
            return dict(sources)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise UserError(f"{path}: not the record of a download; remove it and run the download again")


def log_path(folder: Path, source_id: str) -> Path:
    """Returns the path of the log of members that were unpacked from a source."""
    name = safe_name(source_id, f"the source {source_id!r}")
    return folder / STATE / f"{name}.members.jsonl"


def report(manifest: DatasetManifest, folder: Path) -> list[str]:
    """Describes a dataset's folder: its sources, what could not be verified, and its archives."""
    record, bare = read_download_record(folder), 0
    there = [source for source in manifest.sources if source.id in record]
    first = f"{folder}: {len(there)} of {len(manifest.sources)} sources are complete and verified"
    rest = [source for source in manifest.sources if source.id not in record]
    if rest and all(source.optional for source in rest):
        named = ", ".join(source.id for source in rest)
        first += f"; nothing else is needed (optional, with --source: {named})"
    lines = [first]
    for source in there:
        if record[source.id]["select"] and not record[source.id]["sha256"]:
            lines.append(
                f"  {source.id}: members were fetched alone, verified by their CRC-32 only"
            )
        elif not (source.md5 or source.sha256):
            bare += 1
    if bare:
        lines.append(
            f"  {bare} sources have no published checksum; {STATE}/{DOWNLOAD_RECORD} has theirs"
        )
    ours = (".json", ".jsonl", "lock")
    archives = [p for p in (folder / STATE).iterdir() if not p.name.endswith(ours)]
    if archives:
        n_bytes = sum(path.stat().st_size for path in archives)
        lines.append(
            f"  archives in {folder / STATE} ({format_bytes(n_bytes)}) are no longer needed"
        )
    return lines


@dataclass
class ExtractionLog:
    """The members of one archive that are on the disk, by their index in it.

    The first line names the archive and how it is unpacked. A log of another archive is begun again.
    A last line that a kill cut short is removed.
    """

    path: Path
    identity: dict[str, Any]
    entries: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        head, kept = json.dumps(self.identity, sort_keys=True), 0
        for number, line in enumerate(_whole_lines(self.path)):
            if number == 0 and line.decode() != head + "\n":
                break
            kept += len(line)
            if number:
                entry = json.loads(line)
                self.entries[entry["index"]] = entry
        self._file = self.path.open("r+b" if kept else "wb")
        self._file.seek(kept)
        self._file.truncate()
        if not kept:
            self._write(head)

    def add(self, entry: dict[str, Any]) -> None:
        """Adds a member and flushes it to the disk; for the keys of an entry see `read_log`."""
        self.entries[entry["index"]] = entry
        self._write(json.dumps(entry, sort_keys=True))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def discard(self) -> None:
        """Removes the log, so that all members are written again."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads the entries of a log: {"index", "name", "path", "bytes", "sha256"} of each member."""
    return [json.loads(line) for line in list(_whole_lines(path))[1:]]


def _whole_lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))
