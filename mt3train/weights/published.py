"""Lists the weights that the authors of MT3 published, downloads them and converts them.

    mt3train weights get mt3        one file of PyTorch; without it the T5X checkpoint in the bucket
    ~/.cache/mt3kit/mt3.safetensors     what is made of it
    ~/.cache/mt3kit/mt3.download/       an unfinished download, which the next one continues

A single file is compared with its published sha256, every object of the bucket with the md5 of the
listing. The name `mt3` is valid wherever a checkpoint is, and is downloaded at its first use, after
a question. A `str` that equals a name of TABLE always means these weights, whatever the working
directory holds. A `Path`, or `./mt3` on the command line, always means a file or folder.

MT3 has no counterpart. Its notebook copies the bucket with gsutil.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode, urlsplit

import click

from mt3data import system
from mt3data.datasets.manifest import Source, safe_name
from mt3data.errors import UserError
from mt3data.files import (
    file_has_size,
    file_lock,
    format_bytes,
    require_space,
    write_atomically,
)
from mt3data.schema import MAX_BYTES, Limits, parse_document
from mt3data.terminal import echo, progress

GOOGLE = "https://storage.googleapis.com"
UNSTATED = "unstated"  # asked in magenta/mt3 issue 177, without an answer so far
CONNECTIONS = 4  # at once, to the bucket
MAX_PAGES = 20  # of a listing
MAX_OBJECT_BYTES, MAX_DOWNLOAD_BYTES = 1 << 26, 1 << 31  # MT3's largest object has 3 MB
MB = 1e6


@dataclass(frozen=True)
class Bucket:
    """A folder of a Google Cloud Storage bucket, which holds one T5X checkpoint.

    Attributes:
        prefix: names of all objects begin with it.
        n_objects: number of files; None if unknown.
        listing: address of the JSON listing of the bucket.
        objects: address below which the objects lie.
    """

    prefix: str
    n_objects: int | None = None
    listing: str = f"{GOOGLE}/storage/v1/b/mt3/o"
    objects: str = f"{GOOGLE}/mt3"


@dataclass(frozen=True)
class PublishedWeights:
    """Describes one published model.

    Attributes:
        name: by which commands and `--checkpoint` know it.
        use: what it is good for.
        n_bytes: size of the download, rounded if no server was asked.
        n_parameters: numbers in all arrays.
        num_heads: heads of its attention, which the arrays do not show.
        sources: in the order in which they are tried. All give the same arrays.
        family: of `convert.PUBLISHED`: vocabulary and length of segments.
        licence: of the weights.
    """

    name: str
    use: str
    n_bytes: int
    n_parameters: int
    sources: tuple[Source | Bucket, ...]
    num_heads: int = 6
    family: str = "mt3"
    licence: str = UNSTATED


# Names, sizes and checksums are those of public listings and Git LFS pointers. Nothing was
# downloaded from these addresses when they were written down.
MT3_FILE = Source(
    "file",
    "https://media.githubusercontent.com/media/kunato/mt3-pytorch/"
    "03a06ef7f288f64e7cd25f17c3f37bcf9fe111bc/pretrained/mt3.pth",
    mirrors=(
        "https://huggingface.co/gudgud1014/MR-MT3/resolve/"
        "539c08b0fe551076db6108a5f5b2a57d774881ed/mt3.pth",
    ),
    bytes=183_672_643,
    sha256="b8a3807ed265059abd25ad7f68142c06c35e8f6144dcaa45bd55946a3745398f",
    status="several",
)
TABLE = [
    PublishedWeights(
        "mt3", "all instruments and drums: the model of Gardner et al. 2022",
        183_672_643, 45_896_704, (MT3_FILE, Bucket("checkpoints/mt3/", n_objects=295)),
    ),
    PublishedWeights(
        "ismir2021", "piano with velocities: the model of Hawthorne et al. 2021",
        172_000_000, 46_027_776, (Bucket("checkpoints/ismir2021/"),), family="ismir2021",
    ),
    PublishedWeights(
        "ismir2022_small", "all instruments and drums: the small model of Simon et al. 2022",
        172_000_000, 45_896_704, (Bucket("checkpoints/ismir2022_small/"),),
    ),
    PublishedWeights(
        "ismir2022_base", "all instruments and drums: the large model of Simon et al. 2022",
        750_000_000, 200_980_992, (Bucket("checkpoints/ismir2022_base/"),), num_heads=12,
    ),
]  # fmt: skip
KNOWN = {weights.name: weights for weights in TABLE}


def cache_folder() -> Path:
    """Returns the folder of downloaded weights: MT3KIT_CACHE, or the platform's place for caches."""
    if chosen := os.environ.get("MT3KIT_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        stated = os.environ.get("XDG_CACHE_HOME", "")  # a relative path is not valid there
        folder = Path(stated) if os.path.isabs(stated) else Path.home() / ".cache"  # noqa: PTH117
    return folder / "mt3kit"


def cached_file(weights: PublishedWeights) -> Path:
    """Returns where the converted weights lie, or will lie."""
    return cache_folder() / f"{weights.name}.safetensors"


@dataclass(frozen=True)
class _ObjectFields:
    """Limits the fields of an object in a listing."""

    name: Annotated[str, Limits(length=500)]
    size: Annotated[str, Limits(pattern="[0-9]{1,9}")]
    md5Hash: Annotated[str, Limits(pattern="[A-Za-z0-9+/]{22}==")]


@dataclass(frozen=True)
class _PageFields:
    """Limits the fields of a page of a listing."""

    items: Annotated[list[_ObjectFields], Limits(length=1000)] = field(default_factory=list)
    nextPageToken: Annotated[str, Limits(length=2000)] = ""


@dataclass(frozen=True)
class _Object:
    """One file of a checkpoint in a bucket: its safe path below the prefix, size and md5."""

    path: str
    n_bytes: int
    md5: str


def resolve(checkpoint: str | Path) -> Path:
    """Returns the path of a checkpoint. Published weights are downloaded at their first use.

    Args:
        checkpoint: a name of TABLE as a str, or a path.
    Raises:
        UserError: the weights are not here, and they cannot be downloaded or nobody agreed to it.
    """
    if not isinstance(checkpoint, str) or checkpoint not in KNOWN:
        return Path(checkpoint)
    if Path(checkpoint).exists():
        echo(f"{checkpoint}: using the published weights of this name; ./{checkpoint} means the "
             "file or folder here", err=True)  # fmt: skip
    return get(KNOWN[checkpoint])


def get(weights: PublishedWeights, yes: bool = False, offline: bool = False) -> Path:
    """Returns the file of published weights, and makes it first if it is absent or damaged.

    Processes that need the same weights wait for the one that downloads them.

    Args:
        yes: download without a question.
        offline: never connect.
    Raises:
        UserError: nobody agreed to the download, or no source gives the weights. The message has
            the reason of each source.
    """
    path = cached_file(weights)
    if _is_whole(path):
        return path
    _require_consent(weights, yes, offline)
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_suffix(".lock")):
        if not _is_whole(path):  # another process may have made it
            needed = weights.n_bytes + 4 * weights.n_parameters
            require_space(path.parent, needed, f"for {weights.name}", option="MT3KIT_CACHE")
            _make(weights, path)
    return path


