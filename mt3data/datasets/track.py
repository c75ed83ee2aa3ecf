"""Defines a track with its stems, which dataset adapters yield.

A track is cheap to make and to pickle, and reads its files later. Labels are read as in
mt3/preprocessors.py add_track_to_notesequence: sustain is applied per stem, then program and is_drum
are set. Two things differ. Notes of zero length are dropped and counted here, where the original
raises. Every stem keeps its own instrument number, where the original numbers by program. Trimming
works by program, so this changes no target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from mt3data.errors import UserError
from mt3data.music.midi import read_midi
from mt3data.music.notes import DRUM_INSTRUMENT, Notes


@dataclass(frozen=True)
class Stem:
    """One instrument of a track.

    `program` (0-127) is the program of its labels, `name` its class, and `family` the publisher's class.
    """

    id: str
    audio: Path | None
    midi: Path | None
    program: int
    is_drum: bool
    name: str
    family: str = ""


class Labels(Protocol):
    """Reads the labels of a track that are not one MIDI file per stem.

    Each adapter has its own frozen, picklable dataclass. `files` lists all files that `load` reads,
    because a build hashes their bytes.
    """

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that `load` reads."""
        ...

    def load(self) -> tuple[Notes, tuple[str, ...]]:
        """Reads the untrimmed notes. Returns them and one sentence for each problem."""
        ...


@dataclass(frozen=True)
class Track:
    """One piece. It holds paths and facts, and making one opens no audio and no MIDI file.

    Attributes:
        id: short and unique in its dataset, [A-Za-z0-9_-], at most 40 bytes.
        name: the publisher's name.
        dataset: name of the manifest.
        split: "train", "validation", "test", or another name of the split scheme.
        audio: path of the mix, also if the file is missing.
        stems: labelled stems in the order of their ids; empty if `labels` holds all labels.
        problems: one sentence for each problem. The track is usable in spite of them.
        trim: whether overlapping notes of one pitch and program get trimmed (training splits only).
        failure: why the track cannot be used; empty if it can.
        labels: reads the labels of a dataset without stems.
        variants: ids of the stems that are summed in each variant; empty if all variants are the mix.

    Texts in problems and failure name files relative to the track. They become part of builds, whose
    bytes must not depend on the place of the data.
    """

    id: str
    name: str
    dataset: str
    split: str
    audio: Path
    stems: tuple[Stem, ...] = ()
    problems: tuple[str, ...] = ()
    trim: bool = False
    failure: str = ""
    labels: Labels | None = None
    variants: tuple[tuple[str, ...], ...] = ()

    @property
    def audio_files(self) -> tuple[Path, ...]:
        """The audio files of the records: the mix, or the stems of all variants."""
        used = {stem_id for members in self.variants for stem_id in members}
        stems = tuple(stem.audio for stem in self.stems if stem.audio and stem.id in used)
        return stems or (self.audio,)

    @property
    def label_files(self) -> tuple[Path, ...]:
        """The files of the labels: those of `labels`, or the MIDI of the stems."""
        if self.labels is not None:
            return self.labels.files
        return tuple(stem.midi for stem in self.stems if stem.midi)

    @property
    def source_files(self) -> tuple[Path, ...]:
        """All files that records of the track are made from: its audio, then its labels."""
        return self.audio_files + self.label_files

    def load_notes(self) -> Notes:
        """Reads the untrimmed notes, see load_labels."""
        return self.load_labels()[0]

    def load_labels(self) -> tuple[Notes, tuple[str, ...]]:
        """Reads `labels`, or the MIDI of every stem.

        Returns:
            The notes and the problems of the track, including those found while reading. The notes
            are in the order of the stems, with sustain applied. They have program and is_drum of
            their stem. `instrument` numbers the stems; it is 9 for all drums and no other stem.
        Raises:
            UserError: the track has a failure, a MIDI file cannot be read, or no stem has notes.
        """
        if self.failure:
            raise UserError(f"{self.dataset} {self.name}: {self.failure}")
        if self.labels is not None:
            return self._load_whole(self.labels)
        parts, problems = self.load_parts()
        if not any(len(part) for _, part in parts):
            raise UserError(
                f"{self.dataset} {self.name}: no note in any of {len(parts)} MIDI files"
            )
        return Notes.concat([part for _, part in parts]), problems

    def load_parts(self) -> tuple[list[tuple[str, Notes]], tuple[str, ...]]:
        """Reads the notes of each stem that has MIDI, with its id. Returns problems as `load_labels`.

        Raises:
            UserError: the MIDI of a stem cannot be read.
        """
        parts: list[tuple[str, Notes]] = []
        problems, pitched = list(self.problems), 0
        for stem in self.stems:
            if stem.is_drum:
                number = DRUM_INSTRUMENT
            else:
                number, pitched = pitched + (pitched >= DRUM_INSTRUMENT), pitched + 1
            if stem.midi is None:
                continue
            try:
                notes, unended = read_midi(stem.midi)
            except UserError as error:
                reason = str(error).replace(str(stem.midi), f"MIDI/{stem.midi.name}")
                raise UserError(f"{self.dataset} {self.name}: {reason}") from error
            if unended:
                problems.append(
                    f"{stem.id}: {unended} of {len(notes) + unended} note-ons without an end; dropped"
                )
            own = replace(
                notes,
                program=np.full(len(notes), 0 if stem.is_drum else stem.program),
                is_drum=np.full(len(notes), stem.is_drum),
                instrument=np.full(len(notes), number),
            )
            parts.append((stem.id, own))
        return parts, tuple(problems)

    def _load_whole(self, labels: Labels) -> tuple[Notes, tuple[str, ...]]:
        try:
            notes, noticed = labels.load()
        except UserError as error:
            reason = str(error)
            for path in labels.files:
                reason = reason.replace(str(path), path.name)
            raise UserError(f"{self.dataset} {self.name}: {reason}") from error
        problems, fine = [*self.problems, *noticed], notes.offset > notes.onset
        if not fine.all():
            problems.append(f"{int((~fine).sum())} of {len(notes)} notes have no length; dropped")
        if not fine.any():
            names = ", ".join(path.name for path in labels.files)
            raise UserError(f"{self.dataset} {self.name}: no note in {names}")
        return notes[fine], tuple(problems)
