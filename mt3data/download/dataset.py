"""Downloads a dataset: fetches, verifies and unpacks its sources, and records them.

Everything lies in one folder, ROOT/FOLDER of the manifest. The state of the download lies beside the
data (mt3data.download.state), and the same command resumes. MT3 has no counterpart, because its data
were files inside one company.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mt3data.datasets.manifest import DatasetManifest, Source, load, names, row_paths
from mt3data.download.fetch import (
    MB,
    Checksums,
    HashingReader,
    checksum_mismatch,
    expected_bytes,
    fetch,
    file_checksums,
    file_name,
)
from mt3data.download.http import RETRY_POLICY, RemoteFile, RetryPolicy
from mt3data.download.http_seekable import FIRST_BYTES, SeekableHttpFile
from mt3data.download.state import (
    DOWNLOAD_RECORD,
    STATE,
    ExtractionLog,
    dataset_folder,
    log_path,
    read_download_record,
    read_log,
)
from mt3data.download.unpack import (
    DamagedArchive,
    Placement,
    unpack_tar_gz,
    unpack_zip,
    write_file,
)
from mt3data.errors import UserError
from mt3data.files import (
    canonical_json,
    file_lock,
    format_bytes,
    free_bytes,
    kind_of,
    require_space,
    write_atomically,
)
from mt3data.terminal import progress


@dataclass(frozen=True)
class DownloadOptions:
    """How to download.

    Attributes:
        select: patterns of paths below the dataset's folder. Only these members of archives are
            unpacked; empty selects all.
        stream: unpack tar.gz archives while they arrive, without storing them.
        archives: archives that the user has already, used in place of the network.
        only: ids or groups of sources; empty selects all that are not optional.
        retry_policy: limits of retries.
    """

    select: tuple[str, ...] = ()
    stream: bool = False
    archives: tuple[Path, ...] = ()
    only: tuple[str, ...] = ()
    retry_policy: RetryPolicy = RETRY_POLICY


DEFAULT_OPTIONS = DownloadOptions()


def wanted_sources(manifest: DatasetManifest, only: Sequence[str] = ()) -> list[Source]:
    """Returns the sources to fetch: those named in `only`, or all that are not optional.

    Raises:
        UserError: the dataset has no source of that id or group, or no source at all.
    """
    known = {name for s in manifest.sources for name in (s.id, s.group) if name}
    for name in only:
        if name not in known:
            raise UserError(
                f"{manifest.name} has no source {name!r}; it has {', '.join(sorted(known))}"
            )
    if not manifest.sources:
        raise UserError(f"{manifest.name} has no public source; there is nothing to download")
    if only:
        return [s for s in manifest.sources if s.id in only or s.group in only]
    return [s for s in manifest.sources if not s.optional]


def needs_download(manifest: DatasetManifest, root: Path) -> bool:
    """Returns whether the dataset is missing below root, or its download is unfinished.

    Root must be a data folder: absent, empty, or with nothing but datasets under their own names.
    Anything else is the user's own arrangement or a mistyped path, and no reason to fetch 100 GB. The
    same holds for a dataset that `download` has not made, or if only optional sources were fetched.
    """
    required = [s for s in manifest.sources if not s.optional]
    folder = dataset_folder(manifest, root)
    if not required:
        return False
    if (folder / STATE).is_dir():
        there = read_download_record(folder)
        missing = [s for s in required if s.id not in there]
        chosen = any(s.id in there for s in manifest.sources if s.optional)
        return bool(missing) and not (chosen and len(missing) == len(required))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return False
    known = {load(name).folder or name for name in names()} | {folder.name}
    entries = root.iterdir() if root.is_dir() else ()
    return all(entry.name in known or entry.name.startswith(".") for entry in entries)


def download(
    manifest: DatasetManifest, root: Path, options: DownloadOptions = DEFAULT_OPTIONS
) -> Path:
    """Downloads what is missing of a dataset and returns its folder.

    Raises:
        UserError: no server has a file, a checksum differs, an archive is damaged or unsafe, the
            disk is too small, another run uses the folder, or the folder holds other files.
    """
    folder = dataset_folder(manifest, root)
    mine = _match_archives(wanted_sources(manifest, options.only), options.archives)
    if options.stream and not any(s.kind == "tar.gz" for s in mine):
        raise UserError(
            f"{manifest.name} has no tar.gz to stream; try --select, or leave out --stream"
        )
    _refuse_foreign(folder, list(mine))
    try:
        (folder / STATE).mkdir(parents=True, exist_ok=True)
        with file_lock(folder / STATE / "lock", f"{folder}: another download uses it"):
            _download(manifest, folder, mine, options)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{folder}: the disk is full, {format_bytes(free_bytes(folder))} free; make room and run the "
                "same command again to resume"
            ) from error
        if error.filename:
            raise UserError(f"{error.filename}: {error.strerror}") from error
        raise
    return folder


def _download(
    manifest: DatasetManifest,
    folder: Path,
    mine: dict[Source, Path | None],
    options: DownloadOptions,
) -> None:
    record = read_download_record(folder)
    todo = {
        s: path for s, path in mine.items() if not _is_done(s, record.get(s.id), options.select)
    }
    _require_space(folder, todo, options)
    n_members = 0
    for source, archive in todo.items():
        if source.kind == "file":
            entry = _single_file(source, folder, archive, options)
        else:
            entry = _archive(source, folder, archive, options)
            n_members += entry["members"]
            if not entry["members"]:
                continue
        record[source.id] = entry
        whole = {"schema": 1, "sources": record}
        write_atomically(folder / STATE / DOWNLOAD_RECORD, canonical_json(whole))
    if todo and options.select and not n_members:
        raise UserError(
            f"--select {' '.join(options.select)} matches no member of {manifest.name}; patterns match "
            f"paths below {folder}, such as {_example(manifest)}"
        )


def _is_done(source: Source, entry: dict[str, Any] | None, select: tuple[str, ...]) -> bool:
    if entry is None or (entry["select"] and entry["select"] != list(select)):
        return False
    seen = {"md5": entry["md5"], "sha256": entry["sha256"]}
    published = {"md5": source.md5, "sha256": source.sha256}
    return all(seen[key] in ("", value) for key, value in published.items() if value)


def _single_file(
    source: Source, folder: Path, given: Path | None, options: DownloadOptions
) -> Checksums:
    path = str(PurePosixPath(source.into, file_name(source)))
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    if given:
        sums = _checked(source, given)
        with given.open("rb") as content:
            write_file(content, folder / path)
    else:
        sums = fetch(source, folder / path, options.retry_policy)
    return sums | {"select": [], "path": path}


def _archive(
    source: Source, folder: Path, given: Path | None, options: DownloadOptions
) -> dict[str, Any]:
    """Fetches and unpacks one archive and returns its entry of the record."""
    identity = {
        "source": source.id, "url": source.url, "md5": source.md5, "sha256": source.sha256,
        "into": source.into, "strip": source.strip,
    }  # fmt: skip
    place = Placement(folder, source.into, source.strip, options.select, source.bytes)
    kept = folder / STATE / file_name(source)
    log = ExtractionLog(log_path(folder, source.id), identity)
    try:
        if options.select and source.seekable and not given and not kept.is_file():
            sums, n_members = _fetch_members(source, place, log, options.retry_policy)
        elif options.stream and source.kind == "tar.gz" and not given and not kept.is_file():
            sums, n_members = _streamed(source, place, log, options.retry_policy)
        else:
            sums = _checked(source, given) if given else fetch(source, kept, options.retry_policy)
            n_members = _unpacked(
                source, given or kept, replace(place, packed_bytes=sums["bytes"]), log
            )
    except DamagedArchive as error:
        log.discard()  # all members are written again
        raise UserError(f"{file_name(source)}: {error}") from error
    finally:
        log.close()
    return sums | {"select": list(options.select), "members": n_members}


def _checked(source: Source, path: Path) -> Checksums:
    sums = file_checksums(path)
    if found := checksum_mismatch(source, sums):
        raise UserError(f"{path} is not {file_name(source)} of {source.url}: {found}")
    return sums


def _unpacked(source: Source, path: Path, place: Placement, log: ExtractionLog) -> int:
    if source.kind == "zip":
        return unpack_zip(path, place, log)
    n_bytes = path.stat().st_size
    with path.open("rb") as file, progress(n_bytes / MB, f"unpack {path.name}", "MB") as bar:
        return unpack_tar_gz(HashingReader(file, bar), place, log)


def _streamed(
    source: Source, place: Placement, log: ExtractionLog, retry_policy: RetryPolicy
) -> tuple[Checksums, int]:
    """Unpacks a tar.gz while it arrives. It counts only if the checksum of the stream is right."""
    with (
        RemoteFile(
            source.urls, expected_bytes=expected_bytes(source), retry_policy=retry_policy
        ) as remote,
        progress(remote.total / MB, f"stream {file_name(source)}", "MB") as bar,
    ):
        metered = HashingReader(remote, bar)
        n_members = unpack_tar_gz(metered, replace(place, packed_bytes=remote.total), log)
    if found := checksum_mismatch(source, metered.sums()):
        raise DamagedArchive(f"{found}; its members do not count, run the command again")
    return metered.sums(), n_members


def _fetch_members(
    source: Source, place: Placement, log: ExtractionLog, retry_policy: RetryPolicy
) -> tuple[Checksums, int]:
    """Fetches the selected members of a zip by HTTP Range. The CRC-32 of the zip checks each."""
    with SeekableHttpFile(
        source.urls, expected_bytes=expected_bytes(source), retry_policy=retry_policy
    ) as remote:
        file = io.BufferedReader(remote, FIRST_BYTES)
        n_members = unpack_zip(file, replace(place, packed_bytes=remote.total), log)
        return {"bytes": remote.total, "md5": "", "sha256": ""}, n_members


def _match_archives(sources: list[Source], archives: Sequence[Path]) -> dict[Source, Path | None]:
    """Assigns the user's archives to sources: by name, by size, or as the only one."""
    matched: dict[Source, Path | None] = dict.fromkeys(sources)
    for path in archives:
        if not path.is_file():
            what = kind_of(path) if path.exists() else "there is no such file"
            raise UserError(f"--from {path}: {what}; expected an archive")
        n_bytes = path.stat().st_size
        named = [s for s in sources if file_name(s) == path.name]
        sized = [s for s in sources if s.bytes == n_bytes]
        found = named or sized or sources
        if len(found) != 1:
            names = ", ".join(f"{file_name(s)} ({s.id})" for s in sources[:10])
            raise UserError(
                f"--from {path}: expected one of {names}; give it the published name, or add --source ID"
            )
        if other := matched[found[0]]:
            raise UserError(
                f"--from {other} and --from {path} may both be {file_name(found[0])}; name one of them"
            )
        matched[found[0]] = path
    return matched


