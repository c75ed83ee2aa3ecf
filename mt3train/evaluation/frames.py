"""Counts the frames of a piano roll that are right.

A piano roll holds, for each pitch and each frame of 16 ms, the sum of the velocities of the notes
that sound. Notes get a length of at least 50 ms, drums exactly 50 ms.

The original makes its rolls through note-seq and pretty_midi and loses notes there
(`notes_of_mt3_roll`). Its rolls are arrays. We count from the frames at which a pitch changes, which
gives the same numbers. Memory then grows with the number of notes and not with their times.
"""

from dataclasses import replace

import numpy as np

from mt3data.music.notes import Notes
from mt3train.evaluation.note_matching import Counts

FRAMES_PER_SECOND = 62.5
MIN_SECONDS = 0.05  # mt3/metrics_utils.py get_prettymidi_pianoroll
VELOCITY_ABOVE = 30  # mt3/metrics.py: quieter frames of the reference do not count there
MAX_FRAMES = 1 << 40  # more than any note time; separates the pitches on one axis


def with_minimum_length(notes: Notes, are_drums: bool) -> Notes:
    """Lengthens notes to at least MIN_SECONDS. Drums get exactly this length.

    Source: mt3/metrics_utils.py get_prettymidi_pianoroll, which changes its argument.
    """
    short = are_drums | (notes.offset - notes.onset < MIN_SECONDS)
    return replace(notes, offset=np.where(short, notes.onset + MIN_SECONDS, notes.offset))


def notes_of_mt3_roll(notes: Notes, are_drums: bool) -> Notes:
    """Returns the notes that the original's roll shows, with their lengths and velocities there.

    Of the notes whose `instrument` is 0, which most code leaves there, only those of the last
    (program, is_drum) remain, because each group replaces the one before. Drums get velocity 0
    unless `are_drums` states that all notes are drums.

    Source: mt3/metrics_utils.py get_prettymidi_pianoroll, note_seq/midi_io.py
    note_sequence_to_pretty_midi, pretty_midi/instrument.py get_piano_roll.
    """
    notes = with_minimum_length(notes, are_drums)
    first = notes.instrument == 0
    if first.any():
        group = 2 * notes.program + notes.is_drum
        notes = notes[~first | (group == group[first].max())]
    silent = notes.is_drum & (not are_drums)
    return replace(notes, velocity=np.where(silent, 0, notes.velocity))


def frame_counts(reference: Notes, estimate: Notes, *, above: float = 0.0) -> Counts:
    """Counts the sounding frames of two piano rolls and those that sound in both.

    Args:
        reference, estimate: the notes of the rolls, with their lengths there.
        above: a frame of the reference sounds if its sum of velocities is above this. A frame of
            the estimate sounds if its sum is above 0.

    Source: mt3/metrics_utils.py frame_metrics, pretty_midi/instrument.py get_piano_roll.
    """
    spans = [_spans(notes) for notes in (reference, estimate)]
    edges = np.unique(np.concatenate([edge for span in spans for edge in span]))
    widths = np.diff(edges)
    # Every pitch ends with sum 0, so what lies between two pitches never sounds.
    wanted, found = (
        _sums(edges, span, notes.velocity)[:-1] > least
        for span, notes, least in zip(spans, (reference, estimate), (above, 0.0), strict=True)
    )
    return Counts(
        int(widths[wanted & found].sum()), int(widths[wanted].sum()), int(widths[found].sum())
    )


def _spans(notes: Notes) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first frame of each note and the frame after its last, all pitches on one axis."""
    pitch = notes.pitch.astype(np.int64) * MAX_FRAMES
    return tuple(  # type: ignore[return-value]
        pitch + (times * FRAMES_PER_SECOND).astype(np.int64)
        for times in (notes.onset, notes.offset)
    )


def _sums(
    edges: np.ndarray, spans: tuple[np.ndarray, np.ndarray], velocity: np.ndarray
) -> np.ndarray:
    """Returns the sum of the velocities that sound from each edge on."""
    change = np.zeros(len(edges), np.int64)
    for places, sign in zip(spans, (1, -1), strict=True):
        np.add.at(change, np.searchsorted(edges, places), sign * velocity.astype(np.int64))
    return np.cumsum(change)
