"""What a finished build holds, counted: the numbers of its report.

Tracks, windows and target lengths are counted in full, from `tracks.parquet` and the index. Notes
lie in the records, which for a large build are hundreds of gigabytes; so pitches, polyphony and
notes per instrument are counted over at most SAMPLE windows, spread evenly over the build.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.align.lag import MIN_CONFIDENCE
from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.music.midi import DRUMS, instrument_name
from mt3data.music.notes import Notes
from mt3data.music.tokenizer import FRAMES_PER_SECOND
from mt3data.report.plot_record import mel_of
from mt3data.shards.format import read_build_manifest, read_npy
from mt3data.shards.index import ShardSet, open_parquet, track_rows

SAMPLE = 2000  # windows whose notes are read: half a second, or 20 s from a slow disk
INDEX_COLUMNS = (
    "key track start_frame frames track_frames n_notes n_tokens programs has_drums"
).split()


@dataclass(frozen=True)
class Instrument:
    """One program, or all drums.

    Attributes:
        name: "Acoustic Grand Piano", "Drums".
        program: 0 to 127; DRUMS.
        family: the class of General MIDI, "Piano"; "Drums".
        tracks: how many have it.
        windows: how many have it.
        notes: how many of the sample are its.
    """

    name: str
    program: int
    family: str
    tracks: int
    windows: int
    notes: int


@dataclass(frozen=True)
class Sample:
    """What was counted in the notes of some windows.

    Attributes:
        windows: how many were read.
        notes: how many begin in them, by program; drums under DRUMS.
        pitches: how many of each pitch begin in them, drums left out; shape (128,).
        polyphony: frames with so many notes sounding, drums left out.
    """

    windows: int
    notes: Counter[int]
    pitches: np.ndarray
    polyphony: np.ndarray


@dataclass(frozen=True)
class Shown:
    """One window to be drawn.

    Attributes:
        key, split, track: of the record; track is the publisher's name.
        start: seconds.
        mel: float32 [frames, n_mels], without the padding behind the track's end.
        notes: the notes that sound in it.
        n_tokens: length of its target.
    """

    key: str
    split: str
    track: str
    start: float
    mel: np.ndarray
    notes: Notes
    n_tokens: int

    @property
    def end(self) -> float:
        """Seconds."""
        return self.start + len(self.mel) / FRAMES_PER_SECOND


@dataclass(frozen=True)
class Survey:
    """A build in numbers.

    Attributes:
        manifest: the content of manifest.json.
        tracks: rows of tracks.parquet.
        n_tokens: length of every record's target, EOS included.
        instruments: those with most notes in the sample first.
        sample: see Sample.
        shown: windows to be drawn, by split, track and time.
    """

    manifest: dict[str, Any]
    tracks: list[dict[str, Any]]
    n_tokens: np.ndarray
    instruments: list[Instrument]
    sample: Sample
    shown: list[Shown]

    @property
    def aligned(self) -> list[dict[str, Any]]:
        """Rows of the tracks whose lag was measured, and surely."""
        return [
            row
            for row in self.tracks
            if row["lag"] is not None and row["align_confidence"] >= MIN_CONFIDENCE
        ]


def survey(folder: Path, pictures: int, on_window: Callable[[], object] = lambda: None) -> Survey:
    """What one build holds, counted.

    Args:
        folder: the build.
        pictures: how many windows to hand out for drawing, at most.
        on_window: called for each window of the sample, `n_reads` times.
    Raises:
        UserError: no finished build, or one that has lost a shard.
    """
    splits = {split: ShardSet(folder, split) for split in read_build_manifest(folder)["splits"]}
    index = _index(folder, list(splits))
    sample = _sample(splits, index, on_window)
    tracks = track_rows(folder)
    names = {row["track"]: row["name"] for row in tracks}
    shown = [_shown(splits, index, row, names) for row in _to_show(index, pictures)]
    return Survey(
        read_build_manifest(folder),
        tracks,
        index["n_tokens"],
        _instruments(index, sample),
        sample,
        shown,
    )


def n_reads(folder: Path) -> int:
    """How many windows of a build `survey` will take for its sample."""
    return min(
        SAMPLE, sum(split["records"] for split in read_build_manifest(folder)["splits"].values())
    )


def voices(notes: Notes) -> np.ndarray:
    """The program of each note, DRUMS for those of drums."""
    return np.where(notes.is_drum, DRUMS, notes.program)


def _index(folder: Path, splits: list[str]) -> dict[str, Any]:
    """Columns of the index of all splits; `split` and `row` name the record in its split.

    `track` counts `track_ids`; `pairs`, shape (2, n), are record and program for each that occurs.
    """
    import pyarrow as pa

    tables = []
    for split in splits:
        with open_parquet(folder / "index" / f"{split}.parquet") as file:
            tables.append(file.read(columns=INDEX_COLUMNS))
    if not tables:
        nothing = np.zeros(0, np.int64)
        return dict.fromkeys((*INDEX_COLUMNS, "split", "row", "track_ids"), nothing) | {
            "pairs": np.zeros((2, 0), np.int64)
        }
    table = pa.concat_tables(tables)
    columns: dict[str, Any] = {
        name: table[name].to_numpy()
        for name in INDEX_COLUMNS
        if name not in ("key", "track", "programs")
    }
    # Of a million records few names are wanted; tracks are told apart by number.
    tracks = table["track"].combine_chunks().dictionary_encode()
    columns["key"], columns["track_ids"] = table["key"], sorted(tracks.dictionary.to_pylist())
    place = {track: number for number, track in enumerate(columns["track_ids"])}
    in_order = np.array([place[track] for track in tracks.dictionary.to_pylist()], np.int64)
    columns["track"] = in_order[tracks.indices.to_numpy()]
    columns["split"] = np.repeat(np.array(splits), [len(t) for t in tables])
    columns["row"] = np.concatenate([np.arange(len(t)) for t in tables])
    programs = table["programs"].combine_chunks()
    columns["pairs"] = np.stack([
        np.repeat(np.arange(len(table)), programs.value_lengths().to_numpy()),
        programs.flatten().to_numpy().astype(np.int64),
    ])  # fmt: skip
    return columns


def _sample(
    splits: dict[str, ShardSet], index: dict[str, Any], on_window: Callable[[], object]
) -> Sample:
    n_records = len(index["row"])
    rows = np.unique(np.linspace(0, n_records - 1, min(SAMPLE, n_records)).astype(int))
    notes: Counter[int] = Counter()
    pitches, polyphony = np.zeros(128, np.int64), np.zeros(1, np.int64)
    for row in rows:
        found = Notes.from_array(read_npy(_member(splits, index, row, "notes")))
        start, frames = int(index["start_frame"][row]), _real_frames(index, row)
        first, last = start / FRAMES_PER_SECOND, (start + frames) / FRAMES_PER_SECOND
        begun = found[(found.onset >= first) & (found.onset < last)]
        notes.update(voices(begun).tolist())
        pitches += np.bincount(begun.pitch[~begun.is_drum], minlength=128)
        counts = np.bincount(sounding(found[~found.is_drum], start, frames))
        total = np.zeros(max(len(counts), len(polyphony)), np.int64)
        total[: len(polyphony)] += polyphony
        total[: len(counts)] += counts
        polyphony = total
        on_window()
    return Sample(len(rows), notes, pitches, polyphony)


def sounding(notes: Notes, start_frame: int, n_frames: int) -> np.ndarray:
    """How many notes sound in each of some frames, int64 [n_frames].

    A note sounds from the frame in which it begins to that in which it ends.
    """
    change = np.zeros(n_frames + 1, np.int64)
    first = np.floor(notes.onset * FRAMES_PER_SECOND).astype(int) - start_frame
    last = np.ceil(notes.offset * FRAMES_PER_SECOND).astype(int) - start_frame
    np.add.at(change, np.clip(first, 0, n_frames), 1)
    np.add.at(change, np.clip(last, 0, n_frames), -1)
    return np.cumsum(change)[:n_frames]


def _instruments(index: dict[str, Any], sample: Sample) -> list[Instrument]:
    import pretty_midi

    record, program = index["pairs"]
    drummed = np.flatnonzero(index["has_drums"])
    record = np.concatenate([record, drummed])
    program = np.concatenate([program, np.full(len(drummed), DRUMS)])
    n_tracks = len(index["track_ids"])
    in_tracks = np.unique((program - DRUMS) * n_tracks + index["track"][record]) // max(1, n_tracks)
    tracks_with, windows_with = (np.bincount(each, minlength=129) for each in
                                 (in_tracks, program - DRUMS))  # fmt: skip
    found = []
    for number in (np.flatnonzero(windows_with) + DRUMS).tolist():
        family = pretty_midi.program_to_instrument_class(number) if number != DRUMS else "Drums"
        found.append(Instrument(
            instrument_name(number), number, family, int(tracks_with[number - DRUMS]),
            int(windows_with[number - DRUMS]), sample.notes[number],
        ))  # fmt: skip
    return sorted(found, key=lambda one: (-one.notes, -one.windows, one.program))


def _to_show(index: dict[str, Any], pictures: int) -> Iterator[int]:
    """Rows of windows with notes, spread evenly over the tracks."""
    rows = np.flatnonzero(index["n_notes"])
    rows = rows[
        np.lexsort([index["start_frame"][rows], index["track"][rows], index["split"][rows]])
    ]
    n = min(pictures, len(rows))
    for i in range(n):  # the middle of each of n equal parts
        yield int(rows[(2 * i + 1) * len(rows) // (2 * n)])


def _shown(
    splits: dict[str, ShardSet], index: dict[str, Any], row: int, names: dict[str, str]
) -> Shown:
    split, frames = str(index["split"][row]), _real_frames(index, row)
    source = splits[split]
    spectrogram = SpectrogramConfig(**source.manifest["spectrogram"])
    mel = mel_of(source, int(index["row"][row]), spectrogram)
    start = int(index["start_frame"][row]) / FRAMES_PER_SECOND
    notes = Notes.from_array(read_npy(_member(splits, index, row, "notes")))
    end = start + frames / FRAMES_PER_SECOND
    return Shown(
        index["key"][row].as_py(), split, names[index["track_ids"][index["track"][row]]], start,
        mel[:frames],
        notes[(notes.offset > start) & (notes.onset < end)], int(index["n_tokens"][row]),
    )  # fmt: skip


def _member(splits: dict[str, ShardSet], index: dict[str, Any], row: int, name: str) -> bytes:
    return splits[str(index["split"][row])].member(int(index["row"][row]), name)


def _real_frames(index: dict[str, Any], row: int) -> int:
    """Frames of a record that are not padding behind the track's end."""
    return int(min(index["frames"][row], index["track_frames"][row] - index["start_frame"][row]))
