"""The plan of a composed piece: key, tempo, sections, bars and chords."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
}
# Roots as scale degrees, one per bar; 0 is the tonic.
PROGRESSIONS = (
    (0, 4, 5, 3), (0, 5, 3, 4), (5, 3, 0, 4), (0, 3, 0, 4), (1, 4, 0, 0), (0, 2, 3, 4),
    (0, 6, 5, 4), (0, 3, 6, 2), (3, 4, 2, 5), (0, 0, 3, 0), (0, 5, 1, 4), (5, 4, 3, 4),
)  # fmt: skip


class Note(NamedTuple):
    """A note of a player, in beats from the start; accents are about -2 (ghost) to 1 (loud)."""

    beat: float
    length: float
    pitch: int
    accent: float


@dataclass(frozen=True)
class Chord:
    """A harmony of `beats` beats from `beat` on; its tones are pitch classes, the root first."""

    beat: float
    beats: float
    tones: tuple[int, ...]


@dataclass(frozen=True)
class Bar:
    """A bar; energy, 0 to 1, sets loudness and density; the `last` of a section has a fill."""

    beat: float
    chords: tuple[Chord, ...]
    energy: float
    section: int
    first: bool
    last: bool


@dataclass(frozen=True)
class Piece:
    """Key, tempo and harmony of a piece, which all of its players share."""

    tempo: float  # quarter notes a minute
    beats: int  # per bar
    swing: float  # delay of off-beat eighths, in beats
    rubato: float  # largest deviation of the beat, in seconds
    human: float  # standard deviation of single onsets, in seconds
    scale: tuple[int, ...]  # pitch classes of the key, the tonic first
    bars: tuple[Bar, ...]

    @property
    def chords(self) -> list[Chord]:
        """Returns all chords in order."""
        return [chord for bar in self.bars for chord in bar.chords]

    def bar_at(self, beat: float) -> Bar:
        """Returns the bar that holds a beat; the last one for later beats."""
        return self.bars[min(max(0, int(beat // self.beats)), len(self.bars) - 1)]

    def seconds(self, beat: float) -> float:
        """Returns the time of a beat, with swing and with a rubato whose period is 16 beats."""
        if self.swing and abs(beat % 1 - 0.5) < 0.01:
            beat += self.swing
        return 0.25 + beat * 60 / self.tempo + self.rubato * math.sin(beat * math.pi / 8)


def draw_piece(
    rng: random.Random, seconds: float, tempi: tuple[float, float, float] = (62, 172, 108)
) -> Piece:
    """Draws a piece.

    Args:
        rng: source of the draws.
        seconds: length, kept within about one bar.
        tempi: slowest, fastest and most frequent tempo, in quarter notes a minute.
    """
    tempo = round(rng.triangular(*tempi), 1)
    beats = rng.choice((4, 4, 4, 3))
    tonic, scale = rng.randrange(12), SCALES[rng.choice(list(SCALES))]
    n_bars = max(1, round((seconds - 0.25) * tempo / 60 / beats))
    sevenths, quick = rng.random() * 0.6, rng.random() * 0.5
    verse, chorus = rng.sample(PROGRESSIONS, 2)
    bars: list[Bar] = []
    for number in range(n_bars):
        section, place = divmod(number, 8 if n_bars >= 24 else 4)
        degrees = (verse, verse, chorus)[section % 3]
        energy = (0.35, 0.6, 0.95, 0.5, 0.7, 1.0)[section % 6] + rng.uniform(-0.1, 0.1)
        beat, ending = float(number * beats), number == n_bars - 1
        roots = [0] if ending else [degrees[place % 4]]
        if not ending and rng.random() < quick:
            roots.append((roots[0] + rng.choice((2, 3, 4, 5))) % 7)
        share = [beats] if len(roots) == 1 else [beats // 2, beats - beats // 2]
        chords = []
        for root, length in zip(roots, share, strict=True):
            steps = (0, 2, 4, 6) if rng.random() < sevenths and not ending else (0, 2, 4)
            tones = tuple((tonic + scale[(root + step) % 7]) % 12 for step in steps)
            chords.append(Chord(beat, float(length), tones))
            beat += length
        last = number + 1 == n_bars or (number + 1) % (8 if n_bars >= 24 else 4) == 0
        bars.append(Bar(float(number * beats), tuple(chords), energy, section, place == 0, last))
    return Piece(
        tempo=tempo,
        beats=beats,
        swing=rng.choice((0.0, 0.0, 0.0, 0.1, 0.16)),
        rubato=rng.choice((0.0, 0.02, 0.05)),
        human=rng.choice((0.0, 0.004, 0.008)),
        scale=tuple((tonic + step) % 12 for step in scale),
        bars=tuple(bars),
    )
