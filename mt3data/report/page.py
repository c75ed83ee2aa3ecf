"""A build, or a folder of builds, as one page: what is in it, and what to know before training.

The page is a single file that loads nothing: charts and pictures are inline SVG, colours and sizes
a style sheet in its head, and a content security policy forbids the rest. The same build gives the
same bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mt3data.align.lag import MIN_SHIFT_SECONDS
from mt3data.errors import UserError
from mt3data.files import format_bytes, write_atomically
from mt3data.music.midi import DRUMS
from mt3data.report import charts
from mt3data.report import plots as figures
from mt3data.report.markup import Html, document, element, joined, style_sheet, table
from mt3data.report.statistics import Survey, n_reads, survey
from mt3data.shards.format import find_builds

PICTURES = 12  # in all; at least one of each build
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# Told elsewhere on the page, or too long for it.
NOT_SETTINGS = {"tracks", "shards", "files", "splits", "quarantined", "title", "citation", "licence",
                "licence_url", "redistribution"}  # fmt: skip


def write_report(
    folder: Path, out: Path, on_window: Callable[[], object] = lambda: None
) -> list[Survey]:
    """Writes the page about a build, or about all builds in a folder; replaces what was there.

    Args:
        folder: a build, or a folder of builds.
        out: the file; it appears when it is whole.
        on_window: called for each window whose notes were counted, `n_windows(folder)` times.
    Returns:
        What was found, build by build.
    Raises:
        UserError: no finished build there, one that has lost a shard, or a page that
            cannot be written.
    """
    if not out.parent.is_dir() or out.is_dir():
        seen = "is a folder" if out.is_dir() else f"lies in {out.parent}, which does not exist"
        raise UserError(f"{out} {seen}; name a file in a folder that is there")
    builds = find_builds(folder)
    pictures = max(1, PICTURES // len(builds))
    surveys = [survey(build, pictures, on_window) for build in builds]
    try:
        write_atomically(out, page(surveys).encode())
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    return surveys


def n_windows(folder: Path) -> int:
    """How many windows of the builds in a folder `write_report` will count notes in."""
    return sum(map(n_reads, find_builds(folder)))


def page(surveys: Sequence[Survey]) -> str:
    """The whole page."""
    alone = len(surveys) == 1
    title = surveys[0].manifest["title"] if alone else f"{len(surveys)} builds"
    version = ", ".join(sorted({each.manifest["version"] for each in surveys}))
    return document(
        f"{title} · mt3data report", POLICY, style_sheet("mt3data.report", "report.css"),
        element("header", element("p", "Training shards for MT3", class_="muted"),
                element("h1", title)),
        element("main", _totals(surveys), None if alone else _overview(surveys),
                [_build(each, n, alone) for n, each in enumerate(surveys)]),
        element("footer", element("p", f"Made by mt3kit {version} from the manifest, the index, the "
                "table of tracks and the records of the shards. The page loads nothing from "
                "elsewhere.", class_="muted")),
    )  # fmt: skip


# --- the parts of the page -----------------------------------------------------------------------


def _totals(surveys: Sequence[Survey]) -> Html:
    splits = [split for each in surveys for split in each.manifest["splits"].values()]
    n_bytes = sum(shard["bytes"] for each in surveys for shard in each.manifest["shards"])
    failed = sum(each.manifest["quarantined"] for each in surveys)
    tiles = [
        ("hours of audio", f"{sum(s['hours'] for s in splits):,.2f}"),
        ("tracks", f"{sum(s['tracks'] for s in splits):,}"),
        ("windows", f"{sum(s['records'] for s in splits):,}"),
        ("notes", f"{sum(s['notes'] for s in splits):,}"),
        ("on disk", format_bytes(n_bytes)),
        ("tracks in quarantine", f"{failed:,}"),
    ]
    return element("dl", [
        element("div", element("dt", what), element("dd", value),
                class_="warn" if failed and "quarantine" in what else None)
        for what, value in tiles
    ], class_="tiles")  # fmt: skip


def _overview(surveys: Sequence[Survey]) -> Html:
    rows = []
    for number, each in enumerate(surveys):
        splits = each.manifest["splits"].values()
        rows.append([
            element("a", each.manifest["dataset"], href=f"#build-{number}"),
            sum(s["tracks"] for s in splits), f"{sum(s['hours'] for s in splits):,.2f}",
            sum(s["notes"] for s in splits), each.manifest["quarantined"], each.manifest["licence"],
        ])  # fmt: skip
    names = ["build", "tracks", "hours", "notes", "in quarantine", "licence"]
    return table("Builds on this page", names, rows, numbers=range(1, 5))


def _build(found: Survey, number: int, alone: bool) -> Html:
    """The section about one build; its headings stand a level lower where there are several."""
    manifest, heading = found.manifest, "h2" if alone else "h3"
    parts = [
        ("Splits", _splits(manifest)),
        ("Instruments", _instruments(found)),
        ("Notes and targets", _notes(found)),
        ("Alignment", _alignment(found)),
        ("Quarantine", _quarantine(found.tracks)),
        ("Problems", _problems(found.tracks)),
        ("Windows", _windows(found)),
        ("Licence", _licence(manifest)),
        ("Settings", _settings(manifest)),
    ]
    return element(
        "section", None if alone else element("h2", f"{manifest['title']} ({manifest['dataset']})"),
        [element("section", element(heading, title), content) for title, content in parts],
        id=f"build-{number}",
    )  # fmt: skip


def _splits(manifest: dict[str, Any]) -> Html:
    splits = manifest["splits"]
    if not splits:
        return element("p", "No track of any split could be built.")
    n_bytes = Counter[str]()
    for shard in manifest["shards"]:
        n_bytes[shard["split"]] += shard["bytes"]
    facts = {
        "tracks": lambda s: f"{s['tracks']:,}", "hours": lambda s: f"{s['hours']:,.3f}",
        "windows": lambda s: f"{s['records']:,}", "notes": lambda s: f"{s['notes']:,}",
        "notes per second": lambda s: f"{s['notes'] / s['hours'] / 3600:.1f}" if s["hours"] else "–",
        "target tokens": lambda s: f"{s['tokens']:,}",
        "targets too long to train on": lambda s: s["targets_too_long"],
        "tracks in quarantine": lambda s: f"{s['quarantined']:,}",
    }  # fmt: skip
    if any(s["targets_too_long"] is None for s in splits.values()):
        del facts["targets too long to train on"]  # crops of these windows are tokenised anew
    rows: list[list[object]] = [
        [name, *(fact(s) for s in splits.values())] for name, fact in facts.items()
    ]
    rows.append(["size of shards", *(format_bytes(n_bytes[name]) for name in splits)])
    total_hours = sum(s["hours"] for s in splits.values()) or 1
    total_notes = sum(s["notes"] for s in splits.values()) or 1
    shares = [
        [name, f"{s['hours']:,.2f}", charts.bar(s["hours"] / total_hours),
         f"{s['notes']:,}", charts.bar(s["notes"] / total_notes)]
        for name, s in splits.items()
    ]  # fmt: skip
    return element("div", [
        table("Hours and notes, and the share of each split", ["split", "hours", "", "notes", ""],
               shares, numbers=(1, 3), bars=(2, 4)),
        table("Each split in numbers", ["", *splits], rows, numbers=range(1, len(splits) + 1)),
    ], class_="columns")  # fmt: skip


def _instruments(found: Survey) -> Html:
    if not found.instruments:
        return element("p", "No notes.")
    total = sum(one.notes for one in found.instruments) or 1
    n_windows = len(found.n_tokens)
    families = Counter[str]()
    for one in found.instruments:
        families[one.family] += one.notes
    most = max(families.values()) or 1
    classes = [
        [name, _percent(notes / total), charts.bar(notes / most)]
        for name, notes in families.most_common()
    ]
    most = max(one.notes for one in found.instruments) or 1
    programs = [
        [joined([one.name, None if one.program == DRUMS else
                 element("span", f" {one.program}", class_="muted")]), one.tracks,
         _percent(one.windows / n_windows), _percent(one.notes / total), charts.bar(one.notes / most)]
        for one in found.instruments
    ]  # fmt: skip
    return joined([
        element("p", f"{len(found.instruments)} instruments in {len(families)} classes. Tracks and "
                f"windows are counted in full; notes in {figures.of_sample(found)}."),
        element("div", [
            table("Classes of General MIDI, those with most notes first", ["class", "notes", ""],
                   classes, numbers=(1,), bars=(2,)),
            table("Programs with their numbers from 0, those with most notes first",
                   ["instrument", "tracks", "windows", "notes", ""], programs,
                   numbers=(1, 2, 3), bars=(4,)),
        ], class_="columns"),
    ])  # fmt: skip


def _notes(found: Survey) -> Html:
    drawn = [figures.pitches(found), figures.polyphony(found), figures.target_lengths(found)]
    return element("div", drawn, class_="grid")


def _alignment(found: Survey) -> Html:
    sure = found.aligned
    if not sure:
        off = found.manifest["align"] == "off"
        why = "was not measured (--align off)" if off else "could be measured on no track"
        return element("p", f"The lag between labels and audio {why}.")
    limit = 1000 * MIN_SHIFT_SECONDS
    rows = [
        [row["name"], row["split"], figures.signed(1000 * row["lag"], 0),
         "" if row["drift"] is None else figures.signed(1000 * row["drift"], 0), row["aligned"] or "no"]
        for row in sorted(sure, key=lambda row: -abs(row["lag"]))
        if abs(1000 * row["lag"]) > limit
    ]  # fmt: skip
    told = (
        table(f"Tracks that lag by more than {limit:.0f} ms; drift is from the first third to the last",
               ["track", "split", "lag (ms)", "drift (ms)", "corrected"], rows, numbers=(2, 3))
        if rows else
        element("p", f"No track lags by more than {limit:.0f} ms; less is within what attacks of "
                "different instruments differ by.")
    )  # fmt: skip
    return element("div", figures.lags(found), element("div", told), class_="grid")


def _quarantine(tracks: Sequence[dict[str, Any]]) -> Html:
    failed = [track for track in tracks if track["status"] != "ok"]
    if not failed:
        return element("p", "No track is in quarantine.")
    rows = [[t["name"], f"{t['split']}, {t['stage']}", t["error"]] for t in failed]
    return table(
        "Tracks that could not be built, in which stage, and why",
        ["track", "where", "reason"],
        rows,
    )


def _problems(tracks: Sequence[dict[str, Any]]) -> Html:
    """Sentences that differ in numbers alone are one kind of problem."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for track in tracks:
        for problem in track["problems"] or ():
            kind = re.sub(r"\d+(\.\d+)?", "#", problem)
            kinds.setdefault(kind, []).append((track["name"], problem))
    if not kinds:
        return element("p", "Nothing was noticed in the tracks that were built.")
    rows = [
        [len({name for name, _ in of_kind}), of_kind[0][0], of_kind[0][1]]
        for of_kind in sorted(kinds.values(), key=len, reverse=True)
    ]
    return table(
        "What was noticed in tracks that were built all the same; one example of each kind",
        ["tracks", "for example", "what was noticed there"], rows, numbers=(0,),
    )  # fmt: skip


