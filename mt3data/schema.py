"""Checks a document from a file or a server against dataclasses: types, ranges and limits.

A manifest may come from anywhere. Its numbers decide how much memory is reserved, and its names
decide which files are opened, so both are checked before anything uses them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from mt3data.errors import UserError

MAX_BYTES = 16 << 20  # of a document
MAX_VALUES = 500_000  # of a document; each takes up to 100 bytes in memory
SHOWN = 60  # characters of a wrong value in a message


@dataclass(frozen=True)
class Limits:
    """Limits of a value: a range for numbers, a pattern or a length for text, a length for lists."""

    low: float = 0
    high: float = 2.0**53
    pattern: str = r"[\s\S]*"
    length: int = 100_000


def parse_document(data: bytes, schema: type, where: str, what: str) -> dict[str, Any]:
    """Parses a JSON document and checks it against a schema.

    Args:
        data: the document.
        schema: a dataclass. Fields may have the types bool, int, float, str, None, dict, list,
            tuple, other dataclasses, unions and Literal, with `Limits` in Annotated.
        where: path or address of the document, for messages.
        what: kind of the document, for messages: "manifest of a build".
    Returns:
        The document. Fields that the schema does not know are kept.
    Raises:
        UserError: one line that names the file and the field.
    """
    if len(data) > MAX_BYTES or sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise UserError(
            f"{where}: not a {what} ({len(data):,} bytes; expected at most {MAX_BYTES:,} bytes and "
            f"{MAX_VALUES:,} values); get it again"
        )
    try:
        value = json.loads(data, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{where}: not a {what} ({reason}); get it again") from None
    if fault := find_fault(value, schema):
        raise UserError(f"{where}: not a {what} ({fault}); get it again")
    found: dict[str, Any] = value
    return found


def _reject_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def find_fault(value: Any, kind: Any, name: str = "") -> str:
    """Returns in which field a value differs from its type, and how; "" if it is valid."""
    limits = Limits()
    if typing.get_origin(kind) is Annotated:
        kind, limits = typing.get_args(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        faults = [find_fault(value, one, name) for one in arguments]
        return "" if "" in faults else faults[0]
    if origin is typing.Literal:
        return "" if value in arguments and type(value) is type(arguments[0]) else _wrong(
            name, value, " or ".join(map(str, arguments))
        )  # fmt: skip
    if dataclasses.is_dataclass(kind):
        return _fault_of_fields(value, kind, name)
    if kind is Any:
        return ""
    origin = {tuple: list, Mapping: dict}.get(origin, origin)
    if origin in (dict, list):
        return _fault_of_items(value, origin, arguments, limits, name)
    if kind is None or kind is type(None):
        return "" if value is None else _wrong(name, value, "null")
    if kind is str:
        fits = isinstance(value, str) and len(value) <= limits.length and _is_plain(value)
        if fits and re.fullmatch(limits.pattern, value):
            return ""
        return _wrong(name, value, "text" if limits.pattern == Limits.pattern else limits.pattern)
    if kind is bool:
        return "" if isinstance(value, bool) else _wrong(name, value, "true or false")
    is_number = isinstance(value, int if kind is int else (int, float))
    if not is_number or isinstance(value, bool) or not limits.low <= value <= limits.high:
        numbers = "a whole number" if kind is int else "a number"
        return _wrong(name, value, f"{numbers} from {limits.low:g} to {limits.high:g}")
    return "" if math.isfinite(value) else _wrong(name, value, "a finite number")


def _fault_of_fields(value: Any, kind: Any, name: str) -> str:
    if not isinstance(value, dict):
        return _wrong(name, value, "an object")
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        path = f"{name}.{field.name}" if name else field.name
        if field.name not in value:
            if field.default is field.default_factory is dataclasses.MISSING:
                return f"{path!r} is missing"
        elif fault := find_fault(value[field.name], hints[field.name], path):
            return fault
    return ""


def _fault_of_items(value: Any, origin: Any, arguments: Any, limits: Limits, name: str) -> str:
    if not isinstance(value, origin):
        return _wrong(name, value, "an object" if origin is dict else "a list")
    if len(value) > limits.length:
        return f"{name} has {len(value)} entries; expected at most {limits.length}"
    if origin is list:
        items = ((f"{name}[{i}]", item) for i, item in enumerate(value))
        return next(filter(None, (find_fault(item, arguments[0], at) for at, item in items)), "")
    for key, item in value.items():
        if fault := find_fault(key, arguments[0], f"a key of {name}"):
            return fault
        if fault := find_fault(item, arguments[1], f"{name}.{key}"):
            return fault
    return ""


def _is_plain(text: str) -> bool:
    """Checks that text can be printed: no surrogates, no control characters for a terminal."""
    return not re.search("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff]", text)


def _wrong(name: str, value: Any, expected: str) -> str:
    text = repr(value) if not isinstance(value, (dict, list)) else type(value).__name__
    return f"{name or 'the document'} is {text[:SHOWN]}; expected {expected}"
