"""Draws charts for the report, and log-mels with notes, with matplotlib.

In a page, charts are inline SVG. Their text and lines take the colours of the page, so they follow
its light and dark schemes, and every chart has a description for readers who do not see it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from mt3data.audio.spectrogram import SpectrogramConfig, mel_bin
from mt3data.build.finalize import MAX_TARGET_TOKENS
from mt3data.errors import UserError
from mt3data.files import STDOUT, is_device, mark, write_output
from mt3data.music.midi import DRUMS, instrument_name
from mt3data.music.notes import Notes
from mt3data.report.statistics import Shown, Survey, programs_of
from mt3data.shards.windows import SEGMENT_WINDOWS
from mt3data.terminal import plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Placeholders in matplotlib, replaced by colours of the page's style sheet.
MUTED, LINE, BAR, LIMIT = "#010203", "#010204", "#010205", "#010206"
PAGE_COLOURS = {MUTED: "--muted", LINE: "--line", BAR: "--accent", LIMIT: "--warn"}
COLOURS = ("#ffd23f", "#ff6b6b", "#7ae582", "#ff8fe0", "#f79d4b", "#b8f2ff", "#d0a8ff", "#e8ff8b")
PIANO = (21, 108)  # pitches that a picture shows at least
ROWS = 3  # of a picture, for each semitone
MAX_COLUMNS = 400  # of a picture: about one for each CSS pixel
SHADES = 32  # of a log-mel: few enough to compress well
MEL_RANGE = (-8.0, 7.0)  # natural log; lower values are black
BINS = 40  # of a histogram
MAKER = {"png": "Software", "svg": "Creator", "pdf": "Creator"}  # field of the program's name


@dataclass(frozen=True)
class Chart:
    """A chart for a page.

    Attributes:
        title: of the chart.
        caption: sentences that describe it.
        svg: the picture.
    """

    title: str
    caption: str
    svg: Markup


def save_figure(figure: Figure, out: Path, command: str, force: bool = False) -> None:
    """Writes a figure as a file.

    Args:
        figure: of matplotlib.
        out: a .png, .svg or .pdf file, or standard output or a device, which get a PNG.
        command: that writes it, see `files.mark`.
        force: replace any file.
    Raises:
        UserError: another ending, or a file that must not be replaced.
    """
    kind = "png" if out == STDOUT or is_device(out) else out.suffix.removeprefix(".").lower()
    if kind not in MAKER:
        raise UserError(f"{out}: expected a name that ends in .png, .svg or .pdf")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110, metadata={MAKER[kind]: mark(command)})
    write_output(out, buffer.getvalue(), command, force)


def draw_window(
    axes: Any, mel: np.ndarray, notes: Notes, start: float, end: float, config: SpectrogramConfig
) -> list[tuple[str, str]]:
    """Draws a log-mel and its notes: a line at the fundamental of each, drums as ticks at the bottom.

    Args:
        axes: of matplotlib.
        mel: shape (n_frames, n_mels), natural log; 0.0 is padding.
        notes: that sound in it, in seconds of the track.
        start: of the first frame, in seconds of the track.
        end: of the last frame.
        config: of the log-mel.
    Returns:
        Name and colour of each instrument.
    """
    from matplotlib import colormaps
    from matplotlib.patheffects import withStroke

    pitched = notes.pitch[~notes.is_drum].tolist()
    low, high = min([PIANO[0], *pitched]) - 0.5, max([PIANO[1], *pitched]) + 0.5
    axes.imshow(
        pitch_image(mel, low, high, config), origin="lower", aspect="auto", vmin=MEL_RANGE[0],
        vmax=MEL_RANGE[1], cmap=colormaps["bone"].resampled(SHADES), extent=(start, end, low, high),
        interpolation="none",
    )  # fmt: skip
    axes.set(xlim=(start, end), ylim=(low, high))
    octaves = range(24, int(high) + 1, 12)
    axes.set_yticks(octaves, map(pitch_name, octaves))
    legend = []
    for number, program in enumerate(np.unique(programs_of(notes))):
        mine, colour = notes[programs_of(notes) == program], COLOURS[number % len(COLOURS)]
        legend.append((instrument_name(int(program)), colour))
        halo = [withStroke(linewidth=3.5, foreground="black", alpha=0.6)]
        if program == DRUMS:
            axes.plot(
                mine.onset, np.full(len(mine), low + 1.5), "|", color=colour, ms=8, mew=1.8,
                path_effects=halo,
            )  # fmt: skip
            continue
        axes.hlines(
            mine.pitch, np.maximum(mine.onset, start), np.minimum(mine.offset, end), color=colour,
            lw=1.8, path_effects=halo,
        )  # fmt: skip
    return legend


def pitch_image(mel: np.ndarray, low: float, high: float, config: SpectrogramConfig) -> np.ndarray:
    """Returns a log-mel over pitch instead of mel bins, where all octaves have the same height.

    Args:
        mel: shape (n_frames, n_mels); 0.0 is padding, which becomes black.
        low: lower end of the image, as a MIDI pitch.
        high: upper end.
        config: of the log-mel.
    Returns:
        Shape (rows, columns), with ROWS rows for each semitone and at most about MAX_COLUMNS columns.
    """
    group = -(-len(mel) // MAX_COLUMNS)
    columns = mel[: len(mel) // group * group].reshape(-1, group, config.n_mels).mean(axis=1)
    columns = np.where(columns == 0, MEL_RANGE[0], columns)
    pitch = np.arange(low, high, 1 / ROWS) + 0.5 / ROWS
    bins = mel_bin(440 * 2 ** ((pitch - 69) / 12), config) - 1
    return np.stack(
        [np.interp(bins, np.arange(config.n_mels), column) for column in columns], axis=1
    )


def pitch_name(pitch: int) -> str:
    """Returns name and octave of a pitch: 60 is C4, middle C."""
    return f"{'C C♯ D D♯ E F F♯ G G♯ A A♯ B'.split()[pitch % 12]}{pitch // 12 - 1}"


def window(shown: Shown, config: SpectrogramConfig) -> dict[str, Any]:
    """Returns the picture of one window and its caption, as the template of the report needs them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.3), layout="constrained")
    axes = figure.subplots()
    legend = draw_window(axes, shown.mel, shown.notes, shown.start, shown.end, config)
    axes.set_xlabel("time in the track (s)")
    times = f"{shown.start:.2f} to {shown.end:.2f} s"
    names = ", ".join(name for name, _ in legend)
    return {
        "svg": svg(figure, shown.key, f"{plural(len(shown.notes), 'note')} from {times} of {names}."),
        "track": shown.track, "key": shown.key, "legend": legend,
        "facts": f"{shown.split} · {times} · {len(shown.notes):,} notes, {shown.n_tokens:,} tokens",
    }  # fmt: skip


