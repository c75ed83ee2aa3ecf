"""Makes the rows of tracks.parquet, and reads the list of tracks that a build leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mt3data.datasets.track import Track
from mt3data.errors import UserError, printable, shortened
from mt3data.files import read_limited

UNKNOWN = (
    "seconds", "frames", "notes", "notes_after_audio", "lag", "drift", "align_confidence",
    "audio_sha256", "labels_sha256",
)  # fmt: skip


def failed_row(track: Track, stage: str, error: Exception | str) -> dict[str, Any]:
    """Returns the row of a track that is left out. Paths in the error are cut to names.

    Args:
        track: which.
        stage: "plan", "labels", "audio", "windows", "align", "source" (a file changed), "hang" or
            "worker" (its worker crashed).
        error: why it failed.
    """
    text = str(error)
    if isinstance(error, Exception) and not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}"
    text = printable(text)
    # The bytes of a build must not depend on where the dataset lies.
    for path in sorted(track.source_files, key=lambda path: -len(str(path))):
        text = text.replace(printable(str(path)), printable(path.name))
    return track_row(track, status="quarantined", stage=stage, error=shortened(text))


def read_exclusions(path: Path) -> dict[str, tuple[str, str]]:
    """Reads a list of tracks to leave out: lines of TRACK, stage and reason, separated by tabs.

    A build that leaves out a track with the stage and the reason with which it fails by itself has
    the same bytes as a build in which it fails.

    Returns:
        Stage and reason by id or name; "listed" and "left out" where the line has none.
    Raises:
        UserError: the file cannot be read, or a line has more than three columns.
    """
    try:
        lines = read_limited(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a list of tracks") from error
    except UserError as error:
        raise UserError(f"{error}; expected a list of tracks") from None
    listed = {}
    for number, line in enumerate(lines, 1):
        track, *rest = line.strip("\n").split("\t")
        if len(rest) > 2:
            raise UserError(
                f"{path}: line {number} has {len(rest) + 1} columns; expected TRACK, stage, reason"
            )
        stage = rest[0] if rest else "listed"
        reason = rest[1] if len(rest) > 1 else "left out"
        if track.strip():
            listed[track.strip()] = (stage, reason)
    return listed


def track_row(track: Track, **known: Any) -> dict[str, Any]:
    """Returns a row of tracks.parquet; unknown columns are null, 0 or empty."""
    return dict.fromkeys(UNKNOWN) | {
        "track": track.id, "name": track.name, "split": track.split, "records": 0, "stage": "",
        "error": "", "aligned": "", "variants": variant_stems(track),
        "problems": list(track.problems),
    } | known  # fmt: skip


def variant_stems(track: Track) -> list[str]:
    """Returns the stems of each variant, "S00+S02", where variants differ in stems."""
    return ["+".join(stems) for stems in track.variants]
