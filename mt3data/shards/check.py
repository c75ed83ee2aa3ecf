"""Checks that the files of a build are those that its build manifest describes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mt3data.files import canonical_json
from mt3data.shards.cache import REMOTE, is_partial
from mt3data.shards.format import BUILD_MANIFEST, LOG, identity_of, read_build_manifest

MAX_WORKERS = 32


def check(
    folder: Path, *, fast: bool = False, workers: int = 1,
    on_bytes: Callable[[int], object] = lambda n_bytes: None,
) -> list[str]:  # fmt: skip
    """Compares every file of a finished build with the build manifest.

    A file with the right sha256 holds what the build wrote. The same `mt3data build` command makes
    missing or damaged files again. Shards of a partial build that are not here are no fault.

    Args:
        folder: of the build.
        fast: compare names and sizes only, and read no file.
        workers: threads that read at the same time.
        on_bytes: called with the size of each file after it was compared.
    Returns:
        One sentence per fault; empty means that the build is whole.
    Raises:
        UserError: not a finished build, or its build manifest is damaged.
    """
    manifest = read_build_manifest(folder)
    identity = hashlib.sha256(canonical_json(identity_of(manifest))).hexdigest()
    if identity != manifest["fingerprint"]:
        return [f"{BUILD_MANIFEST}: its settings or tracks have changed (the fingerprint differs); get "
                "it again, then check the rest"]  # fmt: skip
    faults = list(_foreign_files(folder, manifest))
    shards = manifest["shards"]
    if is_partial(folder):
        shards = [shard for shard in shards if (folder / shard["name"]).exists()]
    entries = [*manifest["files"], *shards]
    pool = ThreadPoolExecutor(
        min(workers, MAX_WORKERS), "check"
    )  # hashing and reading release Python's lock
    try:
        found = pool.map(lambda entry: _fault(folder, entry, fast), entries)
        for entry, fault in zip(entries, found, strict=True):
            faults += [f"{entry['name']}: {fault}"] if fault else []
            on_bytes(entry["bytes"])
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, only files that are being read
    return faults


def _foreign_files(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    known = {entry["name"] for entry in manifest["shards"] + manifest["files"]}
    known |= {BUILD_MANIFEST, LOG}
    if is_partial(folder):  # a shard may be on its way
        known |= {REMOTE, *(f"{name}{end}" for name in known for end in (".part", ".part.json"))}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in known:
            yield f"{name}: not part of this build; move it elsewhere"


def _fault(folder: Path, entry: dict[str, Any], fast: bool) -> str:
    path = folder / entry["name"]
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"{size:,} bytes, the manifest states {entry['bytes']:,}"
    if fast:
        return ""
    with path.open("rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]
    return "" if same else "its bytes have changed (sha256 differs from the manifest)"
