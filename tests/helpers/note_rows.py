"""Writes short tracks as rows, for tests whose facts can be checked by hand."""

import numpy as np

from mt3data.music.notes import Notes


def notes(*rows: tuple) -> Notes:
    """Returns notes from rows of (onset, offset, pitch, velocity, program, is_drum)."""
    return Notes.from_array(np.array([(*row, 0) for row in rows], dtype=float).reshape(-1, 7))
