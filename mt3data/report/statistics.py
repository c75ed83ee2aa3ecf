"""Counts what a finished build holds, for its report.

Tracks, windows and target lengths are counted in full, from `tracks.parquet` and the index. Pitches,
polyphony and notes per instrument need the records themselves, which for a large build are hundreds
of gigabytes. They are counted in at most SAMPLE windows, spread evenly over the build.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.align.lag import MIN_CONFIDENCE
from mt3data.audio.load import from_int16
from mt3data.audio.spectrogram import SpectrogramConfig, log_mel
from mt3data.music.midi import DRUMS, instrument_name
from mt3data.music.notes import Notes
from mt3data.music.tokenizer import FRAMES_PER_SECOND
from mt3data.shards.format import read_build_manifest, read_npy
from mt3data.shards.index import ShardSet, track_rows

SAMPLE = 2000  # windows whose notes are read: half a second, or 20 s from a slow disk
Record = tuple[ShardSet, int]  # a split, and a row of its index


@dataclass(frozen=True)
class Instrument:
    """One program, or all drums.

    Attributes:
        name: "Acoustic Grand Piano", "Drums".
        program: 0 to 127; DRUMS.
        family: the class of General MIDI, "Piano"; "Drums".
        tracks: number of tracks that have it.
        windows: number of windows that have it.
        notes: number of its notes in the sample.
    """

    name: str
    program: int
    family: str
    tracks: int
    windows: int
    notes: int


@dataclass(frozen=True)
class Sample:
    """Counts of the notes in some windows.

    Attributes:
        windows: number of windows that were read.
        notes: number of notes that begin in them, by program; drums under DRUMS.
        pitches: number of notes of each pitch that begin in them, without drums; shape (128,).
        polyphony: number of frames in which 0, 1, 2, ... notes sound, without drums.
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
        mel: float32 [frames, n_mels], without the padding after the end of the track.
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
        """The rows of tracks whose lag was measured with confidence."""
        return sure_lags(self.tracks)


