"""How fast is the log-mel, beside librosa's and torch.stft with a dense matrix?

    python benchmarks/spectrogram.py [--seconds 60] [--repeat 7]

Prints seconds of audio per second of one core (process time, one thread, medians), and ratios. All
are timed in turn in every round, so that whatever else the machine does hits each alike. The row
"float32 FFT alone" is the floor that no arrangement around scipy's FFT gets below.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import librosa
import numpy as np
import scipy.fft
import torch
from threadpoolctl import threadpool_limits

from mt3data.audio.spectrogram import LogMelStream, SpectrogramConfig, log_mel, mel_matrix

CONFIG = SpectrogramConfig()


def ours_segments(samples: np.ndarray) -> None:
    for start in range(0, len(samples), 256 * 128):
        log_mel(samples[start : start + 256 * 128])


def ours_streamed(samples: np.ndarray) -> None:
    stream = LogMelStream()
    for start in range(0, len(samples), 160000):
        stream.push(samples[start : start + 160000])
    stream.finish()


def with_librosa(samples: np.ndarray) -> None:
    mel = librosa.feature.melspectrogram(
        y=samples, sr=16000, n_fft=2048, hop_length=128, center=False, power=1.0,
        n_mels=512, fmin=20.0, fmax=7600.0, htk=True, norm=None,
    )  # fmt: skip
    np.log(np.maximum(mel, 1e-5))


def with_torch(samples: torch.Tensor, window: torch.Tensor, matrix: torch.Tensor) -> None:
    spectrum = torch.stft(samples, 2048, 128, window=window, center=False, return_complex=True)
    torch.log(torch.clamp(spectrum.abs().T @ matrix, min=1e-5))


def fft_alone(frames: np.ndarray, n_frames: int) -> None:
    for _ in range(0, n_frames, len(frames)):
        scipy.fft.rfft(frames, workers=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="length of the test signal")
    parser.add_argument("--repeat", type=int, default=7, help="rounds; medians are printed")
    options = parser.parse_args()
    threadpool_limits(1)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Empty filters")  # filters 1 and 10, as in MT3
    samples = np.random.default_rng(0).standard_normal(16000 * options.seconds) * 0.1
    samples = samples.astype(np.float32)
    tensor, window = torch.from_numpy(samples), torch.hann_window(2048)
    matrix = torch.from_numpy(mel_matrix(CONFIG).copy())
    frames = np.tile(samples[:2048], (64, 1))
    rows: dict[str, Callable[[], object]] = {
        "log_mel, whole track": lambda: log_mel(samples),
        "log_mel, 256-frame segments": lambda: ours_segments(samples),
        "LogMelStream, 10 s blocks": lambda: ours_streamed(samples),
        "librosa.feature.melspectrogram": lambda: with_librosa(samples),
        "torch.stft + dense matrix": lambda: with_torch(tensor, window, matrix),
        "float32 FFT alone": lambda: fft_alone(frames, len(samples) // 128),
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    for round_number in range(options.repeat + 1):
        for name, function in rows.items():
            start = time.process_time()
            function()
            if round_number:  # the first round warms up
                times[name].append(time.process_time() - start)
    ours = statistics.median(times["log_mel, whole track"])
    print(f"{'':32}{'x real time':>12}{'best':>8}{'log_mel is':>14}")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        speed, best = options.seconds / median, options.seconds / min(seconds)
        print(f"{name:32}{speed:12.0f}{best:8.0f}{median / ours:9.2f} x as fast")


if __name__ == "__main__":
    main()
