"""How well does alignment find and undo what was done to the labels of rendered pieces?

    python benchmarks/align.py [--pieces 10] [--seconds 60] [--seed 100] [--minutes 45]

Composes and renders pieces, then changes their labels in known ways: the audio stays as it is. The
pieces are others than those that BIAS_SECONDS was found on. Prints one table; the last rows take
the pieces one after another as one long track and say what that costs.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from mt3data.align import lag as align
from mt3data.align.warp import warp
from mt3data.audio.load import read_audio
from mt3data.audio.spectrogram import SpectrogramConfig, log_mel
from mt3data.datasets.adapters import slakh
from mt3data.datasets.manifest import load
from mt3data.music.notes import Notes
from mt3data.synth.demo_dataset import synth

CONFIG = SpectrogramConfig()
SHIFTS = (-0.3, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3)  # s
WARPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as rendered": lambda t: t,
    "250 ms late": lambda t: t + 0.25,
    "3 % faster": lambda t: t / 1.03,
    "3 % slower": lambda t: t * 1.03,
    "breathing, 3 % in 20 s": lambda t: t + 0.03 * 20 / (2 * np.pi) * np.sin(2 * np.pi * t / 20),
    "3 % slower bit by bit": lambda t: t + 0.03 * t**2 / (2 * t[-1]),
}


def rendered(pieces: int, seconds: float, seed: int) -> list[tuple[np.ndarray, Notes]]:
    """Bands (of a float16 log-mel, as in builds) and notes of freshly rendered pieces."""
    with tempfile.TemporaryDirectory() as folder:
        synth(Path(folder), tracks=pieces, seconds=seconds, seed=seed)
        return [
            (heard(read_audio(track.audio)), track.load_notes().sorted())
            for track in slakh.tracks(Path(folder), load("demo"))
        ]


def heard(samples: np.ndarray) -> np.ndarray:
    return align.semitone_magnitudes(log_mel(samples).astype(np.float16), CONFIG)


def changed(notes: Notes, change: Callable[[np.ndarray], np.ndarray]) -> Notes:
    return replace(notes, onset=change(notes.onset), offset=change(notes.offset))


def shift_table(tracks: list[tuple[np.ndarray, Notes]]) -> None:
    print(f"{'known shift':>24}{'found, median':>16}{'worst error':>14}{'least confidence':>18}")
    for shift in SHIFTS:
        found = [align.measure(bands, align.shift_notes(n, -shift), CONFIG) for bands, n in tracks]
        lags = np.array([f.lag_seconds for f in found]) * 1000
        worst, least = np.abs(lags - shift * 1000).max(), min(f.confidence for f in found)
        print(f"{shift * 1000:21.0f} ms{np.median(lags):13.1f} ms{worst:11.1f} ms{least:18.2f}")


def warp_table(tracks: list[tuple[np.ndarray, Notes]]) -> None:
    head = ("labels", "off by", "after: median", "95 %", "worst piece", "refused")
    print(f"\n{head[0]:>24}{head[1]:>12}{head[2]:>16}{head[3]:>12}{head[4]:>14}{head[5]:>9}")
    for name, change in WARPS.items():
        before, after, medians, refused = [], [], [], 0
        for bands, notes in tracks:
            labels = changed(notes, change)
            moved, _, remark = warp(bands, labels, CONFIG)
            refused += bool(remark)
            errors = np.abs(moved.onset - notes.onset) * 1000
            before.append(np.abs(labels.onset - notes.onset) * 1000)
            after.append(errors)
            medians.append(np.median(errors))
        was, now = np.median(np.concatenate(before)), np.concatenate(after)
        print(f"{name:>24}{was:9.0f} ms{np.median(now):13.1f} ms{np.quantile(now, 0.95):9.1f} ms"
              f"{max(medians):11.1f} ms{refused:>9}")  # fmt: skip


def refusals(tracks: list[tuple[np.ndarray, Notes]]) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 128 * len(tracks[0][0])).astype(np.float32)
    others = {
        "white noise": [heard(noise)] * len(tracks),
        "the next piece": [bands for bands, _ in tracks[1:] + tracks[:1]],
    }
    print(f"\n{'audio':>24}{'highest peak':>16}{'confidence':>12}{'shifted':>10}{'warped':>9}")
    for name, audio in others.items():
        found = [
            align.measure(bands, n, CONFIG) for bands, (_, n) in zip(audio, tracks, strict=True)
        ]
        shifted = sum(
            align.remove_lag(n, f)[0] is not n for f, (_, n) in zip(found, tracks, strict=True)
        )
        warped = sum(
            warp(m, n, CONFIG)[0] is not n for m, (_, n) in zip(audio, tracks, strict=True)
        )
        peak, sure = max(f.peak for f in found), max(f.confidence for f in found)
        print(
            f"{name:>24}{peak:16.1f}{sure:12.2f}{shifted:>7}/{len(found)}{warped:>6}/{len(found)}"
        )


def long_track(tracks: list[tuple[np.ndarray, Notes]], minutes: float) -> str:
    """One track of so many minutes: times and the highest memory use of the process."""
    pieces: list[np.ndarray] = []
    parts: list[Notes] = []
    begun, wanted = 0.0, minutes * 60
    while begun < wanted:
        bands, notes = tracks[len(parts) % len(tracks)]
        pieces.append(bands)
        parts.append(align.shift_notes(notes, begun))
        begun += len(bands) / CONFIG.frames_per_second
    bands, notes = np.concatenate(pieces), Notes.concat(parts)
    del pieces, parts
    lines = [f"{begun / 60:.0f} minutes, {len(notes)} notes, bands of {bands.nbytes / 1e6:.0f} MB"]
    start = time.process_time()
    align.measure(bands, notes, CONFIG)
    took = time.process_time() - start
    lines.append(f"measure: {took:.1f} s, {begun / took:.0f} x real time, {_peak_mb()}")
    start = time.process_time()
    moved, _, remark = warp(bands, changed(notes, WARPS["3 % slower"]), CONFIG)
    took = time.process_time() - start
    error = np.median(np.abs(moved.onset - notes.onset)) * 1000
    lines.append(f"3 % slower, warped: {took:.1f} s, {begun / took:.0f} x real time, {_peak_mb()}; "
                 f"median error {error:.1f} ms {remark}")  # fmt: skip
    return "\n  ".join(lines)


def _peak_mb() -> str:
    return f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB so far"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pieces", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each piece")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=45.0, help="of the long track; 0: none")
    options = parser.parse_args()
    tracks = rendered(options.pieces, options.seconds, options.seed)
    shift_table(tracks)
    warp_table(tracks)
    refusals(tracks)
    start = time.process_time()
    for bands, notes in tracks:
        align.measure(bands, notes, CONFIG)
    seconds = sum(len(bands) for bands, _ in tracks) / CONFIG.frames_per_second
    print(f"\nmeasure: {seconds / (time.process_time() - start):.0f} x real time on one core")
    if options.minutes:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # for its own use of memory
            print(f"\n{pool.submit(long_track, tracks, options.minutes).result()}")


if __name__ == "__main__":
    main()
