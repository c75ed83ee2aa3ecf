"""The command `mt3data`. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mt3data import __version__
from mt3data.errors import UserError
from mt3data.terminal import CommandGroup, progress

if TYPE_CHECKING:
    from mt3data.build import Summary
    from mt3data.download import Wishes
    from mt3data.plan import BuildConfig

FOLDER = click.Path(path_type=Path)
DEMO_PIECES = 20
DATA = Path("data")


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="mt3kit")
def main() -> None:
    """Prepares datasets for MT3: from published recordings to training shards.

    Exit codes: 0 done; 1 done, with faults that are listed; 2 a mistake, told in one line.
    """


@main.command("list")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def list_(name: str | None, as_json: bool) -> None:
    """Lists the datasets that can be built; with NAME, what is known of one, and how surely.

    Example: mt3data list slakh
    """
    from mt3data.catalogue import facts, lines, summary, table
    from mt3data.manifest import load, names

    if name is None:
        manifests = [load(each) for each in names()]
        if as_json:
            _print_json([summary(manifest) for manifest in manifests])
        else:
            click.echo("\n".join(table(manifests)))
    elif as_json:
        _print_json(facts(load(name)))
    else:
        click.echo("\n".join(lines(load(name))))


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
@click.option("--align", type=click.Choice(["measure", "off", "shift", "dtw"]), default="measure",
              show_default=True, help="Labels early or late: report, ignore, move or warp them.")  # fmt: skip
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=os.cpu_count() or 1, show_default=True, help="Processes.")
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
@click.option(
    "--max-failures",
    default=0,
    show_default=True,
    help="Tracks that may fail before the exit code is 1.",
)
def build(
    dataset: str, root: Path, out: Path, splits: tuple[str, ...], split_scheme: str | None,
    tracks: int, window: int, edge: str | None, passes: int, profile: str, subsets: int,
    align: str, seed: int, workers: int,
    velocity_bins: int, encoding: str, granularity: str, no_download: bool, max_failures: int,
    name: str,
) -> None:  # fmt: skip
    """Builds shards of DATASET into OUT/DATASET; run again, it continues.

    Examples: mt3data build demo --out shards/ ; mt3data build slakh --root data/ --out shards/ ;
    mt3data build folder --root recordings/ --name mine
    """
    from mt3data.plan import BuildConfig, checked_name
    from mt3data.vocabulary import VocabularyConfig
    from mt3data.windows import WindowConfig

    if min(tracks, subsets) < 0 or workers < 1:
        raise UserError(
            f"--tracks {tracks}, --subsets {subsets}, --workers {workers}: expected 0 or more, and "
            "at least 1 worker"
        )
    try:
        vocabulary = VocabularyConfig(velocity_bins, encoding=encoding, granularity=granularity)
        windows = WindowConfig(window, edge or "", passes, seed, align, vocabulary=vocabulary)
    except ValueError as error:
        raise UserError(str(error)) from error
    if dataset == "demo":
        root = _render_demo(root, tracks, seed, workers)
    config = BuildConfig(
        dataset, root, out, splits, tracks, split_scheme, windows, workers, name, profile, subsets
    )
    if name:
        checked_name(config)
    if not no_download:
        _download_first(dataset, root)
    summary = _run_build(config)
    for row in summary.quarantined:
        click.echo(f"quarantined {row['name']} ({row['stage']}): {row['error']}")
    _print_info(summary.folder, summary.manifest)
    if len(summary.quarantined) > max_failures:
        click.echo(
            f"{len(summary.quarantined)} tracks failed; --max-failures is {max_failures}", err=True
        )
        sys.exit(1)


def _render_demo(root: Path, tracks: int, seed: int, workers: int) -> Path:
    """Renders the demo pieces where they are not there yet; returns their folder."""
    from mt3data.synth import synth as run

    folder = root if (root / "synth.json").is_file() else root / "demo"
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


def _run_build(config: BuildConfig) -> Summary:
    from mt3data.build import build as run
    from mt3data.plan import make_plan

    plan = make_plan(config)
    hours = sum(shard.seconds for shard in plan.shards) / 3600
    with progress(hours, f"build {config.dataset}", "h") as bar:
        summary = run(plan, on_shard=lambda shard: bar.update(shard.seconds / 3600))
    if summary.already_complete:
        click.echo("already complete; nothing to do", err=True)
    return summary


@main.command()
@click.argument("dataset")
@click.option("--root", type=FOLDER, default=DATA, show_default=True, help="Where datasets lie.")
@click.option(
    "--select", multiple=True, metavar="GLOB",
    help="Only members of archives whose path below the dataset's folder matches; may be repeated.",
)  # fmt: skip
@click.option("--stream", is_flag=True, help="Unpack tar.gz while it comes; keep no archive.")
@click.option(
    "--from", "archives", type=FOLDER, multiple=True, metavar="FILE",
    help="An archive that you have already; may be repeated.",
)  # fmt: skip
@click.option("--source", "only", multiple=True, metavar="ID",
              help="Only this source, see `mt3data list DATASET`; may be repeated.")  # fmt: skip
def download(
    dataset: str, root: Path, select: tuple[str, ...], stream: bool, archives: tuple[Path, ...],
    only: tuple[str, ...],
) -> None:  # fmt: skip
    """Downloads, verifies and unpacks DATASET; run again, it continues.

    Examples: mt3data download guitarset --root data/ ; mt3data download slakh --stream ;
    mt3data download maestro_v3 --select '2018/*'
    """
    from mt3data.download import Wishes

    _download(dataset, root, Wishes(select, stream, archives, only))


def _download(dataset: str, root: Path, wishes: Wishes) -> None:
    from mt3data.download import download as run
    from mt3data.ledger import report
    from mt3data.manifest import load

    manifest = load(dataset)
    click.echo("\n".join(report(manifest, run(manifest, root, wishes))))


def _download_first(dataset: str, root: Path) -> None:
    """Downloads what a build lacks; a --root that does not exist is taken for a typing error."""
    from mt3data.disk import size
    from mt3data.download import Wishes, dataset_folder, needs_download, wanted_sources
    from mt3data.manifest import load

    manifest = load(dataset)
    if not (root.is_dir() or root == DATA) or not needs_download(manifest, root):
        return
    n_bytes = sum(source.bytes for source in wanted_sources(manifest))
    click.echo(
        f"{dataset_folder(manifest, root)} is absent or unfinished: downloading "
        f"{size(n_bytes) if n_bytes else 'files of unknown size'}; --no-download leaves that out",
        err=True,
    )
    _download(dataset, root, Wishes())


@main.command()
@click.argument("dataset")
@click.option("--root", type=FOLDER, default=DATA, show_default=True, help="Where datasets lie.")
@click.option("--fast", is_flag=True, help="Names and sizes only; reads no file.")
def verify(dataset: str, root: Path, fast: bool) -> None:
    """Tells which files of a DATASET are missing, wrong or extra.

    Example: mt3data verify guitarset --root data/
    """
    from mt3data.ledger import dataset_folder
    from mt3data.manifest import load
    from mt3data.verify import known_files
    from mt3data.verify import verify as run

    manifest = load(dataset)
    folder = dataset_folder(manifest, root)
    n_files = len(known_files(manifest, folder))
    with progress(n_files, f"verify {dataset}", "files") as bar:
        faults = run(manifest, root, fast=fast, on_file=lambda _: bar.update(1))
    for fault in faults:
        click.echo(str(fault))
    click.echo(f"{folder}: {n_files} files, {f'{len(faults)} faults' if faults else 'whole'}")
    if faults:
        sys.exit(1)


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--fast", is_flag=True, help="Sizes, names and the index only; reads no bodies.")
def check(folder: Path, fast: bool) -> None:
    """Finds whatever is wrong with a build, or with every build in FOLDER.

    Example: mt3data check shards/demo
    """
    from mt3data.check import check as run
    from mt3data.shards import find_builds, read_manifest

    n_faults = 0
    for build_folder in find_builds(folder):
        manifest = read_manifest(build_folder)
        n_files = len(manifest["shards"]) + len(manifest["files"])
        with progress(n_files, f"check {build_folder.name}", "files") as bar:
            faults = run(build_folder, fast=fast, on_file=lambda _: bar.update(1))
        for fault in faults:
            click.echo(f"{build_folder.name}: {fault}")
        records = sum(shard["records"] for shard in manifest["shards"])
        verdict = f"{len(faults)} faults" if faults else "whole"
        click.echo(
            f"{build_folder}: {records} records in {len(manifest['shards'])} shards, {verdict}"
        )
        n_faults += len(faults)
    if n_faults:
        sys.exit(1)


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="The manifests, as JSON.")
def info(folder: Path, as_json: bool) -> None:
    """Says what a build, or every build in FOLDER, holds.

    Example: mt3data info shards/
    """
    from mt3data.shards import find_builds, read_manifest

    manifests = {path: read_manifest(path) for path in find_builds(folder)}
    if as_json:
        _print_json({str(path): manifest for path, manifest in manifests.items()})
        return
    for path, manifest in manifests.items():
        _print_info(path, manifest)


@main.command()
@click.argument("folder", type=FOLDER)
@click.argument("key")
@click.option("--out", type=FOLDER, required=True, help="A picture: .png, .svg or .pdf.")
def show(folder: Path, key: str, out: Path) -> None:
    """Draws one record: its log-mel with the notes over it; prints its tokens in words.

    Example: mt3data show shards/demo demo-Track00001-p0-0000000 --out record.png
    """
    from mt3data.picture import draw_record

    for line in draw_record(folder, key, out):
        click.echo(line)


def _print_info(folder: Path, manifest: dict[str, Any]) -> None:
    click.echo(
        f"{folder}: {manifest['title']}, window {manifest['window']}, edge {manifest['edge']}, "
        f"{len(manifest['shards'])} shards, {sum(s['bytes'] for s in manifest['shards']) / 1e6:,.1f} MB, "
        f"licence {manifest['licence']}"
    )
    click.echo(f"  {'split':12}{'tracks':>8}{'hours':>9}{'records':>9}{'notes':>10}{'tokens':>11}"
               f"{'too long':>10}{'failed':>8}")  # fmt: skip
    for name, s in manifest["splits"].items():
        too_long = "-" if s["targets_too_long"] is None else s["targets_too_long"]
        click.echo(
            f"  {name:12}{s['tracks']:>8}{s['hours']:>9.3f}{s['records']:>9}{s['notes']:>10}"
            f"{s['tokens']:>11}{too_long:>10}{s['quarantined']:>8}"
        )


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
