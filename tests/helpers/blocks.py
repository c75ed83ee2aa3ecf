"""The code blocks of README.md and docs/*.md, and how they are run.

A block of bash is run command by command in this process, as if typed in the current folder. Blocks
that cannot be run by tests carry a mark on the line before them: `<!-- not in CI: WHY -->`.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import click
from click.testing import CliRunner

import mt3data.cli.main
import mt3train.cli.main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# needs datasets: an extra that CI does not install
MARKS = (
    "set-up",
    "main job",
    "GPU",
    "cluster",
    "network",
    "needs datasets",
    "SoundFonts of the system",
    "samples of an instrument",
    "minutes",
)
RUN_ELSEWHERE = {"new-dataset.md": "test_docs_new_dataset.py"}  # in a copy of the repository
PROGRAMS: dict[str, click.Group] = {
    "mt3data": mt3data.cli.main.main,
    "mt3train": mt3train.cli.main.main,
}
FENCED = re.compile(r"^(?:<!-- not in CI: ([^\n]*) -->\n)?```(\w+)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A code block: where it begins, its language, its text, and why tests do not run it ("")."""

    page: Path
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that are code; `text` is none."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, text.count("\n", 0, match.start()) + 1, match[2], match[3], match[1] or "")
        for match in FENCED.finditer(text)
    ]
    return [block for block in found if block.language != "text"]


def run_python(block: Block) -> str:
    """Runs a block of Python; what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, str(block), "exec"), {})
    return printed.getvalue()


def run_command(line: str) -> str:
    """Runs one command line of ours in the current folder; what it prints to stdout.

    Raises:
        AssertionError: it is none of ours, or its exit code is not 0.
    """
    words = shlex.split(line, comments=True)
    assert words[0] in PROGRAMS, line
    result = CliRunner().invoke(PROGRAMS[words[0]], words[1:], prog_name=words[0])
    assert result.exit_code == 0, f"{line}\n{result.output}{result.exception!r}"
    return result.stdout


def commands(block: Block) -> list[str]:
    """The command lines of a block of bash."""
    return [line for line in block.text.splitlines() if line.strip()]
