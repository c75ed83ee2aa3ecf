"""Merges the targets of recordings that sound at once into the target of their mix.

MT3 writes program and velocity tokens only when they change. Before merging we repeat them in front
of every note. After merging we remove the redundant ones. Otherwise a note that comes after a note of
another recording would get the program of that one.

The merged events are in the order of time, and within a time step in the order of the recordings.
Only the events before the first shift, the tie sections among them, are ordered from the last
recording to the first. Each recording keeps its own `tie` token.

Source: mt3/run_length_encoding.py merge_run_length_encoded_targets,
remove_redundant_state_changes_fn; mt3/mixing.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from mt3data.music.vocabulary import EOS_ID, NUM_SPECIAL_IDS, VocabularyConfig, get_codec


def merge_targets(targets: Sequence[np.ndarray], config: VocabularyConfig) -> np.ndarray:
    """Returns the target of a mix.

    Args:
        targets: of the recordings, tokens with EOS last and no padding.
        config: the vocabulary.
    Returns:
        Tokens, int16, EOS last.
    """
    streams = [(target[:-1].astype(np.int64) - NUM_SPECIAL_IDS).tolist() for target in targets]
    streams = [repeat_state_before_every_note(stream, config) for stream in streams]
    merged = remove_redundant_state_changes(merge_events(streams, config), config)
    return np.array([*merged, EOS_ID - NUM_SPECIAL_IDS], np.int16) + np.int16(NUM_SPECIAL_IDS)


def repeat_state_before_every_note(ids: Sequence[int], config: VocabularyConfig) -> list[int]:
    """Returns the events of a target with program and velocity in front of every note.

    Drums have no program. Notes of a tie section have no velocity.

    Args:
        ids: event ids.
    """
    types, repeated = event_types(config), []
    program: int | None = None
    velocity: int | None = None
    in_tie_section = config.encoding == "ties"
    for event_id in ids:
        event_type = types[event_id]
        if event_type == "program":
            program = event_id
        elif event_type == "velocity":
            velocity = event_id
        else:
            if event_type == "pitch" and program is not None:
                repeated.append(program)
            if event_type in ("pitch", "drum") and velocity is not None and not in_tie_section:
                repeated.append(velocity)
            repeated.append(event_id)
            in_tie_section &= event_type != "tie"
    return repeated


def merge_events(streams: Sequence[Sequence[int]], config: VocabularyConfig) -> list[int]:
    """Returns the events of several targets in the order of the mix.

    Args:
        streams: event ids of each target, with program and velocity in front of every note.
    """
    types = event_types(config)
    events: list[tuple[int, int, int]] = []  # time step, place of the stream, event id
    for number, stream in enumerate(streams):
        step, after_shift = -1, False
        for event_id in stream:
            if types[event_id] == "shift":  # successive shifts add up to one time
                step = event_id + (step if after_shift else 0)
            else:
                events.append((step, -number if step < 0 else number, event_id))
            after_shift = types[event_id] == "shift"
    events.sort(key=lambda event: event[:2])
    merged: list[int] = []
    written = -1
    for step, _, event_id in events:
        if step != written:
            whole, rest = divmod(step, config.max_shift_steps)
            merged += [config.max_shift_steps] * whole + [rest] * (rest > 0)
            written = step
        merged.append(event_id)
    return merged


def remove_redundant_state_changes(ids: Sequence[int], config: VocabularyConfig) -> list[int]:
    """Returns the events without the programs and velocities that repeat the last one.

    Args:
        ids: event ids.
    """
    types, kept = event_types(config), []
    last: dict[str, int] = {}
    for event_id in ids:
        event_type = types[event_id]
        if event_type in ("program", "velocity"):
            if last.get(event_type) == event_id:
                continue
            last[event_type] = event_id
        kept.append(event_id)
    return kept


@cache
def event_types(config: VocabularyConfig) -> list[str]:
    """Returns the event type of every event id. The id of a shift is its number of steps."""
    codec = get_codec(config)
    return [codec.decode(event_id).type for event_id in range(codec.num_events)]
