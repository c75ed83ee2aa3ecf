"""Defines the command `mt3data`; slow imports happen inside the commands that need them."""

from __future__ import annotations

import difflib
import os
import sys
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mt3data import __version__
from mt3data.cli.builds import check, info, print_info, push, report, show
from mt3data.cli.datasets import ROOT, download, download_first, list_, verify
from mt3data.errors import UserError, require_package
from mt3data.files import read_limited
from mt3data.terminal import (
    AT_LEAST_0,
    AT_LEAST_1,
    EXIT_CODES,
    PATH,
    WORKERS,
    CommandGroup,
    echo,
    plural,
    progress,
)

if TYPE_CHECKING:
    from mt3data.build.plan import Plan
    from mt3data.build.run import Summary

DEMO_PIECES = 20
SEED_OPTION = click.option("--seed", type=AT_LEAST_0, default=0, show_default=True, metavar="N",
                           help="Seed of all random choices.")  # fmt: skip
WORKERS_OPTION = click.option("--workers", type=WORKERS, default=os.cpu_count() or 1, metavar="N",
                              show_default="one per core", help="Number of processes.")  # fmt: skip


@dataclass(frozen=True)
class BuildSettings:
    """Settings of a build that few users need. `--config FILE` names a TOML file with them.

    Attributes:
        subsets: number of random subsets of stems in place of each training mix; 0 with --profile
            paper: 10.
        min_stems: stems of the smallest subset; 1 also allows soloists.
        velocity_bins: loudness classes in the tokens, 1 to 127; 1: none.
        encoding: "ties", "noties" or "onsets", see `VocabularyConfig`.
        granularity: "full", "midi_class" or "flat", see `VocabularyConfig`.
        rooms: place every variant of a training track but the first in a random room.
        track_timeout: seconds that a track may take; 0: twice its length, at least 600.
    """

    subsets: int = 0
    min_stems: int = 4
    velocity_bins: int = 1
    encoding: str = "ties"
    granularity: str = "full"
    rooms: bool = False
    track_timeout: float = 0.0


def read_settings(path: Path) -> BuildSettings:
    """Reads the file of `--config`.

    Args:
        path: a TOML file.
    Raises:
        UserError: the file cannot be read, has an unknown key, or a value of another type or range.
    """
    from mt3data.build.crash_guard import MOST_LIMIT_SECONDS

    try:
        content = tomllib.loads(read_limited(path).decode())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"--config {path}: cannot be read ({error}); expected a TOML file"
        ) from error
    defaults = {field.name: field.default for field in fields(BuildSettings)}
    for key, value in content.items():
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(defaults)}"
            raise UserError(f"{path}: unknown key {key}; {hint}")
        kind = type(defaults[key])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"{path}: {key} is {value!r}; expected {kind.__name__}")
    settings = BuildSettings(**content)
    for key, low, high in (
        ("subsets", 0, 1000), ("min_stems", 1, 1000), ("track_timeout", 0, MOST_LIMIT_SECONDS),
    ):  # fmt: skip
        if not low <= (value := getattr(settings, key)) <= high:
            raise UserError(f"{path}: {key} is {value:g}; expected {low} to {high:g}")
    return settings


@click.group(
    cls=CommandGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, package_name="mt3kit")
def main() -> None:
    """Prepares datasets for MT3: from published recordings to training shards."""


@main.command()
@click.option("-o", "--out", "root", type=PATH, required=True, help="Folder of the pieces.")
@click.option("--tracks", type=AT_LEAST_1, default=DEMO_PIECES, show_default=True, metavar="N",
              help="Number of pieces to compose.")  # fmt: skip
@click.option("--seconds", default=40.0, show_default=True, metavar="SECONDS",
              help="Length of each piece.")  # fmt: skip
@SEED_OPTION
@click.option("--soundfont", "soundfonts", type=PATH, multiple=True,
              help="An .sf2 file. Repeated: one that has the instrument is drawn for each stem. Default: the one "
              "of pretty_midi.")  # fmt: skip
