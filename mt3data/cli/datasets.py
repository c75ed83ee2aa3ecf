"""Defines the commands of `mt3data` for published datasets: list, download, verify."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mt3data.errors import UserError
from mt3data.terminal import PATH, echo, plural, print_json

if TYPE_CHECKING:
    from mt3data.download.dataset import DownloadOptions

DATA = Path("data")  # default of --root
ROOT = click.option(
    "--root", type=PATH, default=DATA, show_default=True, help="Folder of the datasets."
)


@click.command("list")
@click.argument("dataset", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(dataset: str | None, as_json: bool) -> None:
    """Lists the datasets, or all facts about one.

    The list has licence, tracks, hours and size of the download. For one DATASET it also has
    sources, splits and known faults, and how sure each fact is.

    \b
    Example: mt3data list slakh
    """
    from mt3data.datasets.listing import facts, summary, table, text
    from mt3data.datasets.manifest import load, names

    manifests = [load(dataset)] if dataset is not None else [load(name) for name in names()]
    if as_json:
        print_json(facts(*manifests) if dataset is not None else [summary(m) for m in manifests])
    else:
        echo(text(*manifests) if dataset is not None else "\n".join(table(manifests)))


@click.command()
@click.argument("dataset")
@ROOT
@click.option(
    "--select", multiple=True, metavar="GLOB",
    help="Unpack only files whose path below the dataset's folder matches; may be repeated.",
)  # fmt: skip
@click.option(
    "--stream", is_flag=True, help="Unpack a tar.gz during its download; keep no archive."
)
@click.option(
    "--from", "archives", type=PATH, multiple=True, metavar="FILE",
    help="Use this archive, which you already have; may be repeated.",
)  # fmt: skip
@click.option("--source", "only", multiple=True, metavar="ID",
              help="Download only this source of `mt3data list DATASET`; may be repeated.")  # fmt: skip
@click.option(
    "--cache", type=PATH, help="Folder for the copy, if DATASET is the address of a build."
)
def download(
    dataset: str, root: Path, select: tuple[str, ...], stream: bool, archives: tuple[Path, ...],
    only: tuple[str, ...], cache: Path | None,
) -> None:  # fmt: skip
    """Downloads, verifies and unpacks a dataset.

    The same command continues an interrupted download. DATASET may also be the address of a build on
    a web server, such as https://example.org/shards/slakh. Then --cache names the folder of the copy.

    \b
    Example: mt3data download guitarset --root data/
    """
    from mt3data.download.dataset import DownloadOptions

    if "://" in dataset or cache:
        if select or stream or archives or only:
            raise UserError(
                "--select, --stream, --from and --source are for datasets; a build is copied whole"
            )
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
    from mt3data.download.address import is_address
    from mt3data.shards.cache import cached

    if not is_address(address):
        raise UserError(f"{address} is no address of a build, so --cache has no use here")
    if cache is None:
        raise UserError(f"{address} is the address of a build; name a folder for it with --cache")
    return cached(address, cache)


def download_first(
    dataset: str, root: Path, split_scheme: str | None, splits: Sequence[str]
) -> None:
    """Downloads a dataset that is absent or incomplete, unless --root does not exist.

    A --root other than the default that does not exist is probably a typing error.

    Args:
        dataset: its name.
        root: folder of the datasets.
        split_scheme: of `--split-scheme`.
        splits: of `--split`.
    Raises:
        UserError: the dataset has no such split. Nothing was downloaded then.
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
        f"{format_bytes(n_bytes) if n_bytes else 'files of unknown size'}; --no-download prevents this",
        err=True,
    )
    _download(dataset, root, DownloadOptions())


@click.command()
@click.argument("dataset")
@ROOT
@click.option("--fast", is_flag=True, help="Compare names and sizes only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(dataset: str, root: Path, fast: bool, as_json: bool) -> None:
    """Checks a downloaded dataset: missing, wrong and extra files.

    `verify` works on a download, `check` on a build.

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
    faults = run(manifest, root, fast=fast)
    if as_json:
        found = [asdict(fault) for fault in faults]
        print_json({"folder": str(folder), "files": n_files, "faults": found})
    else:
        verdict = plural(len(faults), "fault") if faults else "whole"
        echo("\n".join([*map(str, faults), f"{folder}: {plural(n_files, 'file')}, {verdict}"]))
    if faults:
        sys.exit(1)
