"""Effects of performances and recordings, drawn at random for a piece and for each of its stems.

A performance is detuned; sustained lines get vibrato, scoops and swells, as pitch bends and controller 11
in the MIDI file of the stem. A recording is equalized per stem, placed in a room, given a noise floor and
a level. No effect moves a note, so that labels stay true: equalization has no phase, a room's direct
sound has no delay.

MT3 has no counterpart.
"""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.fft

from mt3data.synth.ensembles import SUSTAINED

if TYPE_CHECKING:
    import pretty_midi

BEND_CENTS = 200.0  # largest pitch bend of General MIDI
EXPRESSION = 11  # number of the controller for swells
BEND_STEP = 0.025  # seconds between pitch bends of a vibrato
SCOOP_SECONDS = 0.08
KITS = (0, 0, 0, 0, 8, 16, 24, 25, 32, 40)  # drum kits; the renderer falls back to kit 0
KNOTS = 7  # of an equalization curve, evenly spaced in octaves from 20 Hz on
PEAK_RANGE_DB = 30.0


@dataclass(frozen=True)
class PieceEffects:
    """Effects that the stems of a piece share.

    Attributes:
        tuning_cents: offset of all pitched stems.
        room_seconds: time in which the room's sound decays by 60 dB; None: no room.
        wet_db: energy of the room relative to the direct sound.
        noise_dbfs: root mean square of the noise floor of the mix; None: no noise.
        noise_slope: noise falls with frequency as f**-slope.
        peak_db: peak of the loudest file, relative to full scale.
    """

    tuning_cents: float
    room_seconds: float | None
    wet_db: float
    noise_dbfs: float | None
    noise_slope: float
    peak_db: float


@dataclass(frozen=True)
class StemEffects:
    """Effects on one stem.

    Attributes:
        tuning_cents: offset from General MIDI's tuning, that of the piece included.
        vibrato_cents, vibrato_hertz: largest deviation and frequency; 0 cents: none.
        scoop_share, swell_share: share of the long notes that begin below their pitch, or softly.
        equalizer_db: gains at the knots of the equalization.
        level_db: level relative to other stems.
        kit: drum kit; 0 for pitched stems.
    """

    tuning_cents: float
    vibrato_cents: float
    vibrato_hertz: float
    scoop_share: float
    swell_share: float
    equalizer_db: tuple[float, ...]
    level_db: float
    kit: int


def draw_piece_effects(rng: random.Random) -> PieceEffects:
    """Draws what the stems of a piece share."""
    return PieceEffects(
        tuning_cents=round(rng.gauss(0, 12), 2) if rng.random() < 0.8 else 0.0,
        room_seconds=round(0.15 * 15 ** rng.random(), 3) if rng.random() < 0.6 else None,
        wet_db=round(rng.uniform(-18, 5), 2),
        noise_dbfs=round(rng.uniform(-85, -45), 2) if rng.random() < 0.6 else None,
        noise_slope=round(rng.uniform(0, 1.2), 3),
        peak_db=round(-1 - rng.uniform(0, PEAK_RANGE_DB) * (rng.random() < 0.6), 2),
    )


def draw_stem_effects(rng: random.Random, piece: PieceEffects, is_drum: bool) -> StemEffects:
    """Draws the effects on one stem of a piece."""
    plain, depth = rng.random() < 0.25, rng.choice((0.0, 2.0, 4.0, 6.0))
    return StemEffects(
        tuning_cents=0.0 if is_drum else round(piece.tuning_cents + rng.gauss(0, 3), 2),
        vibrato_cents=0.0 if plain else round(rng.uniform(0, 35), 2),
        vibrato_hertz=round(rng.uniform(4.8, 6.8), 3),
        scoop_share=0.0 if plain else rng.choice((0.0, 0.0, 0.2)),
        swell_share=0.0 if plain else rng.choice((0.0, 0.3, 0.8)),
        equalizer_db=tuple(round(rng.gauss(0, depth), 2) for _ in range(KNOTS)),
        level_db=round(rng.gauss(0, 4), 2),
        kit=rng.choice(KITS) if is_drum else 0,
    )


