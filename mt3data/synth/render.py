"""Renders MIDI with SoundFonts and writes it as one track of Slakh's on-disk layout.

    TrackNNNNN/mix.flac    mono, 44.1 kHz, 16 bit: the sum of the stems, to the bit
               stems/SNN.flac   MIDI/SNN.mid   all_src.mid   metadata.yaml

Without effects each stem is rendered from exactly the bytes of its MIDI/SNN.mid. As in
Slakh, stems are brought to one loudness before the sum, and one gain scales the mix and all stems.
Loudness here is the level of the sounding parts, not the LUFS of the original. Programs without a
Slakh class get no audio, as in Slakh. They remain in metadata.yaml with plugin "None".

The renderer is midirenderer (rustysynth). It starts a note with the first block of 64 samples, at
48 kHz, that begins after its time: 0 to 1.33 ms late. Half of that is removed, so that a sound with
a sharp attack begins within 0.7 ms of its label. Pianos and basses rise more slowly, within 5 ms.

With effects, instruments that hold their notes begin earlier than their labels, by the time in which their
sound rises to 0.4 of its height, at most 0.15 s. Players do the same, and who labels a recording
marks the time at which a note is heard. A model that was trained without this placed the notes of winds
and strings 45 ms too early.
"""

from __future__ import annotations

import copy
import hashlib
import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3data.audio.room import place_in_room, room_response
from mt3data.datasets import manifest
from mt3data.errors import UserError
from mt3data.music.midi import DRUMS, instrument_name
from mt3data.synth.effects import (
    PieceEffects,
    describe,
    draw_piece_effects,
    draw_stem_effects,
    equalize,
    noise_floor,
    perform,
)
from mt3data.synth.ensembles import SUSTAINED
from mt3data.synth.soundfont import SoundFont

if TYPE_CHECKING:
    import pretty_midi

RATE = 44100  # Slakh's
RENDERER_DELAY = 32  # samples at the renderer's 48 kHz: half a block, its mean delay
TAIL_SECONDS = 2.0  # after the last note, for releases and reverberation
TARGET_PEAK = 10 ** (-1 / 20)  # -1 dBFS, Slakh's target_peak
TICKS_PER_QUARTER = 960
MIN_TEMPO = 60.0  # quarter notes a minute; keeps a tick at or below 1.05 ms
MIN_NOTE_SECONDS = 0.003  # shorter notes could lose all length on the tick grid
MAX_SECONDS = 1800.0
BANK_SELECT = 0  # number of the controller
ATTACK_LEVEL, ATTACK_LIMIT_SECONDS, MAX_ATTACK_SECONDS = 0.4, 0.4, 0.15
# Slakh's inst_class: the General MIDI family, eight programs each.
FAMILIES = (
    "Piano", "Chromatic Percussion", "Organ", "Guitar", "Bass", "Strings", "Strings (continued)",
    "Brass", "Reed", "Pipe", "Synth Lead", "Synth Pad", "Synth Effects", "Ethnic", "Percussive",
    "Sound Effects",
)  # fmt: skip


@dataclass(frozen=True)
class Rendered:
    """Result of rendering one piece; `error` is empty unless it failed."""

    track: str
    source: str
    seconds: float = 0.0
    stems: int = 0
    notes: int = 0
    left_out: tuple[str, ...] = ()
    error: str = ""


def default_soundfont() -> Path:
    """Returns TimGM6mb.sf2 of the installed pretty_midi (6 MB, General MIDI)."""
    import pretty_midi

    return Path(pretty_midi.__file__).parent / "TimGM6mb.sf2"


def render(midi: bytes, soundfont: bytes) -> np.ndarray:
    """Renders a MIDI file to mono audio at 44.1 kHz, from time 0 to its last event.

    Args:
        midi: the bytes of a standard MIDI file.
        soundfont: the bytes of an SF2 SoundFont.
    Returns:
        Samples, shape (n_samples,), float32; not normalised.
    """
    import midirenderer
    import soundfile
    import soxr

    wave = midirenderer.render_wave_from(soundfont, midi)
    stereo, rate = soundfile.read(io.BytesIO(wave), dtype="float32", always_2d=True)
    mono = (stereo[RENDERER_DELAY:, 0] + stereo[RENDERER_DELAY:, 1]) * np.float32(0.5)
    return soxr.resample(mono, rate, RATE, quality="HQ")


