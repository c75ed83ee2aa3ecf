"""Log-mel spectrograms of a batch of audio crops, on the device that trains.

On a CPU they are computed by `mt3data.audio.spectrogram.log_mel`, whose FFT and sparse filters take less
than half the time of a dense product. On a GPU torch's FFT and a dense mel matrix give the same numbers:
every mel magnitude is within 1e-5 of the other plus 1e-6 of the largest FFT bin of its frame (float32
rounding; tests/mt3train/data/test_features.py).

The length of a crop decides what follows its last frame. With as many samples as its frames have hops,
zeros follow (right_context "zeros", as in MT3). With fft_size - hop samples more, the last frames contain the
audio that follows in the track (right_context "audio").
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mt3data.audio.load import INT16_FULL_SCALE
from mt3data.audio.spectrogram import (
    SILENCE,
    SpectrogramConfig,
    hann_window,
    log_mel,
    mel_matrix,
)

CROPS_AT_ONCE = 32  # 256 frames each: 200 MB of work area


def log_mel_of_crops(
    audio_BN: Tensor, n_frames_B: Tensor, frames: int, config: SpectrogramConfig
) -> Tensor:
    """Computes log-mel frames [B, frames, n_mels], float32, on the audio's device.

    Args:
        audio_BN: crops that begin with their first frame, int16 as in shards or floating point in
            [-1, 1].
        n_frames_B: number of frames of each crop before its track's end. Later frames are 0.0, as in
            the original, which pads the log-mel.
        frames: number of frames to compute.
        config: settings of the spectrogram.
    """
    audio_BN = audio_BN if audio_BN.is_floating_point() else audio_BN / INT16_FULL_SCALE
    if audio_BN.device.type == "cpu":
        crops = audio_BN.numpy()
        mel_BFM = torch.from_numpy(np.stack([log_mel(crop, config, frames) for crop in crops]))
    else:
        mel_BFM = _dense_log_mel(audio_BN, frames, config)
    behind_BF = torch.arange(frames, device=mel_BFM.device) >= n_frames_B[:, None]
    return mel_BFM.masked_fill_(behind_BF[..., None], 0.0)


def _dense_log_mel(audio_BN: Tensor, frames: int, config: SpectrogramConfig) -> Tensor:
    """Computes the frames by torch's FFT and one product with a dense mel matrix."""
    window, filters = _tables(config, audio_BN.device)
    reach = (frames - 1) * config.hop + config.fft_size
    mels = []
    # Under bf16 autocast the filters would be multiplied with 8 bits.
    with torch.autocast(audio_BN.device.type, enabled=False):
        for crops in audio_BN.float().split(CROPS_AT_ONCE):
            samples = F.pad(crops, (0, reach - crops.shape[1]))
            framed = samples.unfold(1, config.fft_size, config.hop) * window
            mel = torch.fft.rfft(framed)[..., : len(filters)].abs() @ filters
            mels.append(mel.masked_fill_(mel <= 0, SILENCE).log_())
    return torch.cat(mels)


@lru_cache(maxsize=8)
def _tables(config: SpectrogramConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the window [fft_size] and the mel filters [bins up to fmax, n_mels]."""
    filters = torch.from_numpy(mel_matrix(config).copy())
    n_bins = int(filters.any(1).nonzero().max()) + 1
    window = torch.from_numpy(hann_window(config.fft_size))
    return window.to(device), filters[:n_bins].contiguous().to(device)
