"""The plan of a build: which tracks go into which shard, decided before any work.

Planning is serial and cheap: it lists the dataset and reads audio headers. What a plan holds depends
on the tracks, the seed and the settings alone, and failures later never move a boundary.

Tracks of the training split are interleaved over the shards by a seeded permutation, so that a
stream of a few shards sees all kinds of them; those of other splits keep their order.
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

from mt3data import __version__
from mt3data.audio.load import audio_info
from mt3data.audio.spectrogram import count_frames
from mt3data.build.track_table import failed_row, variant_stems
from mt3data.datasets.manifest import DatasetManifest, load, names
from mt3data.datasets.stem_mixes import LAW, MIN_STEMS, PAPER_SUBSETS, with_subsets
from mt3data.datasets.track import Track
from mt3data.errors import UserError
from mt3data.files import canonical_json
from mt3data.shards.format import SCHEMA_VERSION
from mt3data.shards.windows import WindowConfig, window_starts

MAX_SHARD_BYTES, MIN_SHARD_BYTES = 256 << 20, 8 << 20
SHARDS_PER_SPLIT = 64  # wanted at least, so that streaming readers can divide a large split
PROFILES = ("fixed", "paper")
RECORD_OVERHEAD = 8192  # bytes of a record beside mel and audio: tar headers, notes, tokens, json


@dataclass(frozen=True)
class BuildConfig:
    """What to build. All that changes bytes is fingerprinted: not paths, workers, engine, timeout, exclude.

    Attributes:
        dataset: name of a manifest.
        root: where the dataset lies.
        out: folder for builds; this one goes into `out/dataset`, or `out/name`.
        splits: only these; empty means all.
        tracks: at most this many tracks in all, every split keeping its share; 0 means all.
        split_scheme: a scheme of the manifest; None takes its default.
        windows: how tracks are cut.
        workers: processes on this machine.
        profile: "fixed" repairs what is verified as wrong, "paper" is what MT3 did: known errors are
            kept, and Slakh's training tracks are PAPER_SUBSETS subsets of their stems.
        subsets: so many subsets of stems for each training track that has stems; 0: by profile.
        min_stems: of a subset.
        name: what the build is called where it is not the dataset; for the user's own folders.
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
    """A track, and what was seen of it while planning.

    Attributes:
        seconds: length of its audio by the header.
        source_bytes: sizes of its `source_files`; -1 for what is no file.
        variants: how often it is cut.
        records: how many that makes.
        exclusion: stage and reason where it is to be left out.
    """

    track: Track
    seconds: float
    source_bytes: tuple[int, ...]
    variants: int
    records: int
    exclusion: tuple[str, str] | None = None


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its name and the tracks that go into it, in order; about how many bytes it has."""

    name: str
    split: str
    tracks: tuple[PlannedTrack, ...]
    n_bytes: int

    @property
    def seconds(self) -> float:
        """Audio to be transformed, every variant counted."""
        return sum(planned.variants * planned.seconds for planned in self.tracks)

    @property
    def records(self) -> int:
        """Records if no track fails, by the headers."""
        return sum(planned.records for planned in self.tracks)


@dataclass(frozen=True)
class Plan:
    """What a build will do, decided before any work."""

    config: BuildConfig
    manifest: DatasetManifest
    shards: tuple[ShardPlan, ...]
    rejected: tuple[dict[str, Any], ...]  # rows of tracks.parquet for tracks that cannot be used
    identity: dict[str, Any]  # everything that changes bytes
    folder: Path  # where the build goes

    @property
    def fingerprint(self) -> str:
        """sha256 of `identity`."""
        return hashlib.sha256(canonical_json(self.identity)).hexdigest()


def make_plan(config: BuildConfig) -> Plan:
    """The content of every shard, decided from headers and labels alone.

    Tracks of the training split are ordered by a hash of (seed, track), those of other splits by
    id; they fill shards greedily. Windows of a track stay together.

    Raises:
        UserError: unknown dataset, split or scheme, a wrong root, or no track at all.
    """
    manifest = load(config.dataset)
    adapter = importlib.import_module(f"mt3data.datasets.adapters.{manifest.adapter}")
    if config.name:
        manifest = replace(manifest, name=checked_name(config))
    tracks = list(
        adapter.tracks(config.root.absolute(), _as_published(manifest, config), config.split_scheme)
    )
    subsets = config.subsets or (PAPER_SUBSETS if config.profile == "paper" else 0)
    chosen = _choose(tracks, config)
    if subsets:
        seed, least = config.windows.seed, config.min_stems
        chosen = [with_subsets(track, seed, subsets, least) for track in chosen]
    sizes = {track.id: _source_bytes(track) for track in chosen}
    excluded = _listed(chosen, config.exclude)
    usable, rejected = [], []
    for track in chosen:
        try:
            usable.append(_planned(track, sizes[track.id], excluded.get(track.id), config.windows))
        except UserError as error:
            rejected.append(failed_row(track, *excluded.get(track.id, ("plan", error))))
    shards: list[ShardPlan] = []
    for split in sorted({planned.track.split for planned in usable}):
        mine = [planned for planned in usable if planned.track.split == split]
        shards += _pack(split, mine, config.windows)
    identity = {
        "schema": SCHEMA_VERSION, "version": __version__, "dataset": manifest.name,
        "split_scheme": config.split_scheme or manifest.default_scheme,
        **_settings(config.windows),
        "profile": config.profile,
        "subsets": {"variants": subsets, "law": LAW.format(config.min_stems)}
        if any(t.variants for t in chosen) else None,
        "tracks": [
            [t.id, t.split, t.trim, variant_stems(t), *sizes[t.id]] for t in chosen
        ],
    }  # fmt: skip
    folder = config.out / manifest.name
    return Plan(config, manifest, tuple(shards), tuple(rejected), identity, folder)


def _source_bytes(track: Track) -> tuple[int, ...]:
    """The sizes of a track's source files; -1 for what is no file."""
    return tuple(p.stat().st_size if p.is_file() else -1 for p in track.source_files)


