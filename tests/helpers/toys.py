"""Toy datasets: small archives, what a true manifest would say of them, and what comes of them."""

import hashlib
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from events import HANG_SECONDS
from server import Publisher

from mt3data.datasets.manifest import DatasetManifest, Source, load
from mt3data.download.dataset import DownloadOptions, download
from mt3data.download.http import RetryPolicy
from mt3data.download.state import STATE

QUICK = RetryPolicy(retries=3, backoff_seconds=0.0, timeout_seconds=HANG_SECONDS)
CONTENT = bytes(range(251)) * 4000  # 1 MB without a short period of a power of two
MEMBERS = {
    f"top/{split}/{n}.wav": bytes([n]) * 150_000 for split in ("train", "test") for n in (1, 2)
}
UNPACKED = {name.removeprefix("top/"): content for name, content in MEMBERS.items()}


def a_zip(members: Mapping[str, bytes]) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def a_tar_gz(members: Mapping[str, bytes]) -> bytes:
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=0) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return packed.getvalue()


def source(web: Publisher, name: str, **changes: Any) -> Source:
    """The source that a publisher would describe truly."""
    content = web.files[f"/{name}"]
    kind = next((k for k in ("zip", "tar.gz") if name.endswith(k)), "file")
    facts: dict[str, Any] = {"bytes": len(content), "md5": hashlib.md5(content).hexdigest(), "status": "verified",
             "kind": kind, "strip": int(kind != "file")}  # fmt: skip
    return Source(name, f"{web.url}/{name}?download=1", **facts | changes)


def manifest(*sources: Source) -> DatasetManifest:
    return replace(load("demo"), name="toy", folder="toy", sources=sources)


def get(root: Path, *sources: Source, **options: Any) -> Path:
    return download(manifest(*sources), root, DownloadOptions(retry_policy=QUICK, **options))


def files(folder: Path) -> dict[str, bytes]:
    """What a user sees below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and STATE not in path.parts
    }
