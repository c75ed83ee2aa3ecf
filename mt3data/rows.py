"""What `tracks.parquet` says of a track, and the files that a track is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mt3data.errors import UserError
from mt3data.track import Track


def source_files(track: Track) -> list[Path]:
    """Everything a track is built from: its audio, then its label files or its stems' MIDI."""
    return [*track.audio_files, *label_files(track)]


def label_files(track: Track) -> list[Path]:
    """The files that hold a track's labels."""
    if track.labels is not None:
        return list(track.labels.files)
    return [stem.midi for stem in track.stems if stem.midi]


def bytes_of_sources(track: Track) -> tuple[int, ...]:
    """The size of each of `source_files`; -1 where there is no such file."""
    return tuple(p.stat().st_size if p.is_file() else -1 for p in source_files(track))


def failed_row(track: Track, stage: str, error: Exception | str) -> dict[str, Any]:
    """The row of a track that is left out. Paths in the error are cut to names.

    Args:
        track: which.
        stage: what was being done: "plan", "labels", "audio", "windows", "align", "source" (a file
            changed), "hang" or "worker" (its worker died).
        error: why it failed.
    """
    said = str(error)
    if isinstance(error, Exception) and not isinstance(error, UserError):
        said = f"{type(error).__name__}: {said}"
    # Bytes of a build must not depend on where the data lie.
    for path in sorted(source_files(track), key=lambda path: -len(str(path))):
        said = said.replace(str(path), path.name)
    return track_row(track, status="quarantined", stage=stage, error=said)


def read_bad(path: Path) -> dict[str, tuple[str, str]]:
    """Reads a list of tracks to leave out: lines of TRACK, stage and reason, with tabs between.

    A build that leaves out a track for the very stage and reason with which it fails by itself has
    the same bytes as one in which it fails.

    Returns:
        Stage and reason by id or name; "listed" and "left out" where the line has none.
    Raises:
        UserError: the file cannot be read, or a line has more than three columns.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a list of tracks") from error
    listed = {}
    for number, line in enumerate(lines, 1):
        track, *told = line.strip("\n").split("\t")
        if len(told) > 2:
            raise UserError(
                f"{path}: line {number} has {len(told) + 1} columns; expected TRACK, stage, reason"
            )
        stage = told[0] if told else "listed"
        reason = told[1] if len(told) > 1 else "left out"
        if track.strip():
            listed[track.strip()] = (stage, reason)
    return listed


def track_row(track: Track, **known: Any) -> dict[str, Any]:
    """A row of tracks.parquet; what is not known is null, 0 or empty."""
    row = dict.fromkeys(("seconds", "frames", "notes", "notes_after_audio", "lag", "drift", "align_confidence", "audio_sha256", "labels_sha256"))  # fmt: skip
    row |= {"track": track.id, "name": track.name, "split": track.split, "records": 0}
    return (
        row
        | {
            "stage": "",
            "error": "",
            "aligned": "",
            "passes": passes_said(track),
            "problems": list(track.problems),
        }
        | known
    )


def passes_said(track: Track) -> list[str]:
    """The stems that each pass hears, "S00+S02", where they do not hear the mix."""
    return ["+".join(members) for members in track.passes]
