"""Defines the vocabulary of MT3's target language: events, tokens, velocity bins and granularity.

An *event* is a pair (type, value). The codec numbers all events of one vocabulary without gaps, in
the order shift, pitch, velocity, tie, program, drum. This number is the *event id*, from 0. A *token*
is the event id plus three, because the tokens 0, 1 and 2 are padding, end of sequence and unknown:

    token      0    1    2    3 ... 1003        1004 ... 1131   1132, 1133    1134   1135 ... 1262    1263 ... 1390
    means      PAD  EOS  UNK  shift 0 ... 1000  pitch 0 ... 127 velocity 0, 1 tie    program 0 ... 127 drum 0 ... 127

(for one velocity bin). A shift of s gives the time s * 10 ms after the start of the segment.

Source: mt3/vocabularies.py and mt3/event_codec.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
NUM_SPECIAL_IDS = 3
NUM_EXTRA_IDS = 100  # unused tokens that T5 vocabularies reserve after the last event
NOT_AN_EVENT = -2  # the event id of a token outside the codec; MT3's `DECODED_INVALID_ID`

ENCODINGS = ("ties", "noties", "onsets")
GRANULARITIES = ("full", "midi_class", "flat")
MAX_VELOCITY = 127


class Event(NamedTuple):
    """One musical event, such as `Event("pitch", 60)`."""

    type: str
    value: int


class EventRange(NamedTuple):
    """The values of the events of one type, both ends included."""

    type: str
    min_value: int
    max_value: int


@dataclass(frozen=True)
class VocabularyConfig:
    """The settings that determine the meaning of every token.

    Attributes:
        num_velocity_bins: loudness classes of an onset. With 1, velocity is not transcribed.
        steps_per_second: resolution of shifts, 100 in every published MT3 model.
        max_shift_seconds: the longest time of one shift token.
        encoding: "ties" (onsets, offsets, and a tie section at the start of each segment), "noties"
            (the same without tie section), or "onsets" (pitches of onsets only, also of drums).
        granularity: "full" keeps the 128 programs, "midi_class" maps each to the first of its
            family of eight, "flat" has no program tokens.
    """

    num_velocity_bins: int = 1
    steps_per_second: int = 100
    max_shift_seconds: int = 10
    encoding: str = "ties"
    granularity: str = "full"

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding={self.encoding!r}; expected one of {', '.join(ENCODINGS)}")
        if self.granularity not in GRANULARITIES:
            raise ValueError(
                f"granularity={self.granularity!r}; expected one of {', '.join(GRANULARITIES)}"
            )
        if not 1 <= self.num_velocity_bins <= MAX_VELOCITY:
            raise ValueError(
                f"num_velocity_bins={self.num_velocity_bins}; expected 1 to {MAX_VELOCITY}"
            )
        if self.steps_per_second < 1 or self.max_shift_seconds < 1:
            raise ValueError("steps_per_second and max_shift_seconds must be at least 1")

    @property
    def max_shift_steps(self) -> int:
        """The largest value of a shift event, in time steps."""
        return self.steps_per_second * self.max_shift_seconds


class Codec:
    """Numbers the events of one vocabulary.

    Attributes:
        ranges: the event ranges in the order of their event ids.
        first: event id of the first event of each type. The event id of another event is
            `first[type] + value - min_value`.
        num_events: the number of events.

    Source: mt3/event_codec.py Codec, mt3/vocabularies.py build_codec.
    """

    def __init__(self, config: VocabularyConfig) -> None:
        self.config = config
        self.ranges = (
            EventRange("shift", 0, config.max_shift_steps),
            EventRange("pitch", 0, 127),
            EventRange("velocity", 0, config.num_velocity_bins),
            EventRange("tie", 0, 0),
            EventRange("program", 0, 127),
            EventRange("drum", 0, 127),
        )
        self.first: dict[str, int] = {}
        next_id = 0
        for event_range in self.ranges:
            self.first[event_range.type] = next_id
            next_id += event_range.max_value - event_range.min_value + 1
        self.num_events = next_id

    def encode(self, event: Event) -> int:
        """Returns the event id of an event, 0 to num_events - 1.

        Raises:
            ValueError: an unknown type, or a value outside the type's range.
        """
        for event_range in self.ranges:
            if event.type == event_range.type:
                if not event_range.min_value <= event.value <= event_range.max_value:
                    raise ValueError(
                        f"{event.type} {event.value} is outside "
                        f"{event_range.min_value} to {event_range.max_value}"
                    )
                return self.first[event.type] + event.value - event_range.min_value
        raise ValueError(
            f"unknown event type {event.type!r}; expected one of {', '.join(self.first)}"
        )

    def decode(self, event_id: int) -> Event:
        """Returns the event of an event id.

        Raises:
            ValueError: no event has the event id.
        """
        for event_range in self.ranges:
            value = event_id - self.first[event_range.type] + event_range.min_value
            if event_range.min_value <= value <= event_range.max_value:
                return Event(event_range.type, value)
        raise ValueError(f"no event has id {event_id}; expected 0 to {self.num_events - 1}")

    def type_range(self, event_type: str) -> tuple[int, int]:
        """Returns the first and last event id of one event type."""
        event_range = next(r for r in self.ranges if r.type == event_type)
        first = self.first[event_type]
        return first, first + event_range.max_value - event_range.min_value


@cache
def get_codec(config: VocabularyConfig) -> Codec:
    """Returns the codec of a vocabulary. It is built once."""
    return Codec(config)


def vocabulary_size(config: VocabularyConfig) -> int:
    """Counts the tokens: the three special ones, the events, and T5's 100 unused ones."""
    return NUM_SPECIAL_IDS + get_codec(config).num_events + NUM_EXTRA_IDS


