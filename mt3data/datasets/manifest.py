"""Reads the facts that publishers state about their datasets: one TOML file per dataset.

A manifest holds the licence, the sources with their checksums, the layout, the splits of every scheme,
the instrument classes and the known issues. Lists of tracks are in a CSV beside it. The files are in
`manifests/` at the top of a checkout and in `mt3data/manifests/` inside the wheel.
`manifests/mixtures/` names sets that are trained on together. MT3 has no counterpart: its TFRecords
were made by code that was not published.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import quote

from mt3data.datasets.documents import read_csv, read_text
from mt3data.errors import UserError
from mt3data.schema import Limits, find_fault

# How sure a fact is. "ours" marks our own decisions, which no publisher states.
STATUSES = ("verified", "several", "one", "unverified", "ours")
TRACK_ID = r"[A-Za-z0-9_-]{1,40}"
ACTIONS = ("keep", "flag", "drop", "shift")  # see KnownIssue


@dataclass(frozen=True)
class Source:
    """One published file. Unknown facts are 0 or empty.

    Attributes:
        url, mirrors: addresses of the same bytes, in the order in which they are tried.
        status: how sure size and checksum are, one of STATUSES.
        kind: "zip", "tar.gz", or "file" (stored under its own name). "rows" in a manifest's file is one
            "file" for each path that the rows name, below `url`.
        into: folder below the dataset's folder where it is unpacked or stored; "" is that folder.
        strip: number of leading folders that are removed from member names. A member above that
            depth keeps its name.
        optional: only fetched on request.
        seekable: single members can be fetched with HTTP Range (a zip on a server that allows it).
        group: id of the manifest's entry, if that entry stands for all files that the rows name.
    """

    id: str
    url: str
    mirrors: tuple[str, ...] = ()
    bytes: int = 0
    md5: str = ""
    sha256: str = ""
    status: str = "unverified"
    kind: str = "file"
    into: str = ""
    strip: int = 0
    optional: bool = False
    seekable: bool = False
    note: str = ""
    group: str = ""

    @property
    def urls(self) -> tuple[str, ...]:
        """All addresses, in the order in which they are tried."""
        return (self.url, *self.mirrors)


@dataclass(frozen=True)
class KnownIssue:
    """A known fault of the published data, and what a build does about it by default.

    Attributes:
        action: "keep" (do nothing), "flag" (report it in the track's problems), "drop" (the track
            fails with `what` as its reason, so that it is quarantined) or "shift" (add shift_seconds
            to every note time). The profile "paper" flags in place of dropping and shifting.
        tracks: ids of the affected tracks. Empty means all tracks for "shift", and none for "flag".
            "drop" needs ids.
    """

    id: str
    what: str
    action: str
    status: str = "unverified"
    source: str = ""
    tracks: tuple[str, ...] = ()
    shift_seconds: Annotated[float, Limits(-86400, 86400)] = 0.0


@dataclass(frozen=True)
class SplitScheme:
    """A division of tracks by ranges of track numbers, by a column of the rows, or by folder."""

    name: str
    ranges: tuple[tuple[str, int, int], ...] = ()  # (split, first number, last number)
    column: str = ""
    note: str = ""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits with ranges, in order."""
        return tuple(split for split, _, _ in self.ranges)


@dataclass(frozen=True)
class PaperFigures:
    """The counts of a paper, and why those of the published files differ (empty if they agree)."""

    where: str
    tracks: int = 0
    hours: float = 0.0
    splits: Mapping[str, int] = field(default_factory=dict)
    difference: str = ""


