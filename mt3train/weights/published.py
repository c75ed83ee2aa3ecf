"""Lists the weights that the authors of MT3 published, and where on this machine they are kept.

None of them come with this package. `mt3train weights` prints the list.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from mt3data.datasets.manifest import Source

GOOGLE = "https://storage.googleapis.com"
UNSTATED = "unstated"  # asked in magenta/mt3 issue 177, without an answer so far


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
