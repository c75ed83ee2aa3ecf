"""Carries out a plan: shards in parallel, then the tables, and the build manifest last.

Shards are independent of each other. A shard is done when its state record exists. An interrupted
build continues from there and ends with the same bytes, for any number of workers and any engine. A
finished build with damaged files is completed again in the same way. A track that fails, hangs or
crashes its worker is recorded with its reason and changes no other record.

Times, hosts, paths and numbers of workers are in no file but `build.log.jsonl`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mt3data.build.build_folder import BuildFolder, OnMessage
from mt3data.build.crash_guard import Run, new_run, track_of
from mt3data.build.executor import LOCAL, WorkerCrashed
from mt3data.build.executor import run as run_tasks
from mt3data.build.finalize import assemble
from mt3data.build.plan import Plan, ShardPlan
from mt3data.build.shard_job import STATE, build_shard
from mt3data.errors import UserError
from mt3data.files import require_space
from mt3data.shards.format import BUILD_MANIFEST
from mt3data.shards.index import track_rows

# Crashes of workers, without a shard done between them, that no track can have caused.
MAX_UNEXPLAINED = 3


@dataclass(frozen=True)
class Summary:
    """The result of a build.

    Attributes:
        manifest: the build manifest.
        quarantined: rows of the tracks that were left out.
        already_complete: an earlier run had made it, and nothing was written.
    """

    folder: Path
    manifest: dict[str, Any]
    quarantined: tuple[dict[str, Any], ...]
    already_complete: bool = False


def build(
    plan: Plan,
    on_shard: Callable[[ShardPlan], None] = lambda shard: None,
    on_message: OnMessage = lambda line: None,
) -> Summary:
    """Carries out a plan, or the part of it that an earlier run left.

    Args:
        plan: see `make_plan`.
        on_shard: called for each finished shard, those of earlier runs included.
        on_message: called with one line that the user should know.
    Returns:
        What was built, by this run or by an earlier one, and which tracks are not in it.
    Raises:
        UserError: the folder holds a build from other sources or settings, or no build; another run
            is at work in it; there is no space; or every worker crashes.
    """
    folder, build_folder = plan.folder, BuildFolder(plan, on_message)
    if summary := _complete(build_folder):
        return summary
    with build_folder.lock():
        if summary := _complete(build_folder):  # another run has just ended
            return summary
        before = build_folder.reopen() if (folder / BUILD_MANIFEST).is_file() else []
        build_folder.begin()
        todo = build_folder.shards_to_do()
        names = {shard.name for shard in todo}
        for shard in plan.shards:
            if shard.name not in names:
                on_shard(shard)
        require_space(folder, sum(shard.n_bytes for shard in todo), "for shards", "--out")
        config = plan.config
        build_folder.log("start", workers=config.workers, engine=config.engine, todo=len(todo),
                         shards=len(plan.shards), root=str(config.root))  # fmt: skip
        with (
            new_run(
                (folder / STATE).absolute(), config.root.absolute(), config.track_timeout
            ) as run,
            closing(_shards(todo, build_folder, run, on_message)) as done,
        ):
            for shard in done:
                on_shard(shard)
        manifest, tracks = assemble(build_folder, run.environment)
        build_folder.log("end")
        for entry in before:
            if entry not in manifest["shards"]:
                on_message(f"{folder}: {entry['name']} has other bytes than before it was damaged")
    return _summary(plan, manifest, tracks)


def _complete(build_folder: BuildFolder) -> Summary | None:
    manifest = build_folder.complete_manifest(remember=True)
    if manifest is None:
        return None
    plan = build_folder.plan
    # A run that was killed just after it wrote the build manifest leaves its state records.
    for leftover in plan.folder.glob(f"{STATE}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return _summary(plan, manifest, track_rows(plan.folder), already_complete=True)


def _summary(
    plan: Plan,
    manifest: dict[str, Any],
    tracks: list[dict[str, Any]],
    already_complete: bool = False,
) -> Summary:
    quarantined = tuple(row for row in tracks if row["status"] != "ok")
    return Summary(plan.folder, manifest, quarantined, already_complete)


def _shards(
    todo: list[ShardPlan], build_folder: BuildFolder, run: Run, on_message: OnMessage
) -> Generator[ShardPlan, None, None]:
    """Writes shards in parallel; yields each when it is done.

    After local workers crashed, the shards that they were at are built one at a time before all
    others go on: loky stops every worker when one crashes, so only a worker that is alone shows
    which track was the cause.
    """
    plan, folder = build_folder.plan, build_folder.folder.absolute()
    config = plan.config
    waiting, suspects, unexplained = {shard.name: shard for shard in todo}, list[str](), 0
    while waiting:
        suspects = [name for name in suspects if name in waiting]
        jobs = [
            (waiting[name], folder, config.windows, run) for name in suspects[:1] or list(waiting)
        ]
        known = set(run.markers())
        workers = 1 if suspects else config.workers
        try:
            with closing(
                run_tasks(config.engine, workers, build_shard, jobs, on_message)
            ) as results:
                for result in results:
                    build_folder.log("shard", **result)
                    unexplained = 0
                    yield waiting.pop(result["shard"])
        except WorkerCrashed as crash:
            left = {path: hung for path, hung in run.markers().items() if path not in known}
            build_folder.log("death", tracks=sorted(map(track_of, left)), reason=str(crash),
                             dumps=[p.read_text("utf-8") for p, hung in left.items() if hung])  # fmt: skip
            unexplained += not left
            if unexplained >= MAX_UNEXPLAINED:
                raise UserError(
                    f"workers crashed {unexplained} times outside any track, so no track is the cause; "
                    f"is memory short? Fewer --workers need less ({crash})"
                ) from crash
            done = [name for name, shard in waiting.items() if build_folder.shard_is_done(shard)]
            for name in done:
                yield waiting.pop(name)
            if config.engine == LOCAL:
                suspects += _suspects(left, waiting)


def _suspects(left: dict[Path, bool], waiting: dict[str, ShardPlan]) -> list[str]:
    """Returns the names of the shards to be built alone, after local workers crashed.

    Args:
        left: markers of the tracks that they were at, and whether each track hung. Markers that
            prove nothing are removed: one track crashed its worker, and loky stopped the others.
        waiting: shards by name.
    """
    blamed = {track_of(path) for path in left if not any(left.values())}
    if len(left) > 1:
        for path in (path for path, hung in left.items() if not hung):
            path.unlink()
    return [
        name
        for name, shard in waiting.items()
        if any(planned.track.id in blamed for planned in shard.tracks)
    ]
