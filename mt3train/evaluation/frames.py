"""Piano rolls, and what share of their frames is right.

A roll holds, for each pitch and each frame of 16 ms, the sum of the velocities of the notes that
sound. Notes get a length of at least 50 ms, drums exactly 50 ms.

The original's rolls go through note-seq and pretty_midi, and lose notes there (`original_pianoroll`).
"""

from dataclasses import replace

import numpy as np

from mt3data.music.notes import Notes
from mt3train.evaluation.note_matching import Counts

FRAMES_PER_SECOND = 62.5
MIN_SECONDS = 0.05  # mt3/metrics_utils.py get_prettymidi_pianoroll
VELOCITY_ABOVE = 30  # mt3/metrics.py: quieter frames of the reference do not count there


def with_minimum_length(notes: Notes, are_drums: bool) -> Notes:
    """Notes of at least MIN_SECONDS; of exactly that where they are drums.

    Source: mt3/metrics_utils.py get_prettymidi_pianoroll, which changes its argument.
    """
    short = are_drums | (notes.offset - notes.onset < MIN_SECONDS)
    return replace(notes, offset=np.where(short, notes.onset + MIN_SECONDS, notes.offset))


def pianoroll(notes: Notes) -> np.ndarray:
    """Sums of velocities, float32 [128, n_frames]; the frame in which the last note ends is left out.

    Source: pretty_midi/instrument.py get_piano_roll.
    """
    n_frames = int(FRAMES_PER_SECOND * notes.offset.max()) if len(notes) else 0
    change = np.zeros((128, n_frames + 1), np.float32)
    first = np.minimum((notes.onset * FRAMES_PER_SECOND).astype(np.int64), n_frames)
    last = np.minimum((notes.offset * FRAMES_PER_SECOND).astype(np.int64), n_frames)
    np.add.at(change, (notes.pitch, first), notes.velocity)
    np.add.at(change, (notes.pitch, last), -notes.velocity)
    return np.cumsum(change, axis=1)[:, :n_frames]  # sums of small whole numbers: exact in float32


def original_pianoroll(notes: Notes, are_drums: bool) -> np.ndarray:
    """The roll that the original makes, which lacks notes; shape and type as of `pianoroll`.

    Of the notes whose `instrument` is 0, which most code leaves there, only those of the last
    (program, is_drum) remain: each group takes the place of the one before. Drums are silent unless
    `are_drums` says that all are drums.

    Source: mt3/metrics_utils.py get_prettymidi_pianoroll, note_seq/midi_io.py
    note_sequence_to_pretty_midi, pretty_midi/instrument.py get_piano_roll.
    """
    notes = with_minimum_length(notes, are_drums)
    first = notes.instrument == 0
    if first.any():
        group = 2 * notes.program + notes.is_drum
        notes = notes[~first | (group == group[first].max())]
    silent = notes.is_drum & (not are_drums)
    return pianoroll(replace(notes, velocity=np.where(silent, 0, notes.velocity)))


def frame_counts(reference: np.ndarray, estimate: np.ndarray, *, above: float = 0.0) -> Counts:
    """Frames that sound in two rolls: those above `above` in the reference, above 0 in the estimate.

    Source: mt3/metrics_utils.py frame_metrics.
    """
    wanted, heard = reference > above, estimate > 0
    both = min(wanted.shape[1], heard.shape[1])
    hits = (wanted[:, :both] & heard[:, :both]).sum()
    return Counts(int(hits), int(wanted.sum()), int(heard.sum()))
