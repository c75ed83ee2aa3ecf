"""Defines the commands of `mt3data` for finished builds: check, info, push, show, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mt3data.files import STDOUT
from mt3data.terminal import FORCE, OUTPUT, PATH, WORKERS, echo, plural, print_json, progress

SETTINGS = ("align", "profile", "seed", "split_scheme")  # of a build manifest, shown by `info`


@click.command()
@click.argument("folder", type=PATH)
@click.option("--fast", is_flag=True, help="Sizes, names and the index only; reads no bodies.")
@click.option("--workers", type=WORKERS, default=2, show_default=True, metavar="N",
              help="Threads.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(folder: Path, fast: bool, workers: int, as_json: bool) -> None:
    """Checks builds: missing, damaged and foreign files.

    FOLDER is a build, or a folder of builds. `check` works on a build, `verify` on a download.

    \b
    Example: mt3data check shards/demo
    """
    from mt3data.shards.cache import is_partial
    from mt3data.shards.check import check as run
    from mt3data.shards.format import find_builds, read_build_manifest

    results: dict[str, dict[str, Any]] = {}
    for build_folder in find_builds(folder):
        manifest = read_build_manifest(build_folder)
        n_bytes = sum(entry["bytes"] for entry in manifest["shards"] + manifest["files"])
        with progress(n_bytes / 1e6, f"check {build_folder.name}", "MB") as bar:
            faults = run(build_folder, fast=fast, workers=workers, on_bytes=lambda n: bar.update(n / 1e6))  # fmt: skip
        n_records = sum(shard["records"] for shard in manifest["shards"])
        n_shards = len(manifest["shards"])
        results[str(build_folder)] = {"records": n_records, "shards": n_shards, "faults": faults}
        if not as_json:
            verdict = plural(len(faults), "fault") if faults else "whole"
            held = f"{plural(n_records, 'record')} in {plural(n_shards, 'shard')}"
            if is_partial(build_folder):
                here = sum((build_folder / s["name"]).is_file() for s in manifest["shards"])
                held += f", {here} of them here"
            echo("\n".join(f"{build_folder.name}: {fault}" for fault in faults), nl=bool(faults))
            echo(f"{build_folder}: {held}, {verdict}")
    if as_json:
        print_json(results)
    if any(each["faults"] for each in results.values()):
        sys.exit(1)


@click.command()
@click.argument("folder", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the manifests as JSON.")
def info(folder: Path, as_json: bool) -> None:
    """Prints what builds hold: tracks, hours, notes, settings, lag.

    FOLDER is a build, or a folder of builds.

    \b
    Example: mt3data info shards/
    """
    from mt3data.shards.format import find_builds, read_build_manifest

    manifests = {path: read_build_manifest(path) for path in find_builds(folder)}
    if as_json:
        print_json({str(path): manifest for path, manifest in manifests.items()})
        return
    for path, manifest in manifests.items():
        print_info(path, manifest)


@click.command()
@click.argument("folder", type=PATH)
@click.argument("address")
@click.option("--force", is_flag=True, help="Replace another build at ADDRESS.")
@click.option("--workers", type=WORKERS, default=2, show_default=True, metavar="N",
              help="Threads that check the build first.")  # fmt: skip
def push(folder: Path, address: str, force: bool, workers: int) -> None:
    """Copies a build to an object store or another disk.

    ADDRESS is that of the folder for the build FOLDER: s3://, gs://, az://, hf:// or another protocol
    of fsspec, or a path. The build is checked first. Its manifest is uploaded last, so that nobody
    reads half a build. The same command continues an interrupted upload.

    \b
    Example: mt3data push shards/slakh s3://bucket/shards/slakh
    """
    from mt3data.files import format_bytes
    from mt3data.shards.format import read_build_manifest
    from mt3data.shards.push import push as run

    manifest = read_build_manifest(folder)
    n_bytes = sum(entry["bytes"] for entry in manifest["shards"] + manifest["files"])
    with progress(2 * n_bytes / 1e6, f"push {folder.name}", "MB") as bar:
        done = run(folder, address, force=force, workers=workers,
                   on_bytes=lambda n: bar.update(n / 1e6))  # fmt: skip
    echo(
        f"{address}: {plural(done.files, 'file')} uploaded, {format_bytes(done.bytes)}; "
        f"{plural(done.present, 'file')} there before"
    )


@click.command()
@click.argument("folder", type=PATH)
@click.argument("key")
@click.option("-o", "--out", type=OUTPUT, required=True,
              help="The picture: .png, .svg or .pdf; -: a PNG to standard output.")  # fmt: skip
@click.option("--from", "begin", type=float, default=0.0, metavar="S",
              help="Draw from this second of the record.")  # fmt: skip
@click.option("--to", "end", type=float, metavar="S", help="Draw up to this second of the record.")
@FORCE
def show(folder: Path, key: str, out: Path, begin: float, end: float | None, force: bool) -> None:
    """Draws one record, and prints its tokens in words.

    The picture has its log-mel, and over it its notes. A frame covers the 128 ms that follow it, so
    sound appears about 60 ms before its note. KEY is the name of a record in FOLDER's index and tar
    files. A shift token is printed with its time in the track.

    \b
    Example: mt3data show shards/demo demo-Track00001-p0-0000000 -o record.png --from 2 --to 4
    """
    from mt3data.report.plot_record import draw_record

    for line in draw_record(folder, key, out, force, begin=begin, end=end):
        echo(line, err=out == STDOUT)


@click.command()
@click.argument("folder", type=PATH)
@click.option("-o", "--out", type=OUTPUT, required=True,
              help="The page, such as report.html; -: standard output.")  # fmt: skip
@FORCE
def report(folder: Path, out: Path, force: bool) -> None:
    """Writes a page about builds, to open in a browser.

    FOLDER is a build, or a folder of builds. The page is one file and loads nothing from elsewhere.

    \b
    Example: mt3data report shards/demo -o report.html
    """
    from mt3data.report.page import n_windows, write_report

    with progress(n_windows(folder), f"report {folder.name}", "windows") as bar:
        surveys = write_report(folder, out, lambda: bar.update(1), force)
    builds = ", ".join(each.manifest["dataset"] for each in surveys)
    echo(f"{out}: a page about {builds}", err=out == STDOUT)


def print_info(folder: Path, manifest: dict[str, Any]) -> None:
    """Prints the manifest of a build: settings, a table with a row for each split, and the lag."""
    echo(
        f"{folder}: {manifest['title']}, window {manifest['window']}, right_context {manifest['right_context']}, "
        f"{plural(len(manifest['shards']), 'shard')}, {sum(s['bytes'] for s in manifest['shards']) / 1e6:,.1f} MB, "
        f"licence {manifest['licence']}"
    )
    echo(f"  {'split':12}{'tracks':>8}{'hours':>9}{'records':>9}{'notes':>10}{'tokens':>11}"
               f"{'too long':>10}{'failed':>8}")  # fmt: skip
    for name, s in manifest["splits"].items():
        too_long = "-" if s["targets_too_long"] is None else s["targets_too_long"]
        echo(
            f"  {name:12}{s['tracks']:>8}{s['hours']:>9.3f}{s['records']:>9}{s['notes']:>10}"
            f"{s['tokens']:>11}{too_long:>10}{s['quarantined']:>8}"
        )
    settings = (f"{key.replace('_', ' ')} {manifest[key]}" for key in SETTINGS)
    echo(f"  {', '.join(settings)}; {_lag(folder)}")


def _lag(folder: Path) -> str:
    """Returns the median lag of a build, and how many tracks are off by more than the threshold."""
    import numpy as np

    from mt3data.align.lag import MIN_SHIFT_SECONDS
    from mt3data.report.statistics import sure_lags
    from mt3data.shards.index import track_rows

    if not (folder / "tracks.parquet").is_file():
        return "no tracks.parquet, so the lag is unknown"
    lags = [row["lag"] for row in sure_lags(track_rows(folder))]
    if not lags:
        return "lag of labels not measured"
    off = sum(abs(lag) > MIN_SHIFT_SECONDS for lag in lags)
    return (
        f"median lag {1000 * float(np.median(lags)):+.0f} ms, {off} of {plural(len(lags), 'track')} off by "
        f"more than {1000 * MIN_SHIFT_SECONDS:.0f} ms (negative: labels late)"
    )
