"""The commands of `mt3data` about what publishers offer: list, download, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mt3data.terminal import print_json, progress

if TYPE_CHECKING:
    from mt3data.download import Wishes

FOLDER = click.Path(path_type=Path)
DATA = Path("data")  # where datasets lie, unless --root says otherwise


@click.command("list")
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
            print_json([summary(manifest) for manifest in manifests])
        else:
            click.echo("\n".join(table(manifests)))
    elif as_json:
        print_json(facts(load(name)))
    else:
        click.echo("\n".join(lines(load(name))))


@click.command()
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
@click.option("--cache", type=FOLDER, help="Where shards go, if DATASET is the address of a build.")
def download(
    dataset: str, root: Path, select: tuple[str, ...], stream: bool, archives: tuple[Path, ...],
    only: tuple[str, ...], cache: Path | None,
) -> None:  # fmt: skip
    """Downloads, verifies and unpacks DATASET; run again, it continues.

    Examples: mt3data download guitarset --root data/ ; mt3data download slakh --stream ;
    mt3data download maestro_v3 --select '2018/*' ;
    mt3data download https://example.org/shards/demo --cache shards/
    """
    from mt3data.download import Wishes

    if "://" in dataset or cache:
        click.echo(_fetch_shards(dataset, cache))
        return
    _download(dataset, root, Wishes(select, stream, archives, only))


def _download(dataset: str, root: Path, wishes: Wishes) -> None:
    from mt3data.download import download as run
    from mt3data.ledger import report
    from mt3data.manifest import load

    manifest = load(dataset)
    click.echo("\n".join(report(manifest, run(manifest, root, wishes))))


def _fetch_shards(address: str, cache: Path | None) -> Path:
    from mt3data.cache import cached
    from mt3data.errors import UserError
    from mt3data.stream import is_address

    if not is_address(address):
        raise UserError(f"{address} is no http(s) address of a build, so --cache means nothing")
    if cache is None:
        raise UserError(f"{address} is the address of a build; say with --cache where to put it")
    return cached(address, cache)


def download_first(dataset: str, root: Path) -> None:
    """Downloads what a dataset lacks; a --root that does not exist is taken for a typing error."""
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


@click.command()
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
