"""Seeded pieces for several General MIDI instruments and drums: the demo dataset's music.

A piece has a key, a tempo that breathes, sections with chord progressions, and a band: bass, one to
three accompanists (block chords, strums, broken chords under the pedal, held pads, ostinati), a
melody made of motifs that return, sometimes a second voice, and a drummer who plays fills. Tempo,
density, dynamics, polyphony, note lengths and instruments vary from seed to seed, so that a model
meets sustained, repeated and overlapping notes. It is no style study: the aim is material that is
tonal, rhythmic and labelled without error. MT3 has no counterpart; its data were all published sets.

Everything is drawn from one `random.Random(seed)`: the same seed gives the same piece.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mt3data.music.midi import DRUMS, instrument_name
from mt3data.synth.players import Bar, Chord, Note, Plan, bass, broken, comp, drums, held, melody

if TYPE_CHECKING:
    import pretty_midi

TICKS_PER_QUARTER = 960  # 0.5 ms at 125 bpm: no audible rounding
MIN_NOTE_SECONDS = 0.04
GAP_SECONDS = 0.012  # silence before a pitch is struck again by the same instrument

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

# General MIDI programs (0-based) by what they do here. All have a Slakh class and sound at their
# written pitch in a General MIDI SoundFont; 47, 55, 78 and 86 do not and are left out.
BASSES = (32, 33, 33, 34, 35, 36, 37, 43, 58, 70)
KEYS = (0, 0, 0, 1, 3, 4, 5, 2, 6, 7)
GUITARS = (24, 24, 25, 25, 26, 27, 28, 29, 30)
PADS = (48, 49, 50, 51, 44, 52, 53, 54, 89, 88, 90, 91, 92, 95, 16, 18, 19, 20, 61)
PLUCKED = (8, 9, 10, 11, 12, 13, 15, 45, 46, 46, 24, 7)
LEADS = (40, 41, 42, 56, 57, 59, 60, 64, 65, 66, 67, 68, 69, 71, 72, 73, 74, 75, 79, 80, 81, 82,
         83, 84, 85, 87, 22, 21, 11, 0, 4, 26, 30, 53)  # fmt: skip
LEAD_RANGES = {41: (50, 76), 42: (43, 72), 57: (43, 70), 60: (45, 72), 66: (47, 74), 67: (40, 66),
               69: (55, 79), 72: (72, 96), 71: (52, 84), 26: (50, 79), 30: (48, 76)}  # fmt: skip


def compose(seed: int, seconds: float = 40.0) -> pretty_midi.PrettyMIDI:
    """Write the piece of this seed: three to six pitched instruments and drums.

    Args:
        seed: any integer; the same seed and length give the same piece.
        seconds: length up to the last note's end, kept within about one bar; at least 4.
    Returns:
        A pretty_midi.PrettyMIDI, one instrument per part. No note is shorter than 40 ms and no
        instrument holds a pitch twice at once. The accompanying piano may use the pedal (CC 64).
    Raises:
        ValueError: seconds is below 4.
    """
    import pretty_midi

    if not seconds >= 4:
        raise ValueError(f"a piece of {seconds} s is too short to compose; ask for at least 4 s")
    rng = random.Random(seed)
    plan = _plan(rng, seconds)
    midi = pretty_midi.PrettyMIDI(resolution=TICKS_PER_QUARTER, initial_tempo=plan.tempo)
    for program, notes, pedal in _band(plan, rng):
        is_drum, name = program == DRUMS, instrument_name(program)
        part = pretty_midi.Instrument(0 if is_drum else program, is_drum, name)
        part.notes = _perform(plan, notes, rng, seconds)
        if pedal:
            part.control_changes = _pedal(plan, seconds)
        midi.instruments.append(part)
    return midi


def _plan(rng: random.Random, seconds: float) -> Plan:
    tempo = round(rng.triangular(62, 172, 108), 1)
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
    return Plan(
        tempo=tempo,
        beats=beats,
        swing=rng.choice((0.0, 0.0, 0.0, 0.1, 0.16)),
        rubato=rng.choice((0.0, 0.02, 0.05)),
        human=rng.choice((0.0, 0.004, 0.008)),
        scale=tuple((tonic + step) % 12 for step in scale),
        bars=tuple(bars),
    )


def _band(plan: Plan, rng: random.Random) -> Iterator[tuple[int, list[Note], bool]]:
    """The parts in score order: (program or DRUMS, notes, uses the pedal)."""
    lead = rng.choice(LEADS)
    yield lead, melody(plan, rng, LEAD_RANGES.get(lead, (60, 84))), False
    yield rng.choice(BASSES), bass(plan, rng), False
    if rng.random() < 0.5:
        program, pedal = rng.choice(KEYS), rng.random() < 0.5
        yield program, broken(plan, rng, 43, 0.5) if pedal else comp(plan, rng, 0.0), pedal
    else:
        yield rng.choice(GUITARS), comp(plan, rng, 0.03), False
    extra = rng.sample(("pad", "plucked", "second", "guitar"), rng.choice((0, 1, 2, 2, 3)))
    if "pad" in extra:
        yield rng.choice(PADS), held(plan, rng), False
    if "plucked" in extra:
        yield rng.choice(PLUCKED), broken(plan, rng, 60, rng.choice((0.25, 0.5, 1 / 3))), False
    if "second" in extra:
        second = rng.choice([program for program in LEADS if program != lead])
        yield second, melody(plan, rng, LEAD_RANGES.get(second, (55, 79)), slow=True), False
    if "guitar" in extra:
        yield rng.choice(GUITARS), broken(plan, rng, 48, 0.5), False
    yield DRUMS, drums(plan, rng), False


def _perform(plan: Plan, notes: list[Note], rng: random.Random, seconds: float) -> list:
    """Beats to seconds and accents to velocities, then no pitch twice at once."""
    import pretty_midi

    loudness, spread = rng.uniform(66, 92), rng.uniform(4, 9)
    by_pitch: dict[int, list[tuple[float, float, int]]] = defaultdict(list)
    for note in sorted(notes):
        energy = plan.bars[min(int(note.beat // plan.beats), len(plan.bars) - 1)].energy
        swell = 6 * math.sin(note.beat * math.pi / (2 * plan.beats))
        velocity = loudness + 26 * (energy - 0.5) + swell + 14 * note.accent + rng.gauss(0, spread)
        onset = max(0.0, plan.seconds(note.beat) + rng.gauss(0, 1) * plan.human)
        offset = min(plan.seconds(note.beat + note.length), seconds)
        by_pitch[note.pitch].append((onset, offset, min(124, max(14, round(velocity)))))
    struck = []
    for pitch, played in by_pitch.items():
        played.sort()
        next_onsets = [onset for onset, _, _ in played[1:]] + [math.inf]
        for (onset, offset, velocity), next_onset in zip(played, next_onsets, strict=True):
            offset = min(offset, next_onset - GAP_SECONDS)
            if offset - onset >= MIN_NOTE_SECONDS:
                struck.append(pretty_midi.Note(velocity, pitch, onset, offset))
    return sorted(struck, key=lambda note: (note.start, note.pitch))


def _pedal(plan: Plan, seconds: float) -> list:
    """The pedal goes down just after each chord has begun and up where the next begins."""
    import pretty_midi

    changes = []
    for chord in plan.chords:
        down = plan.seconds(chord.beat) + 0.05
        up = min(plan.seconds(chord.beat + chord.beats) - 0.03, seconds)
        if down < up:
            changes += [pretty_midi.ControlChange(64, 127, down),
                        pretty_midi.ControlChange(64, 0, up)]  # fmt: skip
    return changes
