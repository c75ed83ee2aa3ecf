"""Makes Cerberus4: quartets of one piano, guitar, bass and drums each, drawn from Slakh2100's songs.

Every combination of exactly one stem of each group is a track of its own, whole, "with no additional
criteria on instrument activity" (MT3, B.3); a song with more than mix.MAX_QUARTETS gives so many,
drawn by its name. Its audio is the sum of the four stems, its labels are theirs with the programs 0,
24, 32 and drums. All quartets of a song are in the song's split. Groups are `inst_class` of
metadata.yaml, which the paper does not say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mt3data.datasets.adapters import slakh
from mt3data.datasets.manifest import DatasetManifest
from mt3data.datasets.stem_mixes import quartets
from mt3data.datasets.track import Track

GROUPS = ("Bass", "Drums", "Guitar", "Piano")  # in the order of MT3's task name


def tracks(
    root: Path, manifest: DatasetManifest, split_scheme: str | None = None
) -> Iterator[Track]:
    """Yields the quartets of every song, song by song; see mt3data.datasets.adapters.slakh.tracks.

    A song without a quartet is yielded once, with the reason in `failure`.
    """
    songs = slakh.tracks(root, manifest, split_scheme)
    return (track for song in songs for track in _quartets(song, manifest))


def _quartets(song: Track, manifest: DatasetManifest) -> Iterator[Track]:
    groups = [
        [s for s in song.stems if (s.is_drum if group == "Drums" else s.family == group)]
        for group in GROUPS
    ]
    if song.failure or not all(groups):
        there = ", ".join(f"{len(g)} {name}" for g, name in zip(groups, GROUPS, strict=True))
        yield replace(song, failure=song.failure or f"no quartet: it has {there}")
        return
    for number, members in enumerate(quartets(groups, song.id)):
        stems = tuple(
            replace(stem, program=manifest.programs.get(group, 0))
            for stem, group in zip(members, GROUPS, strict=True)
        )
        ids = tuple(stem.id for stem in members)
        own_problems = tuple(p for p in song.problems if p.startswith(tuple(f"{i}:" for i in ids)))
        yield replace(
            song, id=f"{song.id}-q{number:02d}", name=f"{song.name}:{':'.join(ids)}", stems=stems,
            problems=own_problems, variants=(ids,),
        )  # fmt: skip