def _planned(
    track: Track, sizes: tuple[int, ...], exclusion: tuple[str, str] | None, windows: WindowConfig
) -> PlannedTrack:
    """Reads the headers of a track's audio; a UserError says why it cannot be used."""
    if track.failure:
        raise UserError(track.failure)
    seconds = max(audio_info(path).seconds for path in track.audio_files)
    variants = n_variants(track, windows)
    frames = count_frames(round(seconds * windows.spectrogram.sample_rate))
    phased = not track.variants  # variants over other stems all begin at frame 0
    records = sum(
        len(window_starts(frames, k if phased else 0, track.id, windows)) for k in range(variants)
    )
    return PlannedTrack(track, seconds, sizes, variants, records, exclusion)


def _listed(
    chosen: list[Track], exclude: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """Stage and reason by track id, where the list may have names as well."""
    listed = {t.id: exclude[key] for t in chosen for key in (t.id, t.name) if key in exclude}
    known = {key for track in chosen for key in (track.id, track.name)}
    if unknown := sorted(set(exclude) - known):
        raise UserError(
            f"--exclude names {unknown[0]!r}, and none of the {len(chosen)} tracks to "
            f"build is called so; the first is {chosen[0].id}"
        )
    return listed


def _as_published(manifest: DatasetManifest, config: BuildConfig) -> DatasetManifest:
    """The manifest as the adapter is to follow it: profile "paper" repairs nothing, only tells."""
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
    """The name that the user gave to a build of `folder`; a UserError says what is wrong with it."""
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
    return settings | {"resampler": "soxr HQ"}


def _choose(tracks: list[Track], config: BuildConfig) -> list[Track]:
    """The tracks asked for, by split and number."""
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


def n_variants(track: Track, windows: WindowConfig) -> int:
    """Passes over a track: only training tracks are cut more than once."""
    return len(track.variants) or (windows.variants if track.split == "train" else 1)
