"""Which estimated note stands for which reference note, and how many do.

mir_eval finds the largest set of pairs in which onsets differ by at most 50 ms, pitches are equal and,
where offsets count, these differ by at most a fifth of the reference note's length or 50 ms. Times
are rounded to 0.1 ms before they are compared, so that 50 ms is within 50 ms.

Notes are matched pitch by pitch. Because only equal pitches pair, that gives the very pairs that
mir_eval finds over all notes at once (tests/mt3train/evaluation/test_note_matching.py), but its tables grow with the square of
the number of notes: for 10,000 notes against 10,000, 3.2 GB and 18 s become 3 MB and 0.1 s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mt3data.music.notes import Notes

ONSET_TOLERANCE = 0.05  # s; mir_eval's default, as are all of these
OFFSET_RATIO = 0.2  # of the reference note's length
VELOCITY_TOLERANCE = 0.1  # of the range of the reference's velocities


@dataclass(frozen=True)
class Counts:
    """How many notes (or frames) are there, were found, and are both."""

    hits: int = 0
    n_reference: int = 0
    n_estimate: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.hits + other.hits,
            self.n_reference + other.n_reference,
            self.n_estimate + other.n_estimate,
        )

    def scores(self, nothing: float = 0.0) -> tuple[float, float, float]:
        """Precision, recall and F1 in [0, 1]; all `nothing` where neither side holds anything."""
        if not self.n_reference and not self.n_estimate:
            return nothing, nothing, nothing
        precision = self.hits / max(1, self.n_estimate)
        recall = self.hits / max(1, self.n_reference)
        f1 = 2 * precision * recall / (precision + recall) if self.hits else 0.0
        return precision, recall, f1


def count(
    reference: Notes, estimate: Notes, *, offsets: bool, velocity: bool = False,
    tolerance: float = ONSET_TOLERANCE,
) -> Counts:  # fmt: skip
    """Matches and counts, whatever program or drum a note is.

    Args:
        reference, estimate: in any order; notes of zero length do not count, as mir_eval refuses
            them and the original leaves them out.
        offsets: whether offsets count.
        velocity: whether velocities must agree, see `velocity_agrees`.
        tolerance: of onsets, and the least of offsets, in seconds.
    """
    reference, estimate = (n[n.onset != n.offset] for n in (reference, estimate))
    pairs = match(reference, estimate, offsets=offsets, tolerance=tolerance)
    hits = velocity_agrees(reference, estimate, pairs).sum() if velocity else len(pairs)
    return Counts(int(hits), len(reference), len(estimate))


def match(
    reference: Notes, estimate: Notes, *, offsets: bool, tolerance: float = ONSET_TOLERANCE
) -> np.ndarray:
    """Pairs (row in reference, row in estimate), int64 [n, 2], by row in reference.

    Args:
        reference, estimate: all notes must have a length above zero.
        offsets: whether offsets must agree too, within OFFSET_RATIO of the note or the tolerance.
        tolerance: of onsets, in seconds.
    """
    from mir_eval.transcription import match_notes

    pairs = [np.zeros((0, 2), np.int64)]
    for pitch in np.intersect1d(reference.pitch, estimate.pitch):
        mine, theirs = (np.flatnonzero(n.pitch == pitch) for n in (reference, estimate))
        found = match_notes(
            _intervals(reference[mine]), np.ones(len(mine)),
            _intervals(estimate[theirs]), np.ones(len(theirs)),
            onset_tolerance=tolerance, offset_ratio=OFFSET_RATIO if offsets else None,
            offset_min_tolerance=tolerance,
        )  # fmt: skip
        rows = np.array(found, np.int64).reshape(-1, 2)
        pairs.append(np.stack([mine[rows[:, 0]], theirs[rows[:, 1]]], axis=1))
    joined = np.concatenate(pairs)
    return joined[np.argsort(joined[:, 0])]


def velocity_agrees(reference: Notes, estimate: Notes, pairs: np.ndarray) -> np.ndarray:
    """For each pair, whether the velocities agree: bool [n].

    The estimate's velocities are first scaled and shifted by the line that fits them best to those
    of the reference, so that only relative loudness counts.

    Source: mir_eval/transcription_velocity.py match_notes.
    """
    if not len(pairs):
        return np.zeros(0, bool)
    quietest, loudest = reference.velocity.min(), reference.velocity.max()
    wanted = (reference.velocity[pairs[:, 0]] - quietest) / max(1, loudest - quietest)
    heard = estimate.velocity[pairs[:, 1]].astype(np.float64)
    line = np.stack([heard, np.ones(len(heard))], axis=1)
    fitted = line @ np.linalg.lstsq(line, wanted, rcond=None)[0]
    return np.abs(fitted - wanted) < VELOCITY_TOLERANCE


def _intervals(notes: Notes) -> np.ndarray:
    return np.stack([notes.onset, notes.offset], axis=1)
