"""How the commands speak: results on stdout, progress on stderr, a mistake in one line.

Exit codes of every command: 0 all that was asked for is done; 1 done, with faults that are listed
(quarantined tracks, files that failed a check); 2 a mistake or bad input, told in one line; 130
interrupted. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import json
import sys
from typing import Any

import click

from mt3data.errors import UserError

# What the world does to a path, as against a bug of ours: no such file is not among them.
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR,
            errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EFBIG)  # fmt: skip
LINE_EVERY_SECONDS = 10.0  # between progress lines where stderr is no terminal


class CommandGroup(click.Group):
    """A click group that turns a UserError into one line and exit code 2, Ctrl-C into 130.

    A path that cannot be written or made (read-only, full, a file where a folder should be) is a
    UserError too.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the chosen command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"Error: {' '.join(str(error).split())}", err=True)
            ctx.exit(2)
        except OSError as error:
            if error.errno not in UNUSABLE:
                raise
            click.echo(f"Error: {unusable(error)}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("interrupted; the same command continues where that is possible", err=True)
            ctx.exit(130)


def unusable(error: OSError) -> str:
    """One line about a path that cannot be used."""
    where = f"{error.filename}: " if error.filename else ""  # writing to an open file names none
    return f"{where}{error.strerror}; choose another path, or make room there"


def progress(total: float, what: str, unit: str) -> Any:
    """A tqdm bar with rate and time left; where stderr is no terminal, a line now and then."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True)
    return tqdm(
        total=total, desc=what, unit=unit,
        mininterval=LINE_EVERY_SECONDS, delay=LINE_EVERY_SECONDS,  # short work needs no lines
        # tqdm forgets a total that is exceeded, and could not format it then
        bar_format=f"{{desc}}: {{n:.4g}}/{total:.4g} {{unit}}, {{rate_fmt}}, {{elapsed}} so far, "
        "{remaining} left\n",
    )  # fmt: skip


def print_json(value: Any) -> None:
    """Prints a value as JSON to read, its letters as they are."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
