"""Tiny twins of the datasets whose tracks a manifest lists, and of a user's own folder.

Layouts, names and file formats are the publishers'; see fakes.py for Slakh's. The tracks are a few
real names of each split; notes and audio are made up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

import mido
import numpy as np
import soundfile
from fakes import FakeNote, slakh_tree, tones, write_midi


def melody(base: int, seconds: float = 1.0) -> list[FakeNote]:
    """One note every 200 ms, 150 ms long, with repeated pitches; velocity rises from 70 to 127."""
    return [
        (round(t, 3), round(t + 0.15, 3), base + k % 3, min(70 + k, 127))
        for k, t in enumerate(np.arange(0.1, seconds - 0.2, 0.2))
    ]


MAESTRO_TRACKS = {  # name -> (split in v1, v2 and v3, Hz); the last one changed its split in v2
    "2008/MIDI-Unprocessed_03_R2_2008_01-03_ORIG_MID--AUDIO_03_R2_2008_wav--2": ("train train train", 44100),
    "2013/ORIG-MIDI_01_7_6_13_Group__MID--AUDIO_03_R1_2013_wav--4": ("validation validation validation", 44100),
    "2004/MIDI-Unprocessed_SMF_17_R1_2004_03-06_ORIG_MID--AUDIO_20_R2_2004_12_Track12_wav--1": ("test test test", 48000),
    "2006/MIDI-Unprocessed_17_R1_2006_01-06_ORIG_MID--AUDIO_17_R1_2006_04_Track04_wav": ("test validation validation", 44100),
}  # fmt: skip


def maestro_tree(
    root: Path, version: int = 3, *, seconds: float = 1.0, table: str = "json"
) -> Path:
    """Writes maestro-vN.0.0/YEAR/NAME.{wav,midi}, stereo, 44.1 and 48 kHz, with one of its tables.

    `table` is "json" (a list of rows before v3, a mapping of columns since), "csv" or "" (none).
    """
    top = root / f"maestro-v{version}.0.0"
    listed = []
    for name, (splits, rate) in MAESTRO_TRACKS.items():
        notes = melody(60, seconds)
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        samples = tones(notes, seconds, rate)
        soundfile.write(top / f"{name}.wav", np.stack([samples, samples / 2], axis=1), rate)
        write_midi(top / f"{name}.midi", [(0, notes)])
        listed.append({
            "canonical_composer": "A. Composer", "canonical_title": "A Title",
            "split": splits.split()[version - 1], "year": int(name[:4]),
            "midi_filename": f"{name}.midi", "audio_filename": f"{name}.wav", "duration": seconds,
        })  # fmt: skip
    columns = {key: {str(i): row[key] for i, row in enumerate(listed)} for key in listed[0]}
    if table == "json":
        content = columns if version == 3 else listed
        (top / f"{top.name}.json").write_text(json.dumps(content), encoding="utf-8")
    elif table:
        lines = [list(listed[0]), *(list(row.values()) for row in listed)]
        text = "".join(",".join(map(str, line)) + "\n" for line in lines)
        (top / f"{top.name}.csv").write_text(text, encoding="utf-8")
    for name in ("LICENSE", "README"):
        (top / name).write_text("fake\n", encoding="utf-8")
    return top


GUITARSET_TRACKS = (
    "00_BN1-129-Eb_comp", "00_Funk3-112-C#_solo", "04_BN3-154-E_comp", "04_Jazz1-200-B_comp",
    "02_Funk2-119-G_comp",
)  # fmt: skip
JamsNote = tuple[int, float, float, float]  # string 0-5, time s, duration s, fractional pitch
JAMS_NOTES: tuple[JamsNote, ...] = (
    (0, 0.10, 0.20, 40.2), (1, 0.30, 0.20, 44.8), (2, 0.50, 0.20, 50.3), (5, 0.70, 0.20, 64.1),
)  # fmt: skip


def write_jams(path: Path, notes: Collection[JamsNote] = JAMS_NOTES) -> None:
    """Writes JAMS 0.3.1 as GuitarSet does: per string a contour and notes, with a session offset."""
    annotations = []
    for string in range(6):
        data = [
            {"time": time, "duration": duration, "value": value, "confidence": None}
            for number, time, duration, value in notes
            if number == string
        ]
        about = {
            "annotation_metadata": {"data_source": str(string)},
            "time": 543.742,
            "duration": 1.0,
        }
        contour = {"time": [], "duration": [], "value": [], "confidence": []}
        annotations.append({"namespace": "pitch_contour", "data": contour, **about})
        annotations.append({"namespace": "note_midi", "data": data, **about})
    annotations.append({"namespace": "tempo", "data": [{"time": 0, "duration": 1.0, "value": 129}]})
    about = {"title": path.stem, "duration": 1.0, "jams_version": "0.3.1"}
    content = {"annotations": annotations, "file_metadata": about, "sandbox": {}}
    path.write_text(json.dumps(content), encoding="utf-8")


def guitarset_tree(
    root: Path, tracks: Collection[str] = GUITARSET_TRACKS, *, seconds: float = 1.0
) -> Path:
    """Writes guitarset/{annotation,audio_mono-mic,audio_mono-pickup_mix}, one folder per archive."""
    top, rate = root / "guitarset", 44100
    for folder in ("annotation", "audio_mono-mic", "audio_mono-pickup_mix"):
        (top / folder).mkdir(parents=True)
    played = [(time, time + length, round(pitch), 90) for _, time, length, pitch in JAMS_NOTES]
    samples = tones(played, seconds, rate) / 2
    for name in tracks:
        write_jams(top / "annotation" / f"{name}.jams")
        soundfile.write(top / "audio_mono-mic" / f"{name}_mic.wav", samples, rate)
        soundfile.write(top / "audio_mono-pickup_mix" / f"{name}_mix.wav", samples / 2, rate)
    return top


MUSICNET_TRACKS = {"1727": "train", "1733": "train", "1729": "train", "1759": "test"}  # folders


def musicnet_tree(
    root: Path, tracks: Mapping[str, str] = MUSICNET_TRACKS, *, seconds: float = 1.0,
    top: str = "musicnet", labels: bool = True,
) -> Path:  # fmt: skip
    """Writes musicnet/{train,test}_{data,labels}/ID.{wav,csv}; `top` is the folder's path."""
    folder, rate = root / top, 44100
    for track, kind in tracks.items():
        parts = {1: melody(60, seconds), 41: melody(72, seconds)}  # the piano and a violin
        for name in (f"{kind}_data", f"{kind}_labels")[: 1 + labels]:
            (folder / name).mkdir(parents=True, exist_ok=True)
        samples = sum(tones(notes, seconds, rate) for notes in parts.values()) / 4
        soundfile.write(folder / f"{kind}_data" / f"{track}.wav", samples, rate, "FLOAT")
        lines = ["start_time,end_time,instrument,note,start_beat,end_beat,note_value"]
        for code, notes in parts.items():
            for onset, offset, pitch, _ in notes:
                first, last = round(onset * rate), round(offset * rate)
                lines.append(f"{first},{last},{code},{pitch},4.0,0.5,Eighth")
        if labels:
            text = "\n".join(lines) + "\n"
            (folder / f"{kind}_labels" / f"{track}.csv").write_text(text, encoding="utf-8")
    return folder


