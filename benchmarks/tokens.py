"""Time to tokenise one minute of dense music: every segment, and one random crop.

    python benchmarks/tokens.py

The notes are tests/golden/timing_60s_notes.json (60 s, 1,881 notes, 7 instruments), for which the
original needs 2.1 to 2.3 s. Prints medians of process time.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mt3data.music.fast_tokenizer import (
    EventTable,
    encode,
    encode_crops,
    encode_many,
    encode_notes,
)
from mt3data.music.notes import Notes
from mt3data.music.vocabulary import VocabularyConfig

NOTES = Path(__file__).parent.parent / "tests" / "golden" / "timing_60s_notes.json"
TRACK_FRAMES = 60 * 125 + 1


def median_ms(function: Callable[[], object], repeats: int) -> float:
    """Median process time of a call, in milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def main() -> None:
    """Prints the figures."""
    notes = Notes.from_columns(json.loads(NOTES.read_text()))
    config, rng = VocabularyConfig(), np.random.default_rng(0)
    window = notes[(notes.offset > 20.0) & (notes.onset < 20.0 + 2048 / 125)]
    events, array = EventTable.from_notes(window, config), window.to_array()
    several = np.full(64, 256), np.full(64, TRACK_FRAMES)

    def every_segment() -> None:
        starts = np.arange(0, TRACK_FRAMES, 256)
        track_frames = np.full(len(starts), TRACK_FRAMES)
        lengths = np.minimum(256, track_frames - starts)
        encode_many(EventTable.from_notes(notes, config), starts, lengths, track_frames)

    def random_crop() -> None:
        encode(events, 2500 + int(rng.integers(0, 1792)), 256, TRACK_FRAMES)

    def random_crop_from_notes() -> None:
        encode_notes(window, 2500 + int(rng.integers(0, 1792)), 256, TRACK_FRAMES, config)

    def random_crops() -> None:
        encode_crops([array] * 64, 2500 + rng.integers(0, 1792, 64), *several, config)

    print(f"every segment of 60 s, {len(notes)} notes      {median_ms(every_segment, 200):7.3f} ms")
    print(f"one random crop of a prepared window     {median_ms(random_crop, 2000):7.3f} ms")
    print(
        f"the same, window of {len(window)} notes prepared {median_ms(random_crop_from_notes, 2000):7.3f} ms"
    )
    print(f"one of 64 such crops, encoded together   {median_ms(random_crops, 100) / 64:7.3f} ms")


if __name__ == "__main__":
    main()
