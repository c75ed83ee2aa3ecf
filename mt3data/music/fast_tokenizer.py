"""Tokenizes many segments at once, with the result of `tokenizer.py`. Read that file first.

`EventTable` holds the onsets and offsets of a track as columns in time order, and for each onset the
interval of events in which its note is held. A segment is then a slice of the columns. Two binary
searches find its tie section. So many segments of many tracks are encoded without a Python loop.

Four words have one meaning in this file:

- A *crop* is a range of frames for which tokens are made: a segment, or a window of a shard.
- A *window* is the range of frames that one record of a shard holds. It has the notes of its frames.
- A *part* is one track or one window in a table that holds several.
- A *row* is one event of a table.

Source: mt3/note_sequences.py and mt3/run_length_encoding.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mt3data.music.notes import COLUMNS, Notes, validate
from mt3data.music.tokenizer import FRAMES_PER_SECOND
from mt3data.music.vocabulary import (
    EOS_ID,
    NUM_SPECIAL_IDS,
    PAD_ID,
    VocabularyConfig,
    apply_granularity,
    get_codec,
    velocity_to_bin,
)

NONE = -1  # the program of a drum, and the state before the first program or velocity of a target
PART_STEPS = 1 << 40  # time steps between the parts of a table, more than a track has
DRUM_KEY = 1 << 14  # more than 128 * program + pitch of any pitched note


@dataclass(frozen=True)
class EventTable:
    """The onsets and offsets of a track or window in time order.

    Row i of the first four columns is event i. The `tie_` columns have one entry for each onset of a
    pitched note. The onset is row tie_after, and the next event of its (program, pitch) is row
    tie_until. The note is held before row j if tie_after < j <= tie_until. Here are three notes:
    piano pitch 60 from 0.5 to 2 s, a drum at 0.6 s, and piano pitch 60 again from 1 to 3 s.

        row  time_step  program  velocity_bin  event
        0         50       0          1        piano 60 begins    held before rows 1 to 2
        1         60     NONE         1        drum 36
        2        100       0          1        piano 60 begins    held before row 3
        3        200       0          0        piano 60 ends
        4        300       0          0        piano 60 ends

        tie_after = [0, 2], tie_until = [2, 3], tie_key = [60, 60]

    A segment that begins with row 1 or 2 has piano 60 in its tie section, through the first entry,
    and one that begins with row 3 through the second. One that begins with row 4 has an empty tie
    section: equal notes that overlap count as one, and the first offset ends it.

    Several parts follow one another, with time steps PART_STEPS apart. No part affects another.
    """

    config: VocabularyConfig
    time_step: np.ndarray  # quantised time + part * PART_STEPS
    program: np.ndarray  # NONE for drums, and for every note in the encoding "onsets"
    velocity_bin: np.ndarray  # 0 for an offset
    pitch_id: np.ndarray  # event id of the pitch or drum
    tie_after: np.ndarray
    tie_until: np.ndarray
    tie_key: np.ndarray  # 128 * program + pitch, int16
    tie_part: np.ndarray

    @staticmethod
    def from_notes(
        notes: Notes, config: VocabularyConfig, part: np.ndarray | None = None
    ) -> EventTable:
        """Sorts the onsets and offsets of notes as `tokenizer.note_events` does.

        Args:
            notes: in any order.
            config: the vocabulary.
            part: the number of the part to which each note belongs. None: all are one part.
        Raises:
            ValueError: see `notes.validate`.

        Source: mt3/note_sequences.py note_sequence_to_onsets_and_offsets_and_programs.
        """
        validate(notes)
        part = np.zeros(len(notes), np.int64) if part is None else part
        codec, onsets_only = get_codec(config), config.encoding == "onsets"
        # One number for (is_drum, program, pitch). It has 16 bits, so numpy sorts in linear time.
        # In the encoding "onsets", drums are ordinary pitches and no note has an offset.
        kind = 0 if onsets_only else notes.is_drum * DRUM_KEY + 128 * notes.program
        key = (kind + notes.pitch).astype(np.int16)
        order = np.argsort(key, kind="stable")
        ending = order[:0] if onsets_only else order[key[order] < DRUM_KEY]
        time = np.concatenate([notes.offset[ending], notes.onset[order]])
        bins = velocity_to_bin(notes.velocity[order], config.num_velocity_bins)
        bins = np.full_like(bins, NONE) if onsets_only else bins
        velocity_bin = np.concatenate([np.zeros(len(ending), np.int64), bins])
        note = np.concatenate([ending, order])
        in_order = _by_part_and_time(part[note], time)
        note, velocity_bin = note[in_order], velocity_bin[in_order]
        key, part = key[note], part[note]
        is_drum = key >= DRUM_KEY
        program = apply_granularity(key // 128, config.granularity)
        time_step = np.rint(time[in_order] * config.steps_per_second).astype(np.int64)
        return EventTable(
            config,
            time_step + part * PART_STEPS,
            np.where(is_drum | onsets_only, NONE, program),
            velocity_bin,
            key % 128 + np.where(is_drum, codec.first["drum"], codec.first["pitch"]),
            *held_intervals(key, part, velocity_bin),
        )


def _by_part_and_time(part: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Returns the order of events by part and time. Equal events keep their order."""
    by_time = np.argsort(time, kind="stable")
    part = part[by_time]
    return by_time[np.argsort(part, kind="stable")] if part.any() else by_time