def write_em_midi(path: Path, events: Collection[tuple[float, str, int]]) -> None:
    """Writes MusicNetEM's kind of MIDI (type 1, 480 ticks, 120 bpm) from (second, kind, pitch)."""
    file = mido.MidiFile(ticks_per_beat=480)
    track, now = mido.MidiTrack(), 0
    for second, kind, pitch in events:
        tick = round(second * 960)
        track.append(mido.Message(f"note_{kind}", note=pitch, velocity=127, time=tick - now))
        now = tick
    file.tracks.append(track)
    file.save(path)


URMP_PIECES = (
    "01_Jupiter_vn_vc", "03_Dance_fl_cl", "15_Surprise_tpt_tpt_tbn", "22_Rejouissance_sax_tbn_tba",
)  # fmt: skip


def urmp_tree(root: Path, top: str = "urmp", *, seconds: float = 1.0) -> Path:
    """Writes pieces in URMP's folders, 48 kHz 24 bit, with dot files and Supplementary_Files.

    Part K of a piece plays melody(48 + 12 * K) through the fake's own frequencies, a tenth of a
    semitone sharp. The trombone of 15_Surprise bears a trumpet's name, as published.
    """
    folder, rate = root / top, 48000
    for piece in URMP_PIECES:
        number, title, *codes = piece.split("_")
        (folder / piece).mkdir(parents=True)
        mix = np.zeros(round(seconds * rate))
        for k, code in enumerate(codes, 1):
            code = "tpt" if (number, k) == ("15", 3) else code
            notes = melody(48 + 12 * (k % 3), seconds)
            part = f"{k}_{code}_{number}_{title}"
            lines = [
                f"{onset:.3f}\t{440 * 2 ** ((pitch + 0.1 - 69) / 12):.3f}   {offset - onset:.3f} \n"
                for onset, offset, pitch, _ in notes
            ]
            (folder / piece / f"Notes_{part}.txt").write_text("".join(lines), encoding="utf-8")
            (folder / piece / f"F0s_{part}.txt").write_text("0.023\t0.000\n", encoding="utf-8")
            samples = tones(notes, seconds, rate) / len(codes)
            soundfile.write(folder / piece / f"AuSep_{part}.wav", samples, rate, "PCM_24")
            mix += samples
        soundfile.write(folder / piece / f"AuMix_{piece}.wav", mix, rate, "PCM_24")
        write_midi(folder / piece / f"Sco_{piece}.mid", [(0, melody(60))])
        (folder / piece / f"._AuMix_{piece}.wav").write_bytes(b"not audio")
    (folder / "Supplementary_Files").mkdir()
    (folder / "Supplementary_Files" / "Notes_1_vn_01_Jupiter.txt").write_text("no notes\n")
    return folder


