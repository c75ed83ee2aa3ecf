"""The players of a composed piece: bass, chords, pads, ostinati, melody and drums.

Each player reads the shared plan (key, tempo, bars with their chords and energy) and returns its
notes in beats; `compose` turns beats into seconds and accents into velocities.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

KICK, SIDE_STICK, SNARE, CLOSED_HAT, OPEN_HAT = 36, 37, 38, 42, 46
LOW_TOM, MID_TOM, HIGH_TOM, CRASH, RIDE, TAMBOURINE = 41, 45, 48, 49, 51, 54
# Drum grooves, one character per sixteenth of a 4/4 bar: X accented, x played, o ghost, . silent.
GROOVES: tuple[dict[int, str], ...] = (
    {KICK: "X.......X.......", SNARE: "....X.......X...", CLOSED_HAT: "X.x.X.x.X.x.X.x."},
    {KICK: "X.....x.X.x.....", SNARE: "....X..o.o..X..o", CLOSED_HAT: "XoxoXoxoXoxoXoxo"},
    {KICK: "X...X...X...X...", SNARE: "....X.......X...", OPEN_HAT: "..x...x...x...x."},
    {KICK: "X.........x.....", SIDE_STICK: "....X.......X...", RIDE: "X...x...X...x..."},
    {KICK: "X..x..x.X..x..x.", SIDE_STICK: "X..x..x...x.x...", TAMBOURINE: "xoXoxoXoxoXoxoXo"},
    {KICK: "X..x....X.......", SNARE: "....X..o....X.x.", RIDE: "X.x.X.x.X.x.X.x."},
)
WALTZES: tuple[dict[int, str], ...] = (
    {KICK: "X...........", SNARE: "....x...x...", CLOSED_HAT: "X...x.x.x.x."},
    {KICK: "X.......x...", SIDE_STICK: "....X...o...", RIDE: "X...x...x.x."},
)
STRENGTH = {"X": 0.8, "x": 0.0, "o": -1.6}


class Note(NamedTuple):
    """One note of a player, in beats from the start; accent about -2 (ghost) to 1 (loud)."""

    beat: float
    length: float
    pitch: int
    accent: float


@dataclass(frozen=True)
class Chord:
    """A harmony that lasts `beats` from `beat` on; tones are pitch classes, the root first."""

    beat: float
    beats: float
    tones: tuple[int, ...]


@dataclass(frozen=True)
class Bar:
    """One bar; energy 0 to 1 steers loudness and density, `last` closes a section with a fill."""

    beat: float
    chords: tuple[Chord, ...]
    energy: float
    section: int
    first: bool
    last: bool


@dataclass(frozen=True)
class Plan:
    """What the players of one piece share."""

    tempo: float  # quarter notes a minute
    beats: int  # per bar
    swing: float  # how late off-beat eighths are, in beats
    rubato: float  # seconds by which the beat wanders
    human: float  # standard deviation of single onsets, seconds
    scale: tuple[int, ...]  # pitch classes of the key, the tonic first
    bars: tuple[Bar, ...]

    @property
    def chords(self) -> list[Chord]:
        """All chords of the piece in order."""
        return [chord for bar in self.bars for chord in bar.chords]

    def seconds(self, beat: float) -> float:
        """Time of a beat: swung, and drifting by `rubato` over 16 beats."""
        if self.swing and abs(beat % 1 - 0.5) < 0.01:
            beat += self.swing
        return 0.25 + beat * 60 / self.tempo + self.rubato * math.sin(beat * math.pi / 8)


def _voicing(chord: Chord, centre: float) -> list[int]:
    """The chord's tones, each in the octave that lies nearest to `centre`; ascending."""
    return sorted(round((centre - tone) / 12) * 12 + tone for tone in set(chord.tones))


def _near(tones: tuple[int, ...], pitch: float, low: int, high: int) -> int:
    """The pitch nearest to `pitch` within low..high whose pitch class is one of `tones`."""
    allowed = [p for p in range(low, high + 1) if p % 12 in tones]
    return min(allowed, key=lambda p: (abs(p - pitch), p))


