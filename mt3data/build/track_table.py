"""What `tracks.parquet` says of a track, and the list of tracks that a build is to leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mt3data.datasets.track import Track
from mt3data.errors import UserError


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
    for path in sorted(track.source_files, key=lambda path: -len(str(path))):
        said = said.replace(str(path), path.name)
    return track_row(track, status="quarantined", stage=stage, error=said)


def read_exclusions(path: Path) -> dict[str, tuple[str, str]]:
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
            "variants": variant_stems(track),
            "problems": list(track.problems),
        }
        | known
    )


def variant_stems(track: Track) -> list[str]:
    """The stems that each variant hears, "S00+S02", where they do not hear the mix."""
    return ["+".join(members) for members in track.variants]