def _refuse_foreign(folder: Path, sources: list[Source]) -> None:
    """Raises a UserError for files that `download` has not made."""
    if (folder / STATE).is_dir():
        return
    for place in {folder / source.into for source in sources}:
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise UserError(
                f"{place} exists and was not made by `mt3data download`; use it as it is, move it away, "
                "or choose another --root"
            )


def _require_space(folder: Path, todo: dict[Source, Path | None], options: DownloadOptions) -> None:
    """Checks the disk before anything starts. Unpacked sizes are estimates here."""
    packed = unpacked = 0
    for source, given in todo.items():
        is_file = source.kind == "file"
        if options.select and source.seekable and not given:
            continue  # checked when the directory of the zip is read
        target = folder / (source.into if is_file else STATE) / file_name(source)
        there = [target, target.with_name(target.name + ".part")]
        done = max((path.stat().st_size for path in there if path.is_file()), default=0)
        if not given and not (options.stream and source.kind == "tar.gz"):
            packed += max(0, source.bytes - done)
        if not is_file and not options.select:
            logged = sum(entry["bytes"] for entry in read_log(log_path(folder, source.id)))
            unpacked += max(0, source.bytes - logged)
    streamable = any(s.kind == "tar.gz" for s in todo) and not options.stream
    advice = ", or use --stream, which keeps no archive on the disk" if streamable else ""
    if any(source.seekable for source in todo) and not options.select:
        advice += ", or fetch members without their archive: --select"
    purpose = f"({format_bytes(packed)} to download, about {format_bytes(unpacked)} unpacked)"
    require_space(folder, packed + unpacked, purpose, advice=advice)


def _example(manifest: DatasetManifest) -> str:
    rows = manifest.rows.values()
    return repr(next((path for row in rows for path in row_paths(row, "audio")), "train/*"))
