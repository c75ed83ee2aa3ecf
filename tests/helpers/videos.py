"""Writes recordings and videos with PyAV, which tests of other decoders than libsndfile's read."""

from fractions import Fraction
from pathlib import Path

import numpy as np

CLICKS = (1.0, 2.5)  # seconds


def clicks(rate: int, seconds: float = 4.0) -> np.ndarray:
    """Returns noise at -60 dB with clicks, which begin at the times CLICKS."""
    samples = 1e-3 * np.random.default_rng(0).standard_normal(round(rate * seconds))
    for time in CLICKS:
        begin = round(time * rate)
        samples[begin : begin + 64] += 0.8 * np.hanning(128)[64:]
    return samples.astype(np.float32)


def click_times(samples: np.ndarray, rate: int) -> list[float]:
    """Returns the times of the two loudest samples that are 0.1 s apart or more."""
    loud, times = np.abs(samples), []
    for _ in CLICKS:
        peak = int(loud.argmax())
        times.append(peak / rate)
        loud[max(0, peak - rate // 10) : peak + rate // 10] = 0
    return sorted(times)


def write_media(
    path: Path, codec: str | None, rate: int = 48000, *, video: str | None = None,
    samples: np.ndarray | None = None, later: float = 0.0, container: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """Writes mono samples (`clicks`, unless given) in both channels of a file.

    Args:
        codec: of the sound; None: no sound.
        video: codec of a small grey picture; None: no picture.
        later: seconds from the beginning of the picture to that of the sound.
        container, options: of FFmpeg.
    """
    import av

    samples = clicks(rate) if samples is None else samples
    with av.open(str(path), "w", format=container, options=options or {}) as out:
        picture = out.add_stream(video, rate=25) if video else None
        sound = out.add_stream(codec, rate=rate, layout="stereo") if codec else None
        if picture:
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
            for number in range(round(25 * (len(samples) / rate + later))):
                frame = av.VideoFrame.from_ndarray(np.full((96, 64), 128, np.uint8), "yuv420p")
                frame.pts = number
                out.mux(picture.encode(frame))
            out.mux(picture.encode(None))
        if sound:
            form = av.AudioResampler(sound.codec_context.format, "stereo", rate)
            for begin in range(0, len(samples), 1024):
                both = np.stack([samples[begin : begin + 1024]] * 2)
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(both), "fltp", "stereo")
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = begin + round(later * rate)
                for ready in form.resample(frame):
                    out.mux(sound.encode(ready))
            for ready in form.resample(None):
                out.mux(sound.encode(ready))
            out.mux(sound.encode(None))
    return path