def held_intervals(
    key: np.ndarray, part: np.ndarray, velocity_bin: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the columns tie_after, tie_until, tie_key and tie_part of a table.

    Args:
        key: 128 * program + pitch of each event; DRUM_KEY or more for drums.
        part, velocity_bin: of each event. Parts ascend.
    """
    by_key = np.argsort(key, kind="stable")  # the parts ascend within a key too
    next_of_key = np.full(len(key), len(key))
    before, after = by_key[:-1], by_key[1:]
    same = (key[before] == key[after]) & (part[before] == part[after])
    next_of_key[before[same]] = after[same]
    onsets = np.flatnonzero((key < DRUM_KEY) & (velocity_bin > 0))
    return onsets, next_of_key[onsets], key[onsets], part[onsets]


def encode(events: EventTable, start_frame: int, n_frames: int, track_frames: int) -> np.ndarray:
    """Returns the tokens of the frames [start_frame, start_frame + n_frames) of a track.

    Args:
        events: the track's events, or those of a window that covers the frames.
        start_frame, n_frames, track_frames: see `tokenizer.tokenize`.
    Returns:
        Tokens, EOS last, int16, shape (n,). They are neither padded nor cut at 1,024.
    Raises:
        ValueError: a crop that is empty or begins outside the track.

    Source: mt3/run_length_encoding.py encode_and_index_events, run_length_encode_shifts_fn,
    remove_redundant_state_changes_fn; mt3/preprocessors.py map_midi_programs.
    """
    crops = (np.array([value]) for value in (start_frame, n_frames, track_frames))
    return encode_many(events, *crops)[0][0]


def encode_many(
    events: EventTable, start_frame: np.ndarray, n_frames: np.ndarray, track_frames: np.ndarray,
    part: np.ndarray | int = 0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Encodes many crops at once, each as `encode` does.

    Args:
        events: of the track or of all parts.
        start_frame, n_frames, track_frames: of each crop, integers [n].
        part: the part of the table from which each crop is cut.
    Returns:
        Tokens, int16 [n, longest], EOS last and then PAD_ID, and the number of tokens of each crop,
        int32 [n].
    Raises:
        ValueError: a crop without frames, or one that begins outside its track.
    """
    for start, n, track in zip(start_frame, n_frames, track_frames, strict=True):
        if n < 1 or not 0 <= start < max(track, 1):
            raise ValueError(
                f"crop of {n} frames at {start}; expected at least 1 frame, beginning inside the "
                f"track of {track} frames"
            )
    config, codec, crops = events.config, get_codec(events.config), np.arange(len(start_frame))
    bounds = np.stack([start_frame, start_frame + n_frames]) * config.steps_per_second
    bounds //= FRAMES_PER_SECOND
    bounds[1, start_frame + n_frames >= track_frames] = PART_STEPS
    bounds += PART_STEPS * part
    begin, end = np.searchsorted(events.time_step, bounds)
    sections: list[tuple[np.ndarray, np.ndarray]] = []  # event ids and their crops
    last_program = np.full(len(crops), NONE)
    if config.encoding == "ties":
        sections.append(_tie_sections(events, begin, part, last_program))
        sections.append((np.full(len(crops), codec.first["tie"]), crops))
    sections.append(_event_tokens(events, begin, end, bounds[0], last_program))
    sections.append((np.full(len(crops), EOS_ID - NUM_SPECIAL_IDS), crops))
    ids, crop = (np.concatenate(columns) for columns in zip(*sections, strict=True))
    lengths = np.bincount(crop, minlength=len(crops))
    tokens = np.full((len(crops), int(lengths.max(initial=0))), PAD_ID, np.int16)
    filled = np.arange(tokens.shape[1]) < lengths[:, None]
    tokens[filled] = ids[np.argsort(crop, kind="stable")] + NUM_SPECIAL_IDS
    return tokens, lengths.astype(np.int32)


def encode_notes(
    notes: Notes, start_frame: int, n_frames: int, track_frames: int, config: VocabularyConfig
) -> np.ndarray:
    """Returns the tokens of one crop from notes. For many crops, keep the `EventTable`.

    Args, Returns and Raises: see `tokenizer.tokenize` and `encode`.
    """
    return encode(EventTable.from_notes(notes, config), start_frame, n_frames, track_frames)


def encode_crops(
    windows: Sequence[np.ndarray], start_frame: np.ndarray, n_frames: np.ndarray,
    track_frames: np.ndarray, config: VocabularyConfig,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Encodes one crop of each of several windows, in a tenth of the time of `encode_notes`.

    Only notes near a crop become events. These are the notes that sound or begin in it, and the
    notes that end after the first of these began, because they might end a note of the same pitch
    and program. Near means within two time steps. One and a half would do: one because the crop's
    first frame is rounded down, and half a time step because times are rounded.

    Args:
        windows: the notes of each window, float64 [n, 7] as shards hold them.
        start_frame, n_frames, track_frames: of each crop, integers [n].
    Returns:
        The tokens and their numbers, as `encode_many`.
    """
    counts = np.array([len(window) for window in windows], np.int64)
    part = np.repeat(np.arange(len(windows)), counts)
    notes = np.concatenate([np.zeros((0, len(COLUMNS))), *windows])
    onset, offset = notes[:, 0], notes[:, 1]
    margin = 2 / config.steps_per_second
    earliest = start_frame / FRAMES_PER_SECOND - margin
    held = (offset >= earliest[part]) & (onset <= earliest[part] + 2 * margin)
    np.minimum.at(earliest, part[held], onset[held])
    latest = (start_frame + n_frames) / FRAMES_PER_SECOND + margin
    latest[start_frame + n_frames >= track_frames] = np.inf
    near = (offset >= earliest[part]) & (onset <= latest[part])
    events = EventTable.from_notes(Notes.from_array(notes[near]), config, part[near])
    crop_of_window = np.arange(len(windows))
    return encode_many(events, start_frame, n_frames, track_frames, crop_of_window)


def _tie_sections(
    events: EventTable, begin: np.ndarray, part: np.ndarray | int, last_program: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the event ids of the notes held before row begin[crop], and the crop of each id.

    Writes the last program of each tie section into last_program.
    """
    by_begin = np.argsort(begin, kind="stable")
    first, stop = np.searchsorted(
        begin[by_begin], np.stack([events.tie_after, events.tie_until]), side="right"
    )
    tie, place = _concat_ranges(first, stop - first)
    crop = by_begin[place]
    mine = events.tie_part[tie] == (part[crop] if isinstance(part, np.ndarray) else part)
    crop, key = np.divmod(np.sort(crop[mine] * DRUM_KEY + events.tie_key[tie[mine]]), DRUM_KEY)
    if not len(key):
        return key, crop
    first, granularity = get_codec(events.config).first, events.config.granularity
    program = apply_granularity(key // 128, granularity)
    emitted, ids = np.ones((len(key), 2), dtype=bool), np.empty((len(key), 2), np.int64)
    ids[:, 0], ids[:, 1] = first["program"] + program, first["pitch"] + key % 128
    changes = _differs_from_previous(program, crop, last_program)
    emitted[:, 0] = changes if granularity != "flat" else False
    last_program[crop] = program  # the last of several values for one crop remains
    return _flatten_emitted(ids, emitted, crop)


def _event_tokens(
    events: EventTable, begin: np.ndarray, end: np.ndarray, origin: np.ndarray,
    last_program: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Returns the event ids of the rows begin[crop] to end[crop], and the crop of each id.

    Each row gives the event ids [shifts, program, velocity, pitch], and some of them are emitted.
    """
    config, first = events.config, get_codec(events.config).first
    crop, rows = _concat_ranges(begin, end - begin)
    if not len(rows):
        return rows, crop
    shift = events.time_step[rows] - origin[crop]
    program, velocity_bin = events.program[rows], events.velocity_bin[rows]
    # A shift beyond the largest one becomes several: as many of the largest as fit, and the rest.
    n_shifts = max(1, -(-int(shift.max()) // config.max_shift_steps))
    ids = np.empty((len(shift), n_shifts + 3), np.int64)
    emitted = np.zeros(ids.shape, dtype=bool)
    starts_group = _differs_from_previous(shift, crop, np.zeros_like(begin))
    for k in range(n_shifts):
        rest = shift - k * config.max_shift_steps
        ids[:, k] = first["shift"] + np.minimum(rest, config.max_shift_steps)
        emitted[:, k] = starts_group & (rest > 0)
    pitched = np.flatnonzero(program != NONE)
    ids[:, -3] = first["program"] + program
    if config.granularity != "flat":
        emitted[pitched, -3] = _differs_from_previous(program[pitched], crop[pitched], last_program)
    ids[:, -2] = first["velocity"] + velocity_bin
    emitted[:, -2] = _differs_from_previous(velocity_bin, crop, np.full_like(begin, NONE))
    ids[:, -1] = events.pitch_id[rows]
    emitted[:, -1] = True
    return _flatten_emitted(ids, emitted, crop)


def _concat_ranges(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concatenates integer ranges.

    Args:
        first, count: first element and length of each range.
    Returns:
        For every element, the index of its range and its value.
    """
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) + (first + count - np.cumsum(count))[owner]


def _flatten_emitted(
    ids: np.ndarray, emitted: np.ndarray, crop: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the emitted ids row by row, and the crop of each."""
    places = np.flatnonzero(emitted)
    return ids.ravel()[places], crop[places // ids.shape[1]]


def _differs_from_previous(values: np.ndarray, crop: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Returns where a value differs from the previous one of its crop.

    Args:
        values, crop: of each event. The events of a crop follow one another.
        before: the value in front of the first event of each crop.
    """
    changed = np.empty(len(values), dtype=bool)
    if len(values):
        np.not_equal(values[1:], values[:-1], out=changed[1:])
        begins = np.ones(len(values), dtype=bool)
        np.not_equal(crop[1:], crop[:-1], out=begins[1:])
        first = np.flatnonzero(begins)
        changed[first] = values[first] != before[crop[first]]
    return changed
