"""Locks the output folder of a build and checks that an existing folder belongs to the same build."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mt3data.build.plan import Plan, ShardPlan
from mt3data.build.shard_job import STATE, state_path
from mt3data.errors import UserError
from mt3data.files import canonical_json, file_has_size, file_lock, write_atomically
from mt3data.shards.format import BUILD_MANIFEST
from mt3data.shards.index import track_rows

LOG = "build.log.jsonl"


class BuildFolder:
    """The output folder of a planned build."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.folder = plan, plan.folder

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the folder of an unfinished build; removes what killed workers left half-written.

        Raises:
            UserError: see `require_same_build`; or another run is at work there.
        """
        self.require_same_build()
        path = _plan_in(self.folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path.with_name("lock"), f"{self.folder}: another build is at work there"):
            self.require_same_build()  # no other run can have come between now
            if not path.is_file():
                identity = self.plan.identity | {"fingerprint": self.plan.fingerprint}
                write_atomically(path, canonical_json(identity))
            _sweep(self.folder)
            try:
                yield
            finally:
                _sweep(self.folder)

    def require_same_build(self) -> None:
        """Raises a UserError if the folder holds another build, or something that is no build."""
        folder, plan = self.folder, self.plan
        for path, what in (
            (folder / BUILD_MANIFEST, "a build"),
            (_plan_in(folder), "an unfinished build"),
        ):
            if path.is_file():
                theirs = _read(path)
                if theirs.get("fingerprint") != plan.fingerprint:
                    raise UserError(
                        f"{folder} holds {what} with other settings "
                        f"({_difference(theirs, plan.identity)}); choose another --out, or take "
                        "--force, which builds anew beside it"
                    )
                return
        # A run that was killed at its very start leaves no plan.
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if foreign := sorted(there - {STATE, LOG}):
            raise UserError(f"{folder} holds {foreign[0]} and no build; choose another --out")

    def complete_manifest(self) -> dict[str, Any] | None:
        """The build manifest, if this very build is complete in its folder.

        Raises:
            UserError: see `require_same_build`; or files of it are lost, or it holds a track that is
                now to be excluded.
        """
        folder, plan = self.folder, self.plan
        self.require_same_build()
        if not (folder / BUILD_MANIFEST).is_file():
            return None
        manifest = _read(folder / BUILD_MANIFEST)
        _require_files(folder, manifest)
        if plan.config.exclude:
            rows = {row["track"]: row for row in track_rows(folder)}
            for planned in (planned for shard in plan.shards for planned in shard.tracks):
                if not _agrees(rows[planned.track.id], planned.exclusion):
                    raise UserError(
                        f"{folder} is finished and holds {planned.track.name}, which --exclude "
                        "lists; --force builds anew beside it"
                    )
        return manifest

    def next_free(self) -> Plan:
        """The plan with a folder beside the one that it would have: slakh-2, slakh-3, ...

        That is the first that is free, or holds what an interrupted run of this very build left.
        """
        plan = self.plan
        if not plan.folder.exists():
            return plan
        for number in itertools.count(2):
            folder = plan.folder.with_name(f"{plan.folder.name}-{number}")
            path = _plan_in(folder)
            begun = path.is_file() and not (folder / BUILD_MANIFEST).exists()
            if not folder.exists() or (
                begun and _read(path).get("fingerprint") == plan.fingerprint
            ):
                return replace(plan, folder=folder)
        raise AssertionError

    def shard_is_done(self, shard: ShardPlan) -> bool:
        """Whether a shard is whole, and without the tracks that are to be excluded."""
        path = state_path(self.folder, shard.name)
        if not path.is_file():
            return False
        try:
            state = json.loads(path.read_bytes())
        except ValueError:  # a disk's fault; what it tells of is made anew
            return False
        return file_has_size(self.folder / shard.name, state["shard"]["bytes"]) and all(
            _agrees(row, planned.exclusion)
            for row, planned in zip(state["tracks"], shard.tracks, strict=True)
        )


def _read(path: Path) -> dict[str, Any]:
    """A manifest, or a plan, which has its first fields."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not of a build ({error}); choose another --out") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not of a build; choose another --out")
    return content


def _plan_in(folder: Path) -> Path:
    return folder / STATE / "plan.json"


def _sweep(folder: Path) -> None:
    for leftover in list(folder.rglob("*.tmp-*")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _agrees(row: dict[str, Any], exclusion: tuple[str, str] | None) -> bool:
    return exclusion is None or (row["stage"], row["error"]) == exclusion


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
    lost = [e["name"] for e in entries if not file_has_size(folder / e["name"], e["bytes"])]
    if lost:
        raise UserError(
            f"{folder} was finished, but {len(lost)} of its {len(entries)} files are missing or have "
            f"another size, first {lost[0]}; copy them back, or remove the folder and build again"
        )