@cache
def open_soundfont(path: Path) -> SoundFont:
    """Opens a SoundFont, once per process."""
    return SoundFont(path)


@cache
def attack_times(font: Path, program: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Measures how long the notes of an instrument take to rise.

    Returns:
        Pitches, ascending, and for each the seconds from the start of a note until its sound
        reaches 0.4 of its height.
    """
    import pretty_midi

    low, high = SUSTAINED[program]
    pitches, step = tuple(range(low, high + 1, 4)), 1.0
    part = pretty_midi.Instrument(program)
    part.notes = [
        pretty_midi.Note(90, pitch, step * k, step * k + 0.6) for k, pitch in enumerate(pitches)
    ]
    content = _midi_bytes([part], 120.0, step * len(pitches))
    samples = render(content, open_soundfont(font).instrument(program, False))
    block = RATE // 200  # 5 ms
    times = []
    for k in range(len(pitches)):
        first = round(step * k * RATE)
        sound = samples[first : first + round(ATTACK_LIMIT_SECONDS * RATE) // block * block]
        level = np.sqrt(np.mean(np.square(sound.reshape(-1, block)), 1))
        risen = np.flatnonzero(level >= ATTACK_LEVEL * level.max(initial=0))
        times.append(min(MAX_ATTACK_SECONDS, float(risen[0]) * block / RATE))
    return pitches, tuple(times)


def play_early(
    part: pretty_midi.Instrument, pitches: Sequence[int], times: Sequence[float]
) -> pretty_midi.Instrument:
    """Returns a copy of a part whose notes begin earlier, by the time that their sound takes to rise.

    A note ends at the latest where its pitch begins again.

    Args:
        part: its notes.
        pitches: ascending.
        times: for each pitch the seconds by which its notes begin earlier.
    """
    part = copy.deepcopy(part)
    following: dict[int, float] = {}
    for note in sorted(part.notes, key=lambda note: -note.start):
        note.start = max(0.0, note.start - float(np.interp(note.pitch, pitches, times)))
        note.end = max(
            min(note.end, following.get(note.pitch, math.inf)), note.start + MIN_NOTE_SECONDS
        )
        following[note.pitch] = note.start - MIN_NOTE_SECONDS
    return part


def write_track(
    midi: pretty_midi.PrettyMIDI,
    folder: Path,
    soundfonts: Path | Sequence[Path],
    *,
    track: str,
    source: str,
    effects: bool = False,
    seed: int = 0,
) -> Rendered:
    """Renders all instruments of a piece and writes the files of one track.

    Instruments without notes get no stem. Programs without a Slakh class get an entry in
    metadata.yaml and no audio, and are listed in `left_out`. Of several SoundFonts, one is drawn for
    each stem.

    Args:
        midi: the piece; notes below 3 ms are removed from it.
        folder: the track's folder; must not exist yet.
        soundfonts: .sf2 files.
        track: name of the track, for the result.
        source: origin of the piece, for metadata.yaml (lmd_midi_dir) and the result.
        effects: add the effects of effects.py, which metadata.yaml then describes.
        seed: with track and source, of all that is drawn.
    Raises:
        UserError: no instrument can be rendered, or the piece is too long.
    """
    fonts = [soundfonts] if isinstance(soundfonts, Path) else list(soundfonts)
    rng = random.Random(f"{seed} {track} {source}")
    shared = draw_piece_effects(rng) if effects else None
    noise = np.random.default_rng(rng.getrandbits(64))
    response = None
    if shared and shared.room_seconds:
        response = room_response(shared.room_seconds, shared.wet_db, RATE, noise)
    parts, left_out = _playable(midi)
    end, tempo = _end_and_tempo(midi, parts)
    slakh = manifest.load("slakh")
    (folder / "MIDI").mkdir(parents=True)
    audio: dict[str, np.ndarray] = {}
    stems: dict[str, dict[str, Any]] = {}
    for number, part in enumerate(parts):
        stem_id = f"S{number:02d}"
        if not part.is_drum and slakh.label_program(part.program) is None:
            stems[stem_id] = _describe(part, None)
            left_out.append(f"{stem_id}: program {part.program} has no Slakh class, not rendered")
            continue
        own = draw_stem_effects(rng, shared, part.is_drum) if shared else None
        if own:
            part = parts[number] = perform(part, own, rng)
        content = _midi_bytes([part], tempo, end + TAIL_SECONDS)
        (folder / "MIDI" / f"{stem_id}.mid").write_bytes(content)
        drawn = fonts if len(fonts) == 1 else rng.sample(fonts, len(fonts))
        # A bank that the MIDI selects itself may need other presets than this program's.
        selects = any(change.number == BANK_SELECT for change in part.control_changes)
        for font in drawn:  # the first one that has this instrument
            sounds = open_soundfont(font)
            if not selects and not sounds.has_instrument(part.program, part.is_drum):
                continue  # the renderer would play another one in its place
            played = content
            if own and not selects and not part.is_drum and part.program in SUSTAINED:
                early = play_early(part, *attack_times(font, part.program))
                played = _midi_bytes([early], tempo, end + TAIL_SECONDS)
            samples = render(
                played,
                font.read_bytes() if selects else sounds.instrument(part.program, part.is_drum),
            )
            level = _level(samples)
            if level:
                break
        else:
            names = ", ".join(font.name for font in drawn)
            raise UserError(f"{names} gives no sound for {stem_id}, program {part.program}")
        samples, stems[stem_id] = samples / level, _describe(part, font.name)
        if own:
            samples = equalize(samples, own.equalizer_db, RATE) * np.float32(
                10 ** (own.level_db / 20)
            )
            samples = samples if response is None else place_in_room(samples, response)
            stems[stem_id]["effects"] = describe(own)
        audio[stem_id] = samples
    if not audio:
        raise UserError("has no instrument with a Slakh class")
    _write_files(folder, parts, (tempo, end + TAIL_SECONDS), audio, stems, source, shared, noise)
    n_notes = sum(
        len(part.notes) for part, stem_id in zip(parts, stems, strict=True) if stem_id in audio
    )
    return Rendered(track, source, end + TAIL_SECONDS, len(audio), n_notes, tuple(left_out))


def write_stems(
    midi: pretty_midi.PrettyMIDI, audio: Sequence[np.ndarray], folder: Path, *, source: str
) -> None:
    """Writes stems that were recorded or rendered elsewhere as one track of Slakh's layout.

    `mt3data build demo --root ROOT` builds shards of such tracks in ROOT/{train,validation,test}/TrackNNNNN.
    One gain brings the loudest file to -1 dBFS and keeps the balance of the stems.

    Args:
        midi: one instrument with notes for each stem.
        audio: samples of each stem at 44.1 kHz, shape (n_samples,), floating point.
        folder: the track's folder; must not exist yet.
        source: origin of the piece, for metadata.yaml (lmd_midi_dir).
    Raises:
        UserError: the stems of MIDI and audio differ in number, or a stem is silent.
    """
    parts, _ = _playable(midi)
    if len(parts) != len(audio):
        raise UserError(f"{len(parts)} instruments with notes and {len(audio)} stems of audio")
    end, tempo = _end_and_tempo(midi, parts)
    (folder / "MIDI").mkdir(parents=True)
    named, stems = {}, {}
    for number, (part, samples) in enumerate(zip(parts, audio, strict=True)):
        stem_id = f"S{number:02d}"
        if not np.any(samples):
            raise UserError(f"the audio of {stem_id} is silent")
        content = _midi_bytes([part], tempo, end + TAIL_SECONDS)
        (folder / "MIDI" / f"{stem_id}.mid").write_bytes(content)
        named[stem_id], stems[stem_id] = np.asarray(samples), _describe(part, source)
    _write_files(folder, parts, (tempo, end + TAIL_SECONDS), named, stems, source)


def _end_and_tempo(midi: pretty_midi.PrettyMIDI, parts: list[Any]) -> tuple[float, float]:
    end = max((note.end for part in parts for note in part.notes), default=0.0)
    if end > MAX_SECONDS:
        raise UserError(f"lasts {end:.0f} s, at most {MAX_SECONDS:.0f} s are rendered")
    return end, max(MIN_TEMPO, float(midi.get_tempo_changes()[1][0]))


def _playable(midi: pretty_midi.PrettyMIDI) -> tuple[list[Any], list[str]]:
    """Returns the instruments with notes, without notes too short for the tick grid."""
    parts, left_out = [], []
    for part in midi.instruments:
        notes = [note for note in part.notes if note.end - note.start >= MIN_NOTE_SECONDS]
        if len(notes) < len(part.notes):
            left_out.append(
                f"{part.name or part.program}: {len(part.notes) - len(notes)} notes below 3 ms dropped"
            )
        part.notes = notes
        if notes:
            parts.append(part)
    if not parts:
        raise UserError("has no notes")
    return parts, left_out


def _midi_bytes(parts: list[Any], tempo: float, end: float) -> bytes:
    """Writes a MIDI file of these instruments that lasts until `end` seconds."""
    import pretty_midi

    midi = pretty_midi.PrettyMIDI(resolution=TICKS_PER_QUARTER, initial_tempo=tempo)
    for part in parts:
        part = copy.copy(part)
        # All notes off: the renderer stops at the last event, which would cut the last release.
        part.control_changes = [change for change in part.control_changes if change.time < end]
        part.control_changes.append(pretty_midi.ControlChange(123, 0, end))
        part.pitch_bends = [bend for bend in part.pitch_bends if bend.time < end]
        midi.instruments.append(part)
    buffer = io.BytesIO()
    midi.write(buffer)
    return buffer.getvalue()


def _write_files(
    folder: Path,
    parts: list[Any],
    tempo_and_end: tuple[float, float],
    audio: dict[str, np.ndarray],
    stems: dict[str, dict[str, Any]],
    source: str,
    effects: PieceEffects | None = None,
    rng: np.random.Generator | None = None,
) -> None:
    """Writes audio, all_src.mid and metadata.yaml of a track whose stems have their final balance."""
    import soundfile

    (folder / "stems").mkdir()
    n_samples = max(map(len, audio.values()))
    padded = {key: np.pad(samples, (0, n_samples - len(samples))) for key, samples in audio.items()}
    loudest = max(float(np.abs(x).max()) for x in (*padded.values(), sum(padded.values())))
    peak = 10 ** (effects.peak_db / 20) if effects else TARGET_PEAK
    gain = peak / loudest
    mix = np.zeros(n_samples, dtype=np.int32)
    for stem_id, samples in padded.items():
        scaled = samples * (gain * 32767)
        if effects and effects.noise_dbfs and rng:
            own_dbfs = effects.noise_dbfs - 10 * math.log10(len(padded))
            noise = noise_floor(n_samples, own_dbfs, effects.noise_slope, RATE, rng)
            scaled = scaled + noise * 32767
        stem = np.round(scaled).astype(np.int16)
        soundfile.write(folder / "stems" / f"{stem_id}.flac", stem, RATE, subtype="PCM_16")
        mix += stem  # of the rounded stems, so that the mix is their sum to the bit
        stems[stem_id]["integrated_loudness"] = round(20 * float(np.log10(gain)), 6)
    soundfile.write(folder / "mix.flac", mix.astype(np.int16), RATE, subtype="PCM_16")
    (folder / "all_src.mid").write_bytes(_midi_bytes(parts, *tempo_and_end))
    _write_metadata(folder, source, gain, stems, effects)


def _level(samples: np.ndarray) -> float:
    """Returns the root mean square of the samples above a hundredth of the peak, without pauses."""
    sounding = np.abs(samples)
    sounding = sounding[sounding > sounding.max(initial=0) / 100]
    return float(np.sqrt(np.mean(sounding.astype(np.float64) ** 2))) if len(sounding) else 0.0


def _describe(part: Any, plugin: str | None) -> dict[str, Any]:
    """Returns a stem's entry in metadata.yaml, with Slakh's keys; without a plugin it has no audio."""
    sounds = plugin is not None
    return {
        "audio_rendered": sounds,
        "inst_class": "Drums" if part.is_drum else FAMILIES[part.program // 8],
        "is_drum": bool(part.is_drum),
        "midi_program_name": instrument_name(DRUMS if part.is_drum else part.program),
        "midi_saved": sounds,
        "plugin_name": plugin if sounds else "None",
        "program_num": 128 if part.is_drum else int(part.program),
    }


def _write_metadata(
    folder: Path,
    source: str,
    gain: float,
    stems: dict[str, dict[str, Any]],
    effects: PieceEffects | None,
) -> None:
    import yaml

    content = {
        "UUID": hashlib.md5((folder / "all_src.mid").read_bytes()).hexdigest(),
        "audio_dir": "stems",
        "lmd_midi_dir": source,
        "midi_dir": "MIDI",
        "normalization_factor": None,
        "normalized": True,
        "overall_gain": float(gain),
        "stems": stems,
        "target_peak": effects.peak_db if effects else -1.0,
    }
    if effects:
        content["effects"] = describe(effects)
    (folder / "metadata.yaml").write_bytes(yaml.safe_dump(content).encode())
