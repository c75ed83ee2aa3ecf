"""Turns the notes of one segment into tokens. This file defines MT3's target language.

A target lists what happens in a segment, in the order of time:

    program 0, pitch 60, tie                  the tie section: a piano note is held over from before
    shift 12, program 33, velocity 1, pitch 40      after 120 ms, a bass note begins
    shift 57, velocity 0, pitch 40                  after 570 ms, it ends
    shift 60, velocity 1, drum 36                   after 600 ms, the bass drum is hit
    EOS

- Times are rounded to time steps of 10 ms. A shift gives the time *from the start of the segment*,
  not from the previous event. It precedes all events of its time step.
- Velocity 0 marks the end of a note. Other velocities are numbered bins.
- A drum hit has no program and no end.
- Program and velocity tokens are written only when they change.
- The *tie section* lists the (program, pitch) of every held note and ends with a `tie` token. The
  model predicts each segment alone. The tie section states which notes continue.

This is the plain definition. Builds and readers use `fast_tokenizer.py`, which gives the same tokens
for many segments at once (tests/mt3data/music/test_tokenizer.py).

How this differs from MT3, and what it changes:

- A segment that starts after the last event of its track gets an empty tie section. The original
  repeats the notes that were held before the last time step, although they have ended
  (mt3/run_length_encoding.py: the loop after the last event does not update the state index).
- A track without notes gives the target of a silent segment, `tie EOS`. The original raises.
- `segment_start` is exact. The original rounds a float32 time down to 10 ms, so one segment in nine
  starts 10 ms early. `rounding="float32"` and `"float64"` reproduce this for comparisons.

The granularity "flat" writes no programs, also in the tie section. Two programs that hold one pitch
give `pitch 60, pitch 60, tie`. The decoder counts the second `pitch 60` as invalid, and later the
second offset. This is so in MT3 too (mt3/vocabularies.py drop_programs).

Source: mt3/note_sequences.py, mt3/run_length_encoding.py; paper, section 3.2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mt3data.music.notes import Notes, validate
from mt3data.music.vocabulary import (
    EOS_ID,
    NUM_SPECIAL_IDS,
    Event,
    VocabularyConfig,
    apply_granularity,
    get_codec,
    velocity_to_bin,
)

FRAMES_PER_SECOND = 125  # 16 kHz in hops of 128 samples


class NoteEvent(NamedTuple):
    """The begin or the end of a note. Events are sorted by the fields in this order."""

    time: float  # seconds; compared before it is rounded to time steps
    is_onset: bool  # offsets come before onsets of the same time
    is_drum: bool
    program: int
    pitch: int


def tokenize(
    notes: Notes, start_frame: int, n_frames: int, track_frames: int, config: VocabularyConfig
) -> list[int]:
    """Returns the tokens of the frames [start_frame, start_frame + n_frames) of a track.

    Args:
        notes: all notes of the track, in any order.
        start_frame: first frame of the segment, 8 ms each, from the start of the track.
        n_frames: length of the segment, at least 1.
        track_frames: frames of the whole track. A segment that reaches its end takes all later
            events too, as in the original.
        config: the vocabulary.
    Returns:
        Tokens, EOS last. They are neither padded nor cut at 1,024.
    Raises:
        ValueError: a note is invalid, see `notes.validate`.
    """
    first = first_time_step(start_frame, config)
    end: float = first_time_step(start_frame + n_frames, config)
    if start_frame + n_frames >= track_frames:
        end = math.inf
    events = [
        (round(event.time * config.steps_per_second), event, velocity_bin)
        for event, velocity_bin in note_events(notes, config)
    ]
    writer = TokenWriter(config)
    if config.encoding == "ties":
        held: set[tuple[int, int]] = set()
        for step, event, _ in events:
            # One entry per (program, pitch): of overlapping equal notes, the first offset counts.
            if step >= first or event.is_drum:
                continue
            if event.is_onset:
                held.add((event.program, event.pitch))
            else:
                held.discard((event.program, event.pitch))
        for program, pitch in sorted(held):
            writer.program(program)
            writer.write("pitch", pitch)
        writer.write("tie", 0)
    written = first
    for step, event, velocity_bin in events:
        if not first <= step < end:
            continue
        if step != written:
            writer.shift(step - first)
            written = step
        if config.encoding == "onsets":
            writer.write("pitch", event.pitch)
        elif event.is_drum:
            writer.velocity(velocity_bin)
            writer.write("drum", event.pitch)
        else:
            writer.program(event.program)
            writer.velocity(velocity_bin)
            writer.write("pitch", event.pitch)
    return [*writer.tokens, EOS_ID]


def note_events(notes: Notes, config: VocabularyConfig) -> list[tuple[NoteEvent, int]]:
    """Returns the onsets and offsets of notes in order, each with its velocity bin (0: an offset).

    Drums have no offset. In the encoding "onsets" no note has one, and drums are ordinary pitches.

    Source: mt3/note_sequences.py note_sequence_to_onsets_and_offsets_and_programs,
    note_sequence_to_onsets.
    """
    validate(notes)
    events = []
    for onset, offset, pitch, velocity, program, is_drum, _ in notes.to_array().tolist():
        velocity_bin = int(velocity_to_bin(velocity, config.num_velocity_bins))
        if config.encoding == "onsets":
            events.append((NoteEvent(onset, True, False, 0, int(pitch)), velocity_bin))
            continue
        kind = bool(is_drum), int(program), int(pitch)
        events.append((NoteEvent(onset, True, *kind), velocity_bin))
        if not is_drum:
            events.append((NoteEvent(offset, False, *kind), 0))
    return sorted(events, key=lambda pair: pair[0])  # equal events keep the order of their notes


class TokenWriter:
    """Collects tokens. Program and velocity are written only when they change."""

    def __init__(self, config: VocabularyConfig) -> None:
        self.config = config
        self.tokens: list[int] = []
        self._program: int | None = None
        self._velocity_bin: int | None = None

    def write(self, event_type: str, value: int) -> None:
        """Writes the token of one event."""
        event_id = get_codec(self.config).encode(Event(event_type, value))
        self.tokens.append(NUM_SPECIAL_IDS + event_id)

    def shift(self, steps: int) -> None:
        """Writes a time as one shift, or as several if it exceeds the largest one."""
        while steps > 0:
            self.write("shift", min(steps, self.config.max_shift_steps))
            steps -= self.config.max_shift_steps

    def program(self, program: int) -> None:
        """Writes a program, as the granularity maps it, if it differs from the last one."""
        program = int(apply_granularity(np.array(program), self.config.granularity))
        if self.config.granularity != "flat" and program != self._program:
            self.write("program", program)
        self._program = program

    def velocity(self, velocity_bin: int) -> None:
        """Writes a velocity bin if it differs from the last one."""
        if velocity_bin != self._velocity_bin:
            self.write("velocity", velocity_bin)
        self._velocity_bin = velocity_bin


def first_time_step(frame: int, config: VocabularyConfig) -> int:
    """Returns the time step in which a frame begins: floor(time * steps_per_second).

    A segment has the events of all time steps from that of its first frame up to, but without, that
    of the next segment's first frame. Frame 256 begins at 2.048 s, in time step 204. An onset at
    2.0351 s is rounded to time step 204, so it belongs to this segment, 13 ms before its first
    frame. An event is never more than one and a half time steps (15 ms) before that frame.
    """
    return int(frame) * config.steps_per_second // FRAMES_PER_SECOND


def segment_start(frame: int, config: VocabularyConfig, rounding: str = "exact") -> float:
    """Returns the time in seconds that shift 0 means in a segment which starts at this frame.

    Args:
        frame: first frame of the segment.
        config: its steps_per_second sets the grid.
        rounding: "exact", "float32" (mt3/tasks.py postprocess, mt3/inference.py) or "float64"
            (the original's notebook). The last two compute t - t % 0.01 in floating point. For many
            frames that begin on the grid of time steps, the result is one time step too early.
    Raises:
        ValueError: another rounding.
    """
    if rounding == "exact":
        return first_time_step(frame, config) / config.steps_per_second
    if rounding not in ("float32", "float64"):
        raise ValueError(f"rounding={rounding!r}; expected exact, float32 or float64")
    time = float(np.dtype(rounding).type(frame / FRAMES_PER_SECOND))
    return time - time % (1 / config.steps_per_second)
