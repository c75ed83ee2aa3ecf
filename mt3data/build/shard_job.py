"""What a worker does: one shard, track by track, and its state record when it is durable.

A track that fails becomes a quarantined row and leaves no record; the others are not affected.
Errors about the output are no track's fault and end the build.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

from mt3data.build.crash_guard import Run
from mt3data.build.plan import PlannedTrack, ShardPlan
from mt3data.build.track_examples import TrackExamples, TrackFailure
from mt3data.build.track_table import failed_row
from mt3data.datasets.track import Track
from mt3data.errors import UserError
from mt3data.files import canonical_json, write_atomically
from mt3data.shards.windows import WindowConfig
from mt3data.shards.writer import ShardWriter

STATE = ".state"  # of an unfinished build: a file per finished shard; gone with the manifest
# A dask worker with several threads would run several tasks, and a process has one time limit.
_ONE_AT_A_TIME = threading.Lock()


def build_shard(plan: ShardPlan, folder: Path, windows: WindowConfig, run: Run) -> dict[str, Any]:
    """The task that an engine hands to a worker: one shard, written into folder on one thread.

    Returns:
        What the build's log says of it: shard, host, pid, seconds and failures.
    Raises:
        UserError: this machine cannot do it: see `Run.require_same_place`, or the shard cannot be
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
    """Builds one shard in the build's folder and, when it is durable, its state record.

    Returns:
        For each track that failed its id and stage, and what is to be told of it.
    """
    writer = ShardWriter(folder / plan.name)
    rows, references, failures = [], [], []
    try:
        for planned in plan.tracks:
            track = planned.track
            try:
                examples = _add_track(writer, planned, windows, run)
            except TrackFailure as failure:
                rows.append(failed_row(track, failure.stage, failure.reason))
                failures.append(
                    {"track": track.id, "stage": failure.stage, "told": _traceback_text(failure)}
                )
                continue
            rows.append(examples.row)
            if plan.split != "train":
                references.append({"track": track.id, "notes": examples.notes.to_array().tolist()})
        shard = writer.close()
    except BaseException:
        writer.abandon()
        raise
    state = {"shard": shard | {"split": plan.split}, "rows": writer.rows, "tracks": rows,
              "references": references}  # fmt: skip
    write_atomically(state_path(folder, plan.name), canonical_json(state))
    return failures


def state_path(folder: Path, shard: str) -> Path:
    """Where the state record of a shard stands in the folder of its build."""
    return folder / STATE / f"{shard}.json"


def _traceback_text(failure: TrackFailure) -> str:
    """A traceback where the track met what looks like a bug, of ours or a library's."""
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
    return examples


@contextmanager
def _unchanged(planned: PlannedTrack) -> Iterator[None]:
    """Raises a TrackFailure if a source file differs from the plan's, or changes meanwhile."""
    before = _seen(planned.track)
    for (name, size, _), planned_size in zip(before, planned.source_bytes, strict=True):
        if size != planned_size:
            raise TrackFailure("source", f"{name} changed since the build was planned")
    try:
        yield
    except TrackFailure:  # what was read may be wrong for that reason
        _require_same(before, planned.track)
        raise
    _require_same(before, planned.track)


def _require_same(before: list[tuple[str, int, int]], track: Track) -> None:
    for old, new in zip(before, _seen(track), strict=True):
        if old != new:
            raise TrackFailure("source", f"{new[0]} changed while it was read")


def _seen(track: Track) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every source file; -1 and 0 for what is no file."""
    seen = []
    for path in track.source_files:
        size, changed = -1, 0
        with suppress(OSError):
            stat = path.stat()
            if S_ISREG(stat.st_mode):
                size, changed = stat.st_size, stat.st_mtime_ns
        seen.append((path.name, size, changed))
    return seen
