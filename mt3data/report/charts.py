"""Charts as inline SVG: histograms, bars, and a window's log-mel with its notes over it.

They take their colours from the page (CSS classes, `currentColor`), so that they follow its light
and dark schemes, and need neither scripts nor fonts from elsewhere. Every chart has a title and a
description for those who do not see it.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mt3data.audio.spectrogram import SpectrogramConfig, mel_bin
from mt3data.music.midi import DRUMS
from mt3data.music.notes import Notes
from mt3data.report.markup import Html, element
from mt3data.report.statistics import Shown, voices

WIDTH = 400  # of every chart, in its own units; about one CSS pixel on a phone
LEFT, RIGHT, TOP = 40, 8, 22  # margins of the plot
COLOURS = ("#ffd23f", "#ff6b6b", "#7ae582", "#ff8fe0", "#f79d4b", "#b8f2ff", "#d0a8ff", "#e8ff8b")
PALETTE_STOPS = ((8, 10, 24), (20, 38, 78), (44, 84, 128), (104, 146, 180), (176, 204, 220))
LEVELS = 64  # shades in a picture: few enough to compress well
MEL_RANGE = (-8.0, 6.0)  # natural log; what is below is black
MAX_COLUMNS = 700  # of a picture: two for each CSS pixel
PIANO = (21, 108)  # pitches that a picture shows, and further where notes are
ROWS = 3  # of a picture, for each semitone


@dataclass(frozen=True)
class Histogram:
    """What a histogram shows.

    Attributes:
        title, x, y: of the chart and of its axes, units included.
        edges: of the bins, ascending; one more than heights.
        heights: of the bars.
        ticks: positions on the x axis, in its unit, and what stands there.
        said: what a reader should take from it, for those who do not see it.
        mark: a position to mark, in the unit of x, and what it means.
    """

    title: str
    x: str
    y: str
    edges: np.ndarray
    heights: np.ndarray
    ticks: Sequence[tuple[float, str]]
    said: str
    mark: tuple[float, str] | None = None


def number(value: float) -> str:
    """A round value as an axis says it, without its unit: "1,000", "−0.5"."""
    return f"{value:,.10g}".replace("-", "\N{MINUS SIGN}")


def nice_step(span: float, parts: int) -> float:
    """The smallest step of 1, 2, 5, 10, 20 ... that covers span in at most so many parts."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / parts))
    return next(power * k for k in (1, 2, 5, 10, 20) if power * k * parts >= span * (1 - 1e-9))


def round_ticks(low: float, high: float, parts: int = 6) -> list[tuple[float, str]]:
    """About so many (parts) round numbers from low to high, and how to write them."""
    step = nice_step(high - low, parts)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(k * step, number(k * step)) for k in range(first, last + 1)]


