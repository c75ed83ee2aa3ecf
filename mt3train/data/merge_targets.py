"""Targets of several sounds that are heard at once, merged into one.

Events are ordered by time, and within a step by the order of the parts, except that what comes before
the first shift (the tie sections among it) is ordered from the last part to the first. Each part keeps
the `tie` token of its own. Before merging, program and velocity are said with every note, or a note
behind one of another part would take that one's; afterwards repeats are left out again. All this is as
in the original, but for many mixes at a time, as columns: ids of events, and of which part or mix each is.

Source: mt3/run_length_encoding.py merge_run_length_encoded_targets,
remove_redundant_state_changes_fn; mt3/mixing.py.
"""

from __future__ import annotations

import numpy as np

from mt3data.music.vocabulary import EOS_ID, NUM_SPECIAL_IDS, PAD_ID, VocabularyConfig, get_codec

SHIFT, PITCH, VELOCITY, TIE, PROGRAM, DRUM = range(6)  # in the order of their ids


def merge_targets(
    tokens: np.ndarray, lengths: np.ndarray, mix_of: np.ndarray, config: VocabularyConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The target of each mix.

    Args:
        tokens: targets of the parts, int16 [parts, longest], EOS last, then padding.
        lengths: tokens of each, EOS included.
        mix_of: which mix each part belongs to, 0 to the number of mixes - 1, none empty. Parts of
            one mix are merged in their order here.
        config: the vocabulary.
    Returns:
        tokens and lengths of the mixes, int32 lengths; like the arguments.
    """
    counts = lengths.astype(np.int64) - 1
    ids = tokens[np.arange(tokens.shape[1]) < counts[:, None]].astype(np.int64) - NUM_SPECIAL_IDS
    said, part = repeat_state_before_every_note(
        ids, np.repeat(np.arange(len(counts)), counts), config
    )
    merged, mix = remove_redundant_state_changes(*merge(said, part, mix_of, config), config)
    n_mixes = int(mix_of.max(initial=-1)) + 1
    sizes = np.bincount(mix, minlength=n_mixes)
    out = np.full((n_mixes, sizes.max(initial=0) + 1), PAD_ID, np.int16)
    out[mix, np.arange(len(mix)) - np.repeat(np.cumsum(sizes) - sizes, sizes)] = (
        merged + NUM_SPECIAL_IDS
    )
    out[np.arange(n_mixes), sizes] = EOS_ID
    return out, (sizes + 1).astype(np.int32)


def repeat_state_before_every_note(
    ids: np.ndarray, part: np.ndarray, config: VocabularyConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Events with program and velocity said before every note, as before repeats are left out.

    Args:
        ids: codec ids, int64 [n].
        part: which target each is of, int64 [n], ascending.
    Returns:
        ids and part of all events that are then there.
    """
    kind = _kinds(ids, config)
    program = _last(ids, kind == PROGRAM, part)
    velocity = _last(ids, kind == VELOCITY, part)
    is_pitch, is_note = kind == PITCH, (kind == PITCH) | (kind == DRUM)
    if config.encoding == "ties":  # tie sections have no velocities
        is_note &= _last(ids, kind == TIE, part) >= 0
    rows = np.stack([program, velocity, ids], axis=1)
    is_said = np.stack(
        [
            is_pitch & (program >= 0),
            is_note & (velocity >= 0),
            (kind != PROGRAM) & (kind != VELOCITY),
        ],
        axis=1,
    )
    return rows[is_said], np.repeat(part, is_said.sum(axis=1))


def merge(
    ids: np.ndarray, part: np.ndarray, mix_of: np.ndarray, config: VocabularyConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Events of parts in the order of the mixes.

    Args:
        ids: codec ids, int64 [n].
        part: which part each is of, int64 [n], ascending.
        mix_of: which mix each part belongs to.
    Returns:
        ids and mix of all events; mixes ascend.
    """
    is_shift = _kinds(ids, config) == SHIFT
    begins = is_shift.copy()  # a run of shifts, which sum up to one time
    begins[1:] &= ~is_shift[:-1] | (part[1:] != part[:-1])
    run = np.cumsum(begins)
    times = np.bincount(run[is_shift], ids[is_shift], minlength=len(ids) + 1).astype(np.int64)
    step = np.where(_last(run, begins, part) >= 0, times[run], -1)
    ids, part, step = ids[~is_shift], part[~is_shift], step[~is_shift]
    order = np.lexsort((np.where(step < 0, -part, part), step, mix_of[part]))
    ids, step, mix = ids[order], step[order], mix_of[part][order]
    is_new = step >= 0
    is_new[1:] &= (step[1:] != step[:-1]) | (mix[1:] != mix[:-1])
    longest = config.max_shift_steps
    n_shifts = -(-int(step.max(initial=0)) // longest)
    shifts = [np.clip(step - k * longest, 0, longest) for k in range(n_shifts)]
    rows = np.stack([*shifts, ids], axis=1)
    is_said = np.stack([*(is_new & (shift > 0) for shift in shifts), ids >= 0], axis=1)
    return rows[is_said], np.repeat(mix, is_said.sum(axis=1))


def remove_redundant_state_changes(
    ids: np.ndarray, mix: np.ndarray, config: VocabularyConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Events of mixes without the programs and velocities that repeat the one said last.

    Args:
        ids: of the events, mix after mix.
        mix: the number of the mix to which each belongs.
    Returns:
        Both, for the events that stay.
    """
    kind, is_said = _kinds(ids, config), np.ones(len(ids), dtype=bool)
    for state in (VELOCITY, PROGRAM):
        places = np.flatnonzero(kind == state)
        here, before = places[1:], places[:-1]
        is_said[here] = (ids[here] != ids[before]) | (mix[here] != mix[before])
    return ids[is_said], mix[is_said]


def _kinds(ids: np.ndarray, config: VocabularyConfig) -> np.ndarray:
    return np.searchsorted(list(get_codec(config).first.values()), ids, side="right") - 1


def _last(ids: np.ndarray, chosen: np.ndarray, part: np.ndarray) -> np.ndarray:
    """For each event the last chosen one of its part up to there, or -1."""
    place = np.maximum.accumulate(np.where(chosen, np.arange(len(ids)), -1))
    return np.where((place >= 0) & (part[place] == part), ids[place], -1)
