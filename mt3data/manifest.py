"""What publishers say about their datasets, as data: one TOML file per dataset, facts only.

A manifest names the licence, the sources with their checksums, the layout, the splits of every
scheme, the instrument classes and the known issues. Lists of tracks stand in a CSV beside it. The
files live in `manifests/` at the top of a checkout and in `mt3data/manifests/` inside the wheel.
MT3 has no counterpart: its TFRecords were made by code that was not published.
"""

from __future__ import annotations

import csv
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mt3data.errors import UserError


@dataclass(frozen=True)
class Source:
    """One published file. `status` says how sure size and checksum are; empty strings = unknown."""

    id: str
    url: str
    bytes: int = 0
    md5: str = ""
    sha256: str = ""
    status: str = "unverified"
    note: str = ""


@dataclass(frozen=True)
class KnownIssue:
    """A known fault of the published data and what is done about it by default."""

    id: str
    what: str
    action: str  # keep, flag, drop, shift, trust files
    status: str = "unverified"
    source: str = ""


@dataclass(frozen=True)
class SplitScheme:
    """How tracks are divided: by ranges of track numbers, by a column of the rows, or by folder."""

    name: str
    ranges: tuple[tuple[str, int, int], ...] = ()  # (split, first number, last number)
    column: str = ""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names that the ranges speak of, in order."""
        return tuple(split for split, _, _ in self.ranges)


@dataclass(frozen=True)
class Manifest:
    """One dataset. `classes` maps class name -> (program that labels carry, member programs)."""

    name: str
    title: str
    version: str
    licence: str
    licence_url: str
    redistribution: str
    citation: str
    homepage: str
    sources: tuple[Source, ...]
    layout: Mapping[str, Any]
    schemes: Mapping[str, SplitScheme]
    default_scheme: str
    expected: Mapping[str, Mapping[str, int]]  # scheme -> split -> number of tracks
    classes: Mapping[str, tuple[int, tuple[int, ...]]]
    known_issues: tuple[KnownIssue, ...]
    rows_path: Path | None = None

    @cached_property
    def rows(self) -> dict[str, dict[str, str]]:
        """The rows of the CSV by track name; empty where the dataset has none."""
        if self.rows_path is None:
            return {}
        with self.rows_path.open(newline="", encoding="utf-8") as file:
            return {row["track"]: row for row in csv.DictReader(file)}

    @cached_property
    def program_to_class(self) -> dict[int, str]:
        """Class name of each 0-based General MIDI program that has one."""
        return {p: name for name, (_, members) in self.classes.items() for p in members}

    def label_program(self, program: int) -> int | None:
        """The program that labels carry for a General MIDI program (0-based); None: no class."""
        name = self.program_to_class.get(program)
        return None if name is None else self.classes[name][0]

    def scheme(self, name: str | None = None) -> SplitScheme:
        """The split scheme of this name, or the default one.

        Raises:
            UserError: the dataset has no such scheme.
        """
        name = name or self.default_scheme
        if name not in self.schemes:
            raise UserError(
                f"{self.name} has no split scheme {name!r}{_near(name, self.schemes)}; "
                f"it has {', '.join(self.schemes)}"
            )
        return self.schemes[name]


def names() -> list[str]:
    """Datasets that have a manifest, in alphabetical order."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


def load(name: str) -> Manifest:
    """Reads one manifest.

    Raises:
        UserError: there is no manifest of this name; the message names the nearest one.
    """
    known = names()
    if name not in known:
        raise UserError(f"no dataset {name!r}{_near(name, known)}; known are {', '.join(known)}")
    path = _folder() / f"{name}.toml"
    with path.open("rb") as file:
        raw = tomllib.load(file)
    if "classes_from" in raw:
        classes = load(raw["classes_from"]).classes
    else:
        classes = {
            key: (entry["program"], tuple(entry["members"]))
            for key, entry in raw.get("classes", {}).items()
        }
    texts = ("name", "title", "version", "licence", "licence_url", "redistribution", "citation")
    return Manifest(
        **{key: raw[key] for key in texts},
        homepage=raw.get("homepage", ""),
        sources=tuple(Source(**entry) for entry in raw.get("sources", [])),
        layout=raw["layout"],
        schemes={key: _scheme(key, entry) for key, entry in raw["splits"].items()},
        default_scheme=raw["default_scheme"],
        expected=raw.get("expected", {}),
        classes=classes,
        known_issues=tuple(KnownIssue(**entry) for entry in raw.get("known_issues", [])),
        rows_path=path.with_name(raw["rows"]) if "rows" in raw else None,
    )


def _scheme(name: str, entry: dict[str, Any]) -> SplitScheme:
    if "column" in entry:
        return SplitScheme(name, column=entry["column"])
    if entry.get("by") == "folder":
        return SplitScheme(name)
    return SplitScheme(name, tuple((split, *bounds) for split, bounds in entry.items()))


def _near(name: str, known: Mapping[str, Any] | list[str]) -> str:
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _folder() -> Path:
    here = Path(__file__).resolve().parent
    inside = here / "manifests"  # the wheel carries them; a checkout has them beside the package
    return inside if inside.is_dir() else here.parent / "manifests"