def binned(values: np.ndarray, parts: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Edges of at most parts + 1 bins, and how many values lie in each.

    The edges are round numbers; whole numbers have whole bins.
    """
    low, high = float(values.min()), float(values.max())
    step = nice_step(high - low, parts)
    if np.issubdtype(values.dtype, np.integer):
        step = max(step, 1.0)
    first, last = math.floor(low / step), math.floor(high / step) + 1
    edges = np.round(np.arange(first, last + 1) * step, 9)
    return edges, np.histogram(values, edges)[0]


def histogram(chart: Histogram, height: int = 190) -> Html:
    """A histogram with labelled axes, `height` pixels high."""
    bottom, top = height - 34, TOP
    low, high = chart.edges[0], chart.edges[-1]
    peak = float(chart.heights.max()) or 1.0
    step = nice_step(peak, 4)
    if np.issubdtype(chart.heights.dtype, np.integer):
        step = max(step, 1.0)

    def at_x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def at_y(value: float) -> float:
        return bottom - value / (math.ceil(peak / step) * step) * (bottom - top)

    grid = [
        [_line(LEFT, at_y(k * step), WIDTH - RIGHT, "grid"),
         _text(LEFT - 5, at_y(k * step) + 4, number(k * step), "end")]
        for k in range(math.ceil(peak / step) + 1)
    ]  # fmt: skip
    bars = "".join(
        f"M{at_x(a):.2f} {bottom}V{at_y(h):.2f}H{max(at_x(b) - 0.6, at_x(a) + 0.4):.2f}V{bottom}Z"
        for a, b, h in zip(chart.edges, chart.edges[1:], chart.heights, strict=False)
        if h
    )
    marks = [
        # A label under the right end would be cut off.
        _text(
            at_x(value), bottom + 14, label, "middle" if value < 0.97 * high + 0.03 * low else "end"
        )
        for value, label in chart.ticks
    ]
    if chart.mark:
        x, meaning = at_x(chart.mark[0]), chart.mark[1]
        side = "end" if x > WIDTH / 2 else "start"
        marks.append(element("path", d=f"M{x:.2f} {top}V{bottom}", class_="mark"))
        marks.append(_text(x + (-4 if side == "end" else 4), top + 8, meaning, side))
    return _svg(
        height, chart.title, chart.said, "chart",
        [grid, element("path", d=bars, class_="bar"), marks,
         _text(2, 10, chart.y, "start"), _text((LEFT + WIDTH - RIGHT) / 2, height - 5, chart.x)],
    )  # fmt: skip


def bar(share: float) -> Html:
    """A bar for a cell of a table, share in [0, 1]; the cell beside it says the number."""
    return element(
        "svg", element("rect", width=f"{100 * share:.2f}", height=8, class_="bar"),
        class_="inline", viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true",
    )  # fmt: skip


def colour_of(number: int) -> str:
    """The colour of a window's instrument number 0, 1, ..."""
    return COLOURS[number % len(COLOURS)]


def window(shown: Shown, config: SpectrogramConfig, said: str, height: int = 280) -> Html:
    """A window's log-mel, and over it a line for each note at its fundamental; drums at the foot.

    The mel bins are drawn over pitch, where notes of all octaves have the same room.

    Args:
        said: the description for those who do not see it.
        height: of the picture, in pixels.
    """
    bottom, seconds = height - 34, shown.end - shown.start
    width, tall = WIDTH - LEFT - RIGHT, bottom - TOP
    pitched = shown.notes.pitch[~shown.notes.is_drum]
    low, high = min([PIANO[0], *pitched]), max([PIANO[1], *pitched])

    def at_x(value: np.ndarray) -> np.ndarray:
        inside = np.clip(value, shown.start, shown.end) - shown.start
        return LEFT + inside / seconds * width

    def at_y(pitch: np.ndarray) -> np.ndarray:
        return bottom - (pitch - low + 0.5) / (high - low + 1) * tall

    png = mel_png(shown.mel, low, high, config)
    image = element(
        "image", x=LEFT, y=TOP, width=width, height=tall, preserveAspectRatio="none",
        href=f"data:image/png;base64,{base64.b64encode(png).decode()}",
    )  # fmt: skip
    times = round_ticks(shown.start, shown.end)
    labels = [_text(float(at_x(np.array(t))), bottom + 14, label) for t, label in times]
    labels += [
        _text(LEFT - 5, float(at_y(np.array(octave))) + 4, pitch_name(octave), "end")
        for octave in range(24, high + 1, 12)
    ]
    labels += [_text(2, 10, "pitch", "start"),
               _text(LEFT + width / 2, height - 5, "time in the track (s)")]  # fmt: skip
    notes = _note_lines(shown.notes, at_x, at_y, bottom)
    return _svg(height, shown.key, said, "window", [image, notes, labels])


def _note_lines(
    notes: Notes, at_x: Callable[[np.ndarray], np.ndarray],
    at_y: Callable[[np.ndarray], np.ndarray], bottom: float,
) -> list[Html]:  # fmt: skip
    """A path for each instrument, over a dark one that sets it off from the picture."""
    drawn, program = [], voices(notes)
    for place, voice in enumerate(np.unique(program)):
        mine = notes[program == voice]
        begin, end, y = at_x(mine.onset), at_x(mine.offset), at_y(mine.pitch)
        if voice == DRUMS:
            path = "".join(f"M{x:.1f} {bottom}v-7" for x in begin)
        else:
            path = "".join(
                f"M{a:.1f} {h:.1f}H{b:.1f}" for a, b, h in zip(begin, end, y, strict=True)
            )
        drawn += [element("path", d=path, class_="halo"),
                  element("path", d=path, stroke=colour_of(place), class_="note")]  # fmt: skip
    return drawn


def pitch_name(pitch: int) -> str:
    """Name and octave of a pitch: 60 is C4, middle C."""
    return f"{'C C♯ D D♯ E F F♯ G G♯ A A♯ B'.split()[pitch % 12]}{pitch // 12 - 1}"


def mel_png(mel: np.ndarray, low: int, high: int, config: SpectrogramConfig) -> bytes:
    """A log-mel as a PNG with a palette: pitches low to high from the bottom up.

    Args:
        mel: shape (n_frames, n_mels). Neighbouring frames are averaged where there are more than a
            small picture shows.
    """
    first = np.arange(0, len(mel), math.ceil(len(mel) / MAX_COLUMNS))
    columns = np.add.reduceat(mel, first) / np.diff(np.append(first, len(mel)))[:, None]
    pitch = np.arange(low - 0.5, high + 0.5, 1 / ROWS) + 0.5 / ROWS
    at = np.clip(mel_bin(440 * 2 ** ((pitch - 69) / 12), config) - 1, 0, config.n_mels - 1)
    below = np.minimum(at.astype(int), config.n_mels - 2)
    rows = columns[:, below] * (below + 1 - at) + columns[:, below + 1] * (at - below)
    rows = rows.T[::-1]
    darkest, brightest = MEL_RANGE
    shades = np.clip((rows - darkest) / (brightest - darkest) * LEVELS, 0, LEVELS - 1).astype(
        np.uint8
    )
    stops = np.linspace(0, 1, len(PALETTE_STOPS))
    palette = [
        np.interp(np.linspace(0, 1, LEVELS), stops, channel)
        for channel in zip(*PALETTE_STOPS, strict=True)
    ]
    return _png(shades, np.stack(palette, axis=1).round().astype(np.uint8))


def _png(pixels: np.ndarray, palette: np.ndarray) -> bytes:
    """pixels uint8 [height, width] that count the rows of palette, uint8 [n, 3]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits each, with a palette
    rows = np.pad(pixels, ((0, 0), (1, 0)))  # each row begins with its filter: none
    return b"".join([
        b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"PLTE", palette.tobytes()),
        chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)), chunk(b"IEND", b""),
    ])  # fmt: skip


def _svg(height: int, title: str, said: str, kind: str, drawn: list) -> Html:
    return element(
        "svg", element("title", title), element("desc", said), drawn,
        viewBox=f"0 0 {WIDTH} {height}", role="img", class_=kind, aria_label=f"{title}. {said}",
    )  # fmt: skip


def _line(x: float, y: float, end: float, kind: str) -> Html:
    return element("path", d=f"M{x:.2f} {y:.2f}H{end:.2f}", class_=kind)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> Html:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)
