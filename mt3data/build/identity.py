"""Describes everything that determines the bytes of a build, so that a change is noticed.

The identity of a build holds the settings and, for each track, digests of three things: the facts
that its adapter found (programs, stems, shifts, problems), its label files and its audio files.
Labels are read whenever a build is planned. Audio is large, so a worker takes its digest while it
reads the file. Later commands compare size and times of an audio file, and read the file only
where these differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any

from mt3data.datasets.track import Track
from mt3data.files import canonical_json

# Counts the versions of the code that decides bytes. Raise it with every change after which the
# same sources and settings give other records. A release that changes no bytes keeps it, so
# existing builds remain valid.
BYTES_VERSION = 1
BLOCK_BYTES = 1 << 20
MAX_NAMED_DIFFERENCES = 5  # in one message

FileStat = list[int]  # size in bytes, time of change of content and of the inode in nanoseconds


def digest(value: Any) -> str:
    """Returns the sha256 of a value as canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_of(paths: Iterable[Path]) -> str | None:
    """Returns the sha256 of the contents of files, one after the other; None if one is unreadable."""
    found = hashlib.sha256()
    try:
        for path in paths:
            if not S_ISREG(path.stat().st_mode):  # a FIFO or a device may never end
                return None
            with path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    found.update(block)
    except OSError:
        return None
    return found.hexdigest()


def stat_of(path: Path) -> FileStat:
    """Returns size and times of a file; size -1 where there is no regular file."""
    try:
        stat = path.stat()
    except OSError:
        return [-1, 0, 0]
    is_file = S_ISREG(stat.st_mode)
    return [stat.st_size if is_file else -1, stat.st_mtime_ns, stat.st_ctime_ns]


def describe_track(track: Track) -> dict[str, Any]:
    """Returns everything that an adapter found out about a track, as plain data.

    Paths are reduced to file names: a copy of a dataset in another folder is the same dataset.

    Raises:
        TypeError: an adapter's labels hold something that is not plain data.
    """
    plain: dict[str, Any] = _plain(track)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, (Path, str)):
        text = value.name if isinstance(value, Path) else value
        return text.encode("utf-8", "backslashreplace").decode()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(_plain, value))
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise TypeError(
        f"labels hold a {type(value).__name__}; expected dataclasses, paths, numbers, text, lists and "
        "dictionaries, so that a change of them can be noticed"
    )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    """Yields the settings in which two identities differ: "seed: 0 there, 3 here".

    Args:
        theirs: of the build in the folder.
        ours: of the build that is asked for. Tracks are compared by `track_differences`.
    """
    for key in sorted(ours.keys() - {"tracks"}):
        yield from _differences(key, theirs.get(key), ours[key])


def _differences(name: str, theirs: Any, ours: Any) -> Iterator[str]:
    if theirs == ours:
        return
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in sorted(theirs.keys() | ours.keys()):
            yield from _differences(f"{name}.{key}", theirs.get(key), ours.get(key))
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for i, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            yield from _differences(f"{name}[{i}]", one, other)
    else:
        yield f"{name}: {theirs} there, {ours} here"


def track_differences(
    theirs: list[dict[str, Any]], ours: list[dict[str, Any]],
    their_facts: Mapping[str, Any], our_tracks: Mapping[str, Track],
) -> Iterator[str]:  # fmt: skip
    """Yields the tracks, and of these the files and facts, in which two identities differ.

    Args:
        theirs, ours: the entries `tracks` of both plans, or rows of tracks.parquet.
        their_facts: descriptions of their tracks by id, as far as they are known.
        our_tracks: our tracks by id.
    """
    old = {str(entry.get("track")): entry for entry in theirs}
    new = {entry["track"]: entry for entry in ours}
    for track_id in sorted(old.keys() ^ new.keys()):
        yield f"{track_id}: only {'here' if track_id in new else 'there'}"
    for track_id in sorted(old.keys() & new.keys()):
        a, b, track = old[track_id], new[track_id], our_tracks[track_id]
        if a.get("source_bytes") != b["source_bytes"]:
            names = [path.name for path in track.source_files]
            sizes = zip(names, a.get("source_bytes") or [], b["source_bytes"], strict=False)
            yield from (
                f"{track_id}/{name}: {_size(x)} there, {_size(y)} here"
                for name, x, y in sizes
                if x != y
            )
        elif a.get("labels_sha256") != b["labels_sha256"]:
            names = [path.name for path in track.label_files]
            yield f"{track_id}: other content in {_some(names)}"
        if a.get("facts_sha256") != b["facts_sha256"]:
            known = their_facts.get(track_id)
            found = list(_differences("", known, describe_track(track))) if known else []
            yield from (f"{track_id}{each}" for each in found)
            if not found:
                yield f"{track_id}: other facts (programs, stems, shifts, problems)"
        for key in ("split", "header_frames"):
            if a.get(key) != b[key]:
                yield f"{track_id}: {key} {a.get(key)} there, {b[key]} here"


def _size(n_bytes: int) -> str:
    return "missing" if n_bytes < 0 else f"{n_bytes} bytes"


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"


def first_named(named: list[str]) -> str:
    """Joins the first MAX_NAMED_DIFFERENCES differences, and states how many more there are."""
    more = len(named) - MAX_NAMED_DIFFERENCES
    text = "; ".join(named[:MAX_NAMED_DIFFERENCES])
    return f"{text}; and {more} more" if more > 0 else text
