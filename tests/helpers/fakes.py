"""Tiny on-disk twins of the datasets: real layouts and file formats, half a second of sine waves.

No renderer and no SoundFont is needed. Everything follows from the arguments, so two calls with the
same arguments write the same notes and samples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import mido
import numpy as np
import soundfile
import yaml

TICKS_PER_QUARTER = 500  # at the default 120 bpm one tick is 1 ms

# Stems of every fake Slakh track: id -> (program_num of metadata.yaml, inst_class).
SLAKH_STEMS = {
    "S00": (30, "Guitar"),
    "S01": (128, "Drums"),
    "S02": (1, "Piano"),
    "S03": (33, "Bass"),
    "S04": (98, "Sound Effects"),  # has no Slakh class, so neither audio nor MIDI
}
SLAKH_FAULTS = {
    "missing_audio", "missing_midi", "orphan_midi", "zero_length", "empty_midi",
    "missing_mix", "missing_metadata", "broken_metadata",
}  # fmt: skip
SLAKH_TRACKS = {"Track00001": "train", "Track01501": "validation", "Track01877": "test"}

FakeNote = tuple[float, float, int, int]  # onset s, offset s, pitch, velocity


def slakh_notes(stem_id: str, seconds: float) -> list[FakeNote]:
    """The notes of a fake stem: one every 200 ms, 150 ms long, at pitches that tell stems apart."""
    number = int(stem_id[1:])
    base = 36 if stem_id == "S01" else 40 + 7 * number
    count = max(1, int((seconds - 0.1) / 0.2))
    return [
        (round(0.1 + 0.2 * k, 3), round(0.25 + 0.2 * k, 3), base + (2 * k) % 5, 60 + 5 * number + k)
        for k in range(count)
    ]


def slakh_tree(
    root: Path,
    layout: str = "redux",
    tracks: Mapping[str, str] | Collection[str] = tuple(SLAKH_TRACKS),
    *,
    seconds: float = 1.0,
    **faults: Collection[str],
) -> Path:
    """Writes Slakh tracks below root and returns the folder that holds them.

    Args:
        root: an existing or new folder.
        layout: "redux" (slakh2100_flac_redux/SPLIT/TrackNNNNN, 44.1 kHz FLAC), "baby"
            (babyslakh_16k/TrackNNNNN, 16 kHz WAV) or "demo" (SPLIT/TrackNNNNN, FLAC).
        tracks: track names, or a mapping of names to split folders (default: the split of
            SLAKH_TRACKS, else train).
        seconds: length of the audio.
        faults: where to do harm. Stems as "TrackNNNNN/SNN": missing_audio, missing_midi,
            orphan_midi (an extra MIDI file that metadata.yaml does not know), zero_length (a
            note-on whose note-off comes at the same tick), empty_midi (no note). Tracks as
            "TrackNNNNN": missing_mix, missing_metadata, broken_metadata.
    """
    unknown = set(faults) - SLAKH_FAULTS
    if unknown:
        raise TypeError(f"unknown faults {sorted(unknown)}; there are {sorted(SLAKH_FAULTS)}")
    top = root / {"redux": "slakh2100_flac_redux", "baby": "babyslakh_16k", "demo": ""}[layout]
    for name in tracks:
        split = tracks[name] if isinstance(tracks, Mapping) else SLAKH_TRACKS.get(name, "train")
        folder = top / name if layout == "baby" else top / split / name
        _slakh_track(folder, layout == "baby", seconds, faults)
    return top


def _slakh_track(
    folder: Path, baby: bool, seconds: float, faults: Mapping[str, Collection[str]]
) -> None:
    def harmed(fault: str, key: str) -> bool:
        return key in faults.get(fault, ())

    name, suffix, rate = folder.name, *(("wav", 16000) if baby else ("flac", 44100))
    for sub in ("MIDI", "stems"):
        (folder / sub).mkdir(parents=True)
    mix, played = np.zeros(round(seconds * rate)), []
    for stem_id, (program, _) in SLAKH_STEMS.items():
        key = f"{name}/{stem_id}"
        if not _rendered(program):
            continue
        notes = [] if harmed("empty_midi", key) else slakh_notes(stem_id, seconds)
        played.append((program, notes))
        samples = tones(notes, seconds, rate) / len(SLAKH_STEMS)
        mix += samples
        if not harmed("missing_midi", key):
            silent = [(0.05, 0.05, 90, 64)] if harmed("zero_length", key) else []
            write_midi(folder / "MIDI" / f"{stem_id}.mid", [(program, [*silent, *notes])])
        if not harmed("missing_audio", key):
            soundfile.write(folder / "stems" / f"{stem_id}.{suffix}", samples, rate)
    for key in faults.get("orphan_midi", ()):
        if key.startswith(f"{name}/"):
            orphan = folder / "MIDI" / f"{key.split('/')[1]}.mid"
            write_midi(orphan, [(0, slakh_notes("S00", seconds))])
    write_midi(folder / "all_src.mid", played)
    if not harmed("missing_mix", name):
        soundfile.write(folder / f"mix.{suffix}", mix, rate)
    if harmed("broken_metadata", name):
        (folder / "metadata.yaml").write_text("stems: {S00: [", encoding="utf-8")
    elif not harmed("missing_metadata", name):
        stems = {stem_id: _describe(*entry, baby) for stem_id, entry in SLAKH_STEMS.items()}
        text = yaml.safe_dump({"UUID": "0" * 32, "overall_gain": 0.2, "stems": stems})
        (folder / "metadata.yaml").write_text(text, encoding="utf-8")


def tones(notes: Collection[FakeNote], seconds: float, rate: int) -> np.ndarray:
    """Decaying sine waves at the pitches of the notes, float64 in [-1, 1] while one note sounds."""
    samples = np.zeros(round(seconds * rate))
    for onset, offset, pitch, velocity in notes:
        first, last = round(onset * rate), min(round(offset * rate), len(samples))
        time = np.arange(max(0, last - first)) / rate
        wave = np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time) * np.exp(-5 * time)
        samples[first:last] += wave * velocity / 127
    return samples


def write_midi(path: Path, parts: Collection[tuple[int, Collection[FakeNote]]]) -> None:
    """Writes a type 1 MIDI file at 1 ms a tick; program 128 is drums. Zero-length notes survive."""
    file = mido.MidiFile(ticks_per_beat=TICKS_PER_QUARTER)
    for number, (program, notes) in enumerate(parts):
        channel = 9 if program == 128 else number % 9
        track = mido.MidiTrack()
        if program != 128:
            track.append(mido.Message("program_change", channel=channel, program=program))
        events = []
        for onset, offset, pitch, velocity in notes:
            events.append((round(onset * 1000), offset <= onset, "note_on", pitch, velocity))
            events.append((round(offset * 1000), offset <= onset, "note_off", pitch, 0))
        now = 0
        # Note-offs come before note-ons of the same tick, except those of zero-length notes.
        for tick, _, kind, pitch, velocity in sorted(
            events, key=lambda e: (e[0], (e[2] == "note_on") ^ e[1])
        ):
            track.append(
                mido.Message(kind, channel=channel, note=pitch, velocity=velocity, time=tick - now)
            )
            now = tick
        file.tracks.append(track)
    file.save(path)


def _rendered(program: int) -> bool:
    return program == 128 or program < 96


def _describe(program: int, family: str, baby: bool) -> dict[str, object]:
    # babyslakh says false for stems that exist, see known_issues in manifests/slakh.toml
    flag = _rendered(program) and not baby
    return {
        "audio_rendered": flag,
        "inst_class": family,
        "is_drum": program == 128,
        "midi_program_name": family,
        "midi_saved": flag,
        "plugin_name": "fake.nkm" if _rendered(program) else "None",
        "program_num": program,
    }
