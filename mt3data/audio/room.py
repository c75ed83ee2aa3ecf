"""Places recordings in synthetic rooms. MT3 has no counterpart."""

from __future__ import annotations

import math

import numpy as np
import scipy.fft
import scipy.signal

# Of rooms in which recordings are placed: decay in seconds and energy in dB relative to the direct sound
ROOM_SECONDS, ROOM_WET_DB = (0.3, 2.0), (-9.0, 5.0)


def room_response(seconds: float, wet_db: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Makes the impulse response of a room: direct sound, early reflections and a dulling tail.

    Args:
        seconds: time in which the middle frequencies decay by 60 dB.
        wet_db: energy of all but the direct sound, relative to it.
        rate: sampling rate in hertz.
        rng: source of the draws.
    Returns:
        float32, shape (n_samples,); sample 0 is the direct sound, of height 1.
    """
    times = np.arange(round(min(2.0, 1.1 * seconds) * rate)) / rate
    hertz, tail = scipy.fft.rfftfreq(len(times), 1 / rate), np.zeros(len(times))
    for low, high, share in ((0, 700, 1.1), (700, 2500, 1.0), (2500, rate, rng.uniform(0.3, 0.9))):
        spectrum = scipy.fft.rfft(rng.standard_normal(len(times)))
        spectrum[(hertz < low) | (hertz >= high)] = 0
        band = scipy.fft.irfft(spectrum, len(times))
        tail += band * 10 ** (-3 * times / (seconds * share))
    tail[: round(rng.uniform(0.002, 0.02) * rate)] = 0
    for _ in range(rng.integers(3, 9)):
        place = round(rng.uniform(0.002, 0.05) * rate)
        tail[min(place, len(tail) - 1)] += 2 * rng.uniform(-1, 1)
    tail *= 10 ** (wet_db / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return tail.astype(np.float32)


def place_in_room(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolves samples with the response of a room; the result is as long as the samples."""
    return scipy.signal.oaconvolve(samples, response)[: len(samples)].astype(np.float32)


def in_random_room(samples: np.ndarray, rate: int, seed: str) -> np.ndarray:
    """Places a recording in a room that is drawn from a seed.

    The direct sound keeps its place, so labels stay true, and the peak of the recording its height.

    Args:
        samples: float32, shape (n_samples,).
        rate: sampling rate in hertz.
        seed: any text.
    Returns:
        float32, shape (n_samples,).
    """
    rng = np.random.default_rng(list(seed.encode()))
    seconds = math.exp(rng.uniform(math.log(ROOM_SECONDS[0]), math.log(ROOM_SECONDS[1])))
    placed = place_in_room(samples, room_response(seconds, rng.uniform(*ROOM_WET_DB), rate, rng))
    peak = np.abs(placed).max(initial=0.0)
    return placed * np.float32(np.abs(samples).max(initial=0.0) / peak) if peak else placed