@click.option("--kinds", metavar="SHARES", default="", callback=lambda _c, _p, text: _parse_shares(text),
              help="Kinds of pieces and their shares: band=35,piano=30,chamber=25,small=5,drums=5. Default: bands.")  # fmt: skip
@click.option("--effects", is_flag=True,
              help="Detune, bend, equalize, place in rooms and vary the level.")  # fmt: skip
@click.option(
    "--midi", "midi_dir", type=PATH, help="Render the MIDI files below this folder instead."
)
@click.option("--validation", type=AT_LEAST_0, metavar="N",
              help="Pieces of the split validation. Default: a tenth.")  # fmt: skip
@click.option("--test", type=AT_LEAST_0, metavar="N",
              help="Pieces of the split test. Default: a tenth.")  # fmt: skip
@WORKERS_OPTION
def synth(
    root: Path, tracks: int, seconds: float, seed: int, soundfonts: tuple[Path, ...],
    kinds: dict[str, float], effects: bool, midi_dir: Path | None, validation: int | None,
    test: int | None, workers: int,
) -> None:  # fmt: skip
    """Composes and renders pieces, or renders your MIDI.

    OUT has the layout of Slakh: for each track a mix, stems, and a MIDI file for each stem. `mt3data build
    demo --root OUT` builds shards of it.

    \b
    Example: mt3data synth --out data/demo --tracks 20
    """
    from mt3data.synth.demo_dataset import synth as run

    summary = run(
        root, tracks=tracks, seed=seed, seconds=seconds, soundfonts=soundfonts, kinds=kinds or None,
        effects=effects, midi_dir=midi_dir, validation=validation, test=test, workers=workers,
    )  # fmt: skip
    echo(f"{root}: {plural(len(summary.rendered), 'piece')} rendered, {summary.kept} there before")
    for piece in summary.rendered:
        for what in piece.left_out:
            echo(f"{piece.track}: {what}")
    for failed in summary.failed:
        echo(f"not rendered: {failed.error}")
    if summary.failed:
        sys.exit(1)


def _parse_shares(text: str) -> dict[str, float]:
    """Parses shares such as "band=35,piano=30"."""
    shares = {}
    for part in filter(None, text.split(",")):
        kind, _, share = part.partition("=")
        try:
            shares[kind.strip()] = float(share)
        except ValueError:
            raise click.BadParameter(f"{part!r}; expected KIND=SHARE such as piano=30") from None
    return shares


@main.command()
@click.argument("dataset")
@ROOT
@click.option("-o", "--out", type=PATH, default=Path("shards"), show_default=True,
              help="Folder of builds.")  # fmt: skip
@click.option("--name", default="", help="Name of the build, for the dataset `folder` only.")
@click.option("--split", "splits", multiple=True, help="Build only this split; may be repeated.")
@click.option("--split-scheme", help="Division into splits, see `mt3data list DATASET`.")
@click.option("--tracks", type=AT_LEAST_1, metavar="N", help="Build at most N tracks.")
@click.option("--window", type=AT_LEAST_1, default=2048, show_default=True, metavar="N",
              help="Frames of a record, 8 ms each.")  # fmt: skip
@click.option("--context", "right_context", type=click.Choice(["zeros", "audio"]),
              help="What follows the last frame: zeros, or audio of the track. Default: zeros for windows of "
              "256 and 512, else audio.")  # fmt: skip
@click.option("--variants", type=AT_LEAST_1, default=1, show_default=True, metavar="N",
              help="Cuttings of each training track, with other phases.")  # fmt: skip
@click.option("--profile", type=click.Choice(["fixed", "paper"]), default="fixed", show_default=True,
              help="fixed: repair verified faults; paper: as MT3 did, with subsets of stems.")  # fmt: skip
