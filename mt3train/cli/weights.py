"""The commands of `mt3train` for published weights: weights, weights get."""

from __future__ import annotations

from typing import Any

import click

from mt3data.errors import UserError
from mt3data.files import format_bytes
from mt3data.terminal import echo, print_json
from mt3train.weights.published import KNOWN, Bucket, cache_folder, cached_file
from mt3train.weights.published import get as get_weights


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with sources and checksums.")
@click.pass_context
def weights(ctx: click.Context, as_json: bool) -> None:
    """Lists published weights, or downloads some.

    The list has size, licence and use of each model, and whether it is on this machine. Without a
    licence nobody has permission to redistribute or sell what was downloaded.

    \b
    Example: mt3train weights get mt3
    """
    if ctx.invoked_subcommand:
        return
    if as_json:
        print_json([_facts(name) for name in KNOWN])
        return
    echo(f"{'name':17}{'about':>9}  {'here':6}{'licence':10}good for")
    for one in KNOWN.values():
        here = "yes" if cached_file(one).is_file() else "no"
        size = format_bytes(one.n_bytes)
        echo(f"{one.name:17}{size:>9}  {here:6}{one.licence:10}{one.use}")
    echo(f"\n`mt3train weights get NAME` downloads into {cache_folder()} (MT3KIT_CACHE chooses another "
         "folder). `--checkpoint NAME` uses them.")  # fmt: skip


@weights.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--offline", is_flag=True, help="Never connect; print what is here.")
def get(name: str, yes: bool, offline: bool) -> None:
    """Downloads, verifies and converts weights.

    The same command continues an interrupted download. It prints the checksum of all arrays, which
    does not depend on the source.

    \b
    Example: mt3train weights get mt3
    """
    if name not in KNOWN:
        raise UserError(f"no published weights {name!r}; expected one of {', '.join(KNOWN)}")
    path = get_weights(KNOWN[name], yes, offline)
    from mt3train.weights.checkpoint import checksum, read_weights

    _, tensors = read_weights(path)
    n_parameters = sum(tensor.numel() for tensor in tensors.values())
    echo(f"{path}: {name}, {n_parameters:,} parameters, sha256 of the arrays {checksum(tensors)}")


def _facts(name: str) -> dict[str, Any]:
    """Describes weights and their sources for JSON."""
    one = KNOWN[name]
    sources = [
        {
            "listing": s.listing,
            "prefix": s.prefix,
            "objects": s.n_objects,
            "checksum": "md5 of each",
        }
        if isinstance(s, Bucket)
        else {"urls": list(s.urls), "bytes": s.bytes, "checksum": f"sha256 {s.sha256}"}
        for s in one.sources
    ]
    file = cached_file(one)
    return {
        "name": name, "use": one.use, "bytes": one.n_bytes, "parameters": one.n_parameters,
        "licence": one.licence, "sources": sources, "file": str(file), "here": file.is_file(),
    }  # fmt: skip
