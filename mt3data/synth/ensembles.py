"""Ensembles: which instruments play a piece, and which player plays each of them.

Bands are the demo dataset's material. The other kinds teach what bands lack: dense piano textures under the
pedal, long slurred notes, soloists, and drums alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from mt3data.music.midi import DRUMS
from mt3data.synth.piece import Note, Piece
from mt3data.synth.players import (
    bass,
    broken,
    by_section,
    chorale_voice,
    comp,
    doubled,
    drums,
    figuration,
    held,
    melody,
    modulated,
    octaves,
    repeated,
    runs,
    stride,
    tremolo,
    trills,
    without_quick_repeats,
)

Part = tuple[int, list[Note], bool]  # program or DRUMS, notes, whether the pedal is used


class Ensemble(NamedTuple):
    """A kind of pieces.

    Attributes:
        parts: yields the parts of a piece in score order.
        tempi: slowest, fastest and most frequent tempo, in quarter notes a minute.
        loudness: lowest and highest mean velocity of a part.
    """

    parts: Callable[[Piece, random.Random], Iterator[Part]]
    tempi: tuple[float, float, float]
    loudness: tuple[float, float]


# General MIDI programs (0-based) by their role. All have a Slakh class and sound at their written pitch in a General MIDI SoundFont; 47, 55, 78 and 86 do not and are left out.
BASSES = (32, 33, 33, 34, 35, 36, 37, 43, 58, 70)
KEYS = (0, 0, 0, 1, 3, 4, 5, 2, 6, 7)
GUITARS = (24, 24, 25, 25, 26, 27, 28, 29, 30)
PADS = (48, 49, 50, 51, 44, 52, 53, 54, 89, 88, 90, 91, 92, 95, 16, 18, 19, 20, 61)
PLUCKED = (8, 9, 10, 11, 12, 13, 15, 45, 46, 46, 24, 7)
LEADS = (40, 41, 42, 56, 57, 59, 60, 64, 65, 66, 67, 68, 69, 71, 72, 73, 74, 75, 79, 80, 81, 82,
         83, 84, 85, 87, 22, 21, 11, 0, 4, 26, 30, 53)  # fmt: skip
LEAD_RANGES = {41: (50, 76), 42: (43, 72), 57: (43, 70), 60: (45, 72), 66: (47, 74), 67: (40, 66),
               69: (55, 79), 72: (72, 96), 71: (52, 84), 26: (50, 79), 30: (48, 76)}  # fmt: skip


def band(piece: Piece, rng: random.Random) -> Iterator[Part]:
    """Yields a melody, bass, one to three accompanists, perhaps a second voice, and drums."""
    lead = rng.choice(LEADS)
    yield lead, melody(piece, rng, LEAD_RANGES.get(lead, (60, 84))), False
    yield rng.choice(BASSES), bass(piece, rng), False
    if rng.random() < 0.5:
        program, pedal = rng.choice(KEYS), rng.random() < 0.5
        yield program, broken(piece, rng, 43, 0.5) if pedal else comp(piece, rng, 0.0), pedal
    else:
        yield rng.choice(GUITARS), comp(piece, rng, 0.03), False
    extra = rng.sample(("pad", "plucked", "second", "guitar"), rng.choice((0, 1, 2, 2, 3)))
    if "pad" in extra:
        yield rng.choice(PADS), held(piece, rng), False
    if "plucked" in extra:
        yield rng.choice(PLUCKED), broken(piece, rng, 60, rng.choice((0.25, 0.5, 1 / 3))), False
    if "second" in extra:
        second = rng.choice([program for program in LEADS if program != lead])
        yield second, melody(piece, rng, LEAD_RANGES.get(second, (55, 79)), slow=True), False
    if "guitar" in extra:
        yield rng.choice(GUITARS), broken(piece, rng, 48, 0.5), False
    yield DRUMS, drums(piece, rng), False


PIANOS = (0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6)
# Instruments that hold a note, with their usual range.
SUSTAINED = {
    16: (36, 84), 18: (36, 84), 19: (36, 86), 20: (48, 84), 21: (53, 86), 22: (60, 90), 40: (55, 93),
    41: (48, 79), 42: (36, 72), 43: (28, 55), 48: (40, 84), 49: (40, 84), 52: (48, 79), 53: (50, 80),
    56: (55, 84), 57: (40, 70), 58: (28, 55), 59: (55, 80), 60: (41, 76), 61: (45, 78), 64: (56, 86),
    65: (49, 80), 66: (44, 75), 67: (36, 67), 68: (58, 90), 69: (52, 79), 70: (34, 70), 71: (50, 88),
    72: (74, 100), 73: (60, 94), 74: (65, 94), 75: (60, 90), 79: (60, 88),
}  # fmt: skip
CONSORTS = (  # from high to low
    (40, 40, 41, 42), (40, 71, 66, 70), (56, 56, 60, 57, 58), (73, 68, 71, 60, 70), (64, 65, 66, 67),
    (71, 71, 70), (73, 73, 74), (52, 53, 52, 52), (19, 19, 19, 19), (40, 42), (73, 42), (68, 70),
    (40, 71, 70), (56, 57, 58), (60, 60, 60, 60), (41, 42, 43), (40, 41, 42, 43), (48, 48, 49),
)  # fmt: skip


def piano(piece: Piece, rng: random.Random) -> Iterator[Part]:
    """Yields a solo piano whose two hands change their textures from section to section.

    Pitches are repeated about as often as in real pieces: 1 % of the notes of MAPS, which are pieces of
    the 18th to 20th century, follow one of the same pitch within 0.15 s.
    """
    step = rng.choice((0.25, 0.5, 1 / 3))
    left = by_section(
        piece,
        rng,
        (
            octaves, tremolo, bass, held, stride, stride,
            lambda piece, rng: figuration(piece, rng, (31, 62)),
            lambda piece, rng: figuration(piece, rng, (36, 67)),
            lambda piece, rng: figuration(piece, rng, (43, 67)),
            lambda piece, rng: broken(piece, rng, 36, step),
            lambda piece, rng: melody(piece, rng, (36, 60)),
            lambda piece, rng: comp(piece, rng, 0.0),
        ),
    )  # fmt: skip
    right = by_section(
        piece,
        rng,
        (
            doubled, doubled, runs, runs, trills, repeated,
            lambda piece, rng: melody(piece, rng, (58, 94)),
            lambda piece, rng: melody(piece, rng, (67, 91)) + figuration(piece, rng, (50, 76)),
            lambda piece, rng: melody(piece, rng, (70, 96)) + chorale_voice(piece, rng, (55, 70), 1.0),
            lambda piece, rng: figuration(piece, rng, (55, 86)),
            lambda piece, rng: figuration(piece, rng, (60, 96)),
            lambda piece, rng: figuration(piece, rng, (67, 103)),
        ),
    )  # fmt: skip
    (notes,) = modulated(piece, rng, [left + right], [(21, 108)])
    yield rng.choice(PIANOS), without_quick_repeats(piece, notes), rng.random() < 0.7


def chamber(piece: Piece, rng: random.Random) -> Iterator[Part]:
    """Yields two to five instruments that hold and slur their notes, as in chorales or counterpoint."""
    programs: tuple[int, ...] = rng.choice(CONSORTS)
    if rng.random() < 0.45:
        drawn = rng.choices(list(SUSTAINED), k=rng.choice((2, 2, 3, 3, 4, 5)))
        programs = tuple(sorted(drawn, key=lambda program: -sum(SUSTAINED[program])))
    style, legato = (
        rng.choice(("chorale", "chorale", "counterpoint", "song")),
        rng.choice((0.9, 1.0)),
    )
    lines, ranges = [], [SUSTAINED[program] for program in programs]
    for number, program in enumerate(programs):
        low, high = SUSTAINED[program]
        middle = low + (high - low) * (len(programs) - number) / (len(programs) + 1)
        pitches = max(low, round(middle) - 9), min(high, round(middle) + 9)
        if style == "counterpoint" or (style == "song" and number == 0):
            lines.append(melody(piece, rng, pitches, slow=number > 0 and rng.random() < 0.5))
        else:
            lines.append(chorale_voice(piece, rng, pitches, legato))
    for program, notes in zip(programs, modulated(piece, rng, lines, ranges), strict=True):
        yield program, notes, False


def small(piece: Piece, rng: random.Random) -> Iterator[Part]:
    """Yields a soloist: alone, with piano, or with a guitar and perhaps a bass."""
    company = rng.choice(("alone", "plucked", "piano", "guitar", "trio"))
    if company == "plucked":
        low, step = rng.choice((48, 55, 60)), rng.choice((0.25, 0.5, 1 / 3))
        yield rng.choice((*PLUCKED, *GUITARS)), broken(piece, rng, low, step), False
        return
    program = rng.choice(list(SUSTAINED))
    low, high = SUSTAINED[program]
    middle = (low + high) // 2
    yield program, melody(piece, rng, (middle - 12, middle + 12), slow=rng.random() < 0.4), False
    if company == "piano":
        yield from piano(piece, rng)
    elif company in ("guitar", "trio"):
        strummed = rng.random() < 0.5
        notes = comp(piece, rng, 0.03) if strummed else broken(piece, rng, 45, 0.5)
        yield rng.choice(GUITARS), notes, False
    if company == "trio":
        yield rng.choice(BASSES), bass(piece, rng), False


def drums_alone(piece: Piece, rng: random.Random) -> Iterator[Part]:
    """Yields drums that change their grooves from section to section."""
    players = [partial(drums), partial(drums)]  # two objects: each draws grooves of its own
    yield DRUMS, by_section(piece, rng, players), False


ENSEMBLES = {
    "band": Ensemble(band, (62, 172, 108), (66, 92)),
    "piano": Ensemble(piano, (45, 175, 95), (50, 100)),
    "chamber": Ensemble(chamber, (48, 150, 90), (60, 105)),
    "small": Ensemble(small, (50, 150, 95), (55, 100)),
    "drums": Ensemble(drums_alone, (62, 180, 110), (60, 100)),
}
