"""Whole shards of a remote build, fetched once and checked, for `IndexedShards` to read.

Training reads crops at random, which a web server answers slowly; so a build is copied first. What
arrives is believed when size and sha256 are those of the manifest, a file has its name only from then
on, and the manifest is written last, as in a build: its presence means complete. Running again goes on
where it stopped, and processes that want the same build wait for the one that fetches it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mt3data.datasets.manifest import Source
from mt3data.download.fetch import fetch
from mt3data.download.http import RETRY_POLICY, RetryPolicy
from mt3data.files import file_has_size, file_lock, require_space, write_atomically
from mt3data.shards.format import BUILD_MANIFEST, parse_build_manifest
from mt3data.shards.stream import is_address, local_path, read_remote


def cached(build: str | Path, cache: Path, retry_policy: RetryPolicy = RETRY_POLICY) -> Path:
    """The folder of a build on this machine, fetched if need be.

    Args:
        build: an http(s) address of a build; a path or file: address is returned as it is.
        cache: folder for builds. This one goes into DATASET-SUM, where SUM is of its manifest, so a
            build that changes on the server is another folder.
        retry_policy: with the server.
    Raises:
        UserError: the server does not serve it, or serves other bytes than the manifest says; the
            file is named, and kept as NAME.bad.
    """
    if not is_address(build):
        return local_path(build)
    base = str(build).rstrip("/")
    data = read_remote(f"{base}/{BUILD_MANIFEST}", retry_policy)
    manifest = parse_build_manifest(data, f"{base}/{BUILD_MANIFEST}")
    folder = cache / f"{manifest['dataset']}-{hashlib.sha256(data).hexdigest()[:12]}"
    (folder / "index").mkdir(parents=True, exist_ok=True)
    with file_lock(cache / f".{folder.name}.lock"):
        missing = _missing(folder, manifest)
        require_space(
            cache, sum(entry["bytes"] for entry in missing), f"to fetch {base}", option="--cache"
        )
        for entry in missing:
            source = Source(
                entry["name"], f"{base}/{entry['name']}", bytes=entry["bytes"],
                sha256=entry["sha256"], status="verified",
            )  # fmt: skip
            fetch(source, folder / entry["name"], retry_policy)
        if not (folder / BUILD_MANIFEST).is_file():
            write_atomically(folder / BUILD_MANIFEST, data)
    return folder


def _missing(folder: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Files that are still to come, small ones first; those that are there were checked."""
    entries = [*manifest["files"], *manifest["shards"]]
    return [e for e in entries if not file_has_size(folder / e["name"], e["bytes"])]