def folder_tree(root: Path, stems: Collection[str], *, seconds: float = 1.0) -> Path:
    """Writes pairs of audio and MIDI; a stem is a path with the suffix of its audio file."""
    for number, stem in enumerate(stems):
        path, notes = root / stem, melody(60 + number, seconds)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tones(notes, seconds, 22050), 22050)
        write_midi(path.with_suffix(".mid"), [(number, notes)])
    return root


def musicnet_em_tree(root: Path, *, seconds: float = 1.0) -> Path:
    """Writes MusicNet's recordings and musicnet/musicnet_em/ID.mid."""
    top = musicnet_tree(root, seconds=seconds, labels=False)
    (top / "musicnet_em").mkdir()
    for track in MUSICNET_TRACKS:
        events = [(0.1, "on", 60), (0.3, "off", 60), (0.4, "on", 62), (0.6, "off", 62)]
        write_em_midi(top / "musicnet_em" / f"{track}.mid", events)
    return top


MAPS_RECORDINGS = (  # of each split: train, validation, test; bk_xmas1 is in the test set
    "AkPnBcht chpn-p1", "AkPnBsdf mond_1", "SptkBGCl bk_xmas1", "ENSTDkCl bk_xmas1", "ENSTDkAm bk_xmas1",
)  # fmt: skip


def maps_tree(root: Path, *, seconds: float = 1.0) -> Path:
    """Writes MAPS/<piano>/MUS/MAPS_MUS-<piece>_<piano>.{wav,txt}, stereo, and a note in ISOL."""
    top, rate = root / "MAPS", 44100
    for number, recording in enumerate(MAPS_RECORDINGS):
        piano, piece = recording.split()
        stem = top / piano / "MUS" / f"MAPS_MUS-{piece}_{piano}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        notes = melody(60 + number, seconds)
        samples = tones(notes, seconds, rate)
        soundfile.write(f"{stem}.wav", np.stack([samples, samples / 2], axis=1), rate)
        lines = [
            "OnsetTime\tOffsetTime\tMidiPitch",
            *(f"{a}\t{b}\t{p}" for a, b, p, _ in notes),
            "",
        ]
        stem.with_suffix(".txt").write_bytes("\r\n".join(lines).encode())
    (top / "AkPnBcht/ISOL/NO").mkdir(parents=True)
    (top / "AkPnBcht/ISOL/NO/MAPS_ISOL_NO_F_S0_M57_AkPnBcht.txt").write_text("not music\n")
    return top


class Trees(dict[str, Callable[[Path], Path]]):
    """A small tree of every dataset, by manifest; each takes the folder that --root is to name."""

    def __missing__(self, name: str) -> Callable[[Path], Path]:
        raise LookupError(
            f"the dataset {name!r} has no fake: write a function that makes a small tree of it, and "
            "enter it in TREES, in tests/helpers/fakes_listed.py"
        )


TREES = Trees({
    "slakh": slakh_tree,
    "cerberus4": slakh_tree,
    "demo": partial(slakh_tree, layout="demo"),
    **{f"maestro_v{version}": partial(maestro_tree, version=version) for version in (1, 2, 3)},
    "guitarset": guitarset_tree,
    "musicnet": musicnet_tree,
    "musicnet_em": musicnet_em_tree,
    "urmp": urmp_tree,
    "maps": maps_tree,
    "folder": partial(folder_tree, stems=("a.wav", "deep/er/b c.flac", "c.ogg")),
})  # fmt: skip