def _is_whole(path: Path) -> bool:
    if not path.is_file():
        return False
    from mt3train.weights.checkpoint import Damaged, read_weights

    try:
        return bool(read_weights(path))
    except Damaged:
        echo(f"{path} is damaged, so it has to be downloaded again", err=True)
        return False


def _require_consent(weights: PublishedWeights, yes: bool, offline: bool) -> None:
    """Prints size, origin and licence, and asks once, before anything is requested."""
    name, path = weights.name, cached_file(weights)
    urls = [u for s in weights.sources for u in ((s.objects,) if isinstance(s, Bucket) else s.urls)]
    hosts = " or ".join(dict.fromkeys(urlsplit(url).netloc for url in urls))
    facts = f"{name}: about {format_bytes(weights.n_bytes)} from {hosts}, licence {weights.licence}"
    if offline:
        raise UserError(f"{name} is not on this machine, and --offline allows no download; put {path} "
                        f"there, or run `mt3train weights get {name}`")  # fmt: skip
    if yes:
        return echo(facts, err=True)
    is_terminal = all(stream and stream.isatty() for stream in (sys.stdin, sys.stderr))
    if not is_terminal or os.environ.get("WORLD_SIZE", "1") != "1":  # torchrun starts several
        raise UserError(f"{facts}. It is not on this machine, and this process cannot ask; run "
                        f"`mt3train weights get {name}` in a terminal, or with --yes in a script")  # fmt: skip
    try:
        agreed = click.confirm(f"{facts}. Download it into {path.parent}?", err=True)
    except click.Abort:
        raise KeyboardInterrupt from None
    if not agreed:
        raise UserError(f"nothing was downloaded; {name} is needed in {path.parent}")