@click.option("--store", "features", type=click.Choice(["mel", "audio", "mel,audio"]), default="mel",
              show_default=True, help="Sound in a record: log-mel, audio at 16 kHz, or both.")  # fmt: skip
@click.option("--align", type=click.Choice(["measure", "off", "shift", "dtw"]), default="measure",
              show_default=True, help="Lag of labels: report, ignore, shift or warp.")  # fmt: skip
@SEED_OPTION
@WORKERS_OPTION
@click.option("--engine", default="local", show_default=True,
              help="local, or a dask scheduler such as tcp://host:8786.")  # fmt: skip
@click.option("--exclude", "exclusions", type=PATH, metavar="FILE",
              help="Leave out the tracks in FILE: lines of TRACK, stage and reason with tabs between.")  # fmt: skip
@click.option("--max-failures", type=AT_LEAST_0, default=0, show_default=True, metavar="N",
              help="Quarantined tracks up to which the exit code is 0.")  # fmt: skip
@click.option("--config", type=PATH, metavar="FILE",
              help="TOML file with rare settings: subsets, min_stems, velocity_bins, encoding, granularity, "
              "rooms, track_timeout.")  # fmt: skip
@click.option("--no-download", is_flag=True, help="Use only files that are there.")
@click.option("--dry-run", is_flag=True, help="Print tracks, size and time of the build, and stop.")
@click.option("--force", is_flag=True, help="Build again, in a folder beside the existing one.")
def build(
    dataset: str, root: Path, out: Path, splits: tuple[str, ...], split_scheme: str | None,
    tracks: int | None, window: int, right_context: str | None, variants: int, profile: str,
    features: str, align: str, seed: int, workers: int, engine: str, exclusions: Path | None,
    max_failures: int, config: Path | None, no_download: bool, dry_run: bool, force: bool, name: str,
) -> None:  # fmt: skip
    """Builds shards of a dataset, downloading it first.

    The shards go into OUT/DATASET. The same command continues an interrupted build.

    A track is quarantined if it fails, changes while it is read, takes too long or crashes its
    worker twice. Quarantined tracks are left out and listed with stage and reason. The other tracks
    are built. The exit code is 1 if more than --max-failures tracks are quarantined.

    \b
    Example: mt3data build slakh --root data/ --out shards/
    """
    from mt3data.build.build_folder import BuildFolder
    from mt3data.build.executor import require_engine
    from mt3data.build.plan import BuildConfig, checked_name, make_plan
    from mt3data.build.track_table import read_exclusions
    from mt3data.music.vocabulary import VocabularyConfig
    from mt3data.shards.windows import WindowConfig

    settings = read_settings(config) if config else BuildSettings()
    require_engine(engine)
    if align == "dtw":
        require_package("librosa", "analysis", "--align dtw")
    try:
        vocabulary = VocabularyConfig(
            settings.velocity_bins, encoding=settings.encoding, granularity=settings.granularity
        )
        windows = WindowConfig(
            window, right_context=right_context or "", variants=variants, seed=seed, align=align,
            features=tuple(features.split(",")), rooms=settings.rooms, vocabulary=vocabulary,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(str(error)) from error
    if dataset == "demo":
        root = _demo_folder(root)
        if not dry_run:
            _render_demo(root, tracks or 0, seed, workers, no_download)
    build_config = BuildConfig(
        dataset, root, out, splits=splits, tracks=tracks or 0, split_scheme=split_scheme,
        windows=windows, workers=workers, name=name, profile=profile, subsets=settings.subsets,
        min_stems=settings.min_stems, engine=engine, track_timeout=settings.track_timeout,
        exclude=read_exclusions(exclusions) if exclusions else {},
    )  # fmt: skip
    if name:
        checked_name(build_config)
    if not (no_download or dry_run):
        download_first(dataset, root, split_scheme, splits)
    plan = make_plan(build_config)
    if force:
        plan = BuildFolder(plan).next_free()
        echo(f"--force: {plan.folder}", err=True)
    if dry_run:
        from mt3data.build.dry_run import forecast

        echo("\n".join(forecast(plan)))
        return
    _print_result(_run_build(plan), max_failures)


def _demo_folder(root: Path) -> Path:
    """Returns the folder of tracks to build: `root` if it holds tracks, else the folder demo in it."""
    return root if _has_tracks(root) or (root / "synth.json").is_file() else root / "demo"


def _has_tracks(folder: Path) -> bool:
    groups = [folder, *(folder / split for split in ("train", "validation", "test"))]
    return any(any(group.glob("Track?????")) for group in groups)


def _require_no_recordings(root: Path) -> None:
    """Raises a UserError if a folder holds recordings, which the user probably wants to build."""
    from mt3data.audio.load import AUDIO_SUFFIXES
    from mt3data.datasets.manifest import load, names
    from mt3data.files import walk

    known = {load(name).folder.partition("/")[0] for name in names()} - {"demo"}
    found = [path for path in root.glob("*.*") if path.suffix.lower() in AUDIO_SUFFIXES]
    for folder in (path for path in root.glob("*/") if path.name not in known):
        found += walk(folder, AUDIO_SUFFIXES).files[:1]
    if found:
        raise UserError(
            f"--root {root} holds recordings such as {found[0]}; build them with `mt3data build folder "
            f"--root {root}`, or choose another --root for the demo pieces"
        )


def _render_demo(root: Path, tracks: int, seed: int, workers: int, no_download: bool) -> None:
    """Renders the demo pieces that are not there yet; never into a folder of other tracks."""
    from mt3data.synth.demo_dataset import read_settings
    from mt3data.synth.demo_dataset import synth as run

    found = read_settings(root)
    if found is None:
        if _has_tracks(root):
            return
        if no_download:
            raise UserError(f"{root} holds no demo pieces; leave out --no-download to render them")
        _require_no_recordings(root.parent)
        run(root, tracks=tracks or DEMO_PIECES, seed=seed, workers=workers)
        return
    if found["midi"] is None and len(list(root.glob("*/Track*"))) < found["tracks"]:
        if "effects" in found:
            raise UserError(
                f"{root} is incomplete; run the `mt3data synth` that began it again, then build"
            )
        # Continues an interrupted rendering; refuses if that used another SoundFont.
        run(root, tracks=found["tracks"], seed=found["seed"], seconds=found["seconds"],
            workers=workers)  # fmt: skip
    if tracks > found["tracks"]:
        echo(f"{root} holds {plural(found['tracks'], 'piece')}; {tracks} were asked for", err=True)


def _run_build(plan: Plan) -> Summary:
    from mt3data.build.run import build as run

    seconds = sum(shard.seconds for shard in plan.shards)
    unit, each = ("h", 3600) if seconds >= 3600 else ("min", 60)  # of audio
    with progress(seconds / each, f"build {plan.manifest.name}", unit) as bar:
        summary = run(
            plan,
            on_shard=lambda shard: bar.update(shard.seconds / each),
            on_message=lambda line: echo(line, err=True),
        )
    if summary.already_complete:
        echo("already complete; nothing to do", err=True)
    return summary


def _print_result(summary: Summary, max_failures: int) -> None:
    """Prints the result of a build; exits with 1 if more than max_failures tracks failed."""
    from mt3data.report.statistics import reason_of

    for row in summary.quarantined:
        echo(f"quarantined {row['name']} ({row['stage']}): {reason_of(row, summary.manifest)}")
    print_info(summary.folder, summary.manifest)
    if len(summary.quarantined) > max_failures:
        failed = plural(len(summary.quarantined), "track")
        echo(f"{failed} failed; --max-failures is {max_failures}", err=True)
        sys.exit(1)


for command in (list_, download, verify, check, info, push, show, report):
    main.add_command(command)

if __name__ == "__main__":
    main()