def bass(plan: Plan, rng: random.Random) -> list[Note]:
    """One line in one of six styles: held roots, repeated eighths, walking, syncopated, leaps."""
    style = rng.choice(("roots", "eighths", "fifths", "walking", "syncopated", "octaves"))
    notes, chords = [], plan.chords
    for chord, following in zip(chords, [*chords[1:], chords[-1]], strict=True):
        root = _near(chord.tones[:1], 38, 33, 44)
        fifth, goal = root + (chord.tones[2] - chord.tones[0]) % 12, following.tones[:1]
        if style == "roots" or chord is chords[-1]:
            line = [(0.0, chord.beats * 0.95, root)]
        elif style == "eighths":
            line = [(k / 2, rng.choice((0.3, 0.45)), root) for k in range(int(chord.beats * 2))]
        elif style == "syncopated":
            line = [(0.0, 1.3, root), (1.5, 0.45, root), (2.5, 0.4, fifth), (3.0, 0.9, root)]
        elif style == "walking":
            target = _near(goal, root, 33, 50)
            line = [(float(k), 0.9, _near(plan.scale, root + (target - root) * k / chord.beats
                     + rng.choice((-2, 0, 2)) * (k > 0), 31, 52)) for k in range(int(chord.beats))]  # fmt: skip
        else:
            other = fifth if style == "fifths" else root + 12
            line = [(float(k), 0.8, (root, other)[k % 2]) for k in range(int(chord.beats))]
        notes += [Note(chord.beat + at, length, pitch, 0.6 * (at == 0))
                  for at, length, pitch in line if at < chord.beats]  # fmt: skip
    return notes


def comp(plan: Plan, rng: random.Random, strum: float) -> list[Note]:
    """Block chords in a rhythm of the piece's; strum > 0 spreads the tones, in beats per string."""
    rhythm = rng.choice((
        ((0.0, 3.8),), ((0.0, 1.9), (2.0, 1.9)), ((0.0, 0.9), (1.0, 0.9), (2.0, 0.9), (3.0, 0.9)),
        ((0.5, 0.3), (1.5, 0.3), (2.5, 0.3), (3.5, 0.3)), ((0.0, 1.4), (1.5, 1.4), (3.0, 0.9)),
        ((0.0, 0.9), (1.0, 0.4), (1.5, 0.4), (2.5, 0.4), (3.0, 0.4), (3.5, 0.4)),
    ))  # fmt: skip
    notes = []
    for chord in plan.chords:
        voices = _voicing(chord, 57)
        if strum:
            voices = sorted({*voices, voices[0] + 12, voices[-1] - 12})
        for at, length in rhythm:
            if at < chord.beats:
                down = int(at * 2) % 2 == 0
                order = voices if down else voices[::-1]
                notes += [Note(chord.beat + at + strum * k, min(length, chord.beats - at), pitch,
                          0.3 * (at == 0)) for k, pitch in enumerate(order)]  # fmt: skip
    return notes


def held(plan: Plan, rng: random.Random) -> list[Note]:
    """Pads: every tone is held as long as the harmony keeps it, often over several chords."""
    sounding: dict[int, float] = {}
    notes, centre = [], rng.choice((55, 60, 64))
    for chord in [*plan.chords, None]:
        tones = set(_voicing(chord, centre)) if chord else set()
        now = chord.beat if chord else plan.bars[-1].beat + plan.beats
        for pitch in sorted(set(sounding) - tones):
            start = sounding.pop(pitch)
            notes.append(Note(start, now - start, pitch, -0.5))
        for pitch in tones:
            sounding.setdefault(pitch, now)
    return notes


