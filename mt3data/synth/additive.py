"""Makes SoundFonts of invented instruments that hold their notes.

Free SoundFonts have few strings, winds and organs, and a model that knows these alone misses many
notes of others. Invented instruments are sums of harmonics whose strengths, attacks and noise are
drawn at random for each program of `SUSTAINED`.

MT3 has no counterpart.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pretty_midi
import soundfile

from mt3data.errors import UserError
from mt3data.files import require_output
from mt3data.synth.effects import noise_floor
from mt3data.synth.ensembles import SUSTAINED
from mt3data.synth.sampled import RATE, write_soundfont

SECONDS = 1.8  # of a sample, before its loop is cut
STEP = 5  # semitones between samples
MAX_HARMONICS = 60
WANDER_CENTS, WANDER_HERTZ = 3.0, 8.0  # of the pitch within a note
CLARINET = 71


@dataclass(frozen=True)
class Family:
    """Ranges of random values for the programs of a class.

    Attributes:
        rolloff_db: fall of the harmonics' level per octave.
        attack_seconds: time in which the fundamental rises to 63 %.
        noise_db: bow, breath or wind relative to the tone.
        hollow: probability that even harmonics are weak.
        choir: probability that three players play each note.
    """

    rolloff_db: tuple[float, float]
    attack_seconds: tuple[float, float]
    noise_db: tuple[float, float]
    hollow: float = 0.1
    choir: float = 0.0


FAMILIES = {  # by the class of General MIDI, which is program // 8
    2: Family((0, 25), (0.005, 0.04), (-80, -50), hollow=0.3),  # organs
    5: Family((5, 22), (0.02, 0.12), (-55, -25)),  # strings
    6: Family((5, 25), (0.04, 0.15), (-60, -30), choir=0.8),  # ensembles and voices
    7: Family((4, 22), (0.015, 0.07), (-60, -35)),  # brass
    8: Family((5, 26), (0.01, 0.07), (-60, -30)),  # reeds
    9: Family((10, 36), (0.015, 0.08), (-45, -15), hollow=0.3),  # pipes
}


@dataclass(frozen=True)
class Timbre:
    """Describes an invented instrument.

    Attributes:
        rolloff_db: fall of the harmonics' level per octave, for loud notes.
        soft_db: how much more it falls for soft notes.
        even_db: by how much even harmonics are weaker.
        formants: each with its place in octaves above 440 Hz, its width in octaves and its gain in dB.
        ripple_db: a change of each harmonic, shape (MAX_HARMONICS,).
        attack_seconds: time in which the fundamental rises to 63 %.
        late: how much longer this takes per octave above it, as a share.
        noise_db, noise_slope: level of its noise relative to the tone; falls as f**-slope.
        chiff_db: level of the noise of the attack.
        players: number of players of one part.
    """

    rolloff_db: float
    soft_db: float
    even_db: float
    formants: tuple[tuple[float, float, float], ...]
    ripple_db: np.ndarray
    attack_seconds: float
    late: float
    noise_db: float
    noise_slope: float
    chiff_db: float
    players: int


def write_invented_soundfont(path: Path, seed: int) -> int:
    """Writes a SoundFont of one invented instrument for each program of `SUSTAINED`.

    Args:
        path: the .sf2 file to write, about 50 MB.
        seed: of all that is random, at least 0. The same seed makes the same instruments.
    Returns:
        The number of samples.
    Raises:
        UserError: a negative seed, or `path` is a folder or in a folder that does not exist.
    """
    require_output(Path(path), "write_soundfont", force=True)
    if seed < 0:
        raise UserError(f"seed={seed}; expected 0 or more")
    with tempfile.TemporaryDirectory() as folder:
        instruments: dict[tuple[int, ...], Path] = {}
        for program, (low, high) in SUSTAINED.items():
            rng = np.random.default_rng([seed, program])
            timbre = draw_timbre(rng, program)
            place = Path(folder) / f"invented-{seed}-{program}"
            place.mkdir()
            for pitch in range(low + STEP // 2, high + STEP // 2, STEP):
                for layer in (1, 2):
                    sound = play_note(timbre, pitch, layer == 2, rng)
                    name = f"{pretty_midi.note_number_to_name(pitch)}v{layer}.wav"
                    soundfile.write(place / name, sound, RATE, subtype="FLOAT")
            instruments[(program,)] = place
        return write_soundfont(path, instruments, name=f"Invented {seed}", licence="CC0")


def draw_timbre(rng: np.random.Generator, program: int) -> Timbre:
    """Draws the instrument of a program."""
    family = FAMILIES[program // 8]
    is_hollow = rng.random() < (0.8 if program == CLARINET else family.hollow)
    return Timbre(
        rolloff_db=rng.uniform(*family.rolloff_db),
        soft_db=rng.uniform(0, 8),
        even_db=rng.uniform(8, 30) if is_hollow else 0.0,
        formants=tuple(
            (rng.uniform(-1, 3), rng.uniform(0.3, 1), rng.uniform(-8, 15))
            for _ in range(rng.integers(4))
        ),
        ripple_db=rng.normal(0, rng.uniform(0, 5), MAX_HARMONICS),
        attack_seconds=rng.uniform(*family.attack_seconds),
        late=rng.uniform(0, 0.5),
        noise_db=rng.uniform(*family.noise_db),
        noise_slope=rng.uniform(0, 1),
        chiff_db=rng.uniform(-40, -5),
        players=3 if rng.random() < family.choir else 1,
    )


def play_note(timbre: Timbre, pitch: int, loud: bool, rng: np.random.Generator) -> np.ndarray:
    """Returns a note of an instrument, shape (n_samples,), with a peak of 0.5 at RATE."""
    time = np.arange(round(SECONDS * RATE)) / RATE
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    numbers = np.arange(1, min(MAX_HARMONICS, int(0.45 * RATE / hertz)) + 1)
    level = -(timbre.rolloff_db + (0 if loud else timbre.soft_db)) * np.log2(numbers)
    level += timbre.ripple_db[: len(numbers)] - timbre.even_db * (numbers % 2 == 0)
    level += rng.normal(0, 1.5, len(numbers))
    for place, width, gain in timbre.formants:
        level += gain * np.exp(-(((np.log2(numbers * hertz / 440) - place) / width) ** 2))
    sound = np.zeros(len(time))
    for _ in range(timbre.players):
        cents = rng.normal(0, 6) if timbre.players > 1 else 0.0
        knots = rng.normal(0, WANDER_CENTS, round(SECONDS * WANDER_HERTZ) + 2)
        wander = cents + np.interp(time * WANDER_HERTZ, np.arange(len(knots)), knots)
        phase = 2 * np.pi * np.cumsum(hertz * 2 ** (wander / 1200)) / RATE
        for number in numbers[level > level.max() - 70]:
            attack = timbre.attack_seconds * (1 + timbre.late * np.log2(number))
            strength = 10 ** (level[number - 1] / 20) * (1 - np.exp(-time / attack))
            sound += strength * np.sin(number * phase + rng.uniform(0, 2 * np.pi))
    tone = 20 * np.log10(np.sqrt(np.mean(sound**2)))
    for noise_db, shape in (
        (timbre.noise_db, 1 - np.exp(-time / timbre.attack_seconds)),
        (timbre.chiff_db, np.exp(-time / 0.03) * np.minimum(1, time / 0.005)),
    ):
        sound += shape * noise_floor(len(time), tone + noise_db, timbre.noise_slope, RATE, rng)
    return sound / np.abs(sound).max() / 2
