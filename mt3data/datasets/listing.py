"""What `mt3data list` says: the manifests as text for people and as data for programs.

Every fact is shown with how sure it is (see manifest.STATUSES), and everything that nobody could
confirm is gathered in one place.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from mt3data.datasets.manifest import DatasetManifest, KnownIssue, PaperFigures, Source
from mt3data.files import format_bytes

WIDTH = 100
STATUS_NOTE = (
    "[verified] the bytes were seen and hash or count to it; [several], [one] read in that many "
    "public places; [unverified] not confirmed; [ours] decided here"
)


def summary(manifest: DatasetManifest) -> dict[str, Any]:
    """One dataset in a few numbers; what is not known is None, bytes that are known are summed."""
    counts = manifest.expected.get(manifest.default_scheme, {})
    return {
        "name": manifest.name,
        "title": manifest.title,
        "licence": manifest.licence,
        "tracks": sum(counts.values()) or None,
        "hours": round(manifest.hours, 2) or None,
        "download_bytes": sum(s.bytes for s in manifest.sources if not s.optional),
        "sizes_unknown": sum(not s.bytes for s in manifest.sources if not s.optional),
        "unverified": len(manifest.open_questions()),
    }


def table(manifests: Iterable[DatasetManifest]) -> Iterator[str]:
    """One line for each dataset, below a line that names the columns."""
    yield f"{'name':12} {'title':20} {'licence':16} {'tracks':>6} {'hours':>7} {'download':>11}  unverified"
    for row in map(summary, manifests):
        hours = f"{row['hours']:.1f}" if row["hours"] else "-"
        yield (
            f"{row['name']:12} {row['title']:20} {row['licence']:16} {row['tracks'] or '-':>6} "
            f"{hours:>7} {_download(row):>11}  {row['unverified'] or '-'}"
        )


def markdown(manifests: Iterable[DatasetManifest]) -> Iterator[str]:
    """The same as a table in Markdown, with links to the licences and what they allow."""
    yield "| `mt3data build` | dataset | licence | tracks | hours | download | passing shards on |"
    yield "|---|---|---|---:|---:|---:|---|"
    for manifest in manifests:
        row = summary(manifest)
        name = f"[{manifest.title}]({manifest.homepage})" if manifest.homepage else manifest.title
        url = manifest.licence_url
        cells = (
            f"`{manifest.name}`", name, f"[{manifest.licence}]({url})" if url else manifest.licence,
            f"{row['tracks']:,}" if row["tracks"] else "-",
            f"{row['hours']:.1f}" if row["hours"] else "-", _download(row), manifest.redistribution,
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def facts(manifest: DatasetManifest) -> dict[str, Any]:
    """Everything but the rows, ready for JSON."""
    plain = (
        "version licence_url redistribution citation homepage folder adapter layout reader programs "
        "default_scheme expected expected_hours status profile_notes"
    ).split()
    groups = _grouped(manifest.sources)
    return summary(manifest) | {
        **{key: getattr(manifest, key) for key in plain},
        "sources": [vars(source) | {"files": n} for source, n in groups],
        "split_schemes": {name: vars(scheme) for name, scheme in manifest.schemes.items()},
        "classes": {k: {"program": p, "members": m} for k, (p, m) in manifest.classes.items()},
        "rows": len(manifest.rows),
        "paper": [vars(figures) for figures in manifest.paper],
        "known_issues": [vars(issue) for issue in manifest.known_issues],
        "open_questions": list(manifest.open_questions()),
    }


def lines(manifest: DatasetManifest) -> Iterator[str]:
    """One dataset in full, for a terminal."""
    m = manifest
    yield f"{m.name}: {m.title}, version {m.version}"
    yield from _text("licence", f"{m.licence} {m.licence_url}{_status(m, 'licence')}")
    yield from _text("sharing", m.redistribution)
    yield from _text("cite", f"{m.citation}{_status(m, 'citation')}")
    yield from _text("see", m.homepage)
    yield from _text("lies in", f"{m.folder or '.'} below --root")
    if m.sources:
        row = summary(m)
        yield ""
        yield f"Sources: {_download(row)} to download"
        for source, n_files in _grouped(m.sources):
            yield from _source(source, n_files)
    for title, table_ in (("Layout", m.layout), ("Reading", m.reader)):
        yield ""
        yield f"{title}{_status(m, 'layout' if title == 'Layout' else 'reader')}"
        for key, value in table_.items():
            yield from _text(key, ", ".join(value) if isinstance(value, list) else str(value))
    yield from _splits(m)
    yield from _instruments(m)
    if m.paper:
        yield from ("", "What papers counted")
        for figures in m.paper:
            yield from _text("-", _paper(figures))
    if m.known_issues:
        yield from ("", "Known issues, and what a build does about them by default")
        for issue in m.known_issues:
            yield from _text(issue.action, _issue(issue))
    if m.profile_notes:
        yield from ("", "Profiles")
        for key, value in m.profile_notes.items():
            yield from _text(key, value)
    yield from ("", "Not verified" if m.open_questions() else "Not verified: nothing")
    for question in m.open_questions():
        yield from _text("-", question)
    yield from ("", *textwrap.wrap(STATUS_NOTE, WIDTH))


def _source(source: Source, n_files: int) -> Iterator[str]:
    alone = format_bytes(source.bytes) if source.bytes else "size unknown"
    much = f"{n_files} files" if n_files > 1 else alone
    told = [f"{source.group or source.id}: {much} [{source.status}]"]
    told += [f"{name} {value}" for name in ("md5", "sha256") if (value := getattr(source, name))]
    told += ["optional"] if source.optional else []
    yield from _text("-", ", ".join(told))
    for url in source.urls:
        yield f"      {url}"
    if source.note:
        yield from _text("", source.note)


def _splits(manifest: DatasetManifest) -> Iterator[str]:
    yield from ("", "Splits (--split-scheme)")
    for name, scheme in manifest.schemes.items():
        default = "the default; " if name == manifest.default_scheme else ""
        yield from _text(name, f"{default}{scheme.note}{_status(manifest, f'splits.{name}')}")
        hours = manifest.expected_hours.get(name, {})
        for split, count in manifest.expected.get(name, {}).items():
            of_them = f"{hours[split]:10.2f} h" if split in hours else ""
            yield f"{'':14}{split:12}{count:6} tracks{of_them}"
    if manifest.hours:
        total = f"{manifest.hours:.2f} h in all{_status(manifest, 'hours')}"
        yield from _text("hours", total)


def _instruments(manifest: DatasetManifest) -> Iterator[str]:
    if manifest.programs:
        pairs = [f"{code} {program}" for code, program in manifest.programs.items()]
        yield from ("", f"Instruments, and the program of their labels{_status(manifest, 'programs')}")  # fmt: skip
        yield from _text("", ", ".join(pairs))
    if manifest.classes:
        yield from ("", f"Classes: the program of their labels < their programs{_status(manifest, 'classes')}")  # fmt: skip
        for name, (program, members) in manifest.classes.items():
            yield f"    {name:26}{program:4} < {' '.join(map(str, members))}"


def _paper(figures: PaperFigures) -> str:
    said = [f"{figures.tracks} tracks"] if figures.tracks else []
    said += [f"{figures.hours} h"] if figures.hours else []
    said += [f"{split} {count}" for split, count in figures.splits.items()]
    return f"{figures.where}: {', '.join(said)}; {figures.difference or 'the same here'}"


def _issue(issue: KnownIssue) -> str:
    moved = f" by {issue.shift_seconds:+} s" if issue.shift_seconds else ""
    of_tracks = f" (tracks {', '.join(issue.tracks)})" if issue.tracks else ""
    return f"{issue.id}{moved}: {issue.what}{of_tracks}; {issue.source} [{issue.status}]"


def _grouped(sources: Iterable[Source]) -> list[tuple[Source, int]]:
    """The first source of each group, and how many files the group has."""
    groups: dict[str, list[Source]] = {}
    for source in sources:
        groups.setdefault(source.group or source.id, []).append(source)
    return [(members[0], len(members)) for members in groups.values()]


def _download(row: dict[str, Any]) -> str:
    known = format_bytes(row["download_bytes"]) if row["download_bytes"] else ""
    if row["sizes_unknown"]:
        return f"{known}+?" if known else "?"
    return known or "-"


def _status(manifest: DatasetManifest, fact: str) -> str:
    return f" [{manifest.status[fact]}]" if fact in manifest.status else ""


def _text(label: str, text: str) -> list[str]:
    """Lines with a hanging label; empty text gives none."""
    hanging = " " * (4 if len(label) < 2 else 14)
    first = f"  {label}".ljust(len(hanging)) if len(label) < 12 else f"  {label} "
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=hanging, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
