"""Carries out a plan: shards in parallel, then the index, and the manifest last.

Shards are written independently of each other. A shard is done when its state record exists; a build
that was interrupted goes on from there and ends with the same bytes, for any number of workers. A
track that fails is recorded with its reason and leaves everything else in its place.

No time, host, path or number of workers enters any file but `build.log.jsonl`.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.card import dataset_card
from mt3data.disk import locked
from mt3data.errors import UserError
from mt3data.examples import TrackExamples, TrackFailure
from mt3data.plan import BuildConfig, Plan, ShardPlan, track_row
from mt3data.shard_writer import ShardWriter
from mt3data.shards import (
    MANIFEST,
    canonical_json,
    index_schema,
    references_schema,
    tracks_schema,
    write_durably,
    write_listed,
    write_table,
)
from mt3data.windows import SEGMENT_WINDOWS, WindowConfig

STATE = ".state"  # records of an unfinished build; removed when the manifest is written
MAX_TARGET_TOKENS = 1024 - 1  # mt3/preprocessors.py handle_too_long, which counts before EOS


@dataclass(frozen=True)
class Summary:
    """How a build ended."""

    folder: Path
    manifest: dict[str, Any]
    quarantined: tuple[dict[str, Any], ...]
    already_complete: bool = False


# --- one shard -----------------------------------------------------------------------------------


def write_shard(plan: ShardPlan, folder: Path, windows: WindowConfig) -> None:
    """Builds one shard and, when it is durable, its state record.

    A track that fails becomes a quarantined row; the others are not affected.
    """
    writer = ShardWriter(folder / plan.name)
    track_rows, references = [], []
    try:
        for track in plan.tracks:
            examples = TrackExamples(track, windows)
            try:
                with writer.all_or_nothing():
                    for window in examples:
                        writer.add(track.dataset, track.split, track.id, track.name, window)
            except TrackFailure as failure:
                row = track_row(
                    track, status="quarantined", stage=failure.stage, error=str(failure.reason)
                )
                track_rows.append(row)
                continue
            track_rows.append(examples.row)
            if plan.split != "train":
                notes = examples.notes.to_array().tolist()
                references.append({"track": track.id, "notes": notes})
        shard = writer.close()
    except BaseException:
        writer.abandon()
        raise
    record = {"shard": shard | {"split": plan.split}, "rows": writer.rows, "tracks": track_rows,
              "references": references}  # fmt: skip
    write_durably(folder / STATE / f"{plan.name}.json", canonical_json(record))


# --- the build -----------------------------------------------------------------------------------


def build(plan: Plan, on_shard: Callable[[ShardPlan], None] = lambda shard: None) -> Summary:
    """Carries out a plan, or what an interrupted run left of it.

    Args:
        plan: see `make_plan`.
        on_shard: called for each finished shard, those of earlier runs included.
    Raises:
        UserError: the folder holds another build, another run is at work in it, or something that
            is no build; or a finished build there has lost files.
    """
    folder = plan.folder
    finished = _claim(plan)
    if finished:
        _require_files(folder, finished)
        # A run that was killed just after it wrote the manifest leaves its state records.
        shutil.rmtree(folder / STATE, ignore_errors=True)
        quarantined = [row for row in _read_tracks(folder) if row["status"] != "ok"]
        return Summary(folder, finished, tuple(quarantined), already_complete=True)
    with locked(folder / STATE / "lock", f"{folder}: another build is at work there"):
        started = time.time()
        todo = []
        for shard in plan.shards:
            if _is_done(folder, shard):
                on_shard(shard)
            else:
                todo.append(shard)
        by_name = {shard.name: shard for shard in todo}
        for name in _run(todo, folder, plan.config):
            on_shard(by_name[name])
        manifest, tracks = _finalise(plan)
        _log(folder, plan, started, len(todo))
    return Summary(folder, manifest, tuple(row for row in tracks if row["status"] != "ok"))


def _claim(plan: Plan) -> dict[str, Any] | None:
    """Makes the folder ours; returns the manifest if this very build is complete there."""
    folder, ours = plan.folder, plan.identity | {"fingerprint": plan.fingerprint}
    for path in (folder / MANIFEST, folder / STATE / "plan.json"):
        if not path.is_file():
            continue
        theirs = json.loads(path.read_text(encoding="utf-8"))
        if theirs["fingerprint"] != plan.fingerprint:
            finished = "a build" if path.name == MANIFEST else "an unfinished build"
            raise UserError(
                f"{folder} holds {finished} with other settings ({_difference(theirs, ours)}); "
                "choose another --out, or remove that folder"
            )
        if path.name == MANIFEST:
            return theirs
        return None
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no build; choose another --out")
    (folder / STATE).mkdir(parents=True)
    write_durably(folder / STATE / "plan.json", canonical_json(ours))
    return None


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Names the settings that differ, "window: 256 there, 2048 here"."""
    named = []
    for key in sorted(ours):
        a, b = theirs.get(key), ours[key]
        if a == b or key in ("fingerprint", "schema"):
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            named += [
                f"{key}.{k}: {a.get(k)} there, {b.get(k)} here"
                for k in sorted(a | b)
                if a.get(k) != b.get(k)
            ]
        elif key == "tracks" and isinstance(a, list) and isinstance(b, list):
            named.append(f"tracks: {len(a)} there, {len(b)} here, or other files")
        else:
            named.append(f"{key}: {a} there, {b} here")
    return "; ".join(named) or "another version"


