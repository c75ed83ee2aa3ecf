"""Do the tables of a build agree with its manifest and with each other?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mt3data.music.notes import validate
from mt3data.shards.index import Index, references


def check_tables(folder: Path, manifest: dict[str, Any], damaged: set[str]) -> Iterator[str]:
    """Compares index, tracks.parquet and references with the manifest; yields faults.

    Args:
        folder: of the build.
        manifest: its manifest.
        damaged: names of files that are missing or changed, and are passed over.
    """
    for split, totals in manifest["splits"].items():
        name = f"index/{split}.parquet"
        stated = {s["name"]: s["records"] for s in manifest["shards"] if s["split"] == split}
        if sum(stated.values()) != totals["records"]:
            yield f"manifest.json: {sum(stated.values())} records in the shards of {split}, {totals['records']} in all"  # fmt: skip
        if name not in damaged:
            index = Index(folder / name)
            if foreign := sorted(set(index.dictionary_codes("shard")[1]) - set(stated)):
                yield f"{name}: names {foreign[0]}, which is no shard of this split"
            sums = {"records": len(index), "frames": index["frames"].sum(), "tokens": index["n_tokens"].sum()}  # fmt: skip
            for what, seen in sums.items():
                if seen != totals[what]:
                    yield f"{name}: {seen} {what}, the manifest says {totals[what]}"
            if "tracks.parquet" not in damaged:
                yield from _check_tracks(folder, split, totals, index)
    yield from _check_references(folder, manifest, damaged)


def _check_tracks(folder: Path, split: str, totals: dict[str, Any], index: Index) -> Iterator[str]:
    tracks = Index(folder / "tracks.parquet")
    rows = zip(tracks["track"], tracks["split"], tracks["status"], tracks["records"].tolist(), strict=True)  # fmt: skip
    stated = {track: n for track, where, status, n in rows if where == split and status == "ok"}
    if len(stated) != totals["tracks"]:
        yield f"tracks.parquet: {len(stated)} tracks of {split}, the manifest says {totals['tracks']}"
    counted = Counter(index["track"])
    for track in sorted(stated | counted):
        if stated.get(track, 0) != counted[track]:
            yield (
                f"tracks.parquet: {stated.get(track, 0)} records of {track}, the index of {split} has "
                f"{counted[track]}"
            )


def _check_references(folder: Path, manifest: dict[str, Any], damaged: set[str]) -> Iterator[str]:
    known = (
        set(Index(folder / "tracks.parquet")["track"]) if "tracks.parquet" not in damaged else None
    )
    for entry in manifest["files"]:
        name = entry["name"]
        if not name.startswith("references-") or name in damaged:
            continue
        for track, notes in references(folder, name[11:-8]).items():
            if known is not None and track not in known:
                yield f"{name}: notes of {track}, which tracks.parquet does not have"
            try:
                validate(notes)
            except ValueError as error:
                yield f"{name}: {track}: {error}"