def _windows(found: Survey) -> Html:
    if not found.shown:
        return element("p", "No window holds notes.")
    return joined([
        element("p", "Evenly spread over the tracks. A line is a note at its fundamental, a tick at "
                "the foot a drum; brightness is the log-mel that the model hears. Two mel bins, near "
                "A0 and B1, are always empty in MT3: the dark stripes.", class_="muted"),
        element("div", [figures.window(each, found.manifest) for each in found.shown], class_="grid"),
    ])  # fmt: skip


def _licence(manifest: dict[str, Any]) -> Html:
    url = manifest["licence_url"]
    name = manifest["licence"]
    linked = element("a", name, href=url) if url.startswith(("http://", "https://")) else name
    return joined([
        element("p", linked, f". Redistribution: {manifest['redistribution'].rstrip('.')}."),
        element("p", f"Please cite: {manifest['citation']}", class_="muted"),
    ])  # fmt: skip


def _settings(manifest: dict[str, Any]) -> Html:
    rows = [
        [key.replace("_", " "), _said(value)]
        for key, value in sorted(manifest.items())
        if key not in NOT_SETTINGS
    ]
    return table("What the bytes of the shards depend on", ["setting", "value"], rows)


# --- small pieces --------------------------------------------------------------------------------


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_said(v)}" for key, v in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_said, value))}]"
    return "none" if value is None else str(value)
