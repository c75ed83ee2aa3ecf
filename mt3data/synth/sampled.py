"""Makes SoundFonts (SF2) of recorded notes.

Many free recordings of instruments are folders with one sound file per note. `mt3data synth` draws the
SoundFonts that have the program of a stem, so that a SoundFont of one instrument can stand beside others.

Instruments that hold their notes get a loop: a steady part of the sample, whose end fades into what comes
before its start. Samples begin where their sound does, so that labels stay true.

Source: SoundFont Technical Specification 2.04. MT3 has no counterpart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mt3data.audio.load import read_audio
from mt3data.errors import UserError
from mt3data.files import require_output, write_atomically
from mt3data.synth.ensembles import SUSTAINED
from mt3data.synth.soundfont import (
    BAG,
    GENERATOR,
    GUARD,
    INSTRUMENT,
    INSTRUMENT_OPERATOR,
    PRESET,
    SAMPLE,
    SAMPLE_OPERATOR,
    packed,
)

RATE = 32000
MAX_SECONDS = 10.0  # of a sample
LEVEL = 0.25  # median peak of a layer
STRUCK_START, HELD_START = 0.03, 0.08  # a sound begins at this share of its peak
LEAD_SECONDS = 0.002  # before the sound begins
FADE_SECONDS = 0.25  # of a loop's end
KEY_RANGE_OPERATOR, VELOCITY_RANGE_OPERATOR, RELEASE_OPERATOR, LOOP_OPERATOR = 43, 44, 38, 54
RELEASE_TIMECENTS = -1200  # half a second
MONO = 1  # type of a sample
NAME = re.compile(r"([A-G])(s|#|b)?(-?\d)(?:v(\d+))?")
STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ALTERED = {None: 0, "s": 1, "#": 1, "b": -1}


class Sample(NamedTuple):
    """A recorded note; `loop` is the first sample of the loop and the one after its last, or zeros."""

    layer: int
    pitch: int
    samples: np.ndarray
    loop: tuple[int, int]


def write_soundfont(
    path: Path, instruments: Mapping[tuple[int, ...], Path], *, name: str, licence: str
) -> int:
    """Writes a SoundFont of recorded notes.

    A file is named by its note and, where there are several layers of loudness, by its layer:
    A3.wav, Cs4.flac, D#2v8.ogg. Middle C is C4. The layers share the velocities evenly. Files with other names
    are left out.

    Args:
        path: the .sf2 file to write.
        instruments: folder of the notes by General MIDI programs (0-based) that play them.
        name, licence: what the SoundFont states about itself.
    Returns:
        The number of samples.
    Raises:
        UserError: a folder has no notes, a sound file cannot be read or is silent, a program is out
            of range or given twice, or `path` is a folder or in a folder that does not exist.
    """
    require_output(path := Path(path), "write_soundfont", force=True)
    programs = [program for key in instruments for program in key]
    if len(set(programs)) < len(programs) or not all(0 <= program < 128 for program in programs):
        raise UserError(f"programs {programs}; expected different numbers from 0 to 127")
    data, place = [np.zeros(GUARD, "<i2")], GUARD
    # Rows of the tables of the same names.
    phdr, pbag, pgen, inst, ibag, igen, shdr = (list[tuple[Any, ...]]() for _ in range(7))
    for number, (of_programs, folder) in enumerate(instruments.items()):
        notes = _read_notes(Path(folder), held=all(p in SUSTAINED for p in of_programs))
        inst.append((Path(folder).name, len(ibag)))
        for (keys, velocities), note in _zones(notes):
            ibag.append((len(igen), 0))
            igen += [(KEY_RANGE_OPERATOR, keys), (VELOCITY_RANGE_OPERATOR, velocities),
                     (RELEASE_OPERATOR, RELEASE_TIMECENTS % 2**16)]  # fmt: skip
            if note.loop[1]:
                igen.append((LOOP_OPERATOR, 1))
            igen.append((SAMPLE_OPERATOR, len(shdr)))
            begin, end = (place + edge for edge in note.loop)
            shdr.append((f"{note.pitch}v{note.layer}", place, place + len(note.samples), begin, end,
                         RATE, note.pitch, 0, 0, MONO))  # fmt: skip
            data += [np.round(note.samples * 32767).astype("<i2"), np.zeros(GUARD, "<i2")]
            place += len(note.samples) + GUARD
        for program in of_programs:
            phdr.append((f"{Path(folder).name[:15]} {program}", program, 0, len(pbag), b""))
            pbag.append((len(pgen), 0))
            pgen.append((INSTRUMENT_OPERATOR, number))
    # The last entry of each table only ends the one before.
    tables = {
        b"phdr": np.array([*phdr, ("EOP", 0, 0, len(pbag), b"")], PRESET),
        b"pbag": np.array([*pbag, (len(pgen), 0)], BAG),
        b"pmod": np.zeros(1, "V10"),
        b"pgen": np.array([*pgen, (0, 0)], GENERATOR),
        b"inst": np.array([*inst, ("EOI", len(ibag))], INSTRUMENT),
        b"ibag": np.array([*ibag, (len(igen), 0)], BAG),
        b"imod": np.zeros(1, "V10"),
        b"igen": np.array([*igen, (0, 0)], GENERATOR),
        b"shdr": np.array([*shdr, ("EOS", *[0] * 9)], SAMPLE),
    }
    facts = {b"ifil": b"\2\0\1\0", b"isng": _text("EMU8000"), b"INAM": _text(name), b"ICOP": _text(licence)}  # fmt: skip
    lists = {
        b"INFO": facts,
        b"sdta": {b"smpl": np.concatenate(data).tobytes()},
        b"pdta": {key: table.tobytes() for key, table in tables.items()},
    }
    content = b"".join(
        packed(b"LIST", key + b"".join(packed(*chunk) for chunk in chunks.items()))
        for key, chunks in lists.items()
    )
    write_atomically(path, packed(b"RIFF", b"sfbk" + content))
    return len(shdr)


def _read_notes(folder: Path, held: bool) -> list[Sample]:
    """Reads the notes of a folder and brings the layers to one level."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; expected one with a sound file per note")
    found: dict[tuple[int, int], Sample] = {}
    for path in sorted(folder.iterdir()):
        match = NAME.fullmatch(path.stem)
        if match is None or not path.is_file():
            continue
        step, altered, octave, layer = match.groups()
        pitch, layer = 12 * (int(octave) + 1) + STEPS[step] + ALTERED[altered], int(layer or 0)
        if not 0 <= pitch <= 127:
            raise UserError(f"{path}: its note has the MIDI pitch {pitch}; expected 0 to 127")
        if (layer, pitch) in found:
            raise UserError(f"{folder}: two files are the note {pitch} of layer {layer}")
        found[layer, pitch] = Sample(layer, pitch, *_read_note(path, held))
    if not found:
        raise UserError(f"{folder} has no sound files named by notes, such as A3.wav or D#2v8.ogg")
    for layer in {layer for layer, _ in found}:
        mine = [note.samples for note in found.values() if note.layer == layer]
        gain = LEVEL / float(np.median([np.abs(samples).max() for samples in mine]))
        for samples in mine:
            np.clip(samples * gain, -1, 1, out=samples)
    return list(found.values())


