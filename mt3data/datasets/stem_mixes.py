"""Draws which stems a variant contains, and sums them.

Variants are random subsets of the stems of a Slakh track, or quartets of Cerberus4. MT3 trained on "10
random subsets of at least 4 instruments" of every Slakh song (paper, B.2). The drawing of sizes, the
seed and the gain are not published. We use these rules: An instrument is a stem. The size of a subset
is uniform between 4 and all stems. Its members are drawn without replacement. No subset comes twice
while there are others. A track of fewer than 4 stems is taken whole. The audio is the plain sum of the
published stems with gain 1. Slakh's own mixes are reported to be made this way, which was not yet checked
against its files.

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
TRIES = 100  # draws, after which a repeated subset is accepted
MAX_QUARTETS = 32  # of one song; the paper's mean is 6


def subsets(
    stem_ids: Sequence[str], seed: int, track: str, count: int, least: int = MIN_STEMS
) -> tuple[tuple[str, ...], ...]:
    """Draws the stems of `count` variants by the rules above.

    Args:
        stem_ids: stems of the track, in order.
        seed, track: seed of the draw, together with the stems.
        count: number of variants.
        least: number of stems of the smallest subset.
    Returns:
        The stems of each variant, in the order of stem_ids.
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
    """Returns the track with variants over random subsets of its stems.

    Tracks without stems, with variants, or not for training are returned unchanged.

    Args:
        seed: of the draw.
        count: number of subsets.
        least: number of stems of the smallest subset.
    """
    ids = [stem.id for stem in track.stems if stem.audio]
    if not ids or track.variants or track.failure or track.split != "train":
        return track
    return replace(track, variants=subsets(ids, seed, track.id, count, least))


def quartets(groups: Sequence[Sequence[Stem]], song: str) -> list[tuple[Stem, ...]]:
    """Returns all ways to take one stem of each group, or MAX_QUARTETS of them, drawn by song."""
    every = list(itertools.product(*groups))
    if len(every) <= MAX_QUARTETS:
        return every
    chosen = random.Random(f"{song}|quartets").sample(range(len(every)), MAX_QUARTETS)
    return [every[i] for i in sorted(chosen)]


def mixes(track: Track, rate: int) -> list[np.ndarray]:
    """Sums the stems of every variant of a track, at `rate`, float32, all of equal length.

    Every stem is decoded once and added to its variants, in the order of the stems.
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
