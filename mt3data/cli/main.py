"""The command `mt3data`. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mt3data import __version__
from mt3data.cli.builds import check, info, print_info, report, show
from mt3data.cli.datasets import ROOT, download, download_first, list_, verify
from mt3data.errors import UserError
from mt3data.terminal import (
    AT_LEAST_0,
    AT_LEAST_1,
    EXIT_CODES,
    PATH,
    CommandGroup,
    echo,
    plural,
    progress,
)  # fmt: skip

if TYPE_CHECKING:
    from mt3data.build.plan import Plan
    from mt3data.build.run import Summary

DEMO_PIECES = 20
SEED = click.option("--seed", type=AT_LEAST_0, default=0, show_default=True, metavar="N",
                    help="Of all that is drawn at random.")  # fmt: skip
WORKERS = click.option("--workers", type=AT_LEAST_1, default=os.cpu_count() or 1, metavar="N",
                       show_default="one per core", help="Processes.")  # fmt: skip


@click.group(
    cls=CommandGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, package_name="mt3kit")
def main() -> None:
    """Prepares datasets for MT3: from published recordings to training shards."""


@main.command()
@click.option("-o", "--out", "root", type=PATH, required=True, help="Folder to render into.")
@click.option("--tracks", type=AT_LEAST_1, default=DEMO_PIECES, show_default=True, metavar="N",
              help="Pieces to compose.")  # fmt: skip
@click.option("--seconds", default=40.0, show_default=True, metavar="SECONDS",
              help="Length of each piece.")  # fmt: skip
@SEED
@click.option("--soundfont", type=PATH, help="An .sf2 file; default: the one pretty_midi ships.")
@click.option(
    "--midi", "midi_dir", type=PATH, help="Render the MIDI files below this folder instead."
)
@WORKERS
def synth(
    root: Path, tracks: int, seconds: float, seed: int, soundfont: Path | None,
    midi_dir: Path | None, workers: int,
) -> None:  # fmt: skip
    """Composes and renders pieces, or renders your MIDI.

    They lie in OUT as Slakh's tracks do: mix, stems, and a MIDI file for each stem.

    \b
    Example: mt3data synth --out data/demo --tracks 20
    """
    from mt3data.synth.demo_dataset import synth as run

    summary = run(
        root, tracks=tracks, seed=seed, seconds=seconds, soundfont=soundfont, midi_dir=midi_dir,
        workers=workers,
    )  # fmt: skip
    echo(f"{root}: {plural(len(summary.rendered), 'piece')} rendered, {summary.kept} there before")
    for piece in summary.rendered:
        for what in piece.left_out:
            echo(f"{piece.track}: {what}")
    for failed in summary.failed:
        echo(f"not rendered: {failed.error}")
    if summary.failed:
        sys.exit(1)


@main.command()
@click.argument("dataset")
@ROOT
@click.option("-o", "--out", type=PATH, default=Path("shards"), show_default=True,
              help="Folder of builds.")  # fmt: skip
@click.option("--name", default="", help="For `folder`: what to call the build, in place of it.")
@click.option("--split", "splits", multiple=True, help="Only this split; may be repeated.")
@click.option("--split-scheme", help="Another division of the tracks, see `mt3data list DATASET`.")
@click.option("--tracks", type=AT_LEAST_1, metavar="N", help="At most so many tracks in all.")
@click.option("--window", type=AT_LEAST_1, default=2048, show_default=True, metavar="N",
              help="Frames of a record, 8 ms each.")  # fmt: skip
@click.option("--context", "right_context", type=click.Choice(["zeros", "audio"]),
              help="What the last frames see; default: zeros for windows of 256 and 512, else audio.")  # fmt: skip
@click.option("--variants", type=AT_LEAST_1, default=1, show_default=True, metavar="N",
              help="Cuttings of each training track.")  # fmt: skip
@click.option("--profile", type=click.Choice(["fixed", "paper"]), default="fixed", show_default=True,
              help="fixed: repair what is verified as wrong; paper: as MT3 did, with subsets of stems.")  # fmt: skip
@click.option("--subsets", type=AT_LEAST_0, default=0, metavar="N",
              help="N random subsets of stems in place of each training mix; --profile paper: 10.")  # fmt: skip
@click.option("--min-stems", type=AT_LEAST_1, default=4, show_default=True, metavar="N",
              help="Stems of the smallest subset; 1: soloists too.")  # fmt: skip
@click.option("--store", "features", type=click.Choice(["mel", "audio", "mel,audio"]), default="mel",
              show_default=True, help="The sound in a record: log-mel, audio at 16 kHz, or both.")  # fmt: skip
@click.option("--align", type=click.Choice(["measure", "off", "shift", "dtw"]), default="measure",
              show_default=True, help="Labels early or late: report, ignore, move or warp them.")  # fmt: skip
@SEED
@WORKERS
@click.option("--engine", default="local", show_default=True,
              help="local, or a dask scheduler such as tcp://host:8786.")  # fmt: skip
@click.option("--velocity-bins", type=AT_LEAST_1, default=1, show_default=True, metavar="N",
              help="Steps of loudness in the tokens, 1 to 127; 1: none.")  # fmt: skip
@click.option("--encoding", type=click.Choice(["ties", "noties", "onsets"]), default="ties",
              show_default=True, help="Notes held over: told in ties, or not; or onsets alone.")  # fmt: skip
@click.option("--granularity", type=click.Choice(["full", "midi_class", "flat"]), default="full",
              show_default=True, help="Programs in the tokens: 128, the 16 classes, or none.")  # fmt: skip
@click.option("--no-download", is_flag=True, help="Fetch nothing where the dataset is absent.")
@click.option("--max-failures", type=AT_LEAST_0, default=0, show_default=True, metavar="N",
              help="Tracks that may be quarantined before the exit code is 1.")  # fmt: skip
@click.option("--track-timeout", default=0.0, metavar="SECONDS",
              help="What a track may take; default: twice its length, at least 600.")  # fmt: skip
@click.option("--exclude", "exclusions", type=PATH, metavar="FILE",
              help="Tracks to leave out: lines of TRACK, stage and reason, with tabs between.")  # fmt: skip
@click.option("--force", is_flag=True, help="Build anew, in a folder beside one that exists.")
@click.option("--dry-run", is_flag=True,
              help="Only say what would be built, how large it is and how long it takes.")  # fmt: skip
def build(
    dataset: str, root: Path, out: Path, splits: tuple[str, ...], split_scheme: str | None,
    tracks: int | None, window: int, right_context: str | None, variants: int, profile: str, subsets: int,
    min_stems: int, features: str, align: str, seed: int, workers: int, engine: str,
    velocity_bins: int, encoding: str, granularity: str, no_download: bool, max_failures: int,
    track_timeout: float, exclusions: Path | None, force: bool, dry_run: bool, name: str,
) -> None:  # fmt: skip
    """Builds shards of a dataset, downloading it first.

    They go into OUT/DATASET. Run again, it continues: also after exit codes 2 and 130.

    A track that fails, changes while it is read, takes too long or twice kills its worker is
    quarantined: left out and listed, with stage and reason. Nothing else is touched, and the exit
    code is 1 if these are more than --max-failures.

    \b
    Example: mt3data build slakh --root data/ --out shards/
    """
    from mt3data.align.warp import require_librosa
    from mt3data.build.build_folder import BuildFolder
    from mt3data.build.crash_guard import MOST_LIMIT_SECONDS
    from mt3data.build.executor import require_engine
    from mt3data.build.plan import BuildConfig, checked_name, make_plan
    from mt3data.build.track_table import read_exclusions
    from mt3data.music.vocabulary import VocabularyConfig
    from mt3data.shards.windows import WindowConfig

    if not 0 <= track_timeout <= MOST_LIMIT_SECONDS:
        raise UserError(
            f"--track-timeout {track_timeout:g}: expected 0 to {MOST_LIMIT_SECONDS:g} seconds"
        )
    require_engine(engine)
    if align == "dtw":
        require_librosa()
    try:
        vocabulary = VocabularyConfig(velocity_bins, encoding=encoding, granularity=granularity)
        windows = WindowConfig(
            window,
            right_context=right_context or "",
            variants=variants,
            seed=seed,
            align=align,
            features=tuple(features.split(",")),
            vocabulary=vocabulary,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    if dataset == "demo":
        root = _demo_root(root) if dry_run else _render_demo(root, tracks or 0, seed, workers)
    config = BuildConfig(
        dataset, root, out, splits=splits, tracks=tracks or 0, split_scheme=split_scheme,
        windows=windows, workers=workers, name=name, profile=profile, subsets=subsets,
        min_stems=min_stems, engine=engine, track_timeout=track_timeout,
        exclude=read_exclusions(exclusions) if exclusions else {},
    )  # fmt: skip
    if name:
        checked_name(config)
    if not (no_download or dry_run):
        download_first(dataset, root, split_scheme, splits)
    plan = make_plan(config)
    if force:
        plan = BuildFolder(plan).next_free()
        echo(f"--force: {plan.folder}", err=True)
    if dry_run:
        from mt3data.build.dry_run import forecast

        echo("\n".join(forecast(plan)))
        return
    _tell(_run_build(plan), max_failures)


def _demo_root(root: Path) -> Path:
    return root if (root / "synth.json").is_file() else root / "demo"


def _render_demo(root: Path, tracks: int, seed: int, workers: int) -> Path:
    """Renders the demo pieces where they are not there yet; returns their folder."""
    from mt3data.synth.demo_dataset import synth as run

    folder = _demo_root(root)
    settings = folder / "synth.json"
    if not settings.is_file():
        run(folder, tracks=tracks or DEMO_PIECES, seed=seed, workers=workers)
        return folder
    found = json.loads(settings.read_text(encoding="utf-8"))
    if found["midi"] is None and len(list(folder.glob("*/Track*"))) < found["tracks"]:
        # Go on with what was begun there; refuses where that took another SoundFont.
        run(folder, tracks=found["tracks"], seed=found["seed"], seconds=found["seconds"],
            workers=workers)  # fmt: skip
    if tracks > found["tracks"]:
        echo(
            f"{folder} holds {plural(found['tracks'], 'piece')}; {tracks} were asked for", err=True
        )
    return folder


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


def _tell(summary: Summary, max_failures: int) -> None:
    """What came of a build; exits with 1 where more tracks failed than are forgiven."""
    for row in summary.quarantined:
        echo(f"quarantined {row['name']} ({row['stage']}): {row['error']}")
    print_info(summary.folder, summary.manifest)
    if len(summary.quarantined) > max_failures:
        failed = plural(len(summary.quarantined), "track")
        echo(f"{failed} failed; --max-failures is {max_failures}", err=True)
        sys.exit(1)


for command in (list_, download, verify, check, info, show, report):
    main.add_command(command)

if __name__ == "__main__":
    main()
