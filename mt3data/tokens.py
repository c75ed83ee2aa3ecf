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
- The original walks every 10 ms of a track in Python; here events are columns and a crop is a slice.

Source: mt3/note_sequences.py and mt3/run_length_encoding.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mt3data.notes import Notes, validate
from mt3data.vocabulary import (
    EOS_ID,
    NUM_SPECIAL_IDS,
    VocabularyConfig,
    codec_of,
    map_programs,
    velocity_to_bin,
)

FRAMES_PER_SECOND = 125  # 16 kHz in hops of 128 samples
SILENCE = -1  # no program or velocity has been said yet
DRUM_KEY = 1 << 14  # above 128 * program + pitch of any pitched note


def first_step(frame: int, config: VocabularyConfig) -> int:
    """The step in which a frame begins: floor(time * steps_per_second), in whole numbers.

    A segment owns the events from its first frame's step up to the step of the frame after its
    last, so an event may lie up to 10 ms before the segment's first frame.
    """
    return frame * config.steps_per_second // FRAMES_PER_SECOND


def segment_start(frame: int, config: VocabularyConfig, rounding: str = "exact") -> float:
    """Time in seconds that shift 0 means in a segment which starts at this frame.

    Args:
        frame: first frame of the segment.
        config: its steps_per_second sets the grid.
        rounding: "exact"; or "float32" (mt3/tasks.py postprocess, mt3/inference.py) and "float64"
            (the original's notebook), which compute t - t % step in floating point and so fall one
            step low for many frames that lie on the grid.
    """
    if rounding == "exact":
        return first_step(frame, config) / config.steps_per_second
    if rounding not in ("float32", "float64"):
        raise ValueError(f"rounding={rounding!r}; expected exact, float32 or float64")
    time = float(np.dtype(rounding).type(frame / FRAMES_PER_SECOND))
    return time - time % (1 / config.steps_per_second)


