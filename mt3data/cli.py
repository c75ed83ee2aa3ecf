"""The command `mt3data`. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mt3data import __version__
from mt3data.cli_builds import check, info, print_info, report, show
from mt3data.cli_sources import DATA, FOLDER, download, download_first, list_, verify
from mt3data.errors import UserError
from mt3data.terminal import CommandGroup, progress

if TYPE_CHECKING:
    from mt3data.build import Summary
    from mt3data.plan import Plan

DEMO_PIECES = 20


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="mt3kit")
def main() -> None:
    """Prepares datasets for MT3: from published recordings to training shards.

    Exit codes: 0 done; 1 done, with faults that are listed; 2 a mistake, told in one line.
    """


@main.command()
@click.option("--out", "root", type=FOLDER, required=True, help="Folder to render into.")
@click.option("--tracks", default=DEMO_PIECES, show_default=True, help="Pieces to compose.")
@click.option("--seconds", default=40.0, show_default=True, help="Length of each piece.")
@click.option("--seed", default=0, show_default=True)
@click.option("--soundfont", type=FOLDER, help="An .sf2 file; default: the one pretty_midi ships.")
@click.option(
    "--midi", "midi_dir", type=FOLDER, help="Render the MIDI files below this folder instead."
)
@click.option("--workers", default=os.cpu_count() or 1, show_default=True)
def synth(
    root: Path, tracks: int, seconds: float, seed: int, soundfont: Path | None,
    midi_dir: Path | None, workers: int,
) -> None:  # fmt: skip
    """Composes pieces, or takes your MIDI files, and renders them in Slakh's layout.

    Example: mt3data synth --out data/demo --tracks 20
    """
    from mt3data.synth import synth as run

    summary = run(
        root, tracks=tracks, seed=seed, seconds=seconds, soundfont=soundfont, midi_dir=midi_dir,
        workers=workers,
    )  # fmt: skip
    click.echo(f"{root}: {len(summary.rendered)} pieces rendered, {summary.kept} were there")
    for piece in summary.rendered:
        for what in piece.left_out:
            click.echo(f"{piece.track}: {what}")
    for failed in summary.failed:
        click.echo(f"not rendered: {failed.error}")
    if summary.failed:
        sys.exit(1)


@main.command()
@click.argument("dataset")
@click.option("--root", type=FOLDER, default=DATA, show_default=True, help="Where datasets lie.")
@click.option(
    "--out", type=FOLDER, default=Path("shards"), show_default=True, help="Folder for builds."
)
@click.option("--name", default="", help="For `folder`: what to call the build, in place of it.")
@click.option("--split", "splits", multiple=True, help="Only this split; may be repeated.")
@click.option("--split-scheme", help="Another division of the tracks, see `mt3data list DATASET`.")
@click.option("--tracks", default=0, help="At most so many tracks in all; 0 means all.")
@click.option("--window", default=2048, show_default=True, help="Frames of a record, 8 ms each.")
@click.option("--edge", type=click.Choice(["segment", "track"]),
              help="What the last frames see; default: segment for windows of 256 and 512, else track.")  # fmt: skip
@click.option("--passes", default=1, show_default=True, help="Cuttings of each training track.")
@click.option("--profile", type=click.Choice(["fixed", "paper"]), default="fixed", show_default=True,
              help="fixed: repair what is verified as wrong; paper: as MT3 did, with subsets of stems.")  # fmt: skip
@click.option("--subsets", default=0, metavar="N",
              help="N random subsets of stems in place of each training mix; --profile paper: 10.")  # fmt: skip
@click.option("--least-stems", type=click.IntRange(min=1), default=4, show_default=True, metavar="N",
              help="Stems of the smallest subset; 1: soloists too.")  # fmt: skip
@click.option("--members", type=click.Choice(["mel", "audio", "mel,audio"]), default="mel",
              show_default=True, help="The sound in a record: log-mel, audio at 16 kHz, or both.")  # fmt: skip
@click.option("--align", type=click.Choice(["measure", "off", "shift", "dtw"]), default="measure",
              show_default=True, help="Labels early or late: report, ignore, move or warp them.")  # fmt: skip
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=os.cpu_count() or 1, show_default=True, help="Processes.")
@click.option("--engine", default="local", show_default=True,
              help="local, or a dask scheduler such as tcp://host:8786.")  # fmt: skip
@click.option("--velocity-bins", default=1, show_default=True)
@click.option(
    "--encoding", type=click.Choice(["ties", "noties", "onsets"]), default="ties", show_default=True
)
@click.option(
    "--granularity",
    type=click.Choice(["full", "midi_class", "flat"]),
    default="full",
    show_default=True,
)
@click.option("--no-download", is_flag=True, help="Fetch nothing where the dataset is absent.")
@click.option("--max-failures", type=click.IntRange(min=0), default=0, show_default=True,
              help="Tracks that may be quarantined before the exit code is 1.")  # fmt: skip
@click.option("--track-timeout", default=0.0, metavar="SECONDS",
              help="What a track may take; default: twice its length, at least 600.")  # fmt: skip
@click.option("--bad", "bad_list", type=FOLDER, metavar="FILE",
              help="Tracks to leave out: lines of TRACK, stage and reason, with tabs between.")  # fmt: skip
@click.option("--force", is_flag=True, help="Build anew, in a folder beside one that exists.")
@click.option("--dry-run", is_flag=True,
              help="Only say what would be built, how large it is and how long it takes.")  # fmt: skip
def build(
    dataset: str, root: Path, out: Path, splits: tuple[str, ...], split_scheme: str | None,
    tracks: int, window: int, edge: str | None, passes: int, profile: str, subsets: int,
    least_stems: int, members: str, align: str, seed: int, workers: int, engine: str,
    velocity_bins: int, encoding: str, granularity: str, no_download: bool, max_failures: int,
    track_timeout: float, bad_list: Path | None, force: bool, dry_run: bool, name: str,
) -> None:  # fmt: skip
    """Builds shards of DATASET into OUT/DATASET; run again, it continues.

    A track that fails, changes while it is read, takes too long or twice kills its worker is
    quarantined: left out and listed, with stage and reason, and nothing else is touched.

    Exit codes: 0 all done; 1 done, but more than --max-failures tracks are quarantined; 2 a mistake
    or no room, told in one line; 130 interrupted. After 2 and 130 the same command continues.

    Examples: mt3data build demo --out shards/ ; mt3data build slakh --root data/ --out shards/ ;
    mt3data build folder --root recordings/ --name mine
    """
    from mt3data.attempts import MOST_LIMIT_SECONDS
    from mt3data.claim import beside
    from mt3data.engine import require_engine
    from mt3data.plan import BuildConfig, checked_name, make_plan
    from mt3data.rows import read_bad
    from mt3data.vocabulary import VocabularyConfig
    from mt3data.windows import WindowConfig

    if min(tracks, subsets) < 0 or workers < 1:
        raise UserError(
            f"--tracks {tracks}, --subsets {subsets}, --workers {workers}: expected 0 or more, and at "
            "least 1 worker"
        )
    if not 0 <= track_timeout <= MOST_LIMIT_SECONDS:
        raise UserError(
            f"--track-timeout {track_timeout:g}: expected 0 to {MOST_LIMIT_SECONDS:g} seconds"
        )
    require_engine(engine)
    try:
        vocabulary = VocabularyConfig(velocity_bins, encoding=encoding, granularity=granularity)
        sound = tuple(members.split(","))
        windows = WindowConfig(
            window, edge or "", passes, seed, align, sound, vocabulary=vocabulary
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    if dataset == "demo":
        root = _demo_root(root) if dry_run else _render_demo(root, tracks, seed, workers)
    config = BuildConfig(
        dataset, root, out, splits, tracks, split_scheme, windows, workers, name, profile, subsets,
        least_stems, engine, track_timeout, read_bad(bad_list) if bad_list else {},
    )  # fmt: skip
    if name:
        checked_name(config)
    if not (no_download or dry_run):
        download_first(dataset, root)
    plan = make_plan(config)
    if force:
        plan = beside(plan)
        click.echo(f"--force: {plan.folder}", err=True)
    if dry_run:
        from mt3data.forecast import forecast

        click.echo("\n".join(forecast(plan)))
        return
    summary = _run_build(plan)
    for row in summary.quarantined:
        click.echo(f"quarantined {row['name']} ({row['stage']}): {row['error']}")
    print_info(summary.folder, summary.manifest)
    if len(summary.quarantined) > max_failures:
        click.echo(
            f"{len(summary.quarantined)} tracks failed; --max-failures is {max_failures}", err=True
        )
        sys.exit(1)


def _demo_root(root: Path) -> Path:
    return root if (root / "synth.json").is_file() else root / "demo"


def _render_demo(root: Path, tracks: int, seed: int, workers: int) -> Path:
    """Renders the demo pieces where they are not there yet; returns their folder."""
    from mt3data.synth import synth as run

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
        click.echo(f"{folder} holds {found['tracks']} pieces, {tracks} were asked for", err=True)
    return folder


def _run_build(plan: Plan) -> Summary:
    from mt3data.build import build as run

    hours = sum(shard.seconds for shard in plan.shards) / 3600
    with progress(hours, f"build {plan.manifest.name}", "h") as bar:
        summary = run(
            plan,
            on_shard=lambda shard: bar.update(shard.seconds / 3600),
            report=lambda line: click.echo(line, err=True),
        )
    if summary.already_complete:
        click.echo("already complete; nothing to do", err=True)
    return summary


for command in (list_, download, verify, check, info, show, report):
    main.add_command(command)

if __name__ == "__main__":
    main()
