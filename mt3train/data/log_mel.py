"""Log-mel spectrograms of a batch of audio crops, on the device that trains.

The same as `mt3data.audio.spectrogram.log_mel`, crop by crop, with torch's FFT and a dense mel matrix: every
mel magnitude is within 1e-5 of that one's plus 1e-6 of the largest FFT bin of its frame (float32
rounding; tests/mt3train/data/test_features.py). What a crop holds decides its right_context: with as many samples as its
frames have hops, zeros follow it (right_context "zeros", as MT3 does it); with fft_size - hop more, its last
frames hear what really follows (right_context "audio").
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mt3data.audio.load import INT16_FULL_SCALE
from mt3data.audio.spectrogram import SILENCE, SpectrogramConfig, hann_window, mel_matrix

CROPS_AT_ONCE = 32  # 256 frames each: 200 MB of work area


def log_mel_of_crops(
    audio_BN: Tensor, n_frames_B: Tensor, frames: int, config: SpectrogramConfig
) -> Tensor:
    """Log-mel frames [B, frames, n_mels], float32, on the audio's device.

    Args:
        audio_BN: crops that begin with their first frame, int16 as in shards or floating point in
            [-1, 1].
        n_frames_B: frames of each crop that lie before its track's end. Those behind are 0.0, as in
            the original, which pads log-mel.
        frames: frames to compute.
        config: the spectrogram's.
    """
    window, filters = _tables(config, audio_BN.device)
    reach = (frames - 1) * config.hop + config.fft_size
    mels = []
    # Under bf16 autocast the filters would be multiplied with 8 bits.
    with torch.autocast(audio_BN.device.type, enabled=False):
        for crops in audio_BN.split(CROPS_AT_ONCE):
            samples = crops.float() if crops.is_floating_point() else crops / INT16_FULL_SCALE
            samples = F.pad(samples, (0, reach - samples.shape[1]))
            framed = samples.unfold(1, config.fft_size, config.hop) * window
            mel = torch.fft.rfft(framed)[..., : len(filters)].abs() @ filters
            mels.append(mel.masked_fill_(mel <= 0, SILENCE).log_())
    mel_BFM = torch.cat(mels)
    behind_BF = torch.arange(frames, device=mel_BFM.device) >= n_frames_B[:, None]
    return mel_BFM.masked_fill_(behind_BF[..., None], 0.0)


@lru_cache(maxsize=8)
def _tables(config: SpectrogramConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """The window [fft_size] and the mel filters [bins up to fmax, n_mels]."""
    filters = torch.from_numpy(mel_matrix(config).copy())
    n_bins = int(filters.any(1).nonzero().max()) + 1
    window = torch.from_numpy(hann_window(config.fft_size))
    return window.to(device), filters[:n_bins].contiguous().to(device)
