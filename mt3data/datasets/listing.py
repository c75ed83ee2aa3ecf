"""Collects what `mt3data list` prints: the facts in the manifests of datasets.

Every fact is shown with how sure it is (see manifest.STATUSES), and everything that nobody could
confirm is gathered under `open_questions`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from mt3data.datasets.manifest import DatasetManifest, Source
from mt3data.files import format_bytes

WIDTH = 100
STATUS_NOTE = (
    "verified: the bytes were seen and hash or count to it; several, one: read in that many public "
    "places; unverified: not confirmed; ours: decided here"
)


def summary(manifest: DatasetManifest) -> dict[str, Any]:
    """Returns one dataset in a few numbers; unknown numbers are None, known sizes are summed."""
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
    """Returns a line with the names of the columns, then one line for each dataset."""
    yield f"{'name':12} {'title':20} {'licence':16} {'tracks':>6} {'hours':>7} {'download':>11}  unverified"
    for row in map(summary, manifests):
        hours = f"{row['hours']:.1f}" if row["hours"] else "-"
        yield (
            f"{row['name']:12} {row['title']:20} {row['licence']:16} {row['tracks'] or '-':>6} "
            f"{hours:>7} {download_size(row):>11}  {row['unverified'] or '-'}"
        )


def facts(manifest: DatasetManifest) -> dict[str, Any]:
    """Returns all facts of a dataset except its rows, ready for JSON and YAML.

    `status` has how sure each fact is, in the words of STATUS_NOTE.
    """
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


def text(manifest: DatasetManifest) -> str:
    """Returns all facts of one dataset as YAML, without empty ones."""
    import yaml

    plain = _without_empty(json.loads(json.dumps(facts(manifest))))
    facts_text = yaml.safe_dump(
        plain, sort_keys=False, allow_unicode=True, width=WIDTH, default_flow_style=None
    )
    return f"{facts_text}# {STATUS_NOTE}"


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_empty(item) for key, item in value.items()}
        return {
            key: item
            for key, item in kept.items()
            if item not in ("", None, [], {}) and item is not False
        }
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


def _grouped(sources: Iterable[Source]) -> list[tuple[Source, int]]:
    """The first source of each group, and the number of its files."""
    groups: dict[str, list[Source]] = {}
    for source in sources:
        groups.setdefault(source.group or source.id, []).append(source)
    return [(members[0], len(members)) for members in groups.values()]


def download_size(row: dict[str, Any]) -> str:
    """Returns the size of a dataset's download, from its `summary`; "?" is a size that nobody publishes."""
    known = format_bytes(row["download_bytes"]) if row["download_bytes"] else ""
    if row["sizes_unknown"]:
        return f"{known}+?" if known else "?"
    return known or "-"
