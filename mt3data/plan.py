"""The plan of a build: which tracks go into which shard, decided before any work.

Planning is serial and cheap: it lists the dataset and reads audio headers. What a plan holds depends
on the tracks, the seed and the settings alone, and failures later never move a boundary.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mt3data import __version__
from mt3data.audio import audio_info
from mt3data.errors import UserError
from mt3data.manifest import Manifest, load, names
from mt3data.mix import LAW, PAPER_SUBSETS, with_subsets
from mt3data.shards import SCHEMA_VERSION, canonical_json
from mt3data.spectrogram import n_frames_of
from mt3data.track import Track
from mt3data.windows import WindowConfig, window_starts

MAX_SHARD_BYTES, MIN_SHARD_BYTES = 256 << 20, 8 << 20
SHARDS_PER_SPLIT = 64  # wanted at least, so that streaming readers can divide a large split
PROFILES = ("fixed", "paper")
RECORD_OVERHEAD = 8192  # bytes of a record beside mel and audio: tar headers, notes, tokens, json


@dataclass(frozen=True)
class BuildConfig:
    """What to build. Everything but `workers` and the paths changes bytes and is fingerprinted.

    Attributes:
        dataset: name of a manifest.
        root: where the dataset lies.
        out: folder for builds; this one goes into `out/dataset`, or `out/name`.
        splits: only these; empty means all.
        tracks: at most this many tracks in all, every split keeping its share; 0 means all.
        split_scheme: a scheme of the manifest; None takes its default.
        windows: how tracks are cut.
        workers: processes.
        profile: "fixed" repairs what is verified as wrong, "paper" is what MT3 did: known errors are
            kept, and Slakh's training tracks are PAPER_SUBSETS subsets of their stems.
        subsets: so many subsets of stems for each training track that has stems; 0: by profile.
        name: what the build is called where it is not the dataset; for the user's own folders.
    """

    dataset: str
    root: Path
    out: Path
    splits: tuple[str, ...] = ()
    tracks: int = 0
    split_scheme: str | None = None
    windows: WindowConfig = field(default_factory=WindowConfig)
    workers: int = 1
    name: str = ""
    profile: str = "fixed"
    subsets: int = 0


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its name and the tracks that go into it, in order."""

    name: str
    split: str
    tracks: tuple[Track, ...]
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a build will do, decided before any work."""

    config: BuildConfig
    manifest: Manifest
    shards: tuple[ShardPlan, ...]
    rejected: tuple[dict[str, Any], ...]  # rows of tracks.parquet for tracks that cannot be used
    identity: dict[str, Any]  # everything that changes bytes

    @property
    def folder(self) -> Path:
        """Where the build goes."""
        return self.config.out / self.manifest.name

    @property
    def fingerprint(self) -> str:
        """sha256 of `identity`."""
        return hashlib.sha256(canonical_json(self.identity)).hexdigest()


def make_plan(config: BuildConfig) -> Plan:
    """Decides the content of every shard from headers alone.

    Tracks of the training split are ordered by a hash of (seed, track), those of other splits by
    id; they fill shards greedily. Windows of a track stay together.

    Raises:
        UserError: unknown dataset, split or scheme, a wrong root, or no track at all.
    """
    manifest = load(config.dataset)
    adapter = importlib.import_module(f"mt3data.datasets.{manifest.adapter}")
    if config.name:
        manifest = replace(manifest, name=checked_name(config))
    tracks = list(
        adapter.tracks(config.root.absolute(), _as_published(manifest, config), config.split_scheme)
    )
    subsets = config.subsets or (PAPER_SUBSETS if config.profile == "paper" else 0)
    chosen = _choose(tracks, config)
    if subsets:
        chosen = [with_subsets(track, config.windows.seed, subsets) for track in chosen]
    rejected, usable, sizes = [], [], {}
    for track in chosen:
        try:
            if track.failure:
                raise UserError(track.failure)
            sizes[track.id] = max(audio_info(path).seconds for path in track.audio_files)
            usable.append(track)
        except UserError as error:
            rejected.append(track_row(track, status="quarantined", stage="plan", error=str(error)))
    shards: list[ShardPlan] = []
    for split in sorted({track.split for track in usable}):
        mine = [track for track in usable if track.split == split]
        shards += _pack(split, mine, sizes, config.windows)
    identity = {
        "schema": SCHEMA_VERSION, "version": __version__, "dataset": manifest.name,
        "split_scheme": config.split_scheme or manifest.default_scheme,
        **_settings(config.windows),
        "profile": config.profile,
        "subsets": {"passes": subsets, "law": LAW} if any(t.passes for t in chosen) else None,
        "tracks": [
            [t.id, t.split, t.trim, _passes_said(t), *(p.stat().st_size if p.is_file() else -1 for p in source_files(t))]
            for t in chosen
        ],
    }  # fmt: skip
    return Plan(config, manifest, tuple(shards), tuple(rejected), identity)


def _as_published(manifest: Manifest, config: BuildConfig) -> Manifest:
    """The manifest as the adapter is to follow it: profile "paper" repairs nothing, only tells."""
    if config.profile not in PROFILES:
        raise UserError(f"--profile {config.profile}: expected {' or '.join(PROFILES)}")
    if config.windows.passes > 1 and (config.subsets or config.profile == "paper"):
        raise UserError("--passes and subsets of stems exclude each other; leave --passes out")
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
    settings["window"], settings["members"] = settings.pop("frames"), windows.schema
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


def _pack(
    split: str, tracks: list[Track], seconds: dict[str, float], windows: WindowConfig
) -> list[ShardPlan]:
    """Fills shards of about equal size with the tracks of one split."""

    def rank(track: Track) -> Any:
        return hashlib.sha256(f"{windows.seed}|{track.id}".encode()).digest()

    ordered = sorted(tracks, key=rank if split == "train" else lambda t: t.id)
    size_of = {
        t.id: _estimated_bytes(seconds[t.id], passes_of(t, windows), windows) for t in tracks
    }
    total = sum(size_of.values())
    target = min(MAX_SHARD_BYTES, max(MIN_SHARD_BYTES, total // SHARDS_PER_SPLIT))
    groups: list[list[Track]] = [[]]
    filled = 0
    for track in ordered:
        if groups[-1] and filled + size_of[track.id] > target:
            groups.append([])
            filled = 0
        groups[-1].append(track)
        filled += size_of[track.id]
    return [
        ShardPlan(
            f"{split}-{i:05d}-of-{len(groups):05d}.tar", split, tuple(group),
            sum(passes_of(t, windows) * seconds[t.id] for t in group),
        )
        for i, group in enumerate(groups)
    ]  # fmt: skip


def _estimated_bytes(seconds: float, passes: int, windows: WindowConfig) -> int:
    frames = n_frames_of(round(seconds * windows.spectrogram.sample_rate))
    records = len(window_starts(frames, 0, "", windows))
    sound = (windows.schema[name] for name in windows.members)
    size = sum(math.prod(s["shape"]) * np.dtype(s["dtype"]).itemsize for s in sound)
    return passes * records * (size + RECORD_OVERHEAD)


def passes_of(track: Track, windows: WindowConfig) -> int:
    """Passes over a track: only training tracks are cut more than once."""
    return len(track.passes) or (windows.passes if track.split == "train" else 1)


def source_files(track: Track) -> list[Path]:
    """Everything a track is built from: its audio, then its label files or its stems' MIDI."""
    return [*track.audio_files, *label_files(track)]


def label_files(track: Track) -> list[Path]:
    """The files that hold a track's labels."""
    if track.labels is not None:
        return list(track.labels.files)
    return [stem.midi for stem in track.stems if stem.midi]


def track_row(track: Track, **known: Any) -> dict[str, Any]:
    """A row of tracks.parquet; what is not known is null, 0 or empty."""
    row = dict.fromkeys(("seconds", "frames", "notes", "notes_after_audio", "lag", "drift", "align_confidence", "audio_sha256", "labels_sha256"))  # fmt: skip
    row |= {"track": track.id, "name": track.name, "split": track.split, "records": 0}
    return (
        row
        | {
            "stage": "",
            "error": "",
            "aligned": "",
            "passes": _passes_said(track),
            "problems": list(track.problems),
        }
        | known
    )


def _passes_said(track: Track) -> list[str]:
    """The stems that each pass hears, "S00+S02", where they do not hear the mix."""
    return ["+".join(members) for members in track.passes]
