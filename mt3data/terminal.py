"""Defines how all commands print results, progress and errors, and how they exit.

Results go to stdout, progress and errors to stderr. Exit codes are the same for every command
(EXIT_CODES, at the end of `--help` of both programs). Faults are quarantined tracks and files that
failed a check. An exception that is neither a mistake of the user nor an unusable path is a bug and
keeps its traceback.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
import time
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from mt3data import system
from mt3data.errors import UserError, printable, shortened

# Errors that the user can mend by another path. A missing file is not among them.
_PATH_ERRORS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENAMETOOLONG, errno.EFBIG, errno.ELOOP, errno.ENXIO,
)  # fmt: skip
LINE_EVERY_SECONDS = 10.0  # between progress lines where stderr is no terminal
EXIT_CODES = (
    "Exit codes: 0 done; 1 done, with faults that are listed; 2 a mistake, described in one line; "
    "130 interrupted."
)


class UserPath(click.Path):
    """A path on the command line; `~/` at its beginning is the home folder.

    A file or folder named "-" is refused, because "-" means standard input or output.
    """

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """Returns the path that the user typed."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path == Path("-") and not self.allow_dash:
            self.fail("expected the name of a file or folder, not '-'", param, ctx)
        return path.expanduser() if path.parts[:1] == ("~",) else path


PATH = UserPath()
OUTPUT = UserPath(allow_dash=True)  # a file, or "-" for standard output
AT_LEAST_0, AT_LEAST_1 = click.IntRange(min=0), click.IntRange(min=1)
# More processes than this would take the memory of most machines and make nothing faster.
WORKERS = click.IntRange(min=1, max=max(32, 4 * (os.cpu_count() or 1)))
FORCE = click.option("--force", is_flag=True,
                     help="Replace an output file that this command did not write.")  # fmt: skip


class CommandGroup(click.Group):
    """A click group that prints a mistake in one line and exits with 2, and with 130 after Ctrl-C.

    A mistake is a UserError, a command line that click refuses, or a path that cannot be written or
    made (read-only, full, a file where a folder should be).
    """

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs a command line and exits; never returns."""
        open_missing_streams()
        system.use_utf8_streams()
        try:
            code = super().main(*args, **extra | {"standalone_mode": False})
        except click.ClickException as error:
            code = error.exit_code
            context = getattr(error, "ctx", None)
            hint = f"; see `{context.command_path} --help`" if context else ""
            echo(f"Error: {one_line(error.format_message()).rstrip('.')}{hint}", err=True)
        sys.exit(code)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Returns the arguments behind the program's own options; prints the help if there are none."""
        if not (args or ctx.resilient_parsing):
            echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the chosen command and returns its result; mistakes become exit codes."""
        try:
            require_working_directory()
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe is an error of this command, not of the interpreter
            return result
        except UserError as error:
            echo(f"Error: {one_line(str(error))}", err=True)
            ctx.exit(2)
        except BrokenPipeError:  # `mt3data list | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except OSError as error:
            if not is_path_error(error):
                raise
            echo(f"Error: {path_error_message(error)}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            echo("interrupted; the same command continues where that is possible", err=True)
            ctx.exit(130)


def open_missing_streams() -> None:
    """Opens the null device as stdin, stdout and stderr where the caller has closed them.

    Without this a file that is opened later would become stderr, and messages would go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            if not _is_open(number):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            stream = open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def require_working_directory() -> None:
    """Raises a UserError if the working directory was deleted."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        raise UserError(
            "the working directory does not exist any more; cd to another one"
        ) from None


def echo(text: object = "", err: bool = False, nl: bool = True) -> None:
    """Prints a line; see `printable`.

    Args:
        text: the line, or several.
        err: print to stderr, unless it is a broken pipe or on a full disk.
        nl: end it with a line break.
    """
    with suppress(OSError) if err else nullcontext():  # a message never ends the work
        click.echo(printable(str(text)), err=err, nl=nl)


def kind_of(path: Path) -> str:
    """Returns what there is at a path, for messages: "a folder", "a named pipe", "no such file"."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a broken link" if path.is_symlink() else "no such file"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    kinds = {
        stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "no regular file")


def is_path_error(error: OSError) -> bool:
    """Checks that an error concerns a path and that another path or more space mends it."""
    folder = Path(error.filename or "").parent
    # /proc refuses new files by "no such file", Windows some names as an invalid argument.
    is_virtual = error.errno == errno.ENOENT and system.holds_no_files(folder)
    is_bad_name = error.errno == errno.EINVAL and error.filename is not None
    return error.errno in _PATH_ERRORS or is_virtual or is_bad_name


def path_error_message(error: OSError) -> str:
    """Returns one line about the path of an error; see `is_path_error`."""
    where = f"{error.filename}: " if error.filename else ""  # an open file has no name here
    if error.errno == errno.EEXIST and error.filename:
        return one_line(
            f"{where}{kind_of(Path(error.filename))}, where a folder should be; choose another path"
        )
    return one_line(f"{where}{error.strerror}; choose another path, or make room there")


def one_line(text: str) -> str:
    """Returns a message without line breaks and unprintable characters, shortened."""
    return shortened(printable(re.sub(r"\s*[\r\n]\s*", " ", text.strip())))


def plural(n: int, noun: str) -> str:
    """Returns a count and its noun: "1 fault", "2,100 tracks"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def progress(total: float, what: str, unit: str, done: float = 0, show: bool = True) -> Any:
    """Returns a tqdm bar with rate and time left. Without a terminal it prints a line now and then.

    Args:
        total: units of the whole work; the bar's `total` can be set later.
        what: name of the work, in front of the bar.
        unit: name of what is counted.
        done: units that were done before this call.
        show: False prints nothing.
    """
    what = printable(what)
    if show and not sys.stderr.isatty():
        return ProgressLines(total, what, unit, done)
    from tqdm import tqdm

    return tqdm(
        total=total, desc=what, unit=unit, initial=done, dynamic_ncols=True, disable=not show
    )


class ProgressLines:
    """Prints progress as lines of text, with the interface of a tqdm bar.

    Attributes:
        total: units of the whole work; may be set.
        n: units that are done.
    """

    def __init__(self, total: float, what: str, unit: str, done: float = 0) -> None:
        self.total, self.n = total, done
        self._what, self._unit, self._first = what, unit, done
        self._begun = self._printed_at = time.monotonic()
        self._printed: float | None = None

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._printed not in (None, self.n):  # short work needs no lines
            self._print()

    def update(self, n: float = 1) -> None:
        """Counts n more units; prints a line if the last one is LINE_EVERY_SECONDS old."""
        self.n += n
        if time.monotonic() - self._printed_at >= LINE_EVERY_SECONDS:
            self._print()

    def _print(self) -> None:
        self._printed, self._printed_at = self.n, time.monotonic()
        seconds = self._printed_at - self._begun
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
        echo(", ".join(parts), err=True)


def _pace(rate: float, unit: str) -> str:
    """Returns a rate in units per second with few digits: "2.5 tracks/s", "20.5 s per track"."""
    few, one = max(rate, 1 / rate), unit.removesuffix("s") or unit
    number = f"{few:,.{2 if few < 10 else 1 if few < 100 else 0}f}"
    return f"{number} {unit}/s" if rate >= 1 else f"{number} s per {one}"


def print_json(value: Any) -> None:
    """Prints a value as indented JSON; letters of all scripts stay readable."""
    echo(json.dumps(value, indent=2, ensure_ascii=False))
