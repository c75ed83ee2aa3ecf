"""Which stems a variant hears: random subsets of a Slakh track, and the quartets of Cerberus4.

MT3 trained on "10 random subsets of at least 4 instruments" of every Slakh song (paper, B.2). How
the sizes were drawn, with which seed and at which gain is not published. The law here: an instrument
is a stem; the size of a subset is uniform between 4 and all the stems; its members are drawn without
replacement; no subset comes twice while there are others; a track of fewer than 4 stems is taken
whole. Audio is the plain sum of the stems' published audio, gain 1, as Slakh's own mixes are said to
be (not yet checked against its files).

Source: MT3's paper, appendix B.2.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mt3data.audio.load import read_audio
from mt3data.datasets.track import Stem, Track

PAPER_SUBSETS, MIN_STEMS = 10, 4  # MT3, B.2
LAW = (
    "size uniform from {} to all stems, members uniform without replacement, distinct while "
    "possible; fewer stems: all; gain 1"
)
TRIES = 100  # draws until a subset is taken though it came before
MAX_QUARTETS = 32  # of one song; the paper's mean is 6


def subsets(
    stem_ids: Sequence[str], seed: int, track: str, count: int, least: int = MIN_STEMS
) -> tuple[tuple[str, ...], ...]:
    """Draws the stems of `count` variants, by the law above.

    Args:
        stem_ids: of the track, in order.
        seed, track: what the draw depends on, beside the stems.
        count: variants.
        least: stems of the smallest subset.
    Returns:
        For each variant its stems, in the order of stem_ids.
    """
    generator = random.Random(f"{seed}|{track}|subsets")
    least = min(least, len(stem_ids))
    drawn: list[tuple[str, ...]] = []
    for _ in range(count):
        for _ in range(TRIES):
            size = generator.randint(least, len(stem_ids))
            members = set(generator.sample(list(stem_ids), size))
            subset = tuple(stem_id for stem_id in stem_ids if stem_id in members)
            if subset not in drawn:
                break
        drawn.append(subset)
    return tuple(drawn)


def with_subsets(track: Track, seed: int, count: int, least: int = MIN_STEMS) -> Track:
    """The track with variants over random subsets of its stems.

    It stays as it is where it has no stems, has variants already, or is not for training.

    Args:
        count: how many subsets.
        least: stems of the smallest one.
    """
    ids = [stem.id for stem in track.stems if stem.audio]
    if not ids or track.variants or track.failure or track.split != "train":
        return track
    return replace(track, variants=subsets(ids, seed, track.id, count, least))


def quartets(groups: Sequence[Sequence[Stem]], song: str) -> list[tuple[Stem, ...]]:
    """All ways to take one stem of each group; MAX_QUARTETS of them, drawn by song, if more."""
    every = list(itertools.product(*groups))
    if len(every) <= MAX_QUARTETS:
        return every
    chosen = random.Random(f"{song}|quartets").sample(range(len(every)), MAX_QUARTETS)
    return [every[i] for i in sorted(chosen)]


def mixes(track: Track, rate: int) -> list[np.ndarray]:
    """The audio of every variant of a track: sums of its stems at `rate`, float32, equally long.

    Every stem is decoded once and added wherever it belongs, in the order of the stems.
    """
    sums = [np.zeros(0, np.float32) for _ in track.variants]
    for stem in track.stems:
        wanted = [k for k, members in enumerate(track.variants) if stem.id in members]
        if not wanted or stem.audio is None:
            continue
        samples = read_audio(stem.audio, rate)
        for k in wanted:
            longest = max(len(sums[k]), len(samples))
            sums[k] = np.pad(sums[k], (0, longest - len(sums[k])))
            sums[k][: len(samples)] += samples
    longest = max(map(len, sums))
    for k, samples in enumerate(sums):
        if len(samples) < longest:
            sums[k] = np.pad(samples, (0, longest - len(samples)))
    return sums