def sure_lags(tracks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of tracks.parquet of tracks whose lag was measured with confidence."""
    return [
        row
        for row in tracks
        if row["lag"] is not None and row["align_confidence"] >= MIN_CONFIDENCE
    ]


def reason_of(track: dict[str, Any], manifest: dict[str, Any]) -> str:
    """Returns why a track of tracks.parquet failed, without the names that precede it there."""
    reason: str = track["error"]
    return reason.removeprefix(f"{manifest['dataset']} {track['name']}: ")


def survey(folder: Path, pictures: int, on_window: Callable[[], object] = lambda: None) -> Survey:
    """Counts what one build holds.

    Args:
        folder: the build.
        pictures: number of windows to return for drawing, at most.
        on_window: called for each window of the sample, `n_reads` times.
    Raises:
        UserError: no finished build, or one that has lost a shard.
    """
    manifest = read_build_manifest(folder)
    splits = [ShardSet(folder, split) for split in manifest["splits"]]
    n_tokens = np.concatenate([np.zeros(0, np.int64), *(s.index["n_tokens"] for s in splits)])
    sample = _sample(splits, on_window)
    tracks = track_rows(folder)
    names = {row["track"]: row["name"] for row in tracks}
    shown = [_shown(record, names) for record in _to_show(splits, pictures)]
    return Survey(manifest, tracks, n_tokens, _instruments(splits, sample), sample, shown)


def n_reads(folder: Path) -> int:
    """Returns the number of windows of a build that `survey` takes for its sample."""
    splits = read_build_manifest(folder)["splits"].values()
    return min(SAMPLE, sum(split["records"] for split in splits))


def programs_of(notes: Notes) -> np.ndarray:
    """Returns the program of each note, DRUMS for drums."""
    return np.where(notes.is_drum, DRUMS, notes.program)


def mel_of(source: ShardSet, row: int) -> np.ndarray:
    """Returns the log-mel of the record in a row of the index.

    It is computed where records hold audio instead.

    Returns:
        float32, shape (frames, n_mels), 0.0 after the end of the track.
    """
    if "mel" in source.manifest["features"]:
        return read_npy(source.member(row, "mel")).astype(np.float32)
    frames, start, track_frames = (
        int(source.index[name][row]) for name in ("frames", "start_frame", "track_frames")
    )
    config = SpectrogramConfig(**source.manifest["spectrogram"])
    mel = log_mel(from_int16(read_npy(source.member(row, "audio"))), config)[:frames]
    mel[track_frames - start :] = 0
    return mel


def _records(splits: Sequence[ShardSet]) -> list[tuple[ShardSet, int, int]]:
    """Each split with the numbers of its first record and behind its last, over all splits."""
    ends = np.cumsum([len(split) for split in splits]).tolist()
    return [(split, end - len(split), end) for split, end in zip(splits, ends, strict=True)]


def _sample(splits: Sequence[ShardSet], on_window: Callable[[], object]) -> Sample:
    n_records = sum(map(len, splits))
    numbers = np.unique(np.linspace(0, n_records - 1, min(SAMPLE, n_records)).astype(int))
    programs: Counter[int] = Counter()
    polyphony: Counter[int] = Counter()
    pitches = np.zeros(128, np.int64)
    for split, begin, end in _records(splits):
        for row in (numbers[(numbers >= begin) & (numbers < end)] - begin).tolist():
            notes, first, frames = _notes(split, row)
            start = first / FRAMES_PER_SECOND
            begun = notes[
                (notes.onset >= start) & (notes.onset < start + frames / FRAMES_PER_SECOND)
            ]
            programs.update(programs_of(begun).tolist())
            pitches += np.bincount(begun.pitch[~begun.is_drum], minlength=128)
            polyphony.update(sounding(notes[~notes.is_drum], first, frames).tolist())
            on_window()
    counts = [polyphony[n] for n in range(max(polyphony, default=0) + 1)]
    return Sample(len(numbers), programs, pitches, np.array(counts))


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


def _instruments(splits: Sequence[ShardSet], sample: Sample) -> list[Instrument]:
    import pretty_midi

    windows: Counter[int] = Counter()
    tracks: dict[int, set[str]] = defaultdict(set)
    for split in splits:
        columns = (split.index[name] for name in ("track", "programs", "has_drums"))
        for track, programs, has_drums in zip(*columns, strict=True):
            for program in [*programs, DRUMS] if has_drums else programs:
                windows[program] += 1
                tracks[program].add(track)
    found = [
        Instrument(
            instrument_name(program), program,
            "Drums" if program == DRUMS else pretty_midi.program_to_instrument_class(program),
            len(tracks[program]), windows[program], sample.notes[program],
        )
        for program in windows
    ]  # fmt: skip
    return sorted(found, key=lambda one: (-one.notes, -one.windows, one.program))


def _to_show(splits: Sequence[ShardSet], pictures: int) -> list[Record]:
    """Windows with notes, spread evenly over the tracks."""
    found: list[Record] = []
    for split in sorted(splits, key=lambda split: split.split):
        rows = np.flatnonzero(split.index["n_notes"])
        tracks = np.array(split.index["track"][rows])
        rows = rows[np.lexsort([split.index["start_frame"][rows], tracks])]
        found += [(split, row) for row in rows.tolist()]
    n = min(pictures, len(found))
    return [
        found[(2 * i + 1) * len(found) // (2 * n)] for i in range(n)
    ]  # middles of n equal parts


def _shown(record: Record, names: dict[str, str]) -> Shown:
    split, row = record
    notes, first, frames = _notes(split, row)
    start, end = first / FRAMES_PER_SECOND, (first + frames) / FRAMES_PER_SECOND
    return Shown(
        split.index["key"][row], split.split, names[split.index["track"][row]], start,
        mel_of(split, row)[:frames], notes[(notes.offset > start) & (notes.onset < end)],
        int(split.index["n_tokens"][row]),
    )  # fmt: skip


def _notes(split: ShardSet, row: int) -> tuple[Notes, int, int]:
    """The notes of a record, its first frame, and its frames without padding."""
    index = split.index
    start, frames, track_frames = (
        int(index[name][row]) for name in ("start_frame", "frames", "track_frames")
    )
    return (
        Notes.from_array(read_npy(split.member(row, "notes"))),
        start,
        min(frames, track_frames - start),
    )
