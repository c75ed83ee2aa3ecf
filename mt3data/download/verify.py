"""Compares the files of a dataset with what was unpacked and with the publisher's checksums.

Size and sha256 of a file come from the log that `download` wrote while it unpacked a verified archive.
Name and md5 come from the rows of the manifest, if they give them. So a dataset that the user laid out
by hand can be verified as far as its rows go. MT3 has no counterpart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mt3data.datasets.manifest import DatasetManifest, row_paths
from mt3data.download.fetch import file_name
from mt3data.download.state import STATE, dataset_folder, log_path, read_download_record, read_log
from mt3data.errors import UserError
from mt3data.terminal import progress

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Known:
    """The known facts of a file; None if unknown."""

    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Fault:
    """A file that is "missing", "wrong" or "extra", with its path below the dataset's folder."""

    kind: str
    path: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.path} ({self.detail})"


def known_files(manifest: DatasetManifest, folder: Path) -> dict[str, Known]:
    """Returns the facts of every file that must lie in the folder, by its path below it.

    If only parts were requested (`download --select` or `--source`), the logs alone decide.
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


def verify(manifest: DatasetManifest, root: Path, *, fast: bool = False) -> list[Fault]:
    """Returns the faults of a dataset's files, sorted by path. Shows progress.

    Args:
        manifest: of the dataset.
        root: the folder that holds the dataset's folder, or that folder itself.
        fast: compare names and sizes only, and read no file.
    Raises:
        UserError: the dataset is not there, or no facts of its files are known.
    """
    folder = dataset_folder(manifest, root)
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist; run `mt3data download {manifest.name}` or correct --root"
        )
    known = known_files(manifest, folder)
    if not known:
        raise UserError(
            f"no facts of the files of {manifest.name} in {folder} are known: "
            f"`mt3data download {manifest.name}` has not unpacked all of them, and the manifest does not "
            "list them; run that command"
        )
    faults = list(_unfinished(manifest, folder))
    with progress(len(known), f"verify {manifest.name}", "files") as bar:
        for path, facts in known.items():
            faults += _faults_of(folder, path, facts, fast)
            bar.update(1)
    faults += _extra(folder, known)
    return sorted(faults, key=lambda fault: fault.path)


def _unfinished(manifest: DatasetManifest, folder: Path) -> Iterator[Fault]:
    """Yields sources that must be downloaded, or whose download has begun, and are not complete."""
    if not (folder / STATE).is_dir():
        return
    record = read_download_record(folder)
    chosen = any(s.id in record for s in manifest.sources if s.optional)
    for source in manifest.sources:
        begun = log_path(folder, source.id).is_file()
        if source.id not in record and (begun or not (source.optional or chosen)):
            detail = f"download incomplete; run `mt3data download {manifest.name}`"
            yield Fault("missing", str(Path(source.into) / file_name(source)), detail)


def _faults_of(folder: Path, path: str, facts: Known, fast: bool) -> Iterator[Fault]:
    file = folder / path
    if not file.is_file():
        yield Fault("missing", path, "no such file")
        return
    n_bytes = file.stat().st_size
    if facts.bytes not in (None, n_bytes):
        yield Fault("wrong", path, f"{n_bytes:,} bytes, expected {facts.bytes:,}")
    elif not fast:
        wanted = {"sha256": facts.sha256, "md5": facts.md5}
        digests = {
            name: hashlib.new(name, usedforsecurity=False) for name in wanted if wanted[name]
        }
        with file.open("rb") as stream:
            while digests and (block := stream.read(BLOCK_BYTES)):
                for digest in digests.values():
                    digest.update(block)
        for name, digest in digests.items():
            if digest.hexdigest() != wanted[name]:
                yield Fault(
                    "wrong", path, f"{name} is {digest.hexdigest()}, expected {wanted[name]}"
                )


def _extra(folder: Path, known: dict[str, Known]) -> Iterator[Fault]:
    """Yields unknown files. Without a log, only those with a suffix of the dataset count."""
    ours = (folder / STATE).is_dir()
    suffixes = {Path(path).suffix for path in known}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] == STATE or name in known or path.is_dir():
            continue
        if ours or path.suffix in suffixes:
            yield Fault("extra", name, "not part of the dataset")


def _listed(manifest: DatasetManifest) -> Iterator[tuple[str, str]]:
    """Yields (path, md5 or "") of the files that the manifest's rows name."""
    for row in manifest.rows.values():
        for column in ("audio", "labels"):
            paths = row_paths(row, column)
            sums = row.get(f"md5_{column}", "").split(";")
            yield from zip(paths, sums + [""] * (len(paths) - len(sums)), strict=False)