def perform(
    part: pretty_midi.Instrument, effects: StemEffects, rng: random.Random
) -> pretty_midi.Instrument:
    """Returns a copy of a part with the tuning, vibrato, scoops and swells of its effects.

    A part with pitch bends of its own keeps them and gets no others. Vibrato, scoops and swells are
    for lines of instruments that hold their notes; where notes overlap, one bend would move all.
    """
    import pretty_midi

    part = copy.deepcopy(part)
    if part.is_drum:
        part.program = effects.kit
        return part
    if part.pitch_bends:
        return part
    bends = [(0.0, 0.0)]  # seconds and cents, without the tuning
    notes = sorted(part.notes, key=lambda note: note.start)
    overlaps = sum(b.start < a.end - 0.03 for a, b in zip(notes, notes[1:], strict=False))
    if part.program in SUSTAINED and overlaps < 0.15 * len(notes):
        has_expression = any(change.number == EXPRESSION for change in part.control_changes)
        for note in notes:
            bends += _note_bends(note, effects, rng)
            if effects.swell_share and not has_expression:
                part.control_changes += _note_swell(note, effects, rng)
    part.pitch_bends = [
        pretty_midi.PitchBend(_bend(cents + effects.tuning_cents), time) for time, cents in bends
    ]
    return part


def _note_bends(
    note: pretty_midi.Note, effects: StemEffects, rng: random.Random
) -> list[tuple[float, float]]:
    """Draws the pitch of one note over time: (seconds, cents)."""
    length = note.end - note.start
    bends = [(note.start, 0.0)]
    if length > 0.2 and rng.random() < effects.scoop_share:
        bends = [(note.start + k * SCOOP_SECONDS / 4, -60.0 * (1 - k / 4)) for k in range(5)]
    if effects.vibrato_cents:
        for k in range(int(max(0.0, length - 0.2) / BEND_STEP)):
            time = 0.2 + k * BEND_STEP  # the vibrato begins after 0.2 s and grows for as long
            depth = effects.vibrato_cents * min(1.0, k * BEND_STEP / 0.2)
            phase = 2 * math.pi * effects.vibrato_hertz * time
            bends.append((note.start + time, depth * math.sin(phase)))
    return bends


def _note_swell(
    note: pretty_midi.Note, effects: StemEffects, rng: random.Random
) -> list[pretty_midi.ControlChange]:
    """Draws the loudness of one note over time."""
    import pretty_midi

    if note.end - note.start <= 0.25 or rng.random() >= effects.swell_share:
        return [pretty_midi.ControlChange(EXPRESSION, 127, note.start)]
    attack, low, high = rng.uniform(0.03, 0.15), rng.randint(40, 85), rng.randint(95, 127)
    last, rest = rng.randint(60, 127), note.end - note.start
    ramp = [(attack * k / 4, low + (high - low) * k / 4) for k in range(5)]
    ramp += [(attack + (rest - attack) * k / 7, high + (last - high) * k / 6) for k in range(1, 7)]
    return [pretty_midi.ControlChange(EXPRESSION, int(v), note.start + t) for t, v in ramp]


def _bend(cents: float) -> int:
    return max(-8192, min(8191, round(cents / BEND_CENTS * 8192)))


def equalize(samples: np.ndarray, gains_db: tuple[float, ...], rate: int) -> np.ndarray:
    """Applies a smooth equalization curve without phase shift.

    Args:
        samples: float32, shape (n_samples,).
        gains_db: gains at knots that lie evenly in octaves from 20 Hz to half the rate.
        rate: sampling rate in hertz.
    """
    if not any(gains_db):
        return samples
    # Zeros behind the samples take what the filter spreads over the end to the beginning.
    size = scipy.fft.next_fast_len(len(samples) + rate // 10, real=True)
    octaves = np.log2(np.maximum(scipy.fft.rfftfreq(size, 1 / rate), 20) / 20)
    curve = np.interp(octaves, np.linspace(0, octaves[-1], len(gains_db)), gains_db)
    spectrum = scipy.fft.rfft(samples, size) * (10 ** (curve / 20)).astype(np.float32)
    return scipy.fft.irfft(spectrum, size)[: len(samples)]


def noise_floor(
    n_samples: int, dbfs: float, slope: float, rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Makes noise of a level whose spectrum falls as f**-slope. Returns float32."""
    size = scipy.fft.next_fast_len(n_samples, real=True)
    shape = np.maximum(scipy.fft.rfftfreq(size, 1 / rate), 30) ** -slope
    noise = scipy.fft.irfft(scipy.fft.rfft(rng.standard_normal(size)) * shape, size)[:n_samples]
    return (noise * (10 ** (dbfs / 20) / np.sqrt(np.mean(noise**2)))).astype(np.float32)


def describe(effects: PieceEffects | StemEffects) -> dict[str, Any]:
    """Returns the fields of effects as plain values, for metadata."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in vars(effects).items()
    }