def _make(weights: PublishedWeights, path: Path) -> None:
    """Downloads weights from the first source that gives them, and converts them."""
    from mt3data.download import fetch
    from mt3data.download.http import RETRY_POLICY

    parts = path.with_suffix(".download")
    parts.mkdir(exist_ok=True)
    faults: list[str] = []
    for source in weights.sources:
        try:
            if isinstance(source, Bucket):
                fetched = _fetch_bucket(source, parts)
            else:
                fetched = parts / fetch.file_name(source)
                fetch.fetch(source, fetched, RETRY_POLICY)
            from mt3train.weights.convert import convert  # loads torch

            done = convert(fetched, parts / path.name, weights.num_heads, force=True)
            seen, wanted = (done.family, done.n_parameters), (weights.family, weights.n_parameters)
            if seen != wanted:
                raise UserError(f"{fetched}: {seen[0]} with {seen[1]:,} parameters; expected "
                                f"{wanted[0]} with {wanted[1]:,}")  # fmt: skip
        except UserError as error:
            faults.append(str(error))
            if source != weights.sources[-1]:
                echo(f"{error}; trying the next source", err=True)
            continue
        system.replace(parts / path.name, path)
        shutil.rmtree(parts, ignore_errors=True)
        return
    raise UserError(f"no source gives {weights.name}: {'; '.join(faults)}")


def _fetch_bucket(bucket: Bucket, parts: Path) -> Path:
    """Downloads the objects of a checkpoint that are missing and returns their folder."""
    objects = _list_objects(bucket)
    # An object that changed in the bucket gets another folder.
    folder = parts / hashlib.sha256(repr(objects).encode()).hexdigest()[:12]
    total = sum(item.n_bytes for item in objects)
    with (
        progress(total / MB, bucket.prefix.rstrip("/"), "MB") as bar,
        ThreadPoolExecutor(CONNECTIONS) as pool,
    ):
        for n_bytes in pool.map(partial(_fetch_object, bucket, folder), objects):
            bar.update(n_bytes / MB)
    return folder


def _fetch_object(bucket: Bucket, folder: Path, item: _Object) -> int:
    path = folder / item.path
    if not (file_has_size(path, item.n_bytes) and _md5(path.read_bytes()) == item.md5):
        url = f"{bucket.objects}/{quote(bucket.prefix + item.path)}"
        data = _read(url, item.n_bytes, item.n_bytes)
        if _md5(data) != item.md5:
            raise UserError(
                f"{url}: md5 is {_md5(data)}, expected {item.md5}; run the command again"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    return item.n_bytes


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _list_objects(bucket: Bucket) -> list[_Object]:
    """Reads all pages of a listing.

    Raises:
        UserError: no listing of a checkpoint, one without an end, or with unsafe names or sizes.
    """
    query = {"prefix": bucket.prefix, "maxResults": "1000"}
    items: list[dict[str, Any]] = []
    for _ in range(MAX_PAGES):
        url = f"{bucket.listing}?{urlencode(query, safe='/')}"
        page = parse_document(_read(url, MAX_BYTES), _PageFields, url, "listing of a bucket")
        items += page.get("items", [])
        query["pageToken"] = page.get("nextPageToken", "")
        if not query["pageToken"]:
            break
    else:
        raise UserError(f"{bucket.listing}: more than {MAX_PAGES} pages; expected one checkpoint")
    found = [_object(bucket, item) for item in items if not item["name"].endswith("/")]
    paths = {item.path for item in found}
    if "checkpoint" not in paths or not len(found) == len(paths) == (
        bucket.n_objects or len(paths)
    ):
        wanted = bucket.n_objects or "a number of"
        raise UserError(f"{bucket.listing}: {len(found)} objects in {bucket.prefix}; expected {wanted} "
                        "different ones, `checkpoint` among them; run the command again")  # fmt: skip
    if sum(item.n_bytes for item in found) > MAX_DOWNLOAD_BYTES:
        raise UserError(f"{bucket.listing}: more than {format_bytes(MAX_DOWNLOAD_BYTES)} in "
                        f"{bucket.prefix}; expected one checkpoint")  # fmt: skip
    return sorted(found, key=lambda item: item.path)


def _object(bucket: Bucket, item: dict[str, Any]) -> _Object:
    """Checks one entry of a listing: a file in the folder of the checkpoint, or one folder below."""
    name, n_bytes = item["name"], int(item["size"])
    parts = name.removeprefix(bucket.prefix).split("/")
    if not name.startswith(bucket.prefix) or len(parts) > 2 or not 0 < n_bytes <= MAX_OBJECT_BYTES:
        raise UserError(f"{bucket.listing}: {name!r} of {n_bytes:,} bytes; expected a file of a "
                        f"checkpoint in {bucket.prefix}")  # fmt: skip
    path = "/".join(safe_name(part, bucket.listing) for part in parts)
    return _Object(path, n_bytes, base64.b64decode(item["md5Hash"]).hex())


def _read(url: str, limit: int, expected_bytes: int = 0) -> bytes:
    """Reads a small remote file of at most `limit` bytes, across drops of the connection."""
    from mt3data.download.http import RETRY_POLICY, RemoteFile

    with RemoteFile([url], expected_bytes=expected_bytes, retry_policy=RETRY_POLICY) as remote:
        return io.BufferedReader(remote).read(limit + 1)
