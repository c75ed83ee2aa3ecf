"""Tokenizes many segments at once. It gives the tokens of `tokenizer.py`, which is to be read first.

The onsets and offsets of a track become columns in time order (`EventTable`). For each onset they
say from which event to which the note is held. A segment is then a slice of the columns, and its tie
section is found by two binary searches, so many segments of many tracks are encoded without a loop.

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


def encode(events: EventTable, start_frame: int, n_frames: int, track_frames: int) -> np.ndarray:
    """Tokens of the frames [start_frame, start_frame + n_frames) of a track.

    Args:
        events: the track's events, or those of a window that covers the frames.
        start_frame: first frame of the crop, 8 ms each, from the start of the track.
        n_frames: length of the crop, at least 1.
        track_frames: frames of the whole track. A crop that reaches its end takes all later events
            too, as in the original.
    Returns:
        Vocabulary ids ending with EOS, int16, shape (n,). Not padded and not cut at 1,024.
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
    """`encode` for many crops at once, for a fraction of the time; see there.

    Args:
        start_frame, n_frames, track_frames: of each crop, integers [n].
        part: the part of the table that each crop is cut from.
    Returns:
        Vocabulary ids, int16 [n, longest], EOS last and PAD_ID behind it; and how many there are
        in each row, int32 [n].
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
    bounds = (
        np.stack([start_frame, start_frame + n_frames])
        * config.steps_per_second
        // FRAMES_PER_SECOND
    )
    bounds[1, start_frame + n_frames >= track_frames] = PART_STEPS
    bounds += PART_STEPS * part
    begin, end = np.searchsorted(events.step, bounds)
    sections: list[tuple[np.ndarray, np.ndarray]] = []  # codec ids and their crops
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
    """`encode` straight from notes, for one crop; see there. Many crops: keep the EventTable."""
    return encode(EventTable.of(notes, config), start_frame, n_frames, track_frames)


def encode_crops(
    windows: Sequence[np.ndarray], start_frame: np.ndarray, n_frames: np.ndarray,
    track_frames: np.ndarray, config: VocabularyConfig,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """`encode_notes` for one crop of each of several windows, at a tenth of the time for each.

    Only notes near the crop become events: those that sound or begin in it, and those that end
    after the first of these began, which might end a note of the same key. A step is taken off for
    the crop's first frame, which is rounded down, and half a step for the rounding of times.

    Args:
        windows: the notes of each window, float64 [n, 7] as shards hold them.
        start_frame, n_frames, track_frames: see `encode_many`, which also says what is returned.
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
    events = EventTable.of(Notes.from_array(notes[near]), config, part[near])
    crop_of_window = np.arange(len(windows))
    return encode_many(events, start_frame, n_frames, track_frames, crop_of_window)


def _tie_sections(
    events: EventTable, begin: np.ndarray, part: np.ndarray | int, last_program: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Codec ids of the notes held before event begin[crop], and their crops.

    The last program that each crop says there goes into last_program.
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
    program, said = apply_granularity(key // 128, granularity), np.ones((len(key), 2), dtype=bool)
    ids = np.empty(said.shape, np.int64)
    ids[:, 0], ids[:, 1] = first["program"] + program, first["pitch"] + key % 128
    said[:, 0] = (
        _differs_from_previous(program, crop, last_program) if granularity != "flat" else False
    )
    last_program[crop] = program  # of several values for one crop, the last one stays
    return _flatten_emitted(ids, said, crop)


def _event_tokens(
    events: EventTable, begin: np.ndarray, end: np.ndarray, origin: np.ndarray,
    last_program: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Codec ids of the events begin[crop] to end[crop], and their crops.

    An event is a row of [shifts, program, velocity, word], each where it is said.
    """
    config, first = events.config, get_codec(events.config).first
    crop, rows = _concat_ranges(begin, end - begin)
    if not len(rows):
        return rows, crop
    shift = events.step[rows] - origin[crop]
    program, velocity_bin = events.program[rows], events.velocity_bin[rows]
    # A shift longer than one token's reach is said as as many full tokens as it takes, and the rest.
    n_shifts = max(1, -(-int(shift.max()) // config.max_shift_steps))
    ids = np.empty((len(shift), n_shifts + 3), np.int64)
    said = np.zeros(ids.shape, dtype=bool)
    starts_group = _differs_from_previous(shift, crop, np.zeros_like(begin))
    for k in range(n_shifts):
        rest = shift - k * config.max_shift_steps
        ids[:, k] = first["shift"] + np.minimum(rest, config.max_shift_steps)
        said[:, k] = starts_group & (rest > 0)
    pitched = np.flatnonzero(program != NONE)
    ids[:, -3] = first["program"] + program
    if config.granularity != "flat":
        said[pitched, -3] = _differs_from_previous(program[pitched], crop[pitched], last_program)
    ids[:, -2] = first["velocity"] + velocity_bin
    said[:, -2] = _differs_from_previous(velocity_bin, crop, np.full_like(begin, NONE))
    ids[:, -1] = events.pitch_id[rows]
    said[:, -1] = True
    return _flatten_emitted(ids, said, crop)


def _concat_ranges(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of several ranges, each given by its first and its length, and whose they are."""
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) + (first + count - np.cumsum(count))[owner]


def _flatten_emitted(
    ids: np.ndarray, said: np.ndarray, crop: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What is said of the rows of ids, in reading order, and the crops of the rows."""
    places = np.flatnonzero(said)
    return ids.ravel()[places], crop[places // ids.shape[1]]


def _differs_from_previous(values: np.ndarray, crop: np.ndarray, before: np.ndarray) -> np.ndarray:
    """True where a value differs from the one in front of it; the first of a crop, from before."""
    changed = np.empty(len(values), dtype=bool)
    if len(values):
        np.not_equal(values[1:], values[:-1], out=changed[1:])
        begins = np.ones(len(values), dtype=bool)
        np.not_equal(crop[1:], crop[:-1], out=begins[1:])
        first = np.flatnonzero(begins)
        changed[first] = values[first] != before[crop[first]]
    return changed
