"""MIDI to audio with a SoundFont, written as one track of Slakh's on-disk layout.

    TrackNNNNN/mix.flac    mono, 44.1 kHz, 16 bit: the sum of the stems, to the bit
               stems/SNN.flac   MIDI/SNN.mid   all_src.mid   metadata.yaml

Each stem is rendered from exactly the bytes of its MIDI/SNN.mid, so labels and audio agree. As in
Slakh, stems are brought to one loudness before the sum, then one gain serves the mix and all stems;
loudness here is the level of the sounding parts, not the LUFS of the original. Programs that have
no Slakh class get no audio, which is what Slakh did: they stay in metadata.yaml with plugin "None".

The renderer is midirenderer (rustysynth). It starts a note with the first block of 64 samples, at
48 kHz, that begins after its time: 0 to 1.33 ms late. Half of that is taken off, so that a sound with
a sharp attack begins within 0.7 ms of its label; pianos and basses rise more slowly, within 5 ms.
"""

from __future__ import annotations

import copy
import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3data.datasets import manifest
from mt3data.errors import UserError
from mt3data.music.midi import DRUMS, instrument_name

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
# Slakh's inst_class: the General MIDI family, eight programs each.
FAMILIES = (
    "Piano", "Chromatic Percussion", "Organ", "Guitar", "Bass", "Strings", "Strings (continued)",
    "Brass", "Reed", "Pipe", "Synth Lead", "Synth Pad", "Synth Effects", "Ethnic", "Percussive",
    "Sound Effects",
)  # fmt: skip


@dataclass(frozen=True)
class Rendered:
    """What became of one piece: `error` is empty when it was rendered."""

    track: str
    source: str
    seconds: float = 0.0
    stems: int = 0
    notes: int = 0
    left_out: tuple[str, ...] = ()
    error: str = ""


def default_soundfont() -> Path:
    """TimGM6mb.sf2 of the installed pretty_midi (6 MB, General MIDI)."""
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


@lru_cache(maxsize=2)
def soundfont_bytes(path: Path) -> bytes:
    """The content of a SoundFont, which is read once per process.

    Raises:
        UserError: the file is missing or no SoundFont.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"SoundFont {path} cannot be read ({error.strerror})") from error
    if content[:4] != b"RIFF" or content[8:12] != b"sfbk":
        raise UserError(f"{path} is not a SoundFont; expected an .sf2 file (RIFF sfbk)")
    return content


def write_track(
    midi: pretty_midi.PrettyMIDI, folder: Path, soundfont: Path, *, track: str, source: str
) -> Rendered:
    """Renders all instruments of a piece, writes the files of one track and returns what was made.

    Instruments without notes get no stem. Programs without a Slakh class get an entry in
    metadata.yaml and no audio, and are listed in `left_out`.

    Args:
        midi: the piece; notes below 3 ms are removed from it.
        folder: the track's folder; must not exist yet.
        soundfont: an .sf2 file.
        track: name of the track, for the result.
        source: where the piece comes from, for metadata.yaml (lmd_midi_dir) and the result.
    Raises:
        UserError: no instrument can be rendered, or the piece is too long.
    """
    parts, left_out = _playable(midi)
    end = max((note.end for part in parts for note in part.notes), default=0.0)
    tempo = max(MIN_TEMPO, float(midi.get_tempo_changes()[1][0]))
    if end > MAX_SECONDS:
        raise UserError(f"lasts {end:.0f} s, at most {MAX_SECONDS:.0f} s are rendered")
    sounds_of, slakh = soundfont_bytes(soundfont), manifest.load("slakh")
    for sub in ("MIDI", "stems"):
        (folder / sub).mkdir(parents=True)
    audio: dict[str, np.ndarray] = {}
    stems: dict[str, dict[str, Any]] = {}
    for number, part in enumerate(parts):
        stem_id = f"S{number:02d}"
        sounds = part.is_drum or slakh.label_program(part.program) is not None
        stems[stem_id] = _describe(part, sounds, soundfont.name)
        if not sounds:
            left_out.append(f"{stem_id}: program {part.program} has no Slakh class, not rendered")
            continue
        content = _midi_bytes([part], tempo, end + TAIL_SECONDS)
        (folder / "MIDI" / f"{stem_id}.mid").write_bytes(content)
        audio[stem_id] = render(content, sounds_of)
    gain = _write_audio(folder, audio, stems)
    (folder / "all_src.mid").write_bytes(_midi_bytes(parts, tempo, end + TAIL_SECONDS))
    _write_metadata(folder, source, gain, stems)
    n_notes = sum(
        len(part.notes) for part, stem_id in zip(parts, stems, strict=True) if stem_id in audio
    )
    return Rendered(track, source, end + TAIL_SECONDS, len(audio), n_notes, tuple(left_out))


def _playable(midi: pretty_midi.PrettyMIDI) -> tuple[list[Any], list[str]]:
    """Instruments that have notes, without those too short to survive the tick grid."""
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
    """A MIDI file of these instruments that lasts until `end` seconds."""
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


def _write_audio(
    folder: Path, audio: dict[str, np.ndarray], stems: dict[str, dict[str, Any]]
) -> float:
    """Levels the stems, writes them and their sum, and returns the common gain."""
    import soundfile

    if not audio:
        raise UserError("has no instrument with a Slakh class")
    levels = {stem_id: _level(samples) for stem_id, samples in audio.items()}
    silent = [stem_id for stem_id, level in levels.items() if level == 0]
    if silent:
        raise UserError(f"the SoundFont gives no sound for {', '.join(silent)}")
    n_samples = max(map(len, audio.values()))
    levelled = {
        stem_id: np.pad(samples / levels[stem_id], (0, n_samples - len(samples)))
        for stem_id, samples in audio.items()
    }
    peak = max(float(np.abs(x).max()) for x in (*levelled.values(), sum(levelled.values())))
    gain = TARGET_PEAK / peak
    mix = np.zeros(n_samples, dtype=np.int32)
    for stem_id, samples in levelled.items():
        stem = np.round(samples * (gain * 32767)).astype(np.int16)
        soundfile.write(folder / "stems" / f"{stem_id}.flac", stem, RATE, subtype="PCM_16")
        mix += stem  # of the rounded stems, so that the mix is their sum to the bit
        stems[stem_id]["integrated_loudness"] = round(20 * float(np.log10(gain)), 6)
    soundfile.write(folder / "mix.flac", mix.astype(np.int16), RATE, subtype="PCM_16")
    return gain


def _level(samples: np.ndarray) -> float:
    """Root mean square of the samples above a hundredth of the peak: pauses do not count."""
    sounding = np.abs(samples)
    sounding = sounding[sounding > sounding.max(initial=0) / 100]
    return float(np.sqrt(np.mean(sounding.astype(np.float64) ** 2))) if len(sounding) else 0.0


def _describe(part: Any, sounds: bool, soundfont: str) -> dict[str, Any]:
    """A stem's entry in metadata.yaml, with Slakh's keys."""
    return {
        "audio_rendered": sounds,
        "inst_class": "Drums" if part.is_drum else FAMILIES[part.program // 8],
        "is_drum": bool(part.is_drum),
        "midi_program_name": instrument_name(DRUMS if part.is_drum else part.program),
        "midi_saved": sounds,
        "plugin_name": soundfont if sounds else "None",
        "program_num": 128 if part.is_drum else int(part.program),
    }


def _write_metadata(
    folder: Path, source: str, gain: float, stems: dict[str, dict[str, Any]]
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
        "target_peak": -1.0,
    }
    (folder / "metadata.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
