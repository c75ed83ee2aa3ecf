"""The demo pieces that `mt3data synth` renders: Slakh's layout, each track in its split's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mt3data.datasets import slakh
from mt3data.manifest import Manifest
from mt3data.track import Track


def tracks(root: Path, manifest: Manifest, split_scheme: str | None = None) -> Iterator[Track]:
    """Yields every rendered piece below root; see mt3data.datasets.slakh.tracks."""
    return slakh.tracks(root, manifest, split_scheme)