def broken(plan: Plan, rng: random.Random, low: int, step: float) -> list[Note]:
    """Broken chords: a pattern of chord tones over three octaves from `low` up, `step` beats apart."""
    pattern = rng.choice(((0, 1, 2, 3, 4, 3, 2, 1), (0, 2, 1, 2), (0, 2, 4, 5), (5, 4, 3, 2, 1, 0),
                          (0, 0, 2, 2, 4, 4, 2, 2)))  # fmt: skip
    notes = []
    for bar in plan.bars:
        # Quiet sections thin out, the last bar stands still.
        pace = plan.beats if bar is plan.bars[-1] else step * (2 if bar.energy < 0.5 else 1)
        for chord in bar.chords:
            ladder = [p for p in range(low, low + 36) if p % 12 in chord.tones]
            for k in range(max(1, int(chord.beats / pace + 0.01))):
                length = pace * rng.choice((0.6, 0.9, 1.6))
                accent = 0.5 * (k == 0)
                pitch = ladder[pattern[k % len(pattern)]]
                notes.append(Note(chord.beat + k * pace, length, pitch, accent))
    return notes


def melody(plan: Plan, rng: random.Random, pitches: tuple[int, int],
            slow: bool = False) -> list[Note]:  # fmt: skip
    """Two rhythmic motifs with their contours, which return over changing chords; with rests.

    Args:
        pitches: the lowest and the highest.
        slow: longer notes, as for a second voice.
    """
    low, high = pitches
    lengths = (1.0, 2.0, 3.0, 1.5) if slow else (0.5, 0.5, 0.25, 1.0, 1.5, 0.75, 2.0)
    motifs = []
    for _ in range(2):
        rhythm: list[float] = []
        while sum(rhythm) < plan.beats * 2:
            rhythm.append(rng.choice(lengths))
        moves = [rng.choice((-5, -2, -2, -1, 0, 0, 1, 2, 2, 3, 5)) for _ in rhythm]
        rests = [rng.random() < 0.14 for _ in rhythm]
        motifs.append(list(zip(rhythm, moves, rests, strict=True)))
    legato, pitch = rng.choice((0.7, 0.92, 1.0)), (low + high) / 2
    notes, silent = [], rng.random() < 0.5
    for pair in range(0, len(plan.bars), 2):
        bar = plan.bars[pair]
        if silent and (bar.section % 6 == (3 if slow else 0)):
            continue  # the intro, or the bridge for a second voice, is left to the others
        pitch = (pitch + (low + high) / 2) / 2  # a phrase comes back from where the last one ended
        beat, end = bar.beat, bar.beat + plan.beats * min(2, len(plan.bars) - pair)
        chords = [c for b in plan.bars[pair : pair + 2] for c in b.chords]
        for length, move, rest in motifs[bar.section % 2 if pair % 4 else 0]:
            if beat >= end:
                break
            chord = [c for c in chords if c.beat <= beat][-1]
            strong = beat % 1 == 0 and length >= 0.75
            goal = pitch + move if low <= pitch + move <= high else pitch - move
            pitch = _near(chord.tones if strong else plan.scale, goal, low, high)
            if not rest:
                accent = 0.5 * strong - 0.3 * (length < 0.5)
                notes.append(Note(beat, min(length, end - beat) * legato, int(pitch), accent))
            beat += length
    return notes


def drums(plan: Plan, rng: random.Random) -> list[Note]:
    """A groove for quiet and one for loud bars, fills that close sections, crashes that open them."""
    grooves = rng.sample(WALTZES if plan.beats == 3 else GROOVES, 2)
    notes = []
    for bar in plan.bars[:-1]:
        if bar.first and bar.section:
            notes.append(Note(bar.beat, 0.25, CRASH, 0.8))
        fill_from = plan.beats - rng.choice((1, 1, 2)) if bar.last else plan.beats
        for drum, line in grooves[bar.energy > 0.65].items():
            for k, mark in enumerate(line):
                busy = mark != "o" or rng.random() < bar.energy
                if mark != "." and k / 4 < fill_from and busy:
                    notes.append(Note(bar.beat + k / 4, 0.2, drum, STRENGTH[mark]))
        for k in range(int(fill_from * 4), plan.beats * 4):
            drum = (SNARE, SNARE, HIGH_TOM, MID_TOM, LOW_TOM)[min(4, rng.randrange(6))]
            if rng.random() < 0.75:
                notes.append(Note(bar.beat + k / 4, 0.2, drum, rng.uniform(-0.5, 1)))
    return [*notes, *(Note(plan.bars[-1].beat, 0.25, drum, 0.8) for drum in (KICK, CRASH))]
