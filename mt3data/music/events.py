"""Notes as events: onsets and offsets in time order, in columns that can be cut anywhere.

The order is the original's. It walks through the events of a track one by one to find out which
notes are held at the start of every segment; here that is worked out for each onset beforehand.

Source: mt3/note_sequences.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mt3data.music.notes import Notes, validate
from mt3data.music.vocabulary import VocabularyConfig, apply_granularity, get_codec, velocity_to_bin

NONE = -1  # the program of a drum, and what a target says before its first program or velocity
PART_STEPS = 1 << 40  # between parts of a table: further than any step of a track
DRUM_KEY = 1 << 14  # above 128 * program + pitch of any pitched note


@dataclass(frozen=True)
class EventTable:
    """All onsets and offsets of a track (or window) in time order, ready to be cut.

    Row i of the first four columns is event i. The `tie_` columns describe, for each onset of a
    pitched note, when the model's state calls that pitch and program held: before event j exactly
    if tie_after < j <= tie_until. That state is kept per (pitch, program), so overlapping equal
    notes are one, and the first note-off ends it.

    Several tracks or windows may share a table, as its parts: they stand one after the other, their
    steps PART_STEPS apart, and know nothing of each other.
    """

    config: VocabularyConfig
    step: np.ndarray  # quantised time + part * PART_STEPS
    program: np.ndarray  # -1 where none is said: drums, and every note in the onsets encoding
    velocity_bin: np.ndarray  # 0 for a note-off
    pitch_id: np.ndarray  # codec id of the pitch or drum
    tie_after: np.ndarray
    tie_until: np.ndarray
    tie_key: np.ndarray  # 128 * program + pitch, int16
    tie_part: np.ndarray

    @staticmethod
    def of(notes: Notes, config: VocabularyConfig, part: np.ndarray | None = None) -> EventTable:
        """The events of notes in the order of the original.

        Equal times are ordered offsets first, then by (is_drum, program, pitch); times are
        compared before they are quantised, and quantised with banker's rounding.

        Args:
            notes: in any order.
            config: decides what is said.
            part: the number of the part to which each note belongs; None: all are one.
        Raises:
            ValueError: see `notes.validate`.

        Source: mt3/note_sequences.py note_sequence_to_onsets_and_offsets_and_programs.
        """
        validate(notes)
        part = np.zeros(len(notes), np.int64) if part is None else part
        if config.encoding == "onsets":
            return EventTable._of_onsets(notes, config, part)
        # One number for (is_drum, program, pitch); 16 bits, which numpy sorts in linear time.
        key = (notes.is_drum * DRUM_KEY + 128 * notes.program + notes.pitch).astype(np.int16)
        order = np.argsort(key, kind="stable")
        pitched = order[key[order] < DRUM_KEY]
        time = np.concatenate([notes.offset[pitched], notes.onset[order]])
        bins = velocity_to_bin(notes.velocity[order], config.num_velocity_bins)
        velocity_bin = np.concatenate([np.zeros(len(pitched), np.int64), bins])
        note = np.concatenate([pitched, order])
        in_order = _by_part_and_time(part[note], time)
        note, velocity_bin, codec = note[in_order], velocity_bin[in_order], get_codec(config)
        key, part = key[note], part[note]
        is_drum = key >= DRUM_KEY
        step = np.rint(time[in_order] * config.steps_per_second).astype(np.int64)
        return EventTable(
            config,
            step + part * PART_STEPS,
            np.where(is_drum, NONE, apply_granularity(key // 128, config.granularity)),
            velocity_bin,
            key % 128 + np.where(is_drum, codec.first["drum"], codec.first["pitch"]),
            *held_intervals(key, part, velocity_bin),
        )

    @staticmethod
    def _of_onsets(notes: Notes, config: VocabularyConfig, part: np.ndarray) -> EventTable:
        # Drums become ordinary pitches here; mt3/note_sequences.py note_sequence_to_onsets.
        order = np.argsort(notes.pitch, kind="stable")
        order = order[_by_part_and_time(part[order], notes.onset[order])]
        notes, part, none = notes[order], part[order], np.zeros(0, np.int64)
        nothing = np.full(len(notes), NONE)
        step = np.rint(notes.onset * config.steps_per_second).astype(np.int64)
        word = notes.pitch + get_codec(config).first["pitch"]
        return EventTable(
            config, step + part * PART_STEPS, nothing, nothing, word, none, none, none, none
        )


def _by_part_and_time(part: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The order of events by part, then by time; equal ones stay as they stand."""
    by_time = np.argsort(time, kind="stable")
    part = part[by_time]
    return by_time[np.argsort(part, kind="stable")] if part.any() else by_time


def held_intervals(
    key: np.ndarray, part: np.ndarray, velocity_bin: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For every pitched onset: its row, the row of its key's next event, its key and its part."""
    by_key = np.argsort(key, kind="stable")  # rows stand by part, so within a key they still do
    next_of_key = np.full(len(key), len(key))
    before, after = by_key[:-1], by_key[1:]
    same = (key[before] == key[after]) & (part[before] == part[after])
    next_of_key[before[same]] = after[same]
    onsets = np.flatnonzero((key < DRUM_KEY) & (velocity_bin > 0))
    return onsets, next_of_key[onsets], key[onsets], part[onsets]
