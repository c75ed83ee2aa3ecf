"""Builds one shard, track by track, on a worker; writes its state record when it is durable.

A track that fails becomes a quarantined row and leaves no record. Errors of the output folder end
the build, because no track causes them.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mt3data.build.crash_guard import Run
from mt3data.build.identity import FileStat, sha256_of, stat_of
from mt3data.build.plan import PlannedTrack, ShardPlan
from mt3data.build.track_examples import TrackExamples, TrackFailure
from mt3data.build.track_table import failed_row
from mt3data.datasets.track import Track
from mt3data.errors import UserError
from mt3data.files import canonical_json, write_atomically
from mt3data.shards.windows import WindowConfig
from mt3data.shards.writer import ShardWriter

STATE = ".state"  # folder of an unfinished build: a file per finished shard
# A dask worker with several threads would run several tasks, and a process has one time limit.
_ONE_AT_A_TIME = threading.Lock()


def build_shard(plan: ShardPlan, folder: Path, windows: WindowConfig, run: Run) -> dict[str, Any]:
    """Writes one shard on one thread; the task that an engine gives to a worker.

    Args:
        plan: of the shard.
        folder: of the build.
        windows: how tracks are cut.
        run: the run of the build to which the task belongs.
    Returns:
        What the log of the build records: shard, host, pid, seconds and failures.
    Raises:
        UserError: this machine cannot do it, see `Run.require_same_place`; or the shard cannot be
            written.
    """
    from threadpoolctl import threadpool_limits

    with _ONE_AT_A_TIME, threadpool_limits(1):
        started = time.time()
        run.require_same_place()
        try:
            failures = write_shard(plan, folder, windows, run)
        except OSError as error:
            why = error.strerror or str(error)
            raise UserError(
                f"{folder}: {plan.name} cannot be written ({why}); make room or choose another "
                "--out, then repeat the command: it goes on from here"
            ) from error
    return {
        "shard": plan.name, "host": platform.node(), "pid": os.getpid(),
        "seconds": round(time.time() - started, 3), "failures": failures,
    }  # fmt: skip


def write_shard(
    plan: ShardPlan, folder: Path, windows: WindowConfig, run: Run
) -> list[dict[str, str]]:
    """Writes one shard into the folder of its build, then its state record.

    A shard whose tracks all failed has a state record and no file.

    Returns:
        Id, stage and text of the failure of each track that failed.
    """
    writer = ShardWriter(folder / plan.name)
    rows, references, failures, audio = [], [], [], dict[str, list[FileStat]]()
    try:
        for planned in plan.tracks:
            track = planned.track
            audio[track.id] = [stat_of(path) for path in track.audio_files]
            try:
                examples = _add_track(writer, planned, windows, run)
            except TrackFailure as failure:
                row = failed_row(track, failure.stage, failure.reason)
                if failure.stage != "source":  # else its files are in the middle of a change
                    row["audio_sha256"] = sha256_of(track.audio_files)
                rows.append(row)
                failures.append(
                    {"track": track.id, "stage": failure.stage, "reason": _traceback_text(failure)}
                )
                continue
            rows.append(examples.row)
            if plan.split != "train":
                references.append({"track": track.id, "notes": examples.notes.to_array().tolist()})
        shard = writer.close() if writer.rows else writer.abandon()
    except BaseException:
        writer.abandon()
        raise
    write_state(folder, plan, {
        "shard": shard, "rows": writer.rows, "tracks": rows, "references": references,
        "audio": audio, "excluded": [p.track.id for p in plan.tracks if p.exclusion],
    })  # fmt: skip
    return failures


def write_state(folder: Path, plan: ShardPlan, state: dict[str, Any]) -> None:
    """Writes the state record of a shard: from then on the shard is done."""
    state["shard"] |= {"split": plan.split}
    write_atomically(state_path(folder, plan.name), canonical_json(state))


def state_path(folder: Path, shard: str) -> Path:
    """Returns the path of the state record of a shard in the folder of its build."""
    return folder / STATE / f"{shard}.json"


def _traceback_text(failure: TrackFailure) -> str:
    """Returns the traceback of an unexpected exception, else the reason of the failure."""
    if failure.__cause__ is None or isinstance(failure.__cause__, UserError):
        return str(failure)
    return "".join(traceback.format_exception(failure.__cause__))


def _add_track(
    writer: ShardWriter, planned: PlannedTrack, windows: WindowConfig, run: Run
) -> TrackExamples:
    """Adds all records of a track, or raises a TrackFailure and adds none."""
    track = planned.track
    if reason := planned.exclusion or run.should_skip(planned):
        raise TrackFailure(*reason)
    examples = TrackExamples(track, windows)
    with run.guard(planned), writer.all_or_nothing(), _unchanged(planned):
        for window in examples:
            writer.add(track.dataset, track.split, track.id, track.name, window)
        if examples.row["labels_sha256"] != planned.labels_sha256:
            raise TrackFailure("source", "its labels changed since the build was planned")
    return examples


@contextmanager
def _unchanged(planned: PlannedTrack) -> Iterator[None]:
    """Raises a TrackFailure if a source file differs from the plan's, or changes in the body."""
    before = _stats(planned.track)
    sizes = zip(planned.track.source_files, before, planned.source_bytes, strict=True)
    for path, (size, _, _), planned_size in sizes:
        if size != planned_size:
            raise TrackFailure("source", f"{path.name} changed since the build was planned")
    try:
        yield
    except TrackFailure:  # what was read may be wrong for that reason
        _require_same(before, planned.track)
        raise
    _require_same(before, planned.track)


def _require_same(before: list[FileStat], track: Track) -> None:
    for path, old, new in zip(track.source_files, before, _stats(track), strict=True):
        if old[:2] != new[:2]:
            raise TrackFailure("source", f"{path.name} changed while it was read")


def _stats(track: Track) -> list[FileStat]:
    return [stat_of(path) for path in track.source_files]
