"""Plans a build: which tracks go into which shard, decided before any work.

Planning lists the dataset, reads the headers of audio files and takes digests of label files. A plan
depends on the tracks, the seed and the settings alone. A track that fails later never moves the
boundary of a shard.

Tracks of the training split are spread over the shards by a seeded permutation, so that a stream of
a few shards holds all kinds of music. Tracks of other splits keep their order.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.audio.load import audio_info
from mt3data.audio.spectrogram import count_frames
from mt3data.build.identity import BYTES_VERSION, describe_track, digest, sha256_of, stat_of
from mt3data.build.track_table import failed_row
from mt3data.datasets.manifest import DatasetManifest, load, names
from mt3data.datasets.stem_mixes import LAW, MIN_STEMS, PAPER_SUBSETS, with_subsets
from mt3data.datasets.track import Track
from mt3data.errors import UserError
from mt3data.shards.format import SCHEMA_VERSION
from mt3data.shards.windows import WindowConfig, n_variants, window_starts

MAX_SHARD_BYTES, MIN_SHARD_BYTES = 256 << 20, 8 << 20
SHARDS_PER_SPLIT = 64  # at least, so that streaming readers can divide a large split
PROFILES = ("fixed", "paper")
RECORD_OVERHEAD = 8192  # bytes of a record beside mel and audio: tar headers, notes, tokens, json


@dataclass(frozen=True)
class BuildConfig:
    """Settings of a build. The identity holds all that change bytes.

    Paths, workers, engine and timeout change none.

    Attributes:
        dataset: name of a dataset manifest.
        root: folder of the dataset.
        out: folder for builds. This build goes into `out/dataset`, or `out/name`.
        splits: only these; empty means all.
        tracks: at most this many tracks in all, each split with its share; 0 means all.
        split_scheme: a scheme of the dataset manifest; None takes its default.
        windows: how tracks are cut.
        workers: processes on this machine.
        name: name of the build where it is not the dataset's; for the user's own folders.
        profile: "fixed" repairs verified faults of the dataset. "paper" does what MT3 did: known
            errors are kept, and Slakh's training tracks are PAPER_SUBSETS subsets of their stems.
        subsets: number of stem subsets for each training track that has stems; 0: by profile.
        min_stems: stems of the smallest subset.
        engine: "local", or the address of a dask scheduler.
        track_timeout: seconds after which a track's worker is stopped; 0: by the track's length.
        exclude: tracks to leave out, id or name -> (stage, reason), as if they had failed so.
    """

    dataset: str
    root: Path
    out: Path
    _: KW_ONLY
    splits: tuple[str, ...] = ()
    tracks: int = 0
    split_scheme: str | None = None
    windows: WindowConfig = field(default_factory=WindowConfig)
    workers: int = 1
    name: str = ""
    profile: str = "fixed"
    subsets: int = 0
    min_stems: int = MIN_STEMS
    engine: str = "local"
    track_timeout: float = 0.0
    exclude: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedTrack:
    """A track with what planning found.

    Attributes:
        seconds: length of its audio by the header.
        source_bytes: sizes of its `source_files`; -1 where there is no file.
        labels_sha256: of its label files; None where one cannot be read.
        variants: number of its variants.
        records: number of records of all variants.
        exclusion: stage and reason where the track is to be left out.
    """

    track: Track
    seconds: float
    source_bytes: tuple[int, ...]
    labels_sha256: str | None
    variants: int
    records: int
    exclusion: tuple[str, str] | None = None


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its name, its tracks in order, and about how many bytes it will have."""

    name: str
    split: str
    tracks: tuple[PlannedTrack, ...]
    n_bytes: int

    @property
    def seconds(self) -> float:
        """Seconds of audio to be transformed, over all variants."""
        return sum(planned.variants * planned.seconds for planned in self.tracks)

    @property
    def records(self) -> int:
        """Number of records by the headers, if no track fails."""
        return sum(planned.records for planned in self.tracks)


@dataclass(frozen=True)
class Plan:
    """All decisions about a build, made before any work.

    Attributes:
        manifest: the dataset manifest.
        tracks: all tracks of the build by id, unusable ones included.
        rejected: rows of tracks.parquet of the tracks that cannot be used.
        identity: all that determines the bytes of the build, except the content of audio files.
        folder: where the build goes.
    """

    config: BuildConfig
    manifest: DatasetManifest
    tracks: Mapping[str, Track]
    shards: tuple[ShardPlan, ...]
    rejected: tuple[dict[str, Any], ...]
    identity: dict[str, Any]
    folder: Path

    @property
    def card_facts(self) -> dict[str, str]:
        """Facts of the dataset manifest that only the card and the build manifest repeat."""
        names = ("title", "licence", "licence_url", "redistribution", "citation")
        return {name: getattr(self.manifest, name) for name in names}


