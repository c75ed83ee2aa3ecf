"""Compares the files of a dataset, one by one, with what was unpacked and with the publisher's sums.

Two things are known of a file: its size and sha256 from the log that `download` wrote while it
unpacked a verified archive, and its name and md5 where the manifest's rows give them. So a dataset
that the user laid out by hand can be verified too, as far as its rows go. MT3 has no counterpart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mt3data.datasets.manifest import DatasetManifest, row_paths
from mt3data.download.fetch import file_name
from mt3data.download.state import STATE, dataset_folder, log_path, read_download_record, read_log
from mt3data.errors import UserError

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Known:
    """What is known of a file; -1 and "" where it is not."""

    bytes: int = -1
    sha256: str = ""
    md5: str = ""


@dataclass(frozen=True)
class Fault:
    """A file that is "missing", "wrong" or "extra", by its path below the dataset's folder."""

    kind: str
    path: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.path} ({self.detail})"


def known_files(manifest: DatasetManifest, folder: Path) -> dict[str, Known]:
    """Every file that must lie in the folder, by its path below it.

    Where only parts were asked for (`download --select` or `--source`), the logs alone decide.
    """
    record = read_download_record(folder)
    known = {
        entry["path"]: Known(entry["bytes"], entry["sha256"])
        for log in sorted((folder / STATE).glob("*.members.jsonl"))
        for entry in read_log(log)
    }
    for entry in record.values():
        if "path" in entry:
            known[entry["path"]] = Known(entry["bytes"], entry["sha256"])
    whole = [s.id for s in manifest.sources if s.id in record and not record[s.id]["select"]]
    partial = bool(record) and any(s.id not in whole for s in manifest.sources if not s.optional)
    for path, md5 in _listed(manifest):
        if path in known or not partial:
            known[path] = replace(known.get(path, Known()), md5=md5)
    return known


def verify(
    manifest: DatasetManifest, root: Path, *, fast: bool = False,
    on_file: Callable[[str], None] = lambda path: None,
) -> list[Fault]:  # fmt: skip
    """The faults of a dataset's files, sorted by path.

    Args:
        manifest: of the dataset.
        root: the folder that holds the dataset's folder, or that folder itself.
        fast: compare names and sizes only; read nothing.
        on_file: called with the path of each known file when it was looked at.
    Raises:
        UserError: the dataset is not there, or nothing is known of its files.
    """
    folder = dataset_folder(manifest, root)
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist; run `mt3data download {manifest.name}` or mend --root"
        )
    known = known_files(manifest, folder)
    if not known:
        raise UserError(
            f"nothing is known of the single files of {manifest.name} in {folder}: they were not unpacked "
            f"by `mt3data download {manifest.name}`, or not to the end, and the manifest does not list "
            "them; run that command"
        )
    faults = list(_unfinished(manifest, folder))
    for path, facts in known.items():
        faults += _faults_of(folder, path, facts, fast)
        on_file(path)
    faults += _extra(folder, known)
    return sorted(faults, key=lambda fault: fault.path)


def _unfinished(manifest: DatasetManifest, folder: Path) -> Iterator[Fault]:
    """Sources whose download has begun, or should have, and is not complete."""
    if not (folder / STATE).is_dir():
        return
    record = read_download_record(folder)
    chosen = any(s.id in record for s in manifest.sources if s.optional)
    for source in manifest.sources:
        begun = log_path(folder, source.id).is_file()
        if source.id not in record and (begun or not (source.optional or chosen)):
            detail = f"not downloaded whole; run `mt3data download {manifest.name}`"
            yield Fault("missing", str(Path(source.into) / file_name(source)), detail)


def _faults_of(folder: Path, path: str, facts: Known, fast: bool) -> Iterator[Fault]:
    file = folder / path
    if not file.is_file():
        yield Fault("missing", path, "no such file")
        return
    n_bytes = file.stat().st_size
    if facts.bytes not in (-1, n_bytes):
        yield Fault("wrong", path, f"{n_bytes:,} bytes, expected {facts.bytes:,}")
    elif not fast and (facts.sha256 or facts.md5):
        wanted = {"sha256": facts.sha256, "md5": facts.md5}
        for name, value in _hashes(file, [name for name in wanted if wanted[name]]).items():
            if value != wanted[name]:
                yield Fault("wrong", path, f"{name} is {value}, expected {wanted[name]}")


def _hashes(file: Path, names: list[str]) -> dict[str, str]:
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in names}
    with file.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            for digest in digests.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _extra(folder: Path, known: dict[str, Known]) -> Iterator[Fault]:
    """Files that nobody knows; without a log, only those that look like the dataset's own."""
    ours = (folder / STATE).is_dir()
    suffixes = {Path(path).suffix for path in known}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] == STATE or name in known or path.is_dir():
            continue
        if ours or path.suffix in suffixes:
            yield Fault("extra", name, "not part of the dataset")


def _listed(manifest: DatasetManifest) -> Iterator[tuple[str, str]]:
    """(path, md5 or "") of the files that the manifest's rows name."""
    for row in manifest.rows.values():
        for column in ("audio", "labels"):
            paths = row_paths(row, column)
            sums = row.get(f"md5_{column}", "").split(";")
            yield from zip(paths, sums + [""] * (len(paths) - len(sums)), strict=False)
