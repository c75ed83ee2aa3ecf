"""What a dataset adapter yields: a track with its stems, cheap to make, to pickle and to read later.

Source of the label reading: mt3/preprocessors.py add_track_to_notesequence (sustain is applied per
stem, then program and is_drum are set). Unlike the original, zero-length notes are dropped and
counted here (it raises), and every stem keeps an instrument number of its own (it numbers by
program); trimming works by program, so this changes no target.
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

    `program` (0-127) is the one that labels carry, `name` its class, `family` the publisher's own.
    """

    id: str
    audio: Path | None
    midi: Path | None
    program: int
    is_drum: bool
    name: str
    family: str = ""


class Labels(Protocol):
    """How a track's labels are read where they are not one MIDI file per stem.

    Each adapter has its own frozen, picklable dataclass. `files` are what `load` reads, all of
    them; their bytes are hashed into the build.
    """

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that `load` reads."""
        ...

    def load(self) -> tuple[Notes, tuple[str, ...]]:
        """The notes, untrimmed, and what was noticed while reading, one sentence each."""
        ...


@dataclass(frozen=True)
class Track:
    """One piece. Holds paths and facts only: making one opens no audio and no MIDI file.

    Attributes:
        id: short and unique in its dataset, [A-Za-z0-9_-], at most 40 bytes.
        name: the publisher's name.
        dataset: name of the manifest.
        split: "train", "validation", "test", or another name of the split scheme.
        audio: the mix; where it is missing, the path at which it was looked for.
        stems: labelled stems in the order of their ids; none where `labels` are read as a whole.
        problems: what was noticed on the way, one sentence each; the track is usable all the same.
        trim: overlapping notes of one pitch and program are to be trimmed (training splits only).
        failure: why the track cannot be used at all; empty when it can.
        labels: reads the labels of a dataset without stems.
        variants: for each variant the ids of the stems that it hears, summed; empty: all hear the mix.

    Texts in problems and failure name files relative to the track, because they end up in builds,
    whose bytes must not depend on where the data lie.
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
        """What is heard: the mix, or the stems of all variants."""
        heard = {stem_id for members in self.variants for stem_id in members}
        stems = tuple(stem.audio for stem in self.stems if stem.audio and stem.id in heard)
        return stems or (self.audio,)

    @property
    def label_files(self) -> tuple[Path, ...]:
        """What the labels are read from: their own files, or the MIDI of the stems."""
        if self.labels is not None:
            return self.labels.files
        return tuple(stem.midi for stem in self.stems if stem.midi)

    @property
    def source_files(self) -> tuple[Path, ...]:
        """Everything that records of the track are made from: its audio, then its labels."""
        return self.audio_files + self.label_files

    def load_notes(self) -> Notes:
        """The notes, untrimmed: see load_labels."""
        return self.load_labels()[0]

    def load_labels(self) -> tuple[Notes, tuple[str, ...]]:
        """Reads `labels`, or the MIDI of every stem.

        Returns:
            The notes, stem after stem, with sustain applied, program and is_drum of their stem, and
            `instrument` numbering the stems (9 for all drums, which others skip); and the problems
            of the track, those found while reading included.
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
        """The notes of each stem that has MIDI, with its id; and problems, as `load_labels`.

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
