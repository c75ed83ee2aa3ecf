"""Uploads a finished build to an object store, or copies it to another disk. MT3 has no counterpart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mt3data.download.address import (
    HTTP,
    file_system,
    folder_address,
    is_address,
    local_path,
    scheme_of,
)
from mt3data.download.http import RETRY_POLICY, RetryPolicy
from mt3data.download.remote import attempt
from mt3data.errors import UserError
from mt3data.schema import MAX_BYTES
from mt3data.shards.cache import is_partial
from mt3data.shards.check import check
from mt3data.shards.format import BUILD_MANIFEST, parse_build_manifest, read_build_manifest

PUSHING = "push.json"  # at the address while a build is uploaded; holds the sha256 of its manifest


@dataclass(frozen=True)
class Pushed:
    """What was uploaded.

    Attributes:
        files, bytes: that were uploaded now, with the build manifest.
        present: files that were there already.
    """

    files: int
    bytes: int
    present: int


def push(
    folder: Path, address: str, *, force: bool = False, workers: int = 1,
    retry_policy: RetryPolicy = RETRY_POLICY,
    on_bytes: Callable[[int], object] = lambda n_bytes: None,
) -> Pushed:  # fmt: skip
    """Checks a build and uploads it: card, index and tables, then the shards, the build manifest last.

    So an address with a build manifest has the whole build. An interrupted upload is continued: files
    of this build that have their size at the address are not uploaded again.

    Args:
        folder: of the build.
        address: of the folder for it: of an object store, or a path.
        force: replace another build, and files of the same names, at the address.
        workers: threads that check the build.
        retry_policy: of requests that fail.
        on_bytes: called with the size of each file, once when it was checked, and once when it is at
            the address.
    Raises:
        UserError: the build is not whole, the address cannot be written, or it has another build or
            other files.
    """
    if is_partial(folder):
        raise UserError(f"{folder} holds only some shards of a build; push the build it comes from")
    manifest = read_build_manifest(folder)
    if scheme_of(address) in HTTP:
        raise UserError(
            f"{address}: a web server takes no uploads; expected an address such as s3://, gs://, "
            "az:// or hf://, or a path"
        )
    files, base = file_system(_place(address))
    base = base.rstrip("/")
    if "file" in files.protocol:
        target, own = Path(base).resolve(), folder.resolve()
        if target == own or target in own.parents or own in target.parents:
            raise UserError(
                f"{address} is the folder of the build itself, or one is inside the other; choose a "
                "folder of its own"
            )

    def at_address(action: Callable[..., Any], *arguments: Any) -> Any:
        return attempt(lambda: action(files, *arguments), address, retry_policy)

    text = (folder / BUILD_MANIFEST).read_bytes()
    manifest_path, mark_path = f"{base}/{BUILD_MANIFEST}", f"{base}/{PUSHING}"
    digest = hashlib.sha256(text).hexdigest().encode()
    there = at_address(_read, manifest_path)
    marked = at_address(_read, mark_path)
    if not force and there != text and marked != digest:
        if there is not None or marked is not None:
            raise UserError(
                f"{address} has another build{'' if there else ', whose upload is not complete'}; choose "
                "another address, or replace it with --force"
            )
        if others := at_address(_visible_names, base):
            raise UserError(
                f"{address} has other files ({', '.join(others[:3])}); choose the address of a folder "
                "for this build alone, or replace files of the same names with --force"
            )
    if faults := check(folder, workers=workers, on_bytes=on_bytes):
        raise UserError(
            f"{folder}: {faults[0]}; {len(faults)} fault(s) in all. The same `mt3data build` command "
            "mends them"
        )
    if there not in (None, text):
        at_address(_remove, manifest_path)  # no reader finds half a build
    is_ours = there == text or marked == digest
    entries, n_files, n_bytes = [*manifest["files"], *manifest["shards"]], 0, 0
    for entry in entries:
        path = f"{base}/{entry['name']}"
        if not (is_ours and at_address(_size, path) == entry["bytes"]):
            if there != text and not n_files:
                at_address(_write, mark_path, digest)
            at_address(_put, str(folder / entry["name"]), path)
            if (size := at_address(_size, path)) != entry["bytes"]:
                raise UserError(
                    f"{address}/{entry['name']} has {size} bytes after its upload, expected "
                    f"{entry['bytes']:,}; run the command again"
                )
            n_files, n_bytes = n_files + 1, n_bytes + entry["bytes"]
        on_bytes(entry["bytes"])
    present = len(entries) - n_files
    if there != text:
        if at_address(_read, mark_path) not in (None, digest):
            raise UserError(
                f"{address}: another build was uploaded there meanwhile; push one of them again"
            )
        at_address(_write, manifest_path, text)
        n_files, n_bytes = n_files + 1, n_bytes + len(text)
    for name in _listed(there) - _listed(text):  # of the build that was replaced
        at_address(_remove, f"{base}/{name}")
    at_address(_remove, mark_path)
    return Pushed(n_files, n_bytes, present)


def _place(address: str) -> str:
    return (
        folder_address(address) if is_address(address) else local_path(address).absolute().as_uri()
    )


def _size(files: Any, path: str) -> int | None:
    files.invalidate_cache()
    try:
        return int(files.info(path)["size"])
    except FileNotFoundError:
        return None


def _listed(build_manifest: bytes | None) -> set[str]:
    """Returns the files that a build manifest lists; none if it is damaged or missing."""
    try:
        manifest = parse_build_manifest(build_manifest or b"", BUILD_MANIFEST)
    except UserError:
        return set()
    return {entry["name"] for entry in manifest["files"] + manifest["shards"]}


def _visible_names(files: Any, base: str) -> list[str]:
    """Returns the names in a folder; a service adds files whose names begin with a dot."""
    files.invalidate_cache()
    try:
        names = [path.rstrip("/").rpartition("/")[2] for path in files.ls(base, detail=False)]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if name and not name.startswith("."))


def _read(files: Any, path: str) -> bytes | None:
    size = _size(files, path)
    if size is None or size > MAX_BYTES:
        return None if size is None else b""
    data: bytes = files.cat_file(path)
    return data


def _remove(files: Any, path: str) -> None:
    if _size(files, path) is not None:
        files.rm_file(path)


def _write(files: Any, path: str, data: bytes) -> None:
    files.makedirs(path.rpartition("/")[0], exist_ok=True)
    files.pipe_file(path, data)


def _put(files: Any, source: str, path: str) -> None:
    files.makedirs(path.rpartition("/")[0], exist_ok=True)
    files.put_file(source, path)
