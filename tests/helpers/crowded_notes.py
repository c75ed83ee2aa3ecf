"""Hypothesis draws tracks whose notes crowd the borders of windows."""

import numpy as np
from hypothesis import strategies as st

from mt3data.music.notes import Notes

WINDOW = 512
TRACK_FRAMES = 1400  # 11.2 s: two windows and a short third


@st.composite
def tracks(draw: st.DrawFn) -> Notes:
    """Notes that crowd the borders of windows: few pitches, many repeats and overlaps."""
    n = draw(st.integers(0, 40))
    grid = st.sampled_from([0.0, 4.0, 4.096, 4.086, 4.081, 4.0911, 8.192, 8.187, 8.2, 11.19])
    onset = draw(st.lists(st.one_of(grid, st.floats(0, 12)), min_size=n, max_size=n))
    length = draw(
        st.lists(st.sampled_from([1e-4, 0.004, 0.01, 0.3, 5.0, 9.0]), min_size=n, max_size=n)
    )
    columns = [
        draw(st.lists(st.sampled_from(values), min_size=n, max_size=n))
        for values in ([60, 61], [1, 64, 127], [0, 3, 9], [False, False, True])
    ]
    pitch, velocity, program, is_drum = (np.array(c) for c in columns)
    times = np.array(onset), np.array(onset) + np.array(length)
    return Notes(*times, pitch, velocity, np.where(is_drum, 0, program), is_drum, np.zeros(n))
