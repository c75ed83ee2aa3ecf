"""Estimates a build before any work: tracks, hours, records, bytes and time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence, Set
from itertools import islice

from mt3data.build.build_folder import BuildFolder
from mt3data.build.executor import LOCAL
from mt3data.build.plan import Plan, PlannedTrack, ShardPlan
from mt3data.build.track_examples import TrackExamples, TrackFailure
from mt3data.files import format_bytes, free_bytes
from mt3data.shards.windows import WindowConfig
from mt3data.terminal import plural

TRIAL_SECONDS = 60.0  # of audio at least, where there is a track of that length
TRIALS = 5  # tracks that may fail before the time is given up


def forecast(plan: Plan) -> list[str]:
    """Returns lines that describe what `build` would do with a plan. Writes nothing.

    The time comes from a trial: the records of one track are made twice and discarded, and the
    processor time of the second time is measured.

    Raises:
        UserError: the folder holds another build.
    """
    build_folder = BuildFolder(plan)
    is_complete = build_folder.complete_manifest() is not None
    left = [] if is_complete else build_folder.shards_to_do()
    names_left = {shard.name for shard in left}
    lines = [f"{plan.folder}: {plan.manifest.title}, window {plan.config.windows.frames}, "
             f"right_context {plan.config.windows.right_context}; by headers alone, nothing is written"]  # fmt: skip
    lines.append(f"  {'split':12}{'tracks':>8}{'hours':>9}{'records':>9}{'bytes':>11}{'shards':>8}"
                 f"{'done':>6}")  # fmt: skip
    for split in dict.fromkeys(shard.split for shard in plan.shards):
        mine = [shard for shard in plan.shards if shard.split == split]
        lines.append(_line(split, mine, names_left))
    lines.append(_line("all", plan.shards, names_left))
    if plan.rejected:
        first = plan.rejected[0]
        lines.append(f"{plural(len(plan.rejected), 'track')} cannot be used, first {first['name']} "
                     f"({first['stage']}): {first['error']}")  # fmt: skip
    if not left:
        return [*lines, "nothing is left to do"]
    lines.append(f"{format_bytes(sum(shard.n_bytes for shard in left))} to write, "
                 f"{format_bytes(free_bytes(plan.folder))} free")  # fmt: skip
    return [*lines, _time_left(plan, left)]


def _line(name: str, shards: Sequence[ShardPlan], left: Set[str]) -> str:
    tracks, records = sum(len(s.tracks) for s in shards), sum(s.records for s in shards)
    hours, n_bytes = sum(s.seconds for s in shards) / 3600, sum(s.n_bytes for s in shards)
    done = sum(s.name not in left for s in shards)
    return (f"  {name:12}{tracks:>8}{hours:>9.3f}{records:>9}{format_bytes(n_bytes):>11}{len(shards):>8}"
            f"{done:>6}")  # fmt: skip


def _time_left(plan: Plan, left: list[ShardPlan]) -> str:
    found = _trial(left, plan.config.windows)
    if found is None:
        return "no estimate of time: the tracks that were tried fail"
    track, rate = found
    core_seconds = sum(shard.seconds for shard in left) / rate
    measured = f"{track} takes one core 1/{rate:.0f} of its length"
    if plan.config.engine != LOCAL:
        return (
            f"about {_duration(core_seconds)} of one core, if the cluster's are as fast: {measured}"
        )
    workers = min(plan.config.workers, len(left))
    cores = min(workers, os.cpu_count() or 1)
    return f"about {_duration(core_seconds / cores)} with {workers} workers: {measured}"


def _trial(left: list[ShardPlan], windows: WindowConfig) -> tuple[str, float] | None:
    """Returns the name of a track, and how many seconds of it one core does in a second."""
    from threadpoolctl import threadpool_limits

    tracks = [p for shard in left for p in shard.tracks if p.exclusion is None]
    # The shortest that is long enough, or the longest.
    tracks.sort(key=lambda p: (p.seconds < TRIAL_SECONDS, abs(p.seconds - TRIAL_SECONDS)))
    for planned in islice(tracks, TRIALS):
        try:
            with threadpool_limits(1):  # as in a worker
                _make(planned, windows)  # loads libraries, and the files into the cache
                started = time.process_time()
                _make(planned, windows)
        except TrackFailure:
            continue
        spent = time.process_time() - started
        return planned.track.name, planned.variants * planned.seconds / max(spent, 1e-6)
    return None


def _make(planned: PlannedTrack, windows: WindowConfig) -> None:
    for _ in TrackExamples(planned.track, windows):
        pass


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
