"""The commands of `mt3data` about what publishers offer: list, download, verify."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mt3data.errors import UserError
from mt3data.terminal import PATH, echo, plural, print_json, progress

if TYPE_CHECKING:
    from mt3data.download.dataset import DownloadOptions

DATA = Path("data")  # where datasets lie, unless --root says otherwise
ROOT = click.option(
    "--root", type=PATH, default=DATA, show_default=True, help="Where datasets lie."
)


@click.command("list")
@click.argument("dataset", required=False)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.option(
    "--markdown", "as_markdown", is_flag=True, help="All of them, as a table in Markdown."
)
def list_(dataset: str | None, as_json: bool, as_markdown: bool) -> None:
    """Lists the datasets, or all that is known of one.

    Licence, tracks, hours, size of the download; for one DATASET also its sources, splits and known
    faults, each with how surely it is known.

    \b
    Example: mt3data list slakh
    """
    from mt3data.datasets.listing import facts, lines, markdown, summary, table
    from mt3data.datasets.manifest import load, names

    if as_markdown and (dataset or as_json):
        raise UserError("--markdown prints all datasets; leave out DATASET and --json")
    if dataset is not None:
        if as_json:
            print_json(facts(load(dataset)))
        else:
            echo("\n".join(lines(load(dataset))))
        return
    manifests = [load(each) for each in names()]
    if as_json:
        print_json([summary(manifest) for manifest in manifests])
    else:
        echo("\n".join((markdown if as_markdown else table)(manifests)))


@click.command()
@click.argument("dataset")
@ROOT
@click.option(
    "--select", multiple=True, metavar="GLOB",
    help="Only members of archives whose path below the dataset's folder matches; may be repeated.",
)  # fmt: skip
@click.option("--stream", is_flag=True, help="Unpack tar.gz while it comes; keep no archive.")
@click.option(
    "--from", "archives", type=PATH, multiple=True, metavar="FILE",
    help="An archive that you have already; may be repeated.",
)  # fmt: skip
@click.option("--source", "only", multiple=True, metavar="ID",
              help="Only this source, see `mt3data list DATASET`; may be repeated.")  # fmt: skip
@click.option("--cache", type=PATH, help="Where shards go, if DATASET is the address of a build.")
def download(
    dataset: str, root: Path, select: tuple[str, ...], stream: bool, archives: tuple[Path, ...],
    only: tuple[str, ...], cache: Path | None,
) -> None:  # fmt: skip
    """Downloads, verifies and unpacks a dataset.

    Run again, it continues. In place of DATASET it takes the address of a build that somebody
    serves, such as https://example.org/shards/slakh; --cache says where to put the copy.

    \b
    Example: mt3data download guitarset --root data/
    """
    from mt3data.download.dataset import DownloadOptions

    if "://" in dataset or cache:
        echo(_fetch_shards(dataset, cache))
        return
    _download(dataset, root, DownloadOptions(select, stream, archives, only))


def _download(dataset: str, root: Path, options: DownloadOptions) -> None:
    from mt3data.datasets.manifest import load
    from mt3data.download.dataset import download as run
    from mt3data.download.state import report

    manifest = load(dataset)
    echo("\n".join(report(manifest, run(manifest, root, options))))


def _fetch_shards(address: str, cache: Path | None) -> Path:
    from mt3data.shards.cache import cached
    from mt3data.shards.stream import is_address

    if not is_address(address):
        raise UserError(f"{address} is no http(s) address of a build, so --cache means nothing")
    if cache is None:
        raise UserError(f"{address} is the address of a build; say with --cache where to put it")
    return cached(address, cache)


def download_first(
    dataset: str, root: Path, split_scheme: str | None, splits: Sequence[str]
) -> None:
    """Downloads what a dataset lacks; a --root that does not exist is taken for a typing error.

    Raises:
        UserError: the dataset has no such splits, which is said before anything is downloaded.
    """
    from mt3data.datasets.manifest import load
    from mt3data.download.dataset import (
        DownloadOptions,
        dataset_folder,
        needs_download,
        wanted_sources,
    )
    from mt3data.files import format_bytes

    manifest = load(dataset)
    if not (root.is_dir() or root == DATA) or not needs_download(manifest, root):
        return
    known = manifest.expected.get(manifest.scheme(split_scheme).name, {})
    if wrong := known and [split for split in splits if split not in known]:
        raise UserError(f"{dataset} has no split {wrong[0]!r}; it has {', '.join(known)}")
    n_bytes = sum(source.bytes for source in wanted_sources(manifest))
    echo(
        f"{dataset_folder(manifest, root)} is absent or unfinished: downloading "
        f"{format_bytes(n_bytes) if n_bytes else 'files of unknown size'}; --no-download leaves that out",
        err=True,
    )
    _download(dataset, root, DownloadOptions())


@click.command()
@click.argument("dataset")
@ROOT
@click.option("--fast", is_flag=True, help="Names and sizes only; reads no file.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def verify(dataset: str, root: Path, fast: bool, as_json: bool) -> None:
    """Tells which files of a dataset are missing, wrong or extra.

    \b
    Example: mt3data verify guitarset --root data/
    """
    from mt3data.datasets.manifest import load
    from mt3data.download.state import dataset_folder
    from mt3data.download.verify import known_files
    from mt3data.download.verify import verify as run

    manifest = load(dataset)
    folder = dataset_folder(manifest, root)
    n_files = len(known_files(manifest, folder))
    with progress(n_files, f"verify {dataset}", "files") as bar:
        faults = run(manifest, root, fast=fast, on_file=lambda _: bar.update(1))
    if as_json:
        found = [asdict(fault) for fault in faults]
        print_json({"folder": str(folder), "files": n_files, "faults": found})
    else:
        verdict = plural(len(faults), "fault") if faults else "whole"
        echo("\n".join([*map(str, faults), f"{folder}: {plural(n_files, 'file')}, {verdict}"]))
    if faults:
        sys.exit(1)
