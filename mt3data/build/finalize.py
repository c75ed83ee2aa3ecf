"""Finishes a build: merges the state records into tables, card and build manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from mt3data import __version__
from mt3data.build.build_folder import BuildFolder
from mt3data.build.card import dataset_card
from mt3data.build.identity import digest, sha256_of, stat_of
from mt3data.build.shard_job import STATE, state_path
from mt3data.files import canonical_json, remove_atomically, write_atomically
from mt3data.shards.format import (
    BUILD_MANIFEST,
    identity_of,
    index_schema,
    references_schema,
    tracks_schema,
    write_listed,
    write_table,
)
from mt3data.shards.windows import SEGMENT_WINDOWS

# Columns of tracks.parquet that the plan decides, by which later commands notice a change.
PLANNED = ("facts_sha256", "header_frames", "source_bytes", "labels_sha256")
MAX_TARGET_TOKENS = 1024 - 1  # mt3/preprocessors.py handle_too_long, which counts before EOS


def assemble(
    build_folder: BuildFolder, environment: dict[str, str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Writes index, tracks, references and card from the state records; the build manifest last.

    Args:
        build_folder: of a build whose shards are done.
        environment: of all workers, see `crash_guard.environment`.
    Returns:
        The build manifest, and the rows of tracks.parquet.
    """
    plan, folder = build_folder.plan, build_folder.folder
    states = [json.loads(state_path(folder, s.name).read_bytes()) for s in plan.shards]
    audio = {track: stats for state in states for track, stats in state["audio"].items()}
    rejected = [dict(row) for row in plan.rejected]
    for row in rejected:
        paths = plan.tracks[row["track"]].audio_files
        audio[row["track"]] = [stat_of(path) for path in paths]
        row["audio_sha256"] = sha256_of(paths)
    tracks = sorted(
        [row for state in states for row in state["tracks"]] + rejected,
        key=lambda row: (row["split"], row["track"]),
    )
    planned = {entry["track"]: entry for entry in plan.identity["tracks"]}
    for row in tracks:
        row |= {name: planned[row["track"]][name] for name in PLANNED}
    for state in states:
        if not state["shard"]["records"]:  # all of its tracks failed
            (folder / state["shard"]["name"]).unlink(missing_ok=True)
    states = [state for state in states if state["shard"]["records"]]
    splits, files = {}, [write_table(folder / "tracks.parquet", tracks, tracks_schema())]
    for split in sorted({state["shard"]["split"] for state in states}):
        mine = [state for state in states if state["shard"]["split"] == split]
        rows = [row for state in mine for row in state["rows"]]
        written = write_table(
            folder / "index" / f"{split}.parquet", rows, index_schema(plan.identity["features"])
        )
        files.append(written | {"name": f"index/{split}.parquet"})
        if split != "train":
            notes = [row for state in mine for row in _reference_rows(state)]
            path = folder / f"references-{split}.parquet"
            files.append(write_table(path, notes, references_schema()))
        of_split = [track for track in tracks if track["split"] == split]
        splits[split] = _totals(rows, of_split, plan.config.windows.frames)
    body = plan.identity | plan.card_facts | {
        "tracks": {
            "count": len(tracks), "planned": digest(plan.identity["tracks"]),
            "built": digest([[row["track"], row["status"], row["audio_sha256"]] for row in tracks]),
        },
        "version": __version__,
        "splits": splits, "shards": [state["shard"] for state in states],
        "quarantined": sum(row["status"] != "ok" for row in tracks),
        "environment": environment,
    }  # fmt: skip
    body["fingerprint"] = digest(identity_of(body))
    if plan.manifest.name == "demo":
        from mt3data.synth.demo_dataset import read_settings

        settings = read_settings(plan.config.root) or read_settings(plan.config.root / "demo")
        if settings and "effects" in settings:  # kinds of pieces, SoundFonts and their licences
            body["synth"] = settings
    files.append(write_listed(folder / "README.md", dataset_card(body).encode()))
    body["files"] = sorted(files, key=lambda entry: entry["name"])
    build_folder.remember_sources(audio, body)
    write_atomically(folder / BUILD_MANIFEST, canonical_json(body))
    remove_atomically(folder / STATE)
    return body, tracks


def _reference_rows(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for entry in state["references"]:
        for onset, offset, pitch, velocity, program, is_drum, instrument in entry["notes"]:
            yield {
                "track": entry["track"], "onset": onset, "offset": offset, "pitch": int(pitch),
                "velocity": int(velocity), "program": int(program), "is_drum": bool(is_drum),
                "instrument": int(instrument),
            }  # fmt: skip


def _totals(
    rows: list[dict[str, Any]], tracks: list[dict[str, Any]], frames: int
) -> dict[str, Any]:
    is_segment = frames in SEGMENT_WINDOWS  # longer windows are cut and tokenised anew in training
    tokens = np.array([row["n_tokens"] for row in rows] or [0])
    usable = [track for track in tracks if track["status"] == "ok"]
    return {
        "tracks": len(usable), "records": len(rows), "frames": sum(row["frames"] for row in rows),
        "hours": round(sum(track["seconds"] for track in usable) / 3600, 6),
        "notes": sum(track["notes"] for track in usable),
        "tokens": int(tokens.sum()), "max_tokens": int(tokens.max()),
        "targets_too_long": int((tokens - 1 > MAX_TARGET_TOKENS).sum()) if is_segment else None,
        "quarantined": len(tracks) - len(usable),
    }  # fmt: skip
