"""How the commands speak: results on stdout, progress on stderr, a mistake in one line.

Exit codes are the same for every command (EXIT_CODES, which `--help` of both programs ends with).
Faults are quarantined tracks and files that failed a check. Any exception that is neither a mistake
nor a path that cannot be used is a bug, and keeps its traceback.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from mt3data.errors import UserError

# What the world does to a path, as against a bug of ours: no such file is not among them.
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR,
             errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EFBIG)  # fmt: skip
LINE_EVERY_SECONDS = 10.0  # between progress lines where stderr is no terminal
EXIT_CODES = (
    "Exit codes: 0 done; 1 done, with faults that are listed; 2 a mistake, told in one line; "
    "130 interrupted."
)
PATH = click.Path(path_type=Path)
AT_LEAST_0, AT_LEAST_1 = click.IntRange(min=0), click.IntRange(min=1)


class CommandGroup(click.Group):
    """A click group that turns a mistake into one line and exit code 2, Ctrl-C into 130.

    A mistake is a UserError, a command line that click refuses, or a path that cannot be written or
    made (read-only, full, a file where a folder should be).
    """

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs a command line and exits; never returns."""
        try:
            code = super().main(*args, **extra | {"standalone_mode": False})
        except click.ClickException as error:
            code = error.exit_code
            context = getattr(error, "ctx", None)
            hint = f"; see `{context.command_path} --help`" if context else ""
            click.echo(f"Error: {one_line(error.format_message()).rstrip('.')}{hint}", err=True)
        sys.exit(code)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """What remains of args behind the program's own options; without any, ctx prints its help."""
        if not (args or ctx.resilient_parsing):
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that ctx chose and returns its result; mistakes become exit codes."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"Error: {one_line(str(error))}", err=True)
            ctx.exit(2)
        except OSError as error:
            if not is_path_error(error):
                raise
            click.echo(f"Error: {path_error_message(error)}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("interrupted; the same command continues where that is possible", err=True)
            ctx.exit(130)


def is_path_error(error: OSError) -> bool:
    """Whether an error is the world's doing, and of a path that the user can change."""
    folder = Path(error.filename or "").parent
    # In /proc no file can be made, and "no such file" is what says so.
    in_proc = error.errno == errno.ENOENT and folder.is_dir() and not os.statvfs(folder).f_blocks
    return error.errno in _UNUSABLE or in_proc


def path_error_message(error: OSError) -> str:
    """One line about the path that an error says cannot be used."""
    where = f"{error.filename}: " if error.filename else ""  # writing to an open file names none
    return f"{where}{error.strerror}; choose another path, or make room there"


def one_line(text: str) -> str:
    """Text without line breaks."""
    return " ".join(text.split())


def plural(n: int, noun: str) -> str:
    """Returns a count and its noun: "1 fault", "2,100 tracks"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def progress(total: float, what: str, unit: str, done: float = 0) -> Any:
    """A tqdm bar with rate and time left; where stderr is no terminal, a line now and then.

    Args:
        total: when it is full, in the unit; the bar's `total` can be set later.
        what: is under way, as its first word.
        unit: what is counted.
        done: of the total, before this call.
    """
    if not sys.stderr.isatty():
        return ProgressLines(total, what, unit, done)
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=unit, initial=done, dynamic_ncols=True)


class ProgressLines:
    """What a tqdm bar does, in lines of text: for a file, where a bar would fill it.

    Attributes:
        total: when the work is done, in the unit; may be set.
        n: what is done.
    """

    def __init__(self, total: float, what: str, unit: str, done: float = 0) -> None:
        self.total, self.n = total, done
        self._what, self._unit, self._first = what, unit, done
        self._begun = self._told_at = time.monotonic()
        self._told: float | None = None

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._told not in (None, self.n):  # short work needs no lines
            self._tell()

    def update(self, n: float = 1) -> None:
        """Counts n more, and says so if the last line is a while ago."""
        self.n += n
        if time.monotonic() - self._told_at >= LINE_EVERY_SECONDS:
            self._tell()

    def _tell(self) -> None:
        self._told, self._told_at = self.n, time.monotonic()
        seconds = self._told_at - self._begun
        is_known = self.n <= self.total * (1 + 1e-9)  # sums of floats exceed it a little
        digits = 2 if isinstance(self.total, float) and self.total < 100 else 0
        total = f"{self.total:,.{digits}f}" if is_known else "?"
        parts = [f"{self._what}: {self.n:,.{digits}f}/{total} {self._unit}"]
        rate = (self.n - self._first) / max(seconds, 1e-9)
        if rate > 0:
            parts.append(_pace(rate, self._unit))
        parts.append(f"{timedelta(seconds=round(seconds))} so far")
        if rate > 0 and is_known:
            parts.append(f"{timedelta(seconds=round((self.total - self.n) / rate))} left")
        click.echo(", ".join(parts), err=True)


def _pace(rate: float, unit: str) -> str:
    """So much of a unit per second in few digits: "2.5 tracks/s", or "20.5 s per track"."""
    few, one = max(rate, 1 / rate), unit.removesuffix("s") or unit
    number = f"{few:,.{2 if few < 10 else 1 if few < 100 else 0}f}"
    return f"{number} {unit}/s" if rate >= 1 else f"{number} s per {one}"


def print_json(value: Any) -> None:
    """Prints a value as JSON to read, its letters as they are."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
