"""Carries out a plan: shards in parallel, then the index, and the manifest last.

Shards are written independently of each other. A shard is done when its state record exists; a build
that was interrupted goes on from there and ends with the same bytes, for any number of workers and
any engine. A track that fails, hangs or kills its worker is recorded with its reason and leaves
everything else in its place.

No time, host, path or number of workers enters any file but `build.log.jsonl`.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mt3data.build.build_folder import LOG, BuildFolder
from mt3data.build.crash_guard import Run, new_run, track_of
from mt3data.build.executor import LOCAL, WorkerCrashed
from mt3data.build.executor import run as run_tasks
from mt3data.build.finalize import assemble
from mt3data.build.plan import Plan, ShardPlan
from mt3data.build.shard_job import STATE, build_shard
from mt3data.errors import UserError
from mt3data.files import require_space
from mt3data.shards.index import track_rows

# Deaths of workers, without a shard done between them, that no track can have caused.
MAX_UNEXPLAINED = 3


@dataclass(frozen=True)
class Summary:
    """How a build ended."""

    folder: Path
    manifest: dict[str, Any]
    quarantined: tuple[dict[str, Any], ...]
    already_complete: bool = False


def build(
    plan: Plan,
    on_shard: Callable[[ShardPlan], None] = lambda shard: None,
    on_message: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Carries out a plan, or what an interrupted run left of it.

    Args:
        plan: see `make_plan`.
        on_shard: called for each finished shard, those of earlier runs included.
        on_message: told in one line what the user should know while it runs.
    Returns:
        What was built, by this run or by an earlier one, and which tracks are not in it.
    Raises:
        UserError: the folder holds another build, another run is at work in it, or something that
            is no build; a finished build there has lost files; there is no room, or no worker that
            stays alive.
    """
    folder, build_folder = plan.folder, BuildFolder(plan)
    if summary := _complete(plan):
        return summary
    with build_folder.lock():
        if summary := _complete(plan):  # by a run that ended in this very moment
            return summary
        todo = []
        for shard in plan.shards:
            if build_folder.shard_is_done(shard):
                on_shard(shard)
            else:
                todo.append(shard)
        require_space(folder, sum(shard.n_bytes for shard in todo), "for shards", "--out")
        config = plan.config
        _log(folder, "start", workers=config.workers, engine=config.engine, todo=len(todo),
             shards=len(plan.shards), root=str(config.root))  # fmt: skip
        with (
            new_run(
                (folder / STATE).absolute(), config.root.absolute(), config.track_timeout
            ) as run,
            closing(_shards(todo, plan, run, on_message)) as done,
        ):
            for shard in done:
                on_shard(shard)
        manifest, tracks = assemble(plan, run.environment)
        _log(folder, "end")
    return _summary(plan, manifest, tracks)


def _complete(plan: Plan) -> Summary | None:
    manifest = BuildFolder(plan).complete_manifest()
    if manifest is None:
        return None
    # A run that was killed just after it wrote the manifest leaves its state.
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
    todo: list[ShardPlan], plan: Plan, run: Run, on_message: Callable[[str], None]
) -> Generator[ShardPlan, None, None]:
    """Writes shards in parallel; yields each when it is done.

    Where local workers died, the shards that they were at are built alone before all others go on:
    loky stops every worker when one dies, so only a death alone says which track was the cause.
    """
    folder, config = plan.folder.absolute(), plan.config
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
                for told in results:
                    _log(folder, "shard", **told)
                    unexplained = 0
                    yield waiting.pop(told["shard"])
        except WorkerCrashed as loss:
            left = {path: hung for path, hung in run.markers().items() if path not in known}
            _log(folder, "death", tracks=sorted(map(track_of, left)), reason=str(loss),
                 dumps=[path.read_text() for path, hung in left.items() if hung])  # fmt: skip
            unexplained += not left
            if unexplained >= MAX_UNEXPLAINED:
                raise UserError(
                    f"workers died {unexplained} times outside any track, so no track is to blame; "
                    f"is memory short? Fewer --workers need less ({loss})"
                ) from loss
            for name in [
                name for name, shard in waiting.items() if BuildFolder(plan).shard_is_done(shard)
            ]:
                yield waiting.pop(name)
            if config.engine == LOCAL:
                suspects += _suspects(left, waiting)


def _suspects(left: dict[Path, bool], waiting: dict[str, ShardPlan]) -> list[str]:
    """Names of the shards that are to be built alone, after local workers died.

    Args:
        left: markers of the tracks that they were at, and whether each tells of a hang. Those that
            prove nothing are removed: of several tracks one killed its worker, and loky the others.
        waiting: shards by name.
    """
    accused = {track_of(path) for path in left if not any(left.values())}
    if len(left) > 1:
        for path in (path for path, hung in left.items() if not hung):
            path.unlink()
    return [
        name
        for name, shard in waiting.items()
        if any(planned.track.id in accused for planned in shard.tracks)
    ]


def _log(folder: Path, event: str, **facts: Any) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    entry = {"time": now, "event": event, "driver": platform.node(), **facts}
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