def num_embeddings(config: VocabularyConfig) -> int:
    """Returns the rows of the model's embedding: the vocabulary rounded up to a multiple of 128.

    One velocity bin gives 1,536, and 127 bins give 1,664.

    Source: mt3/vocabularies.py num_embeddings.
    """
    return 128 * math.ceil(vocabulary_size(config) / 128)


def tokens_to_event_ids(tokens: np.ndarray, config: VocabularyConfig) -> np.ndarray:
    """Converts the tokens before the first EOS to event ids.

    Args:
        tokens: integers, shape (n,).
    Returns:
        Event ids, shape (m,) with m <= n, int64. Tokens without an event become NOT_AN_EVENT.

    Source: mt3/vocabularies.py GenericTokenVocabulary._decode_tf followed by mt3/tasks.py trim_eos.
    """
    tokens = np.asarray(tokens, dtype=np.int64)
    ends = np.flatnonzero(tokens == EOS_ID)
    if len(ends):
        tokens = tokens[: ends[0]]
    event_ids = tokens - NUM_SPECIAL_IDS
    is_event = (event_ids >= 0) & (event_ids < get_codec(config).num_events)
    return np.where(is_event, event_ids, NOT_AN_EVENT)


def velocity_to_bin(velocity: np.ndarray, num_velocity_bins: int) -> np.ndarray:
    """Converts MIDI velocities to bins: 0 (an offset) to 0, 1-127 to 1 .. num_velocity_bins.

    Source: mt3/vocabularies.py velocity_to_bin.
    """
    return np.ceil(num_velocity_bins * np.asarray(velocity) / MAX_VELOCITY).astype(np.int64)


def bin_to_velocity(velocity_bin: int, num_velocity_bins: int) -> int:
    """Returns the MIDI velocity of a bin. Source: mt3/vocabularies.py bin_to_velocity."""
    return int(MAX_VELOCITY * velocity_bin / num_velocity_bins)


def apply_granularity(programs: np.ndarray, granularity: str) -> np.ndarray:
    """Maps MIDI programs 0-127: "full" keeps them, "midi_class" gives the first of a family, "flat" 0.

    Source: mt3/vocabularies.py PROGRAM_GRANULARITIES.
    """
    programs = np.asarray(programs)
    if granularity == "full":
        return programs
    return programs // 8 * 8 if granularity == "midi_class" else np.zeros_like(programs)


def describe_tokens(tokens: np.ndarray, config: VocabularyConfig) -> list[str]:
    """Returns tokens as readable names: "shift 12", "program 33", "EOS"."""
    special = {PAD_ID: "PAD", EOS_ID: "EOS", UNK_ID: "UNK"}
    codec, words = get_codec(config), []
    for token in np.asarray(tokens).tolist():
        event_id = token - NUM_SPECIAL_IDS
        if token in special:
            words.append(special[token])
        elif 0 <= event_id < codec.num_events:
            event = codec.decode(event_id)
            words.append("tie" if event.type == "tie" else f"{event.type} {event.value}")
        else:
            words.append(f"unused {token}")
    return words