@dataclass(frozen=True)
class DatasetManifest:
    """One dataset.

    Attributes:
        folder: folder of the dataset below --root. Adapters take --root or this folder itself.
        adapter: module of mt3data.datasets.adapters that reads it.
        layout, reader: facts about the folders and files, and about their contents.
        expected, expected_hours: scheme -> split -> number of tracks, hours of audio. Every
            recording that a row names is a track of its own.
        total_hours: of all tracks, if the hours of the splits are unknown.
        classes: class name -> (program that labels carry, member programs).
        programs: the publisher's instrument code -> program that labels carry (0-based).
        status: fact ("licence", "layout", "splits.mt3", ...) -> one of STATUSES.
        unverified: one sentence for each fact that nobody could confirm.
        rows_where: only rows of the CSV with something in this column belong to the dataset.
        derived: column that the CSV lacks -> text with other columns in braces.
        profile_notes: profile ("paper", "fixed") -> its effect on this dataset.
    """

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
    expected: Mapping[str, Mapping[str, int]]
    classes: Mapping[str, tuple[int, tuple[int, ...]]]
    known_issues: tuple[KnownIssue, ...]
    rows_path: Path | None = None
    rows_where: str = ""
    derived: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    adapter: str = ""
    reader: Mapping[str, str] = field(default_factory=dict)
    expected_hours: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    total_hours: float = 0.0
    programs: Mapping[str, int] = field(default_factory=dict)
    paper: tuple[PaperFigures, ...] = ()
    status: Mapping[str, str] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()
    profile_notes: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def rows(self) -> dict[str, dict[str, str]]:
        """The rows of the CSV by their first column, the track's id; empty without a CSV.

        Columns `audio` and `labels` hold paths below the dataset's folder, ";" between several.

        An id is unique and has at most 40 bytes of [A-Za-z0-9_-], because it is
        the middle of a record's key, and a name in a tar has at most 91 bytes.

        Raises:
            UserError: the CSV, an id or a derived column is wrong.
        """
        if self.rows_path is None:
            return {}
        if not self.rows_path.is_file():
            raise UserError(
                f"manifest {self.name}.toml: rows is {self.rows_path.name!r}; expected the name of a CSV "
                "file beside it"
            )
        rows: dict[str, dict[str, str]] = {}
        for number, row in read_csv(self.rows_path, ()):
            if None in row or None in row.values():
                raise UserError(f"{self.rows_path}: row {number} has too few or too many columns")
            if not row.get(self.rows_where, "all"):
                continue
            try:
                row |= {key: text.format(**row) for key, text in self.derived.items()}
            except (KeyError, IndexError, ValueError, AttributeError) as error:
                raise UserError(
                    f"{self.rows_path}: [derived] of {self.name} does not fit row {number} ({error!r})"
                ) from error
            for path in row_paths(row, "audio") + row_paths(row, "labels"):
                _require_inside(path, f"{self.rows_path}: row {number}")
            track_id = next(iter(row.values()))
            if not re.fullmatch(TRACK_ID, track_id) or track_id in rows:
                fault = "is listed twice" if track_id in rows else "is no id of a track"
                raise UserError(
                    f"{self.rows_path}: row {number}: {track_id[:80]!r} {fault}; expected a unique id of "
                    "1 to 40 of A-Z, a-z, 0-9, _ and -"
                )
            rows[track_id] = row
        return rows

    @property
    def hours(self) -> float:
        """Hours of audio in all splits of the default scheme; 0 if unknown."""
        return sum(self.expected_hours.get(self.default_scheme, {}).values()) or self.total_hours

    def open_questions(self) -> tuple[str, ...]:
        """Returns one sentence for each fact of the manifest that nobody could confirm."""
        facts = [f"{k}: unverified" for k, status in self.status.items() if status == "unverified"]
        groups = {s.group or s.id for s in self.sources if s.status == "unverified"}
        sources = [f"source {name}: size and checksum are unverified" for name in sorted(groups)]
        issues = [f"{i.id}: {i.what}" for i in self.known_issues if i.status == "unverified"]
        return (*self.unverified, *facts, *sources, *issues)

    @cached_property
    def program_to_class(self) -> dict[int, str]:
        """0-based General MIDI program -> class name, for programs that have a class."""
        return {p: name for name, (_, members) in self.classes.items() for p in members}

    def label_program(self, program: int) -> int | None:
        """Returns the program of labels for a 0-based General MIDI program; None without a class."""
        name = self.program_to_class.get(program)
        return None if name is None else self.classes[name][0]

    def layout_names(self, key: str) -> tuple[str, ...]:
        """Returns a list of names from the layout, each a path below the dataset's folder.

        Raises:
            UserError: there is no such list, or a name is unsafe.
        """
        names, where = self.layout.get(key), f"manifest {self.name}.toml: layout.{key}"
        if not isinstance(names, (list, tuple)):
            raise UserError(f"{where} is {str(names)[:80]!r}; expected a list of names")
        for name in names:
            _require_inside(name, where)
        return tuple(names)

    def scheme(self, name: str | None = None) -> SplitScheme:
        """Returns the split scheme of this name, or the default one.

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


def safe_name(name: str, where: str) -> str:
    """Returns the name if it is one path component of a file that lies in its folder.

    Raises:
        UserError: it is empty, ".", "..", longer than 200 bytes, or holds a separator or a control
            character. `where` names its origin in the message.
    """
    is_plain = name.isprintable() and not set(name) & set("/\\:") and len(name.encode()) <= 200
    if not is_plain or name in ("", ".", ".."):
        raise UserError(f"{where}: {name!r} cannot be the name of a file or folder")
    return name


def row_paths(row: Mapping[str, str], column: str) -> list[str]:
    """Returns the files of a row in a column, "audio" or "labels", as paths below the dataset's folder."""
    return [path for path in row.get(column, "").split(";") if path]