def _read_note(path: Path, held: bool) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the samples from the start of the sound on, and their loop."""
    samples = read_audio(path, RATE)
    loud = np.flatnonzero(
        np.abs(samples) > (HELD_START if held else STRUCK_START) * np.abs(samples).max(initial=0)
    )
    if not len(loud):
        raise UserError(f"{path} is silent")
    first = max(0, int(loud[0]) - round(LEAD_SECONDS * RATE))
    samples = samples[first : first + round(MAX_SECONDS * RATE)].copy()
    if held and (looped := _loop(samples)):
        return looped
    fade = min(len(samples), round(FADE_SECONDS * RATE) // 4)
    samples[len(samples) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    return samples, (0, 0)


def _loop(samples: np.ndarray) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Returns samples whose loop has no audible seam, and the loop; None where no part is steady."""
    block, fade = RATE // 50, round(FADE_SECONDS * RATE)
    blocks = samples[: len(samples) // block * block].reshape(-1, block)
    level = np.sqrt(np.mean(np.square(blocks), 1))
    steady = np.flatnonzero(level > np.percentile(level, 80) / 2) * block if len(level) else level
    if not len(steady) or steady[-1] - steady[0] < 5 * fade:
        return None
    first, last = int(steady[0]), int(steady[-1])
    begin = first + max(2 * fade, (last - first) * 3 // 10)
    before = samples[begin - fade : begin]
    ends = np.arange(max(begin + 2 * fade, last - (last - first) * 3 // 10), last, 7)
    if not len(ends):
        return None
    # The end that is most like what comes before the loop fades into it without a beat.
    likeness = [np.dot(samples[e - fade : e], before) / np.linalg.norm(samples[e - fade : e])
                for e in ends]  # fmt: skip
    end = int(ends[np.argmax(likeness)])
    tail, up = samples[end - fade : end], np.linspace(0, 1, fade, dtype=np.float32)
    gain = np.linalg.norm(tail) / np.linalg.norm(before)
    samples[end - fade : end] = tail * (1 - up) + before * gain * up
    return samples[: end + GUARD], (begin, end)


def _zones(notes: list[Sample]) -> list[tuple[tuple[int, int], Sample]]:
    """Returns each note with its ranges of keys and velocities, low byte first, without gaps."""
    layers = sorted({note.layer for note in notes})
    zones = []
    for number, layer in enumerate(layers):
        low, high = (127 * edge // len(layers) for edge in (number, number + 1))
        velocities = (low + 1 if number else 0) | high << 8
        mine = sorted((note for note in notes if note.layer == layer), key=lambda note: note.pitch)
        borders = [(a.pitch + b.pitch) // 2 for a, b in zip(mine, mine[1:], strict=False)]
        for note, below, last in zip(mine, [-1, *borders], [*borders, 127], strict=True):
            zones.append((((below + 1) | last << 8, velocities), note))
    return zones


def _text(words: str) -> bytes:
    """Returns text as SF2 stores it: it ends with a zero, and its length is even."""
    ended = words.encode() + b"\0"
    return ended + b"\0" * (len(ended) % 2)