def make_plan(config: BuildConfig) -> Plan:
    """Decides the content of every shard from headers and labels alone.

    Tracks of the training split are ordered by a hash of (seed, track), tracks of other splits by
    id. They fill shards greedily. All windows of a track are in one shard.

    Raises:
        UserError: unknown dataset, split or scheme, a wrong root, or no track at all.
    """
    manifest = load(config.dataset)
    adapter = importlib.import_module(f"mt3data.datasets.adapters.{manifest.adapter}")
    if config.name:
        manifest = replace(manifest, name=checked_name(config))
    listed = adapter.tracks(
        config.root.absolute(), _as_published(manifest, config), config.split_scheme
    )
    chosen = _choose([_printable(track) for track in listed], config)
    subsets = config.subsets or (PAPER_SUBSETS if config.profile == "paper" else 0)
    if subsets:
        seed, least = config.windows.seed, config.min_stems
        chosen = [with_subsets(track, seed, subsets, least) for track in chosen]
    excluded = _listed(chosen, config.exclude)
    usable, rejected, entries = [], [], []
    for track in chosen:
        sizes = tuple(stat_of(path)[0] for path in track.source_files)
        labels, frames = sha256_of(track.label_files), None
        try:
            planned = _planned(track, sizes, labels, excluded.get(track.id), config.windows)
            frames = count_frames(round(planned.seconds * config.windows.spectrogram.sample_rate))
            usable.append(planned)
        except Exception as error:  # of one track, whatever its files make a library raise
            rejected.append(failed_row(track, *excluded.get(track.id, ("plan", error))))
        entries.append({
            "track": track.id, "split": track.split, "facts_sha256": digest(describe_track(track)),
            "header_frames": frames, "source_bytes": list(sizes), "labels_sha256": labels,
        })  # fmt: skip
    shards: list[ShardPlan] = []
    for split in sorted({planned.track.split for planned in usable}):
        mine = [planned for planned in usable if planned.track.split == split]
        shards += _pack(split, mine, config.windows)
    identity = {
        "schema": SCHEMA_VERSION, "bytes_version": BYTES_VERSION, "dataset": manifest.name,
        "split_scheme": config.split_scheme or manifest.default_scheme,
        **_settings(config.windows),
        "profile": config.profile,
        "subsets": {"variants": subsets, "law": LAW.format(config.min_stems)}
        if any(t.variants for t in chosen) else None,
        "tracks": entries,
    }  # fmt: skip
    folder = config.out / manifest.name
    return Plan(
        config, manifest, {track.id: track for track in chosen}, tuple(shards), tuple(rejected),
        identity, folder,
    )  # fmt: skip


def _printable(track: Track) -> Track:
    """Escapes what UTF-8 cannot encode, such as the bytes of a file name in another encoding."""
    texts = {"name": track.name, "failure": track.failure, "problems": track.problems}
    safe = {key: _escaped(text) for key, text in texts.items()}
    return track if safe == texts else replace(track, **safe)


def _escaped(text: Any) -> Any:
    if isinstance(text, tuple):
        return tuple(map(_escaped, text))
    return text.encode("utf-8", "backslashreplace").decode()


def _planned(
    track: Track,
    sizes: tuple[int, ...],
    labels_sha256: str | None,
    exclusion: tuple[str, str] | None,
    windows: WindowConfig,
) -> PlannedTrack:
    """Reads the headers of a track's audio.

    Raises:
        UserError: the track cannot be used.
    """
    if track.failure:
        raise UserError(track.failure)
    seconds = max(audio_info(path).seconds for path in track.audio_files)
    variants = n_variants(track, windows)
    frames = count_frames(round(seconds * windows.spectrogram.sample_rate))
    phased = not track.variants  # variants of other stems all begin at frame 0
    records = sum(
        len(window_starts(frames, k if phased else 0, track.id, windows)) for k in range(variants)
    )
    return PlannedTrack(track, seconds, sizes, labels_sha256, variants, records, exclusion)


