"""Writes the report: one page about a build, or about all builds in a folder.

The page is a single file that loads nothing. Charts and pictures are inline SVG, the style sheet is
in its head, and a content security policy forbids scripts and all requests. Names of tracks and
messages of errors come from files that anybody may have made, so jinja2 escapes every value. The
same build gives the same bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mt3data.align.lag import MIN_SHIFT_SECONDS
from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.files import format_bytes, inputs_of, mark, require_output, write_output
from mt3data.music.midi import DRUMS
from mt3data.report import plots
from mt3data.report.statistics import Survey, n_reads, reason_of, survey
from mt3data.shards.format import find_builds

COMMAND = "mt3data report"
PICTURES = 12  # in all; at least one of each build
MAX_ROWS = 200  # of a table; the page counts further rows below it
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# Keys of the manifest that are elsewhere on the page, or too long for it.
NOT_SETTINGS = {"tracks", "shards", "files", "splits", "quarantined", "title", "citation", "licence",
                "licence_url", "redistribution"}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table for the template.

    Attributes:
        caption: what it shows.
        names: of the columns.
        rows: the cells.
        numbers: columns that hold numbers; integers get thousands separators.
        bars: columns that hold shares in [0, 1], drawn as bars.
    """

    caption: str
    names: Sequence[str]
    rows: Sequence[Sequence[object]]
    numbers: Sequence[int] = ()
    bars: Sequence[int] = ()


def templates(*loaders: PackageLoader) -> Environment:
    """Returns the jinja2 environment of all pages: it escapes values and refuses undefined names.

    Args:
        loaders: of further templates.
    """
    loader = ChoiceLoader([PackageLoader("mt3data.report"), *loaders])
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def style_sheet(page: Traversable) -> str:
    """Returns the style sheet of all pages and that of one page, which is a file of a package."""
    base = resources.files("mt3data.report") / "templates" / "base.css"
    return base.read_text("utf-8") + page.read_text("utf-8")


