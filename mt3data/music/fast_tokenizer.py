"""Notes to tokens, for any crop of a track.

A target tells the events of one segment in time order. It begins with the *tie section*, which lists
the notes held over from before the segment as (program, pitch) and closes with a `tie` token. Then
come groups of events, each group behind a shift that gives its time in 10 ms steps *from the start of
the segment*: a note says program, velocity bin, pitch; a note-off has velocity bin 0; a drum hit says
velocity and drum. Programs and velocities are said only where they change. EOS ends the target.

How this differs from MT3, and what it changes:

- A segment that starts after the last event of its track gets an empty tie section. The original
  repeats the state from before the track's last step, so that notes which have ended are declared
  tied (mt3/run_length_encoding.py, the loop after the last event forgets the state index).
- A track without notes gives the target of a silent segment, `tie EOS`; the original raises.
- `segment_start` is exact. The original rounds a float32 time down to 10 ms, which puts one segment
  in nine 10 ms early; `rounding="float32"` and `"float64"` reproduce it for comparison.
- The original walks every 10 ms of a track in Python; here events are columns and a crop is a slice,
  or many crops of many tracks are cut in one go.

Source: mt3/note_sequences.py and mt3/run_length_encoding.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mt3data.music.events import DRUM_KEY, NONE, PART_STEPS, EventTable
from mt3data.music.notes import COLUMNS, Notes
from mt3data.music.vocabulary import (
    EOS_ID,
    NUM_SPECIAL_IDS,
    PAD_ID,
    VocabularyConfig,
    apply_granularity,
    get_codec,
)

FRAMES_PER_SECOND = 125  # 16 kHz in hops of 128 samples


def first_time_step(frame: int, config: VocabularyConfig) -> int:
    """The step in which a frame begins: floor(time * steps_per_second), in whole numbers.

    A segment owns the events from its first frame's step up to the step of the frame after its
    last, so an event may lie up to 10 ms before the segment's first frame.
    """
    return int(_first_time_steps(np.asarray(frame), config))


def _first_time_steps(frames: np.ndarray, config: VocabularyConfig) -> np.ndarray:
    return frames * config.steps_per_second // FRAMES_PER_SECOND


def segment_start(frame: int, config: VocabularyConfig, rounding: str = "exact") -> float:
    """Time in seconds that shift 0 means in a segment which starts at this frame.

    Args:
        frame: first frame of the segment.
        config: its steps_per_second sets the grid.
        rounding: "exact"; or "float32" (mt3/tasks.py postprocess, mt3/inference.py) and "float64"
            (the original's notebook), which compute t - t % step in floating point and so fall one
            step low for many frames that lie on the grid.
    Raises:
        ValueError: another rounding.
    """
    if rounding == "exact":
        return first_time_step(frame, config) / config.steps_per_second
    if rounding not in ("float32", "float64"):
        raise ValueError(f"rounding={rounding!r}; expected exact, float32 or float64")
    time = float(np.dtype(rounding).type(frame / FRAMES_PER_SECOND))
    return time - time % (1 / config.steps_per_second)


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
    bounds = _first_time_steps(np.stack([start_frame, start_frame + n_frames]), config)
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
