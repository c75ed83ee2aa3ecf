"""Uploads a finished build to an object store, or copies it to another disk. MT3 has no counterpart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mt3data.download.address import HTTP, file_system, is_address, local_path, scheme_of
from mt3data.download.http import RETRY_POLICY, RetryPolicy
from mt3data.download.remote import attempt
from mt3data.errors import UserError
from mt3data.schema import MAX_BYTES
from mt3data.shards.cache import REMOTE
from mt3data.shards.check import check
from mt3data.shards.format import BUILD_MANIFEST, read_build_manifest

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
        force: replace another build at the address.
        workers: threads that check the build.
        retry_policy: of requests that fail.
        on_bytes: called with the size of each file, once when it was checked, and once when it is at
            the address.
    Raises:
        UserError: the build is not whole, the address cannot be written, or it has another build.
    """
    if (folder / REMOTE).is_file():
        raise UserError(f"{folder} holds only some shards of a build; push the build it comes from")
    manifest = read_build_manifest(folder)
    if scheme_of(address) in HTTP:
        raise UserError(
            f"{address}: a web server takes no uploads; expected an address such as s3://, gs://, "
            "az:// or hf://, or a path"
        )
    files, base = file_system(_place(address))
    base = base.rstrip("/")
    if not is_address(address) and local_path(address).resolve() == folder.resolve():
        raise UserError(f"{address} is the folder of the build itself")

    def at_address(action: Callable[..., Any], *arguments: Any) -> Any:
        return attempt(lambda: action(files, *arguments), address, retry_policy)

    text, manifest_path = (folder / BUILD_MANIFEST).read_bytes(), f"{base}/{BUILD_MANIFEST}"
    digest = hashlib.sha256(text).hexdigest().encode()
    there = at_address(_read, manifest_path)
    if there not in (None, text) and not force:
        raise UserError(
            f"{address} has another build; choose another address, or replace it with --force"
        )
    if faults := check(folder, workers=workers, on_bytes=on_bytes):
        raise UserError(
            f"{folder}: {faults[0]}; {len(faults)} fault(s) in all. The same `mt3data build` command "
            "mends them"
        )
    if there not in (None, text):
        at_address(_remove, manifest_path)  # no reader finds half a build
    is_ours = there == text or at_address(_read, f"{base}/{PUSHING}") == digest
    entries, n_files, n_bytes = [*manifest["files"], *manifest["shards"]], 0, 0
    for entry in entries:
        path = f"{base}/{entry['name']}"
        if not (is_ours and at_address(_size, path) == entry["bytes"]):
            if there != text and not n_files:
                at_address(_write, f"{base}/{PUSHING}", digest)
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
        at_address(_write, manifest_path, text)
        n_files, n_bytes = n_files + 1, n_bytes + len(text)
    at_address(_remove, f"{base}/{PUSHING}")
    return Pushed(n_files, n_bytes, present)


def _place(address: str) -> str:
    return address if is_address(address) else local_path(address).absolute().as_uri()


def _size(files: Any, path: str) -> int | None:
    files.invalidate_cache()
    try:
        return int(files.info(path)["size"])
    except FileNotFoundError:
        return None


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