def write_report(
    folder: Path, out: Path, on_window: Callable[[], object] = lambda: None, force: bool = False
) -> list[Survey]:
    """Writes the page about a build, or about all builds in a folder.

    Args:
        folder: a build, or a folder of builds.
        out: the file, or `files.STDOUT`.
        on_window: called for each window whose notes were counted, `n_windows(folder)` times.
        force: replace a file of any origin.
    Returns:
        The counts, build by build.
    Raises:
        UserError: no finished build there, one that has lost a shard, or an output that may not be
            written.
    """
    require_output(out, COMMAND, force, inputs=inputs_of([folder]))
    builds = find_builds(folder)
    pictures = max(1, PICTURES // len(builds))
    surveys = [survey(build, pictures, on_window) for build in builds]
    write_output(out, page(surveys).encode(), COMMAND, force)
    return surveys


def n_windows(folder: Path) -> int:
    """Returns in how many windows of the builds in a folder `write_report` counts notes."""
    return sum(map(n_reads, find_builds(folder)))


def page(surveys: Sequence[Survey]) -> str:
    """Returns the whole page as HTML."""
    style = resources.files("mt3data.report") / "templates" / "report.css"
    heading = surveys[0].manifest["title"] if len(surveys) == 1 else f"{len(surveys)} builds"
    return templates().get_template("report.html").render(
        title=f"{heading} · {COMMAND}", heading=heading, policy=POLICY, mark=mark(COMMAND),
        style=style_sheet(style), max_rows=MAX_ROWS, totals=_totals(surveys),
        overview=_overview(surveys), builds=[_build(each) for each in surveys],
        lag_limit=f"{1000 * MIN_SHIFT_SECONDS:.0f}",
        version=", ".join(sorted({each.manifest["version"] for each in surveys})),
    )  # fmt: skip


def _build(found: Survey) -> dict[str, Any]:
    """What the template shows of one build."""
    manifest, families = found.manifest, _families(found)
    spectrogram = SpectrogramConfig(**manifest["spectrogram"])
    return {
        "manifest": manifest, "splits": _splits(manifest), "sample": plots.of_sample(found),
        "n_programs": len(found.instruments), "n_classes": len(families),
        "instruments": _instruments(found, families), "charts": plots.charts(found),
        "lags": plots.lags(found) if found.aligned else None, "late": _late(found),
        "quarantine": _quarantine(found), "problems": _problems(found.tracks),
        "windows": [plots.window(shown, spectrogram) for shown in found.shown],
        "settings": _settings(manifest),
    }  # fmt: skip


def _totals(surveys: Sequence[Survey]) -> dict[str, str]:
    splits = [split for each in surveys for split in each.manifest["splits"].values()]
    n_bytes = sum(shard["bytes"] for each in surveys for shard in each.manifest["shards"])
    return {
        "hours of audio": f"{sum(s['hours'] for s in splits):,.2f}",
        "tracks": f"{sum(s['tracks'] for s in splits):,}",
        "windows": f"{sum(s['records'] for s in splits):,}",
        "notes": f"{sum(s['notes'] for s in splits):,}",
        "on disk": format_bytes(n_bytes),
        "tracks in quarantine": f"{sum(each.manifest['quarantined'] for each in surveys):,}",
    }


def _overview(surveys: Sequence[Survey]) -> Table:
    rows = []
    for number, each in enumerate(surveys):
        splits = each.manifest["splits"].values()
        rows.append([
            Markup('<a href="#build-{}">{}</a>').format(number, each.manifest["dataset"]),
            sum(s["tracks"] for s in splits), f"{sum(s['hours'] for s in splits):,.2f}",
            sum(s["notes"] for s in splits), each.manifest["quarantined"], each.manifest["licence"],
        ])  # fmt: skip
    names = ["build", "tracks", "hours", "notes", "in quarantine", "licence"]
    return Table("Builds on this page", names, rows, numbers=range(1, 5))


def _splits(manifest: dict[str, Any]) -> list[Table]:
    splits = manifest["splits"]
    if not splits:
        return []
    n_bytes = Counter[str]()
    for shard in manifest["shards"]:
        n_bytes[shard["split"]] += shard["bytes"]
    columns = {
        name: {
            "tracks": s["tracks"], "hours": f"{s['hours']:,.3f}", "windows": s["records"],
            "notes": s["notes"],
            "notes per second": f"{s['notes'] / s['hours'] / 3600:.1f}" if s["hours"] else "–",
            "target tokens": s["tokens"], "targets too long to train on": s["targets_too_long"],
            "tracks in quarantine": s["quarantined"], "size of shards": format_bytes(n_bytes[name]),
        }
        for name, s in splits.items()
    }  # fmt: skip
    rows = [
        [fact, *(column[fact] for column in columns.values())] for fact in [*columns.values()][0]
    ]
    rows = [row for row in rows if None not in row]  # crops of larger windows are tokenised anew
    hours = sum(s["hours"] for s in splits.values()) or 1
    notes = sum(s["notes"] for s in splits.values()) or 1
    shares = [
        [name, f"{s['hours']:,.2f}", s["hours"] / hours, s["notes"], s["notes"] / notes]
        for name, s in splits.items()
    ]
    return [
        Table("Hours and notes, and the share of each split", ["split", "hours", "", "notes", ""],
              shares, numbers=(1, 3), bars=(2, 4)),
        Table("Each split in numbers", ["", *splits], rows, numbers=range(1, len(splits) + 1)),
    ]  # fmt: skip


def _families(found: Survey) -> Counter[str]:
    """The notes of each class of General MIDI."""
    families = Counter[str]()
    for one in found.instruments:
        families[one.family] += one.notes
    return families


def _instruments(found: Survey, families: Counter[str]) -> list[Table]:
    if not found.instruments:
        return []
    total = families.total() or 1
    most = max(families.values()) or 1
    classes = [[name, _percent(n / total), n / most] for name, n in families.most_common()]
    most = max(one.notes for one in found.instruments) or 1
    programs = [
        [
            one.name if one.program == DRUMS
            else Markup('{} <span class="muted">{}</span>').format(one.name, one.program),
            one.tracks, _percent(one.windows / len(found.n_tokens)), _percent(one.notes / total),
            one.notes / most,
        ]
        for one in found.instruments
    ]  # fmt: skip
    return [
        Table("Classes of General MIDI, most notes first", ["class", "notes", ""], classes,
              numbers=(1,), bars=(2,)),
        Table("Programs with their numbers from 0, most notes first",
              ["instrument", "tracks", "windows", "notes", ""], programs, numbers=(1, 2, 3), bars=(4,)),
    ]  # fmt: skip


def _late(found: Survey) -> Table:
    rows = [
        [row["name"], row["split"], plots.signed(1000 * row["lag"], 0),
         "" if row["drift"] is None else plots.signed(1000 * row["drift"], 0), row["aligned"] or "no"]
        for row in sorted(found.aligned, key=lambda row: -abs(row["lag"]))
        if abs(row["lag"]) > MIN_SHIFT_SECONDS
    ]  # fmt: skip
    caption = (
        f"Tracks whose labels are off by more than {1000 * MIN_SHIFT_SECONDS:.0f} ms (negative: labels "
        "late); drift is from the first third to the last"
    )
    names = ["track", "split", "lag (ms)", "drift (ms)", "corrected"]
    return Table(caption, names, rows, numbers=(2, 3))


def _quarantine(found: Survey) -> Table:
    failed = [track for track in found.tracks if track["status"] != "ok"]
    rows = [
        [t["name"], f"{t['split']}, {t['stage']}", reason_of(t, found.manifest)] for t in failed
    ]
    caption = "Tracks that could not be built, the stage that failed, and why"
    return Table(caption, ["track", "where", "reason"], rows)


def _problems(tracks: Sequence[dict[str, Any]]) -> Table:
    """Problems of tracks; sentences that differ in numbers alone are one kind."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for track in tracks:
        for problem in track["problems"] or ():
            kind = re.sub(r"\d+(\.\d+)?", "#", problem)
            kinds.setdefault(kind, []).append((track["name"], problem))
    rows = [
        [len({name for name, _ in of_kind}), *of_kind[0]]
        for of_kind in sorted(kinds.values(), key=len, reverse=True)
    ]
    return Table(
        "Problems of tracks that were built nevertheless, with an example of each kind",
        ["tracks", "for example", "problem there"], rows, numbers=(0,),
    )  # fmt: skip


def _settings(manifest: dict[str, Any]) -> Table:
    rows = [
        [key.replace("_", " "), _value(value)]
        for key, value in sorted(manifest.items())
        if key not in NOT_SETTINGS
    ]
    return Table("What the bytes of the shards depend on", ["setting", "value"], rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_value(v)}" for key, v in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return "none" if value is None else str(value)
