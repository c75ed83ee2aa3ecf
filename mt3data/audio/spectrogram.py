"""Computes log-mel spectrograms, the input of the model.

A frame is 128 samples (8 ms at 16 kHz). Frame i covers the samples [128 i, 128 i + 2048). It is not
centred, and zeros follow the end of the audio. Each frame is weighted with a periodic Hann window.
Its magnitudes (not powers) pass 512 triangular mel filters (HTK formula, 20-7600 Hz, peaks of 1).
Their natural logarithm is the result. Exact zeros become log(1e-5), and small positive values have no
lower limit. Filters 1 and 10 are between two FFT bins, so they always give log(1e-5).

`right_context` names what follows the last frame of a segment. MT3 cuts 256 frames of audio and then
transforms them, so the last 15 frames of each segment see zeros ("zeros"):
`log_mel(samples[128 * start:128 * (start + 256)])`. A slice of the `log_mel` of the whole track sees
the audio that follows ("audio"). Both are equal on frames 0-240 and differ on frames 241-255, by up
to 4 nat in the last one.

Differences from MT3: none in what is computed. The FFT is the float32 FFT of pocketfft, and the mel
filters are a sparse matrix, of which 0.4 % is not zero. Against the original's output both stay
within 3e-5 of a value plus 2e-6 of the largest FFT bin of its frame (tests/golden/golden_spectrogram.py).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
import scipy.sparse

SILENCE = 1e-5  # mt3/spectral_ops.py safe_log: replaces an exact zero before the logarithm
BLOCK_FRAMES = 64  # frames per FFT call; 64 x 2048 float32 stay in the L2 cache
# Subtracts the difference of the exponent biases and adds nearly half of the last bit that is kept.
_TO_HALF = np.uint32((0x0FFF - ((127 - 15) << 23)) % (1 << 32))
_SMALLEST_NORMAL_HALF = np.float32(2.0**-14)


@dataclass(frozen=True)
class SpectrogramConfig:
    """The settings of a log-mel spectrogram. The defaults are those of MT3.

    Source: mt3/spectrograms.py SpectrogramConfig and its constants.
    """

    sample_rate: int = 16000  # Hz
    hop: int = 128  # samples between frames
    fft_size: int = 2048  # samples per frame, and length of the window
    n_mels: int = 512
    fmin: float = 20.0  # Hz, lower edge of the first filter
    fmax: float = 7600.0  # Hz, upper edge of the last filter

    @property
    def frames_per_second(self) -> float:
        """Frames per second, 125.0 with the defaults."""
        return self.sample_rate / self.hop

    @property
    def context(self) -> int:
        """Samples that a frame covers after its own hop, 1920 with the defaults."""
        return self.fft_size - self.hop


def count_frames(n_samples: int, hop: int = 128) -> int:
    """Returns the number of frames of `n_samples` in MT3: one whole extra frame if hop divides them.

    Source: mt3/preprocessors.py _audio_to_frames.
    """
    return n_samples // hop + 1


def pad_to_frames(samples: np.ndarray, hop: int = 128) -> np.ndarray:
    """Pads `samples`, of shape (n_samples,), with zeros to `count_frames(n_samples, hop)` whole frames."""
    return np.pad(samples, (0, count_frames(len(samples), hop) * hop - len(samples)))


def log_mel(
    samples: np.ndarray,
    config: SpectrogramConfig = SpectrogramConfig(),
    n_frames: int | None = None,
) -> np.ndarray:
    """Computes the log-mel spectrogram of one segment or one track, zero-padded at its end as in MT3.

    Args:
        samples: mono audio at config.sample_rate, shape (n_samples,), floating point in [-1, 1].
        n_frames: number of frames to compute; None: ceil(n_samples / hop).
    Returns:
        Natural log of mel magnitudes, shape (n_frames, n_mels), float32.
    Raises:
        ValueError: samples are not one-dimensional, or are integers.

    Source: mt3/spectral_ops.py compute_logmel.
    """
    samples = _as_float32(samples)
    if n_frames is None:
        n_frames = math.ceil(len(samples) / config.hop)
    return _transform(_pad_end(samples, n_frames, config), n_frames, config)


def log_mel_float16(
    samples: np.ndarray, n_frames: int, config: SpectrogramConfig = SpectrogramConfig()
) -> np.ndarray:
    """Computes the first frames of `log_mel` in float16, as shards hold them, (n_frames, n_mels).

    Args:
        samples: as for `log_mel`. Zeros follow them up to the end of the last frame.
        n_frames: number of frames.
    """
    samples = _pad_end(_as_float32(samples), n_frames, config)
    return _transform(samples, n_frames, config, np.float16)


class LogMelStream:
    """Computes the log-mel spectrogram of a track that arrives in blocks, in bounded memory.

    The frames of all `push` calls and of `finish` together have the same bytes as `log_mel` of all
    samples, for any sizes of the blocks. For this, frames are computed in groups of BLOCK_FRAMES
    that are counted from the first sample.
    """

    def __init__(self, config: SpectrogramConfig = SpectrogramConfig()) -> None:
        self.config = config
        self._pending = np.zeros(0, np.float32)  # begins at the first sample of the next frame

    def push(self, block: np.ndarray) -> np.ndarray:
        """Adds the next samples, any number, and returns the frames that no later sample changes.

        Args:
            block: shape (n_samples,), as for `log_mel`.
        Returns:
            float32, shape (a multiple of BLOCK_FRAMES that may be 0, n_mels).
        """
        config = self.config
        self._pending = np.concatenate([self._pending, _as_float32(block)])
        complete = max(0, (len(self._pending) - config.fft_size) // config.hop + 1)
        n_frames = complete - complete % BLOCK_FRAMES
        frames = _transform(self._pending, n_frames, config)
        if n_frames:
            self._pending = self._pending[n_frames * config.hop :].copy()
        return frames

    def finish(self) -> np.ndarray:
        """Returns the last frames, with zeros after the last sample. Then a new track may begin."""
        frames = log_mel(self._pending, self.config)
        self._pending = np.zeros(0, np.float32)
        return frames


@lru_cache(maxsize=8)
def mel_matrix(config: SpectrogramConfig = SpectrogramConfig()) -> np.ndarray:
    """Returns the mel filters, shape (fft_size // 2 + 1, n_mels), float32, read-only.

    They are computed in float32 step by step as in TensorFlow, because 1 ulp in a frequency changes
    a weight by 5e-5. All but 13 weights then equal the original's to the last bit, and these differ
    by at most 1.5e-6. In float64 the weights would differ by up to 6.8e-5, and spectra by 4e-4 nat.

    Source: tf.signal.linear_to_mel_weight_matrix, as called by mt3/spectral_ops.py compute_mel.
    """
    nyquist = np.float32(config.sample_rate / 2)
    # Without the bin at 0 Hz, which belongs to no filter.
    bins = _hertz_to_mel(np.linspace(0, nyquist, config.fft_size // 2 + 1, dtype=np.float32)[1:])
    first, last = _hertz_to_mel(np.array([config.fmin, config.fmax], np.float32))
    step = (last - first) / np.float32(config.n_mels + 1)
    edges = first + step * np.arange(config.n_mels + 2, dtype=np.float32)
    edges[-1] = last
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    weights = np.pad(np.maximum(np.float32(0), np.minimum(rising, falling)), ((1, 0), (0, 0)))
    weights.flags.writeable = False
    return weights


def hann_window(size: int) -> np.ndarray:
    """Returns the periodic Hann window, shape (size,), float32.

    It is computed in float32 as tf.signal.hann_window. In float64 it would differ by 2e-7.
    """
    angle = np.float32(2 * np.pi) * np.arange(size, dtype=np.float32)
    return np.float32(0.5) - np.float32(0.5) * np.cos(angle / np.float32(size))


def _transform(
    samples: np.ndarray, n_frames: int, config: SpectrogramConfig, dtype: type = np.float32
) -> np.ndarray:
    """Transforms the first n_frames frames of samples. All of them must be inside the samples."""
    out: np.ndarray = np.empty((n_frames, config.n_mels), dtype)
    if n_frames == 0:
        return out
    window, filters, empty = _tables(config)
    frames = np.lib.stride_tricks.sliding_window_view(samples, config.fft_size)[:: config.hop]
    # Reused work areas: page faults of new memory would cost as much as the window does.
    windowed = np.empty((min(BLOCK_FRAMES, n_frames), config.fft_size), np.float32)
    n_bins = filters.shape[1]
    magnitude = np.empty(n_bins * len(windowed), np.float32)
    for start in range(0, n_frames, BLOCK_FRAMES):
        n = min(BLOCK_FRAMES, n_frames - start)
        np.multiply(frames[start : start + n], window, out=windowed[:n])
        # One thread: two do no more work per core, and are slow if the other core is busy.
        spectrum = scipy.fft.rfft(windowed[:n], workers=1)
        # The sparse product needs frames as columns. Transposing is cheapest here.
        columns = np.abs(spectrum[:, :n_bins].T, out=magnitude[: n_bins * n].reshape(n_bins, n))
        mel = filters @ columns
        mel[empty] = SILENCE
        if mel.min() <= 0:  # rare; a search costs less than a mask for every block
            mel[mel <= 0] = SILENCE
        np.log(mel, out=mel)
        out[start : start + n] = (to_float16(mel) if dtype is np.float16 else mel).T
    return out


def to_float16(values: np.ndarray) -> np.ndarray:
    """Converts to float16 with the bits of `values.astype(np.float16)`, three to four times as fast.

    numpy converts one value after the other. Here integer arithmetic rounds all values at once, to
    nearest, ties to even.

    Args:
        values: float32, C order, magnitudes below 65504.
    """
    bits = values.view(np.uint32)
    work = bits >> 13  # one work area, because a second one would not stay in the cache
    work &= 1  # rounds ties to even
    work += bits
    work += _TO_HALF
    work >>= 13
    half = work.astype(np.uint16)  # removes the sign, now bit 18
    np.right_shift(bits, 16, out=work)
    work &= 0x8000
    half |= work.astype(np.uint16)
    magnitudes = np.abs(values, out=work.view(np.float32))
    if values.size and magnitudes.min() < _SMALLEST_NORMAL_HALF:  # these have fewer bits
        small = magnitudes < _SMALLEST_NORMAL_HALF
        half[small] = values[small].astype(np.float16).view(np.uint16)
    return half.view(np.float16)


@lru_cache(maxsize=8)
def _tables(config: SpectrogramConfig) -> tuple[np.ndarray, scipy.sparse.csr_matrix, np.ndarray]:
    """Returns the window, the filters as a sparse (n_mels, bins up to fmax) matrix, and the empty ones."""
    weights = mel_matrix(config)
    n_bins = int(np.flatnonzero(weights.any(axis=1))[-1]) + 1
    filters = scipy.sparse.csr_matrix(weights[:n_bins].T)
    return hann_window(config.fft_size), filters, np.flatnonzero(~weights.any(axis=0))


def mel_bin(hertz: np.ndarray, config: SpectrogramConfig) -> np.ndarray:
    """Returns the positions of frequencies, in hertz, on the axis of mel bins. The first bin is at 1.

    It computes in float64, for pictures and measurements. `mel_matrix` has its own rounding.
    """
    low, high = _htk_mel(np.array([config.fmin, config.fmax]))
    return (_htk_mel(hertz) - low) / (high - low) * (config.n_mels + 1)


def bin_hertz(config: SpectrogramConfig) -> np.ndarray:
    """Returns the centre of every mel bin in hertz, shape (n_mels,), float64."""
    low, high = _htk_mel(np.array([config.fmin, config.fmax]))
    centres = low + (high - low) / (config.n_mels + 1) * np.arange(1, config.n_mels + 1)
    return 700 * np.expm1(centres / 1127)


def _htk_mel(hertz: np.ndarray) -> np.ndarray:
    return 1127 * np.log1p(hertz / 700)


def _hertz_to_mel(hertz: np.ndarray) -> np.ndarray:
    """Converts hertz to the HTK mel scale in float32, with every operation rounded to float32."""
    return np.float32(1127) * _tensorflow_log(np.float32(1) + hertz / np.float32(700))


def _tensorflow_log(x: np.ndarray) -> np.ndarray:
    """Computes the natural log as TensorFlow 2.15 does for float32 on a CPU, for positive x.

    x = 2^e (1 + r) with 1 + r in [sqrt(1/2), sqrt(2)). log(1 + r) is approximated by a quotient of
    two cubics with the coefficients of Eigen's packet math (plog_impl_float). numpy's log is as
    accurate but rounds one value in ten differently.
    """
    one = np.float32(1)
    fraction, exponent = np.frexp(x)
    small = fraction < np.float32(math.sqrt(0.5))
    r = np.where(small, 2 * fraction, fraction) - one
    numerator = r * (one + r * (one + r * np.float32(0.18256296349849254)))
    denominator = np.float32(0.5992325) + r * np.float32(0.04961624795)
    denominator = one + r * (np.float32(1.5) + r * denominator)
    return (exponent - small).astype(np.float32) * np.float32(math.log(2)) + numerator / denominator


def _as_float32(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(
            f"log-mel needs mono samples, floating point, one dimension; got {samples.dtype} of "
            f"shape {samples.shape}; mix channels down and scale integers to [-1, 1] first"
        )
    return samples.astype(np.float32, copy=False)


def _pad_end(samples: np.ndarray, n_frames: int, config: SpectrogramConfig) -> np.ndarray:
    """Pads samples with zeros up to the end of the last of n_frames frames."""
    needed = (n_frames - 1) * config.hop + config.fft_size
    return np.pad(samples, (0, needed - len(samples))) if needed > len(samples) else samples
