"""The figures of a report: what a build's numbers look like, and a caption that says it in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.build.finalize import MAX_TARGET_TOKENS
from mt3data.music.midi import instrument_name
from mt3data.report import charts
from mt3data.report.markup import Html, element
from mt3data.report.statistics import Shown, Survey, voices
from mt3data.shards.windows import SEGMENT_WINDOWS
from mt3data.terminal import plural


def pitches(found: Survey) -> Html | None:
    """Notes of each pitch; None where there are none."""
    counts = np.pad(found.sample.pitches, (0, 4))  # 11 whole octaves
    used = np.flatnonzero(counts)
    if not len(used):
        return None
    low, high = int(used[0]), int(used[-1])
    said = (
        f"From {charts.pitch_name(low)} to {charts.pitch_name(high)}, most often "
        f"{charts.pitch_name(int(counts.argmax()))}; drums left out."
    )
    first, last = 12 * (low // 12), 12 * (high // 12 + 1)
    ticks = [(octave + 0.5, charts.pitch_name(octave)) for octave in range(first, last, 12)]
    return _figure(charts.Histogram(
        "Pitches", "pitch (C4 is middle C, MIDI 60)", "notes", np.arange(first, last + 1),
        counts[first:last], ticks, said,
    ), f"In {of_sample(found)}.")  # fmt: skip


def polyphony(found: Survey) -> Html | None:
    """How many notes sound at a time; None for no frames."""
    frames = found.sample.polyphony
    if not frames.sum():
        return None
    share = 100 * frames / frames.sum()
    mean = float((frames * np.arange(len(frames))).sum() / frames.sum())
    said = (
        f"{mean:.1f} notes sound at a time in the mean, {len(frames) - 1} at most; none in "
        f"{share[0]:.0f} % of the time. Drums left out."
    )
    every = max(1, int(charts.nice_step(len(frames), 12)))
    ticks = [(float(n), str(n)) for n in range(0, len(frames), every)]
    return _figure(charts.Histogram(
        "Polyphony", "notes that sound at the same time", "time (%)",
        np.arange(len(frames) + 1) - 0.5, share, ticks, said,
    ), f"In {of_sample(found)}.")  # fmt: skip


def target_lengths(found: Survey) -> Html | None:
    """Tokens of the windows' targets; None for no windows."""
    tokens = found.n_tokens
    if not len(tokens):
        return None
    frames = found.manifest["window"]
    edges, counts = charts.binned(tokens.astype(np.int64))
    said = (
        f"Median {np.median(tokens):,.0f} tokens, 99 % have at most "
        f"{np.percentile(tokens, 99):,.0f}, the longest {tokens.max():,}."
    )
    note, mark = "All windows; training cuts them into crops and tokenises these anew.", None
    if frames in SEGMENT_WINDOWS:
        longer = int((tokens - 1 > MAX_TARGET_TOKENS).sum())
        note = (
            f"All windows; {longer:,} exceed {MAX_TARGET_TOKENS:,} tokens and are not trained on."
        )
        if tokens.max() > MAX_TARGET_TOKENS:
            mark = (float(MAX_TARGET_TOKENS + 1), "limit")
    return _figure(charts.Histogram(
        "Length of targets", f"tokens for {frames:,} frames ({frames * 0.008:.4g} s)", "windows",
        edges, counts, charts.round_ticks(edges[0], edges[-1]), said, mark,
    ), note)  # fmt: skip


def lags(found: Survey) -> Html:
    """How much later the audio is than its labels, over the tracks where that is sure."""
    milliseconds = 1000 * np.array([row["lag"] for row in found.aligned])
    low, high = np.percentile(milliseconds, [5, 95])
    edges, counts = charts.binned(milliseconds)
    unsure = sum(row["lag"] is not None for row in found.tracks) - len(milliseconds)
    more = f" {unsure:,} more could not be measured surely." if unsure else ""
    return _figure(charts.Histogram(
        "Lag", "how much later the audio is than its labels (ms)", "tracks", edges, counts,
        charts.round_ticks(edges[0], edges[-1]),
        f"Median {signed(np.median(milliseconds), 1)} ms; 90 % of the tracks lie between "
        f"{signed(low, 1)} and {signed(high, 1)} ms.",
    ), f"{plural(len(milliseconds), 'track')}, before any correction.{more}")  # fmt: skip


def window(shown: Shown, manifest: dict[str, Any]) -> Html:
    """One window with its notes, and what it is in the caption; the manifest is its build's."""
    names = [instrument_name(int(voice)) for voice in np.unique(voices(shown.notes))]
    said = (
        f"{len(shown.notes)} notes between {shown.start:.2f} and {shown.end:.2f} s, played by "
        f"{', '.join(names)}."
    )
    legend = [
        element("li", element("svg", element("path", d="M0 5H20", stroke=charts.colour_of(n),
                                             stroke_width=4), viewBox="0 0 20 10",
                              aria_hidden="true"), name)
        for n, name in enumerate(names)
    ]  # fmt: skip
    return element(
        "figure", charts.window(shown, SpectrogramConfig(**manifest["spectrogram"]), said),
        element("figcaption", element("strong", shown.track),
                f" · {shown.split} · {shown.start:.2f} to {shown.end:.2f} s · "
                f"{len(shown.notes):,} notes, {shown.n_tokens:,} tokens · ",
                element("code", shown.key), element("ul", legend, class_="legend")),
    )  # fmt: skip


def _figure(chart: charts.Histogram, note: str) -> Html:
    caption = element("figcaption", element("strong", chart.title), f". {chart.said} {note}")
    return element("figure", charts.histogram(chart), caption)


def of_sample(found: Survey) -> str:
    """In how much of the build notes were counted: "all 57 windows"."""
    read, records = found.sample.windows, len(found.n_tokens)
    if read == records:
        return f"all {records:,} windows"
    return f"{read:,} of {records:,} windows, evenly spaced"


def signed(value: float, digits: int) -> str:
    """A value in any unit, with its sign and so many digits after the point: "+1.2" or "−0.4"."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