def names() -> list[str]:
    """Returns the names of all datasets that have a manifest, in alphabetical order."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


@dataclass(frozen=True)
class _ManifestFile:
    """The fields of manifests/NAME.toml and their types."""

    name: str
    title: str
    version: str
    licence: str
    licence_url: str
    redistribution: str
    citation: str
    default_scheme: str
    layout: Mapping[str, str | tuple[str, ...]]
    splits: Mapping[str, Mapping[str, str | tuple[int, ...]]]
    homepage: str = ""
    folder: str = ""
    adapter: str = ""
    sources: tuple[Source, ...] = ()
    sources_from: str = ""
    classes: Mapping[str, _Class] = field(default_factory=dict)
    classes_from: str = ""
    programs: Mapping[str, Annotated[int, Limits(0, 127)]] = field(default_factory=dict)
    known_issues: tuple[KnownIssue, ...] = ()
    rows: str = ""
    rows_where: str = ""
    derived: Mapping[str, str] = field(default_factory=dict)
    reader: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    expected_hours: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    total_hours: float = 0.0
    paper: tuple[PaperFigures, ...] = ()
    status: Mapping[str, Literal[STATUSES]] = field(default_factory=dict)  # type: ignore[valid-type]
    unverified: tuple[str, ...] = ()
    profile_notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Class:
    """A class of instruments: the program that labels carry, and the programs that belong to it."""

    program: Annotated[int, Limits(0, 127)]
    members: tuple[Annotated[int, Limits(0, 127)], ...]


def load(name: str) -> DatasetManifest:
    """Reads the manifest of a dataset.

    Raises:
        UserError: there is no manifest of this name (the message has the nearest one), or a field
            of it is wrong.
    """
    known = names()
    if name not in known:
        raise UserError(f"no dataset {name!r}{_near(name, known)}; known are {', '.join(known)}")
    path = _folder() / f"{name}.toml"
    raw = _read_toml(path, _ManifestFile)
    raw = {"expected": {}, "homepage": "", "folder": name, "adapter": name} | raw
    separate = {"sources", "sources_from", "splits", "classes", "classes_from", "known_issues", "paper",
                "unverified", "rows"}  # fmt: skip
    for key in ("folder", "adapter", "rows"):
        if key in raw and (raw[key] or key != "folder"):
            safe_name(raw[key], f"{path}: {key}")
    if raw["name"] != name or raw["default_scheme"] not in raw["splits"]:
        raise UserError(
            f"{path}: name is {raw['name']!r} and default_scheme {raw['default_scheme']!r}; expected "
            f"{name!r} and one of {', '.join(raw['splits'])}"
        )
    manifest = DatasetManifest(
        **{key: value for key, value in raw.items() if key not in separate},
        sources=load(raw["sources_from"]).sources if "sources_from" in raw else (),
        schemes={key: _scheme(key, entry, path) for key, entry in raw["splits"].items()},
        classes=_classes(raw),
        known_issues=tuple(KnownIssue(**_frozen(entry)) for entry in raw.get("known_issues", [])),
        paper=tuple(PaperFigures(**entry) for entry in raw.get("paper", [])),
        unverified=tuple(raw.get("unverified", [])),
        rows_path=path.with_name(raw["rows"]) if "rows" in raw else None,
    )
    sources = [source for entry in raw.get("sources", []) for source in _sources(entry, manifest)]
    for source in sources:
        safe_name(source.id, f"{path}: id of a source")
        _require_inside(source.into, f"{path}: into of {source.id}")
    for issue in manifest.known_issues:
        if fault := _fault_of_issue(issue, manifest):
            raise UserError(f"{path}: known issue {issue.id}: {fault}")
    return replace(manifest, sources=(*manifest.sources, *sources))


def _fault_of_issue(issue: KnownIssue, manifest: DatasetManifest) -> str:
    """Returns why a build could not do what a known issue asks for; "" if it can."""
    if issue.action not in ACTIONS:
        near = _near(issue.action, list(ACTIONS))
        return f"action is {issue.action!r}{near}; expected {', '.join(ACTIONS)}"
    if (issue.action == "shift") != bool(issue.shift_seconds):
        return (
            f"action is {issue.action!r} and shift_seconds is {issue.shift_seconds:g}; expected "
            "shift_seconds other than 0 for the action 'shift' alone"
        )
    if issue.action not in ("shift", "drop"):
        return ""
    if not any("audio" in row for row in manifest.rows.values()):
        return (
            f"action is {issue.action!r}; expected keep or flag, because no rows of this dataset name "
            "audio files, and only such rows are shifted or dropped"
        )
    if unknown := [track for track in issue.tracks if track not in manifest.rows]:
        return f"no row has the id {unknown[0]!r}{_near(unknown[0], manifest.rows)}"
    return "" if issue.tracks or issue.action == "shift" else "'drop' needs the ids in tracks"


def _read_toml(path: Path, schema: type) -> dict[str, Any]:
    """Reads a TOML file and checks it against a dataclass. Unknown fields are errors."""
    try:
        raw = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid TOML ({error})") from error
    nested = {"sources": Source, "known_issues": KnownIssue, "paper": PaperFigures}
    if not (fault := find_fault(raw, schema)):
        entries = [(f"{key}.", cls, one) for key, cls in nested.items() for one in raw.get(key, [])]
        for prefix, kind, entry in [("", schema, raw), *entries]:
            allowed = [one.name for one in fields(kind)]
            if unknown := [key for key in entry if key not in allowed]:
                fault = f"unknown field {prefix}{unknown[0]}{_near(unknown[0], allowed)}"
    if fault:
        raise UserError(f"{path}: {fault}")
    return raw


def _require_inside(path: str, where: str) -> None:
    """Raises a UserError for a relative path that has unsafe components."""
    for part in path.split("/") if path else ():
        safe_name(part, where)


def _sources(entry: dict[str, Any], manifest: DatasetManifest) -> list[Source]:
    """Returns one source; or, for kind "rows", one for every file that the rows name, below its url."""
    source = Source(**_frozen(entry))
    if source.kind != "rows":
        return [source]
    columns = ((row, key) for row in manifest.rows.values() for key in ("audio", "labels"))
    paths = [PurePosixPath(path) for row, key in columns for path in row_paths(row, key)]
    return [
        replace(source, id=path.name, url=source.url + quote(str(path)), kind="file",
                mirrors=tuple(mirror + quote(str(path)) for mirror in source.mirrors),
                into="" if path.parent == PurePosixPath() else str(path.parent), group=source.id)
        for path in paths
    ]  # fmt: skip


@dataclass(frozen=True)
class Mixture:
    """Datasets that are trained on together. P(dataset) is proportional to n ** (1 / temperature)."""

    name: str
    title: str
    datasets: tuple[str, ...]
    temperature: float
    source: str = ""


def mixture_names() -> list[str]:
    """Returns the names of all mixtures, in alphabetical order."""
    return sorted(path.stem for path in (_folder() / "mixtures").glob("*.toml"))


def load_mixture(name: str) -> Mixture:
    """Reads `manifests/mixtures/NAME.toml`.

    Raises:
        UserError: there is no mixture of this name; the message names the nearest one.
    """
    known = mixture_names()
    if name not in known:
        raise UserError(f"no mixture {name!r}{_near(name, known)}; known are {', '.join(known)}")
    return Mixture(**_frozen(_read_toml(_folder() / "mixtures" / f"{name}.toml", Mixture)))


def _classes(raw: dict[str, Any]) -> Mapping[str, tuple[int, tuple[int, ...]]]:
    if "classes_from" in raw:
        return load(raw["classes_from"]).classes
    return {
        key: (entry["program"], tuple(entry["members"]))
        for key, entry in raw.get("classes", {}).items()
    }


def _frozen(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}


def _scheme(name: str, entry: dict[str, Any], path: Path) -> SplitScheme:
    ranges = {split: value for split, value in entry.items() if isinstance(value, list)}
    if wrong := [split for split, value in ranges.items() if len(value) != 2]:
        raise UserError(f"{path}: splits.{name}.{wrong[0]} is no range; expected [first, last]")
    return SplitScheme(
        name, tuple((split, *value) for split, value in ranges.items()),
        entry.get("column", ""), entry.get("note", ""),
    )  # fmt: skip


def _near(name: str, known: Mapping[str, Any] | list[str]) -> str:
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _folder() -> Path:
    here = Path(__file__).resolve().parents[1]
    inside = here / "manifests"  # the wheel carries them; a checkout has them beside the package
    return inside if inside.is_dir() else here.parent / "manifests"