def _require_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises a UserError if files of a finished build are missing or have another size."""
    entries = manifest["shards"] + manifest["files"]
    sizes = {e["name"]: e["bytes"] for e in entries}
    lost = [
        name
        for name, size in sizes.items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != size
    ]
    if lost:
        raise UserError(
            f"{folder} was finished, but {len(lost)} of its {len(sizes)} files are missing or have "
            f"another size, first {lost[0]}; copy them back, or remove the folder and build again"
        )


def _is_done(folder: Path, shard: ShardPlan) -> bool:
    record, path = folder / STATE / f"{shard.name}.json", folder / shard.name
    if not record.is_file() or not path.is_file():
        return False
    return path.stat().st_size == json.loads(record.read_bytes())["shard"]["bytes"]


def _run(todo: list[ShardPlan], folder: Path, config: BuildConfig) -> Iterator[str]:
    """Writes shards in parallel; yields the name of each as it is done."""
    import joblib

    folder = (
        folder.absolute()
    )  # joblib's workers live on, in the folder where the first build began
    for leftover in folder.rglob("*.tmp-*"):
        leftover.unlink()
    with joblib.parallel_config("loky", n_jobs=config.workers, inner_max_num_threads=1):
        parallel = joblib.Parallel(
            return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs"
        )
        yield from parallel(
            joblib.delayed(_write_named)(shard, folder, config.windows) for shard in todo
        )


def _write_named(shard: ShardPlan, folder: Path, windows: WindowConfig) -> str:
    write_shard(shard, folder, windows)
    return shard.name


def _finalise(plan: Plan) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Index, tracks, references and card from the state records; the manifest last."""
    folder = plan.folder
    records = [json.loads((folder / STATE / f"{s.name}.json").read_bytes()) for s in plan.shards]
    tracks = sorted(
        [row for record in records for row in record["tracks"]] + list(plan.rejected),
        key=lambda row: (row["split"], row["track"]),
    )
    splits, files = {}, [write_table(folder / "tracks.parquet", tracks, tracks_schema())]
    for split in sorted({shard.split for shard in plan.shards}):
        mine = [record for record in records if record["shard"]["split"] == split]
        rows = [row for record in mine for row in record["rows"]]
        written = write_table(
            folder / "index" / f"{split}.parquet", rows, index_schema(plan.identity["members"])
        )
        files.append(written | {"name": f"index/{split}.parquet"})
        if split != "train":
            notes = [row for record in mine for row in _reference_rows(record)]
            path = folder / f"references-{split}.parquet"
            files.append(write_table(path, notes, references_schema()))
        of_split = [track for track in tracks if track["split"] == split]
        splits[split] = _totals(rows, of_split, plan.config.windows.frames)
    body = plan.identity | {
        "fingerprint": plan.fingerprint,
        "licence": plan.manifest.licence, "licence_url": plan.manifest.licence_url,
        "redistribution": plan.manifest.redistribution, "citation": plan.manifest.citation,
        "title": plan.manifest.title,
        "splits": splits, "shards": [record["shard"] for record in records],
        "quarantined": sum(row["status"] != "ok" for row in tracks),
        "environment": environment(),
    }  # fmt: skip
    files.append(write_listed(folder / "README.md", dataset_card(body).encode()))
    body["files"] = sorted(files, key=lambda entry: entry["name"])
    write_durably(folder / MANIFEST, canonical_json(body))
    shutil.rmtree(folder / STATE)
    return body, tracks


def _reference_rows(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for entry in record["references"]:
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


def environment() -> dict[str, str]:
    """Versions that could change bytes; never a time, host or path."""
    import scipy
    import soundfile
    import soxr

    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "machine": platform.machine(), "numpy": np.__version__, "scipy": scipy.__version__,
        "soxr": soxr.__version__, "libsndfile": soundfile.__libsndfile_version__,
    }  # fmt: skip


def _read_tracks(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(folder / "tracks.parquet").to_pylist()


def _log(folder: Path, plan: Plan, started: float, built: int) -> None:
    entry = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "seconds": round(time.time() - started, 1),
        "shards_built": built, "shards": len(plan.shards), "workers": plan.config.workers,
        "root": str(plan.config.root), "host": platform.node(),
    }  # fmt: skip
    with (folder / "build.log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
