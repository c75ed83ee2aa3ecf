"""Composes seeded pieces for General MIDI instruments and drums.

A piece has a key, a tempo with rubato, sections with chord progressions, and an ensemble. Tempo,
density, dynamics, polyphony, note lengths and instruments vary from seed to seed, so that a model
meets sustained, repeated and overlapping notes. The aim is not a style but material that is tonal,
rhythmic and labelled without error. MT3 has no counterpart: its data were all published sets.

All draws come from one `random.Random(seed)`: the same seed gives the same piece.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from typing import TYPE_CHECKING

from mt3data.errors import UserError
from mt3data.music.midi import DRUMS, instrument_name
from mt3data.synth.ensembles import ENSEMBLES
from mt3data.synth.piece import Note, Piece, draw_piece

if TYPE_CHECKING:
    import pretty_midi

TICKS_PER_QUARTER = 960  # 0.5 ms at 125 bpm: no audible rounding
MIN_NOTE_SECONDS = 0.04
GAP_SECONDS = 0.012  # silence before a pitch is struck again by the same instrument


def compose(seed: int, seconds: float = 40.0, kind: str = "band") -> pretty_midi.PrettyMIDI:
    """Composes the piece of a seed.

    Args:
        seed: any integer; the same seed, length and kind give the same piece.
        seconds: length up to the last note's end, kept within about one bar; at least 4.
        kind: "band" (three to six pitched instruments and drums), "piano", "chamber", "small" or
            "drums".
    Returns:
        A pretty_midi.PrettyMIDI, one instrument per part. No note is shorter than 40 ms and no
        instrument holds a pitch twice at once. Pianos may use the pedal (CC 64).
    Raises:
        ValueError: seconds is below 4.
        UserError: there is no such kind.
    """
    import pretty_midi

    if not seconds >= 4:
        raise ValueError(f"a piece of {seconds} s is too short to compose; ask for at least 4 s")
    if kind not in ENSEMBLES:
        raise UserError(f"no kind of pieces {kind!r}; expected one of {', '.join(ENSEMBLES)}")
    rng, ensemble = random.Random(seed), ENSEMBLES[kind]
    piece = draw_piece(rng, seconds, ensemble.tempi)
    midi = pretty_midi.PrettyMIDI(resolution=TICKS_PER_QUARTER, initial_tempo=piece.tempo)
    for program, notes, pedal in ensemble.parts(piece, rng):
        is_drum, name = program == DRUMS, instrument_name(program)
        part = pretty_midi.Instrument(0 if is_drum else program, is_drum, name)
        part.notes = _perform(piece, notes, rng, seconds, ensemble.loudness)
        if pedal:
            part.control_changes = _pedal(piece, seconds)
        midi.instruments.append(part)
    return midi


def _perform(
    piece: Piece,
    notes: list[Note],
    rng: random.Random,
    seconds: float,
    loudness_range: tuple[float, float],
) -> list[pretty_midi.Note]:
    """Converts beats to seconds and accents to velocities, and ends a pitch before it is repeated."""
    import pretty_midi

    loudness, spread = rng.uniform(*loudness_range), rng.uniform(4, 9)
    by_pitch: dict[int, list[tuple[float, float, int]]] = defaultdict(list)
    for note in sorted(notes):
        energy = piece.bar_at(note.beat).energy
        swell = 6 * math.sin(note.beat * math.pi / (2 * piece.beats))
        velocity = loudness + 26 * (energy - 0.5) + swell + 14 * note.accent + rng.gauss(0, spread)
        onset = max(0.0, piece.seconds(note.beat) + rng.gauss(0, 1) * piece.human)
        offset = min(piece.seconds(note.beat + note.length), seconds)
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


def _pedal(piece: Piece, seconds: float) -> list[pretty_midi.ControlChange]:
    """Presses the pedal just after each chord begins and releases it before the next one."""
    import pretty_midi

    changes = []
    for chord in piece.chords:
        down = piece.seconds(chord.beat) + 0.05
        up = min(piece.seconds(chord.beat + chord.beats) - 0.03, seconds)
        if down < up:
            changes += [pretty_midi.ControlChange(64, 127, down),
                        pretty_midi.ControlChange(64, 0, up)]  # fmt: skip
    return changes
