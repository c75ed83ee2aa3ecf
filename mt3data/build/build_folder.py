"""Locks the output folder of a build and checks that an existing folder belongs to the same build."""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mt3data.build.crash_guard import environment, hang_reason
from mt3data.build.identity import (
    describe_track,
    differences,
    digest,
    first_named,
    sha256_of,
    stat_of,
    track_differences,
)
from mt3data.build.plan import Plan, PlannedTrack, ShardPlan
from mt3data.build.shard_job import STATE, state_path, write_state
from mt3data.datasets.track import Track
from mt3data.errors import UserError
from mt3data.files import canonical_json, file_has_size, file_lock, write_atomically
from mt3data.shards.format import BUILD_MANIFEST, LOG, read_build_manifest
from mt3data.shards.index import Index, references, track_rows

OnMessage = Callable[[str], None]


class BuildFolder:
    """The output folder of a planned build.

    Args:
        plan: of the build.
        on_message: called with one line that the user should know.
    """

    def __init__(self, plan: Plan, on_message: OnMessage = lambda line: None) -> None:
        self.plan, self.folder, self._on_message = plan, plan.folder, on_message
        self._planned = {p.track.id: p for shard in plan.shards for p in shard.tracks}
        # Size and times of what was compared with its digest: audio by track, files of the build.
        self._compared, self._seen = dict[str, Any](), dict[str, Any]()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the folder; removes files that crashed workers left incomplete.

        Raises:
            UserError: see `require_same_build`; or another run is at work there.
        """
        self.require_same_build()
        self._plan_file.parent.mkdir(parents=True, exist_ok=True)
        lock = self._plan_file.with_name("lock")
        with file_lock(lock, f"{self.folder}: another build is at work there"):
            self.require_same_build()  # another run may have written there meanwhile
            _sweep(self.folder)
            try:
                yield
            finally:
                _sweep(self.folder)
            is_left = lock.is_file() and not self._plan_file.is_file()
        if is_left:  # the build is complete, and Windows kept the open file
            with suppress(OSError):
                lock.unlink(missing_ok=True)
                lock.parent.rmdir()

    def begin(self) -> None:
        """Writes the plan of an unfinished build, if there is none yet."""
        if not self._plan_file.is_file():
            facts = {track_id: describe_track(t) for track_id, t in self.plan.tracks.items()}
            content = {"identity": self.plan.identity, "card": self.plan.card_facts,
                       "environment": _libraries(environment()), "facts": facts}  # fmt: skip
            write_atomically(self._plan_file, canonical_json(content))

    def require_same_build(self) -> None:
        """Checks that the folder is empty, or holds this build, finished or not.

        Raises:
            UserError: the folder holds a build of other settings, tracks, labels or facts (the
                message names the difference), or no build.
        """
        folder = self.folder
        if (folder / BUILD_MANIFEST).is_file():
            manifest = read_build_manifest(folder)
            theirs = manifest | {"tracks": self._built_tracks(manifest)}
            self._require_identity(theirs, manifest, self._sources().get("facts", {}), "a build")
        elif self._plan_file.is_file():
            begun = self._read_plan()
            what = "an unfinished build"
            self._require_identity(begun["identity"], begun["card"], begun["facts"], what)
            self._require_libraries(begun["environment"])
        else:  # a run that was killed at its very start leaves no plan
            there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            if foreign := sorted(there - {STATE, LOG}):
                raise UserError(f"{folder} holds {foreign[0]} and no build; choose another --out")

    def complete_manifest(self, remember: bool = False) -> dict[str, Any] | None:
        """Returns the build manifest if this very build is complete in its folder.

        Args:
            remember: record in the log what was compared, so that the next time is faster.
        Raises:
            UserError: see `require_same_build`; or the audio of a track has changed, or other tracks
                are to be excluded now.
        """
        self.require_same_build()
        if not (self.folder / BUILD_MANIFEST).is_file():
            return None
        manifest, sources = read_build_manifest(self.folder), self._sources()
        damaged = self.damaged_files(manifest, sources)
        audio = self._require_same_audio(manifest, sources)
        if "tracks.parquet" not in damaged:
            self._require_same_exclusions(sources)
        if damaged or self._unsettled_shards(damaged):
            return None
        if remember and (audio != sources.get("audio") or self._seen != sources.get("files")):
            with suppress(OSError):  # the folder cannot be written to
                self.remember_sources(audio, manifest)
        return manifest

    def shards_to_do(self) -> list[ShardPlan]:
        """Returns the shards that are still to be built, or to be built again."""
        if not (self.folder / BUILD_MANIFEST).is_file():
            return [shard for shard in self.plan.shards if not self.shard_is_done(shard)]
        manifest, sources = read_build_manifest(self.folder), self._sources()
        damaged = self.damaged_files(manifest, sources)
        again = damaged.keys() | self._unsettled_shards(damaged)
        tables = {name for name in damaged if name.endswith(".parquet")}
        return [shard for shard in self.plan.shards if tables or shard.name in again]

    def reopen(self) -> list[dict[str, Any]]:
        """Makes a finished build with damaged files unfinished: sound shards stay done.

        The state records of sound shards come from the tables of the build. Where a table is
        damaged, all shards are built again.

        Returns:
            The entries of the build manifest for the shards that must get the same bytes again.
        Raises:
            UserError: the libraries here differ from those that made the build.
        """
        manifest, sources = read_build_manifest(self.folder), self._sources()
        self._require_libraries(_libraries(manifest["environment"]))
        damaged = self.damaged_files(manifest, sources)
        retried = dict.fromkeys(self._unsettled_shards(damaged), "has a track to be tried again")
        for name, fault in (retried | damaged).items():
            self._on_message(f"{self.folder}: {name} {fault}; building it again")
        again = {shard.name for shard in self.shards_to_do()}
        sound = [shard for shard in self.plan.shards if shard.name not in again]
        self.begin()
        if sound:
            self._restore_states(manifest, sources, sound)
        (self.folder / BUILD_MANIFEST).unlink()
        return [shard for shard in manifest["shards"] if shard["name"] not in retried]

    def next_free(self) -> Plan:
        """Returns the plan with a folder beside an existing one: slakh-2, slakh-3, ...

        That is the first free folder, or one with an interrupted run of this very build.
        """
        plan = self.plan
        if not plan.folder.exists():
            return plan
        for number in itertools.count(2):
            other = replace(plan, folder=plan.folder.with_name(f"{plan.folder.name}-{number}"))
            beside = BuildFolder(other)
            if not other.folder.exists():
                return other
            begun = beside._plan_file.is_file() and not (other.folder / BUILD_MANIFEST).exists()
            if begun and beside._read_plan()["identity"] == plan.identity:
                return other
        raise AssertionError

    def shard_is_done(self, shard: ShardPlan) -> bool:
        """Checks that a shard is complete, from the present audio, and without excluded tracks."""
        path = state_path(self.folder, shard.name)
        if not path.is_file():
            return False
        try:
            state = json.loads(path.read_bytes())
            n_records, n_bytes = state["shard"]["records"], state["shard"]["bytes"]
            rows, audio, excluded = state["tracks"], state["audio"], state["excluded"]
        except (ValueError, KeyError, TypeError):  # a disk's fault; the shard is built again
            return False
        if n_records and not file_has_size(self.folder / shard.name, n_bytes):
            return False
        return all(
            self._is_settled(row, planned, row["track"] in excluded)
            and self._has_content(planned.track, row["audio_sha256"], audio.get(row["track"]))
            for row, planned in zip(rows, shard.tracks, strict=True)
        )

    def damaged_files(
        self, manifest: dict[str, Any], sources: dict[str, Any]
    ) -> dict[str, str]:  # fmt: skip
        """Returns the files of a finished build that are missing or changed, and what is wrong.

        The content of a file is read only where its size and times are not those that were seen
        when its content was right.
        """
        found = {}
        for entry in manifest["shards"] + manifest["files"]:
            name, path = entry["name"], self.folder / entry["name"]
            stat = stat_of(path)
            if stat[0] != entry["bytes"]:
                found[name] = "is missing" if stat[0] < 0 else f"has {stat[0]:,} bytes"
            elif stat not in (sources.get("files", {}).get(name), self._seen.get(name)) and (
                not _has_sha256(path, entry)
            ):
                found[name] = "has changed"
            else:
                self._seen[name] = stat
        return found

    def remember_sources(self, audio: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Records in the log the sizes and times of files whose content is known to be right."""
        files = {e["name"]: stat_of(self.folder / e["name"])
                 for e in manifest["shards"] + manifest["files"]}  # fmt: skip
        facts = {track_id: describe_track(t) for track_id, t in self.plan.tracks.items()}
        excluded = sorted(t for t, planned in self._planned.items() if planned.exclusion)
        self.log("sources", audio=audio, files=files, facts=facts, excluded=excluded)

    def log(self, event: str, **facts: Any) -> None:
        """Appends an event to the log of the build."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        entry = {"time": now, "event": event, "driver": platform.node(), **facts}
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    @property
    def _plan_file(self) -> Path:
        return self.folder / STATE / "plan.json"

    def _read_plan(self) -> dict[str, Any]:
        path = self._plan_file
        try:
            content = json.loads(path.read_bytes())
            plan = {key: dict(content[key]) for key in ("identity", "card", "environment", "facts")}
            plan["identity"]["tracks"] = [dict(entry) for entry in plan["identity"]["tracks"]]
            return plan
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not the plan of a build ({error!r}); choose another --out, or remove it"
            ) from error

    def _sources(self) -> dict[str, Any]:
        """Returns the last event "sources" of the log; empty where there is none."""
        try:
            lines = (self.folder / LOG).read_bytes().splitlines()
        except OSError:
            return {}
        for line in reversed(lines):
            if b'"event": "sources"' in line:
                with suppress(ValueError):  # a run was killed while it wrote the line
                    found: dict[str, Any] = json.loads(line)
                    if all(isinstance(found.get(k), dict) for k in ("audio", "files", "facts")):
                        return found
        return {}

    def _built_tracks(self, manifest: dict[str, Any]) -> list[dict[str, Any]] | None:
        """Returns the rows of tracks.parquet.

        Where that file is damaged, returns our own tracks if the build manifest has their digest,
        else None: all shards are then built again, so their audio is not compared.
        """
        entry = next((e for e in manifest["files"] if e["name"] == "tracks.parquet"), None)
        path = self.folder / "tracks.parquet"
        if entry and path.is_file() and _has_sha256(path, entry):
            return track_rows(self.folder)
        ours = self.plan.identity["tracks"]
        return list(ours) if manifest["tracks"]["planned"] == digest(ours) else None

    def _require_identity(
        self, theirs: dict[str, Any], card: dict[str, Any], facts: dict[str, Any], what: str
    ) -> None:
        """Raises a UserError that names the first differences between their build and ours."""
        ours = self.plan.identity
        named = [*differences(theirs, ours), *differences(card, self.plan.card_facts)]
        if theirs["tracks"] is None:
            named += ["other tracks, labels or facts"]
        else:
            named += track_differences(theirs["tracks"], ours["tracks"], facts, self.plan.tracks)
        if named:
            raise UserError(
                f"{self.folder} holds {what} from other sources or settings ({first_named(named)}); "
                "choose another --out, or use --force, which builds anew beside it"
            )

    def _require_libraries(self, theirs: dict[str, Any]) -> None:
        if named := list(differences(theirs, _libraries(environment()))):
            raise UserError(
                f"{self.folder} was begun with other libraries ({first_named(named)}), so bytes could "
                "differ; install the same versions, or use --force, which builds anew beside it"
            )

    def _require_same_audio(
        self, manifest: dict[str, Any], sources: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns size and times of the audio of every track.

        Raises:
            UserError: the audio of a track has other content than was built.
        """
        known, now = sources.get("audio", {}), {}
        changed = []
        for entry in self._built_tracks(manifest) or []:
            track = self.plan.tracks[entry["track"]]
            now[track.id] = [stat_of(path) for path in track.audio_files]
            before = known.get(track.id)
            if "audio_sha256" not in entry or entry["stage"] == "source":
                continue  # not known; or it changed while it was read, see _is_settled
            if not self._has_content(track, entry["audio_sha256"], before):
                stats = zip(track.audio_files, before or [], now[track.id], strict=False)
                names = [path.name for path, old, new in stats if old != new]
                names = names or [path.name for path in track.audio_files]
                changed.append(f"{track.id}: other content in {', '.join(names)}")
        if changed:
            raise UserError(
                f"{self.folder} holds a build from other sources ({first_named(changed)}); choose "
                "another --out, or use --force, which builds anew beside it"
            )
        return now

    def _require_same_exclusions(self, sources: dict[str, Any]) -> None:
        """Raises a UserError if the finished build was made with other tracks excluded."""
        excluded = set(sources.get("excluded", []))
        rows = {row["track"]: row for row in track_rows(self.folder)}
        wanted = {track: planned.exclusion for track, planned in self._planned.items()}
        for row in self.plan.rejected:
            wanted[row["track"]] = None if row["stage"] == "plan" else (row["stage"], row["error"])
        for track, exclusion in wanted.items():
            row, name = rows[track], self.plan.tracks[track].name
            if exclusion and (row["stage"], row["error"]) != exclusion:
                held = f"holds {name}, which --exclude lists"
            elif not exclusion and (track in excluded or row["stage"] == "listed"):
                held = f"leaves out {name}, which --exclude does not list any more"
            else:
                continue
            raise UserError(f"{self.folder} is finished and {held}; --force builds anew beside it")

    def _unsettled_shards(self, damaged: Collection[str]) -> set[str]:
        """Returns the shards with a track that failed for a reason that may not hold any more."""
        if "tracks.parquet" in damaged:
            return set()
        rows = {row["track"]: row for row in track_rows(self.folder)}
        return {
            shard.name
            for shard in self.plan.shards
            for planned in shard.tracks
            if not self._is_settled(rows[planned.track.id], planned, bool(planned.exclusion))
        }

    def _is_settled(self, row: dict[str, Any], planned: PlannedTrack, excluded: bool) -> bool:
        """Checks that a new run would end in the same row: a track that is built, or fails so."""
        reason = (row["stage"], row["error"])
        if planned.exclusion:
            return reason == planned.exclusion
        if row["stage"] == "hang":  # with another limit it may not
            return not excluded and reason == hang_reason(planned, self.plan.config.track_timeout)
        return not excluded and row["stage"] not in ("source", "listed")

    def _has_content(self, track: Track, audio_sha256: str | None, before: Any) -> bool:
        """Checks that the audio of a track is what a worker read.

        Args:
            audio_sha256: of what the worker read.
            before: size and times of the files then; the files are read only where these differ.
        """
        now = [stat_of(path) for path in track.audio_files]
        if now not in (before, self._compared.get(track.id)):
            if sha256_of(track.audio_files) != audio_sha256:
                return False
            self._compared[track.id] = now
        return True

    def _restore_states(
        self, manifest: dict[str, Any], sources: dict[str, Any], sound: list[ShardPlan]
    ) -> None:
        """Writes the state records of shards from the tables of a finished build."""
        rows = {row["track"]: row for row in track_rows(self.folder)}
        entries = {entry["name"]: entry for entry in manifest["shards"]}
        for split in {shard.split for shard in sound}:
            mine = [shard for shard in sound if shard.split == split]
            index: dict[str, list[dict[str, Any]]] = {}
            if split in manifest["splits"]:
                index = Index(self.folder / "index" / f"{split}.parquet").rows_by_shard()
            notes = references(self.folder, split)
            for shard in mine:
                tracks = [rows[planned.track.id] for planned in shard.tracks]
                empty = {"name": shard.name, "bytes": 0, "sha256": "", "records": 0}
                write_state(self.folder, shard, {
                    "shard": dict(entries.get(shard.name, empty)),
                    "rows": index.get(shard.name, []), "tracks": tracks,
                    "references": [
                        {"track": row["track"], "notes": notes[row["track"]].to_array().tolist()}
                        for row in tracks if row["track"] in notes
                    ],
                    "audio": {row["track"]: sources.get("audio", {}).get(row["track"]) for row in tracks},
                    "excluded": [p.track.id for p in shard.tracks if p.exclusion],
                })  # fmt: skip


def _libraries(versions: dict[str, Any]) -> dict[str, Any]:
    """Returns an environment without the version of mt3kit, for which BYTES_VERSION counts."""
    return {name: version for name, version in versions.items() if name != "mt3kit"}


def _has_sha256(path: Path, entry: dict[str, Any]) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == str(entry["sha256"])


def _sweep(folder: Path) -> None:
    for leftover in list(folder.rglob("*.tmp-*")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
