"""Places a recording in bars: reads beats, arranges them in bars and moves notes to a grid.

A beat is what a beat tracker marks: the quarter note in 4/4, the dotted quarter in 6/8, the half note
in 2/2. Between two beats the tempo is constant. `Beats` covers a recording from 0 s to a bar line
after its end. Positions are counted in quarter notes from 0 s, in whole numbers of 1/GRID.

What precedes the first given beat is filled with beats at the tempo of the first four, so that the
recording still begins at 0 s. The bar before the first downbeat is shorter where needed (a pickup).

The original has no beats.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from mt3data.errors import UserError
from mt3data.files import read_limited
from mt3data.music.notes import Notes, trim_overlapping

GRID = 48  # positions in a quarter note: 1/64 and 1/48 notes are whole numbers of them
MIN_BPM, MAX_BPM = 4, 1000  # MIDI holds no tempo below 3.58
MAX_QUARTER = 16.777215  # seconds; MIDI holds a quarter note as 24 bits of microseconds
MIN_BEAT = 60 / MAX_BPM
FAR = 1 << 40  # a position after any recording
MIN_LEAD = 1e-4  # seconds before the first beat that are worth a beat of their own
MAX_BAR = 16  # beats; longer bars come from lost downbeats and are divided
AROUND = 4  # beats whose median gives the tempo before the first and after the last
TIME_COLUMNS = ("time", "times", "seconds", "start", "onset", "beat_time")
NUMBER_COLUMNS = ("beat", "number", "beat_number", "position", "downbeat", "label")

Meter = tuple[int, int]  # 6/8 is (6, 8)


@dataclass(frozen=True, eq=False)
class Beats:
    """Holds the beats and bars of a recording, from 0 s to a bar line after its end.

    Attributes:
        times: seconds of all beats, float64, increasing; the first is 0.0, the last is a bar line.
        bars: index in `times` of every bar line, int64, increasing, from 0 to the last.
        units: number of units of the time signature in a beat: 1 in 4/4, 3 in 6/8.
        denominator: unit of the time signatures.
    """

    times: np.ndarray
    bars: np.ndarray
    units: int = 1
    denominator: int = 4

    @property
    def quarters(self) -> float:
        """Quarter notes in a beat: 1.0 in 4/4, 1.5 in 6/8."""
        return 4 * self.units / self.denominator

    @property
    def beat_grid(self) -> int:
        """Grid positions in a beat: GRID times `quarters`."""
        return 4 * self.units * GRID // self.denominator

    @property
    def numerators(self) -> np.ndarray:
        """Numerator of the time signature of every bar, int64."""
        return np.asarray(np.diff(self.bars) * self.units)

    def describe(self) -> str:
        """Describes bars, time signature and tempo in a few words."""
        n, counts = len(self.numerators), np.bincount(self.numerators)
        usual = int(np.flatnonzero(counts == counts.max())[-1])  # not the pickup
        bpm = 60 / float(np.median(np.diff(self.times)))
        bars = f"{n:,} bar{'' if n == 1 else 's'}"
        return f"{bars} of {usual}/{self.denominator} at about {bpm:.0f} bpm"

    def to_quarters(self, seconds: np.ndarray) -> np.ndarray:
        """Returns positions in quarter notes. Outside of `times` the nearest tempo continues."""
        k = np.clip(np.searchsorted(self.times, seconds, "right") - 1, 0, len(self.times) - 2)
        within = (seconds - self.times[k]) / (self.times[k + 1] - self.times[k])
        return np.asarray((k + within) * self.quarters)

    def to_seconds(self, quarters: np.ndarray) -> np.ndarray:
        """Inverts `to_quarters`."""
        beats = np.asarray(quarters, np.float64) / self.quarters
        k = np.clip(np.floor(beats).astype(np.int64), 0, len(self.times) - 2)
        return np.asarray(self.times[k] + (beats - k) * (self.times[k + 1] - self.times[k]))


def parse_meter(text: str) -> Meter:
    """Parses a time signature such as "3/4".

    Raises:
        UserError: it is none with 1 to 32 units, of 1/2 to 1/16.
    """
    match = re.fullmatch(r"(\d{1,2})/(2|4|8|16)", text.strip())
    if not match or not 1 <= int(match[1]) <= 32:
        raise UserError(f"time signature {text!r}: expected one such as 4/4, 3/4 or 6/8")
    return int(match[1]), int(match[2])


def parse_step(text: str) -> int:
    """Parses the step of a grid, such as "1/16", "1/12" or "1/8T" (triplets: the same as 1/12).

    Returns:
        The step in positions of the grid (1/GRID of a quarter note).

    Raises:
        UserError: it is none of 1/1 to 1/64 whose length is a whole number of positions.
    """
    match = re.fullmatch(r"1/(\d{1,2})(T?)", text.strip(), re.IGNORECASE)
    step = Fraction(0)
    if match and int(match[1]):
        step = Fraction(4 * GRID, int(match[1])) * (Fraction(2, 3) if match[2] else 1)
    if not step or step.denominator > 1 or step < GRID // 16:
        raise UserError(
            f"grid {text!r}: expected 1/4, 1/8, 1/16 or 1/32 of a whole note, or triplets: 1/6, 1/12, 1/24 "
            "(1/8T is 1/12)"
        )
    return int(step)


def beats_per_bar(meter: Meter) -> int:
    """Returns how many beats a bar has: 2 in 6/8, which is counted in dotted quarters, 3 in 3/4."""
    numerator, denominator = meter
    compound = denominator >= 8 and numerator > 3 and numerator % 3 == 0
    return numerator // 3 if compound else numerator


def read_beats(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a list of beats, as beat trackers write it.

    Each line has a time in seconds and may have the number of the beat in its bar, 1 for downbeats.
    Tabs, blanks, commas or semicolons separate columns; further columns are ignored. Text after "#"
    is a comment. A first line without a number is a heading, and its names choose the columns
    (TIME_COLUMNS, NUMBER_COLUMNS). Labels that are all without a number are ignored.

    Returns:
        The times, float64, and whether each is a downbeat, bool; None where no beat has a number.

    Raises:
        UserError: the file is missing or no such list, or its times do not increase.
    """
    try:
        text = read_limited(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text; expected a list of beats, a time per line") from error
    rows = [
        (number, _columns(line))
        for number, line in enumerate(text.splitlines(), 1)
        if line.partition("#")[0].strip()
    ]
    place, label = 0, 1
    if rows and _number(rows[0][1][0]) is None:
        names = [name.lower() for name in rows.pop(0)[1]]
        place = next((names.index(name) for name in TIME_COLUMNS if name in names), 0)
        label = next((names.index(name) for name in NUMBER_COLUMNS if name in names), len(names))
    times, labels = list[float](), list[str]()
    for number, row in rows:
        time = _number(row[place]) if place < len(row) else None
        if time is None or not 0 <= time < np.inf:
            seen = row[place] if place < len(row) else "nothing"
            raise UserError(f"{path} line {number}: {seen!r}; expected a time in seconds, from 0")
        if times and time <= times[-1]:
            raise UserError(
                f"{path} line {number}: {time:g} s after {times[-1]:g} s; expected times that increase"
            )
        times.append(time)
        labels.append(row[label] if label < len(row) else "")
    if len(times) < 2:
        raise UserError(
            f"{path}: {len(times)} beats; expected at least 2, a time in seconds per line"
        )
    numbers = [_number(text) for text in labels]
    if all(number is None for number in numbers):
        return np.array(times), None
    for (line, _), value, text in zip(rows, numbers, labels, strict=True):
        if value is None or not 0 <= value <= 99 or value % 1:
            raise UserError(
                f"{path} line {line}: {text!r} behind the time; expected the number of the beat in its bar"
            )
    is_downbeat = np.array([number == 1 for number in numbers])
    if not is_downbeat.any():
        raise UserError(
            f"{path}: no beat has the number 1; expected 1 for downbeats, or times alone"
        )
    return np.array(times), is_downbeat


def _columns(line: str) -> list[str]:
    line = line.partition("#")[0].strip()
    for separator in ("\t", ",", ";"):
        if separator in line:
            return [text.strip() for text in next(csv.reader([line], delimiter=separator))]
    return line.split()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def constant_beats(bpm: float, first_beat: float, meter: Meter, seconds: float) -> Beats:
    """Returns the beats of a recording of constant tempo.

    Args:
        bpm: beats per minute, MIN_BPM to MAX_BPM. It is rounded to what MIDI holds, whole
            microseconds per quarter note.
        first_beat: seconds to any downbeat, at least 0.
        meter: of the time signature.
        seconds: length of the recording.

    Raises:
        UserError: a tempo or time that is out of range.
    """
    if not MIN_BPM <= bpm <= MAX_BPM:
        raise UserError(f"{bpm:g} bpm; expected {MIN_BPM} to {MAX_BPM:,}")
    if not 0 <= first_beat <= seconds:
        raise UserError(
            f"first beat at {first_beat:g} s; expected a time in the recording, which lasts {seconds:.6g} s"
        )
    per_bar = beats_per_bar(meter)
    quarters = 4 * meter[0] / per_bar / meter[1]
    interval = round(6e7 / bpm / quarters) / 1e6 * quarters
    times = first_beat + interval * np.arange(2 * per_bar)
    return arrange_bars(times, np.arange(2 * per_bar) % per_bar == 0, meter, seconds, "tempo")


def arrange_bars(
    times: np.ndarray, is_downbeat: np.ndarray, meter: Meter | None, seconds: float,
    name: str = "beats",
) -> Beats:  # fmt: skip
    """Arranges beats in bars and adds beats before the first and after the last.

    A bar goes from downbeat to downbeat, whatever its number of beats. Bars of more than MAX_BAR
    beats, those after the last downbeat and those before the first are as long as most others. Beats
    are added up to the end of the recording.

    Args:
        times: seconds, increasing, shape (n,), n at least 2.
        is_downbeat: which of them begin a bar, bool, shape (n,), at least one.
        meter: the time signature of most bars; None: as many quarter notes as beats.
        seconds: length of the recording.
        name: what gave the beats, for messages.

    Raises:
        UserError: beats that do not fit the recording, the meter, or what MIDI holds.
    """
    if not (len(times) > 1 and np.isfinite(times).all() and times[0] >= 0):
        raise UserError(f"{name}: expected 2 or more times in seconds, from 0")
    intervals = np.diff(times)
    if intervals.min() < MIN_BEAT - 1e-6:
        k = int(intervals.argmin())
        raise UserError(
            f"{name}: beats at {times[k]:g} s and {times[k + 1]:g} s; expected increasing times, at least "
            f"{MIN_BEAT:g} s apart ({MAX_BPM:,} bpm)"
        )
    if times[0] >= seconds:
        raise UserError(
            f"{name}: the first beat is at {times[0]:g} s, but the recording lasts {seconds:.6g} s"
        )
    before, after = (float(np.median(part)) for part in (intervals[:AROUND], intervals[-AROUND:]))
    downbeats = np.flatnonzero(is_downbeat)
    lengths = np.diff(downbeats)
    if len(lengths):
        usual = int(np.bincount(lengths).argmax())
        usual = usual if usual <= MAX_BAR else beats_per_bar(meter or (4, 4))
    else:
        usual = beats_per_bar(meter or (4, 4))
    numerator, denominator = meter or (usual, 4)
    units = numerator // usual
    if numerator % usual or not 1 <= units <= 4:
        raise UserError(
            f"{name}: most bars have {usual} beats, which do not divide {numerator}/{denominator}; choose another "
            "--meter, or leave it out"
        )
    longest = float(intervals.max())
    if longest > MAX_QUARTER * 4 * units / denominator:
        k = int(intervals.argmax())
        raise UserError(
            f"{name}: no beat between {times[k]:g} s and {times[k + 1]:g} s; MIDI holds at most "
            f"{MAX_QUARTER:.1f} s per quarter note; add beats between, or choose a faster tempo"
        )
    lead = np.zeros(0)
    if times[0] > MIN_LEAD:  # else the first beat is at 0 s
        fits = 1.5 * before <= MAX_QUARTER * 4 * units / denominator
        n_lead = max(1, round(times[0] / before) if fits else int(np.ceil(times[0] / before)))
        lead = np.append(0.0, times[0] - before * np.arange(n_lead - 1, 0, -1))
    starts = downbeats + len(lead)
    bars = [*range(int(starts[0]) % usual, int(starts[0]), usual)]
    bars = bars if bars[:1] == [0] or not starts[0] else [0, *bars]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=False):
        bars += range(start, start + length, usual if length > MAX_BAR else length)
    last = int(starts[-1])
    n_known = len(lead) + len(times)
    n_after = max(0, int(np.ceil((seconds - times[-1]) / after)))
    n_bars = max(1, -(-(n_known + n_after - 1 - last) // usual))
    bars += range(last, last + (n_bars + 1) * usual, usual)
    tail = times[-1] + after * np.arange(1, bars[-1] - n_known + 2)
    all_times = np.concatenate([lead, times, tail])
    all_times[0] = 0.0
    return Beats(all_times, np.array(bars, np.int64), units, denominator)


def require_beats_within(times: np.ndarray, seconds: float, name: str) -> None:
    """Checks that a list of beats can be one of a recording.

    Raises:
        UserError: a beat is more than two beats after the end of the recording.
    """
    if times[-1] > seconds + 2 * np.median(np.diff(times)):
        raise UserError(
            f"{name}: the last beat is at {times[-1]:g} s, but the recording lasts {seconds:.6g} s; expected its "
            "own beats, in seconds"
        )


def estimate_downbeats(times: np.ndarray, notes: Notes, per_bar: int) -> np.ndarray:
    """Estimates which beats are downbeats, from the notes that begin on them.

    Every `per_bar`-th beat is one. Of the possible first ones that is chosen whose beats have most
    of: notes that are held long, low notes (twice), bass drums. It is a guess, often wrong in music
    whose bass does not move with the bars.

    Args:
        times: seconds of the beats, increasing, shape (n,), n at least 2.
        notes: any notes of the recording.
        per_bar: beats in a bar.

    Returns:
        Bool, shape (n,).
    """
    interval = float(np.median(np.diff(times)))
    held = np.minimum((notes.offset - notes.onset) / interval, per_bar)
    weight = np.where(notes.is_drum, np.isin(notes.pitch, (35, 36)), held)
    weight = weight * np.where(~notes.is_drum & (notes.pitch < 52), 3, 1)
    nearest = np.clip(np.searchsorted((times[1:] + times[:-1]) / 2, notes.onset), 0, len(times) - 1)
    on_beat = np.abs(notes.onset - times[nearest]) < interval / 6
    strength = np.bincount(nearest[on_beat] % per_bar, weight[on_beat], minlength=per_bar)
    return np.asarray(np.arange(len(times)) % per_bar == int(strength.argmax()))


def quantize(notes: Notes, beats: Beats, step: int) -> Notes:
    """Moves the beginnings and ends of notes to the nearest lines of a grid.

    The grid restarts at every bar line. Every note is at least one step long (or up to the next
    bar line). Of one pitch and program one note sounds at a time: of notes that begin together the
    longest stays, and a note ends where the next one begins.

    Args:
        notes: in seconds, in any order.
        beats: of the recording.
        step: distance of lines in positions of the grid, see `parse_step`.

    Returns:
        Notes in seconds, in order of onset.
    """
    lines = np.append(beats.bars * beats.beat_grid, FAR)  # no bar ends after the last

    def bar_of(position: np.ndarray) -> np.ndarray:
        return np.searchsorted(lines, position, "right") - 1

    def snap(seconds: np.ndarray) -> np.ndarray:
        position = beats.to_quarters(seconds) * GRID
        bar = bar_of(position)
        moved = lines[bar] + np.rint((position - lines[bar]) / step).astype(np.int64) * step
        return np.minimum(moved, lines[bar + 1])

    onset = snap(notes.onset)
    offset = np.maximum(snap(notes.offset), np.minimum(onset + step, lines[bar_of(onset) + 1]))
    moved = replace(notes, onset=onset, offset=offset)
    # Of equal onsets trim_overlapping keeps the last, so the longest goes last.
    moved = trim_overlapping(moved[np.argsort(moved.offset, kind="stable")]).sorted()
    return replace(
        moved,
        onset=beats.to_seconds(moved.onset / GRID),
        offset=beats.to_seconds(moved.offset / GRID),
    )