@dataclass(frozen=True)
class EventTable:
    """All onsets and offsets of a track (or window) in time order, ready to be cut.

    Row i of the first four columns is event i. The `tie_` columns describe, for each onset of a
    pitched note, when the model's state calls that pitch and program held: before event j exactly
    if tie_after < j <= tie_until. That state is kept per (pitch, program), so overlapping equal
    notes are one, and the first note-off ends it.
    """

    config: VocabularyConfig
    step: np.ndarray  # quantised time
    program: np.ndarray  # -1 where none is said: drums, and every note in the onsets encoding
    velocity_bin: np.ndarray  # 0 for a note-off
    word: np.ndarray  # codec id of the pitch or drum
    tie_after: np.ndarray
    tie_until: np.ndarray
    tie_key: np.ndarray  # 128 * program + pitch, int16

    @staticmethod
    def of(notes: Notes, config: VocabularyConfig) -> EventTable:
        """Orders the events of notes as the original does.

        Equal times are ordered offsets first, then by (is_drum, program, pitch); times are
        compared before they are quantised, and quantised with banker's rounding.

        Raises:
            ValueError: see `notes.validate`.

        Source: mt3/note_sequences.py note_sequence_to_onsets_and_offsets_and_programs.
        """
        validate(notes)
        if config.encoding == "onsets":
            return EventTable._of_onsets(notes, config)
        # One number for (is_drum, program, pitch); 16 bits, which numpy sorts in linear time.
        key = (notes.is_drum * DRUM_KEY + 128 * notes.program + notes.pitch).astype(np.int16)
        order = np.argsort(key, kind="stable")
        pitched = order[key[order] < DRUM_KEY]
        time = np.concatenate([notes.offset[pitched], notes.onset[order]])
        bins = velocity_to_bin(notes.velocity[order], config.num_velocity_bins)
        velocity_bin = np.concatenate([np.zeros(len(pitched), np.int64), bins])
        by_time = np.argsort(time, kind="stable")
        key = key[np.concatenate([pitched, order])[by_time]]
        velocity_bin, is_drum, codec = velocity_bin[by_time], key >= DRUM_KEY, codec_of(config)
        return EventTable(
            config,
            np.rint(time[by_time] * config.steps_per_second).astype(np.int64),
            np.where(is_drum, SILENCE, map_programs(key // 128, config.granularity)),
            velocity_bin,
            key % 128 + np.where(is_drum, codec.first["drum"], codec.first["pitch"]),
            *_held_spans(key, velocity_bin),
        )

    @staticmethod
    def _of_onsets(notes: Notes, config: VocabularyConfig) -> EventTable:
        # Drums become ordinary pitches here; mt3/note_sequences.py note_sequence_to_onsets.
        notes = notes[np.argsort(notes.pitch, kind="stable")]
        notes = notes[np.argsort(notes.onset, kind="stable")]
        nothing = np.full(len(notes), SILENCE)
        step = np.rint(notes.onset * config.steps_per_second).astype(np.int64)
        word = notes.pitch + codec_of(config).first["pitch"]
        return EventTable(config, step, nothing, nothing, word, *_held_spans(nothing, nothing))


def _held_spans(
    key: np.ndarray, velocity_bin: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every pitched onset: its row, the row of its key's next event, and the key."""
    by_key = np.argsort(key, kind="stable")
    next_of_key = np.full(len(key), len(key))
    same = key[by_key][:-1] == key[by_key][1:]
    next_of_key[by_key[:-1][same]] = by_key[1:][same]
    onsets = np.flatnonzero((key < DRUM_KEY) & (velocity_bin > 0))
    return onsets, next_of_key[onsets], key[onsets]


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
    if n_frames < 1 or not 0 <= start_frame < max(track_frames, 1):
        raise ValueError(
            f"crop of {n_frames} frames at {start_frame}; expected at least 1 frame, beginning "
            f"inside the track of {track_frames} frames"
        )
    config, codec = events.config, codec_of(events.config)
    origin = first_step(start_frame, config)
    begin, end = int(np.searchsorted(events.step, origin)), len(events.step)
    if start_frame + n_frames < track_frames:
        end = int(np.searchsorted(events.step, first_step(start_frame + n_frames, config)))
    parts: list[np.ndarray] = []
    last_program = SILENCE
    if config.encoding == "ties":
        ties, last_program = _tie_section(events, begin)
        parts += [ties, np.array([codec.first["tie"]])]
    parts.append(_event_tokens(events, slice(begin, end), origin, last_program))
    ids = np.concatenate(parts) + NUM_SPECIAL_IDS
    return np.append(ids, EOS_ID).astype(np.int16)


def encode_notes(
    notes: Notes, start_frame: int, n_frames: int, track_frames: int, config: VocabularyConfig
) -> np.ndarray:
    """`encode` straight from notes, for one crop; see there. Many crops: keep the EventTable."""
    return encode(EventTable.of(notes, config), start_frame, n_frames, track_frames)


def _tie_section(events: EventTable, begin: int) -> tuple[np.ndarray, int]:
    """Codec ids of the notes held before event `begin`, and the last program said there."""
    held = (events.tie_after < begin) & (begin <= events.tie_until)
    key = np.sort(events.tie_key[held]).astype(np.int64)
    if not len(key):
        return key, SILENCE
    first, granularity = codec_of(events.config).first, events.config.granularity
    program = map_programs(key // 128, granularity)
    rows = np.stack([first["program"] + program, first["pitch"] + key % 128], axis=1)
    said = np.ones(rows.shape, dtype=bool)
    said[:, 0] = _changes(program, SILENCE) if granularity != "flat" else False
    return rows[said], int(program[-1])


def _event_tokens(events: EventTable, rows: slice, origin: int, last_program: int) -> np.ndarray:
    """Codec ids of some events: one row of [shifts, program, velocity, word] each, where they are said."""
    config, first = events.config, codec_of(events.config).first
    shift = events.step[rows] - origin
    if not len(shift):
        return np.zeros(0, np.int64)
    program, velocity_bin = events.program[rows], events.velocity_bin[rows]
    # A shift longer than one token's reach is said as as many full tokens as it takes, and the rest.
    n_shifts = max(1, -(-int(shift[-1]) // config.max_shift_steps))
    tokens = np.empty((len(shift), n_shifts + 3), np.int64)
    said = np.zeros(tokens.shape, dtype=bool)
    starts_group = _changes(shift, 0)
    for k in range(n_shifts):
        part = np.clip(shift - k * config.max_shift_steps, 0, config.max_shift_steps)
        tokens[:, k] = first["shift"] + part
        said[:, k] = starts_group & (part > 0)
    pitched = np.flatnonzero(program != SILENCE)
    tokens[:, -3] = first["program"] + program
    if config.granularity != "flat":
        said[pitched, -3] = _changes(program[pitched], last_program)
    tokens[:, -2] = first["velocity"] + velocity_bin
    said[:, -2] = _changes(velocity_bin, SILENCE)
    tokens[:, -1] = events.word[rows]
    said[:, -1] = True
    return tokens[said]


def _changes(values: np.ndarray, before: int) -> np.ndarray:
    """True where a value differs from the one in front of it."""
    changed = np.empty(len(values), dtype=bool)
    if len(values):
        changed[0] = values[0] != before
        np.not_equal(values[1:], values[:-1], out=changed[1:])
    return changed


def merge_streams(streams: Sequence[Iterable[int]], config: VocabularyConfig) -> list[int]:
    """Merges the run-length encoded targets of several tracks into one stream.

    Groups of events are ordered by time, and within a step by the order of the streams, except that
    what comes before the first shift (the tie sections among it) is ordered by the streams from last
    to first. Each tie section keeps its own `tie` token, and redundant states stay. All this is as
    in the original.

    Args:
        streams: codec ids (not vocabulary ids) without EOS; 0, the padding, ends a stream.
    Returns:
        Codec ids of the merged stream.

    Source: mt3/run_length_encoding.py merge_run_length_encoded_targets.
    """
    max_shift = config.max_shift_steps  # shift events are the codec ids 0 to max_shift
    before_first_shift: list[list[int]] = []
    groups: dict[int, list[int]] = {}
    for stream in streams:
        group: list[int] = []
        before_first_shift.append(group)
        step, in_shift = 0, False
        for event_id in stream:
            if event_id == 0:
                break
            if event_id <= max_shift:
                step = step + event_id if in_shift else event_id
                group = groups.setdefault(step, [])
            else:
                group.append(event_id)
            in_shift = event_id <= max_shift
    merged = [event_id for group in reversed(before_first_shift) for event_id in group]
    for step in sorted(step for step, group in groups.items() if group):
        full, rest = divmod(step, max_shift)
        merged += [max_shift] * full + [rest] * (rest > 0) + groups[step]
    return merged