def _listed(
    chosen: list[Track], exclude: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """Returns stage and reason by track id; the list may hold ids or names."""
    listed = {t.id: exclude[key] for t in chosen for key in (t.id, t.name) if key in exclude}
    known = {key for track in chosen for key in (track.id, track.name)}
    if unknown := sorted(set(exclude) - known):
        raise UserError(
            f"--exclude names {unknown[0]!r}, and none of the {len(chosen)} tracks to "
            f"build is called so; the first is {chosen[0].id}"
        )
    return listed


def _as_published(manifest: DatasetManifest, config: BuildConfig) -> DatasetManifest:
    """Returns the dataset manifest for the adapter. Profile "paper" reports faults and repairs none."""
    if config.profile not in PROFILES:
        raise UserError(f"--profile {config.profile}: expected {' or '.join(PROFILES)}")
    if config.windows.variants > 1 and (config.subsets or config.profile == "paper"):
        raise UserError("--variants and subsets of stems exclude each other; leave --variants out")
    if config.profile == "fixed":
        return manifest
    issues = (
        replace(issue, action="flag") if issue.action in ("drop", "shift") else issue
        for issue in manifest.known_issues
    )
    return replace(manifest, known_issues=tuple(issues))


def checked_name(config: BuildConfig) -> str:
    """Returns the name that the user gave to a build of `folder`; raises a UserError for a bad name."""
    if config.dataset != "folder":
        raise UserError(f"--name is for the dataset `folder`; {config.dataset} keeps its own name")
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", config.name):
        raise UserError(f"--name {config.name!r}: expected up to 40 of a-z, 0-9, _ and -")
    if config.name != "folder" and config.name in names():
        raise UserError(f"--name {config.name}: a dataset is called so; choose another name")
    return config.name


def _settings(windows: WindowConfig) -> dict[str, Any]:
    settings = asdict(windows)
    settings["window"], settings["features"] = settings.pop("frames"), windows.schema
    if not windows.rooms:  # as if there was no such setting
        del settings["rooms"]
    return settings | {"resampler": "soxr HQ"}


def _choose(tracks: list[Track], config: BuildConfig) -> list[Track]:
    """Returns the requested tracks, by split and number."""
    splits = sorted({track.split for track in tracks if track.split})
    unknown = set(config.splits) - set(splits)
    if unknown:
        raise UserError(
            f"no split {', '.join(sorted(unknown))}; {config.root} has {', '.join(splits)}"
        )
    by_split = {s: [t for t in tracks if t.split == s] for s in config.splits or splits}
    if not config.splits:  # those without a split are reported, not lost
        by_split[""] = [t for t in tracks if not t.split]
    total = sum(map(len, by_split.values()))
    if not total:
        raise UserError(f"{config.root}: no track to build")
    if config.tracks and config.tracks < total:
        quota = dict.fromkeys(by_split, 0)
        for _ in range(config.tracks):  # to whom most is owed; first of all to those without any
            owed = {
                split: (quota[split] == 0, config.tracks * len(mine) / total - quota[split])
                for split, mine in by_split.items()
                if quota[split] < len(mine)
            }
            quota[max(owed, key=owed.__getitem__)] += 1
        by_split = {split: mine[: quota[split]] for split, mine in by_split.items()}
    return [track for split in by_split.values() for track in split]


def _pack(split: str, tracks: list[PlannedTrack], windows: WindowConfig) -> list[ShardPlan]:
    """Fills shards of about equal size with the tracks of one split."""

    def rank(planned: PlannedTrack) -> Any:
        track = planned.track.id
        if split != "train":
            return track
        return hashlib.sha256(f"{windows.seed}|{track}".encode()).digest()

    per_record = record_bytes(windows)
    total = per_record * sum(planned.records for planned in tracks)
    target = min(MAX_SHARD_BYTES, max(MIN_SHARD_BYTES, total // SHARDS_PER_SPLIT))
    groups: list[list[PlannedTrack]] = [[]]
    filled = 0
    for planned in sorted(tracks, key=rank):
        n_bytes = planned.records * per_record
        if groups[-1] and filled + n_bytes > target:
            groups.append([])
            filled = 0
        groups[-1].append(planned)
        filled += n_bytes
    return [
        ShardPlan(
            f"{split}-{i:05d}-of-{len(groups):05d}.tar", split, tuple(group),
            per_record * sum(planned.records for planned in group),
        )
        for i, group in enumerate(groups)
    ]  # fmt: skip


def record_bytes(windows: WindowConfig) -> int:
    """About how many bytes a record takes in its shard."""
    sound = (windows.schema[name] for name in windows.features)
    size = sum(math.prod(s["shape"]) * np.dtype(s["dtype"]).itemsize for s in sound)
    return size + RECORD_OVERHEAD
