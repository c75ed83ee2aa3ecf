"""Reads the JSON, YAML and CSV files of publishers and users.

Such a file may be damaged. Its size, depth and number of values are limited, and every fault is one
UserError that names the file and what is wrong. Adapters check the values.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mt3data.errors import UserError
from mt3data.files import read_limited

MAX_VALUES = 500_000  # of JSON; a value takes up to 100 bytes of memory
MAX_DEPTH = 100  # of YAML, whose fast parser crashes the process at some 100,000 levels


def read_text(path: Path) -> str:
    """Reads a UTF-8 text file of at most MAX_DOCUMENT_BYTES, without its byte order mark."""
    try:
        return read_limited(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error})") from error


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    text = read_text(path)
    if sum(map(text.count, ",[{")) > MAX_VALUES:
        raise UserError(f"{path}: has more than {MAX_VALUES:,} values; download it again")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{path}: is not valid JSON (nested too deeply)") from error
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error})") from error


def read_yaml(path: Path) -> Any:
    """Reads a YAML file."""
    import yaml

    text = read_text(path)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
    try:
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is not valid YAML ({reason})") from error


def read_csv(path: Path, columns: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Reads a CSV file and yields the number of each row's last line and the row.

    Args:
        path: of the file, whose first line names its columns.
        columns: those that every row must have.
    Raises:
        UserError: a column is missing, a row is too short, or a quote is not closed.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        if not set(columns) <= set(reader.fieldnames or ()):
            raise UserError(
                f"{path}: row 1 is {','.join(reader.fieldnames or ())[:200]!r}; expected columns "
                f"{','.join(columns)}"
            )
        for row in reader:
            if any(row[column] is None for column in columns):
                raise UserError(
                    f"{path}: row {reader.line_num} ends early; expected {','.join(columns)}; "
                    "mend it or download it again"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(
            f"{path}: row {reader.line_num + 1} is not valid CSV ({error}); mend it or download it again"
        ) from error