def charts(found: Survey) -> list[Chart]:
    """Returns the charts of a build's notes and targets: pitches, polyphony, length of targets."""
    drawn = [_pitches(found), _polyphony(found), _target_lengths(found)]
    return [chart for chart in drawn if chart]


def _pitches(found: Survey) -> Chart | None:
    counts = np.pad(found.sample.pitches, (0, 4))  # 11 whole octaves
    used = np.flatnonzero(counts)
    if not len(used):
        return None
    low, high = int(used[0]), int(used[-1])
    first, last = 12 * (low // 12), 12 * (high // 12 + 1)
    octaves = np.arange(first, last, 12)
    return _histogram(
        "Pitches", "pitch (C4 is middle C, MIDI 60)", "notes", np.arange(first, last + 1),
        counts[first:last],
        f"From {pitch_name(low)} to {pitch_name(high)}, most often {pitch_name(int(counts.argmax()))}, "
        f"without drums, in {of_sample(found)}.",
        ticks=(octaves + 0.5, [pitch_name(int(octave)) for octave in octaves]),
    )  # fmt: skip


def _polyphony(found: Survey) -> Chart | None:
    frames = found.sample.polyphony
    if not frames.sum():
        return None
    share = 100 * frames / frames.sum()
    mean = float((frames * np.arange(len(frames))).sum() / frames.sum())
    return _histogram(
        "Polyphony", "notes that sound at the same time", "time (%)", np.arange(len(frames) + 1) - 0.5,
        share, f"{mean:.1f} notes sound at the same time on average, {len(frames) - 1} at most. No "
        f"note sounds in {share[0]:.0f} % of the time. Without drums, in {of_sample(found)}.",
    )  # fmt: skip


def _target_lengths(found: Survey) -> Chart | None:
    tokens, frames = found.n_tokens, found.manifest["window"]
    if not len(tokens):
        return None
    note, limit = "Training cuts the windows into crops and tokenises these anew.", None
    if frames in SEGMENT_WINDOWS:
        longer = int((tokens - 1 > MAX_TARGET_TOKENS).sum())
        note = f"Of all windows, {longer:,} exceed {MAX_TARGET_TOKENS:,} tokens and are not trained on."
        limit = MAX_TARGET_TOKENS + 1 if longer else None
    width = max(1, -(-int(np.ptp(tokens)) // BINS))
    edges = np.arange(tokens.min(), tokens.max() + width + 1, width)
    return _histogram(
        "Length of targets", f"tokens for {frames:,} frames ({frames * 0.008:.4g} s)", "windows", edges,
        np.histogram(tokens, edges)[0],
        f"The median is {np.median(tokens):,.0f} tokens, 99 % have at most "
        f"{np.percentile(tokens, 99):,.0f}, the longest has {tokens.max():,}. {note}",
        limit=limit,
    )  # fmt: skip


def lags(found: Survey) -> Chart:
    """Returns the chart of how much later the audio is than its labels, of tracks with a sure lag."""
    milliseconds = 1000 * np.array([row["lag"] for row in found.aligned])
    low, high = np.percentile(milliseconds, [5, 95])
    counts, edges = np.histogram(milliseconds, bins=BINS)
    unsure = sum(row["lag"] is not None for row in found.tracks) - len(milliseconds)
    more = f" {unsure:,} more could not be measured surely." if unsure else ""
    return _histogram(
        "Lag", "how much later the audio is than its labels (ms)", "tracks", edges, counts,
        f"The median is {signed(np.median(milliseconds), 1)} ms. 90 % of the tracks are between "
        f"{signed(low, 1)} and {signed(high, 1)} ms. {plural(len(milliseconds), 'track')}, before any "
        f"correction.{more}",
    )  # fmt: skip


def _histogram(
    title: str, x: str, y: str, edges: np.ndarray, heights: np.ndarray, caption: str,
    ticks: tuple[np.ndarray, Sequence[str]] | None = None, limit: float | None = None,
) -> Chart:  # fmt: skip
    """A histogram with labelled axes; `limit` is marked by a dashed line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.stairs(heights, edges, fill=True, color=BAR)
    axes.set(xlabel=x, ylabel=y, xlim=(edges[0], edges[-1]))
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=LINE)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=heights.dtype.kind == "i"))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.10g}".replace("-", "\N{MINUS SIGN}"))
    if ticks:
        axes.set_xticks(*ticks)
    if limit is not None:
        axes.axvline(limit, color=LIMIT, linestyle="--", label="limit")
        axes.legend(frameon=False)
    return Chart(title, caption, svg(figure, title, caption))


def svg(figure: Figure, title: str, description: str) -> Markup:
    """Returns a figure as an SVG element for a page, without axes on top and to the right."""
    from matplotlib import rc_context

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LINE)
        axes.tick_params(color=LINE, labelcolor=MUTED)
        axes.xaxis.label.set_color(MUTED)
        axes.yaxis.label.set_color(MUTED)
    buffer = io.StringIO()
    # Text stays text, and equal pages have equal bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # such as axes_1, in every figure of the page
    for colour, name in PAGE_COLOURS.items():
        text = text.replace(colour, f"var({name})")
    label = Markup('<svg role="img" aria-label="{}. {}" ').format(title, description)
    return label + Markup(text.removeprefix("<svg "))


def of_sample(found: Survey) -> str:
    """Returns in how much of the build notes were counted: "all 57 windows"."""
    read, records = found.sample.windows, len(found.n_tokens)
    if read == records:
        return f"all {records:,} windows"
    return f"{read:,} of {records:,} windows, evenly spaced"


def signed(value: float, digits: int) -> str:
    """Returns a value in any unit with its sign and some digits after the point: "+1.2" or "−0.4"."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
