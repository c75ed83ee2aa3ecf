"""Random changes of training audio: pitch, equalization, reverberation, gain and noise.

Transposition and detuning resample a crop, as a tape that runs faster or slower. This changes pitch and
time together, so the labels move with both: pitches by whole semitones, times by the ratio of the speeds.
Drums keep their labels. All other changes leave the labels as they are. Labels are moved by the process
that reads the crops, audio is changed on the device that trains.

MT3 has no augmentation but the mixing of examples (mixing.py), so all probabilities are 0 by default.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

from mt3data.audio.load import INT16_FULL_SCALE
from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.music.vocabulary import EOS_ID, NUM_SPECIAL_IDS, VocabularyConfig, get_codec
from mt3data.shards.reader import Batch, pad_tokens
from mt3train.config import AugmentConfig
from mt3train.data.merge_targets import event_types

KNOTS = 9  # of a random equalization curve, evenly spaced in octaves from 20 Hz to half the rate
WET_DB = (-18.0, 0.0)  # level of the reverberation relative to the direct sound
NOISE_SLOPE = (0.0, 1.2)  # noise falls with frequency as f**-slope: 0 is white, 1 nearly pink


def frames_to_read(frames: int, config: AugmentConfig, spectrogram: SpectrogramConfig) -> int:
    """Number of frames to read for crops of `frames` frames, so that the fastest still fills them."""
    ratio = 2 ** (max(config.transpose_semitones[1], 0) / 12)
    ratio = ratio if config.transpose else 1.0
    ratio *= 2 ** (max(config.detune_cents[1], 0) / 1200) if config.detune else 1.0
    if ratio == 1.0:
        return frames
    samples = frames * spectrogram.hop + spectrogram.fft_size
    return frames + math.ceil((samples * (ratio - 1) + 2) / spectrogram.hop)


@dataclasses.dataclass(frozen=True)
class Retuning:
    """Speeds at which the audio of crops is read, and the other changes that `augment_audio` makes.

    Attributes:
        ratios: float64 [examples]; 1.0 for crops that keep their pitch.
        n_samples: length of the crops after resampling.
        config: probability and range of every change.
    """

    ratios: Tensor
    n_samples: int
    config: AugmentConfig

    def __getitem__(self, rows: np.ndarray) -> Retuning:
        return dataclasses.replace(self, ratios=self.ratios[torch.from_numpy(rows)])

    def to(self, device: torch.device) -> Retuning:
        """Moves the ratios to a device."""
        return dataclasses.replace(self, ratios=self.ratios.to(device, non_blocking=True))


def retune(
    batch: Batch,
    frames_read: int,
    frames: int,
    config: AugmentConfig,
    spectrogram: SpectrogramConfig,
    vocabulary: VocabularyConfig,
    rng: np.random.Generator,
) -> tuple[Batch, Retuning]:
    """Draws the transposition and detuning of every crop and moves its labels accordingly.

    A crop keeps its pitch if a note would leave the range of MIDI pitches.

    Args:
        batch: crops with audio.
        frames_read: length of the crops, as `frames_to_read` returned it.
        frames: length of the crops after resampling.
        config, spectrogram, vocabulary: settings.
        rng: source of the draws.
    Returns:
        The batch with moved labels and its audio unchanged; and how to resample the audio.
    """
    assert batch.audio is not None
    n = len(batch.keys)
    low, high = map(int, config.transpose_semitones)
    semitones = rng.integers(low, high + 1, n) * (rng.random(n) < config.transpose)
    cents = rng.uniform(*config.detune_cents, n) * (rng.random(n) < config.detune)
    targets = [ids[:size] for ids, size in zip(batch.tokens, batch.lengths, strict=True)]
    for row, target in enumerate(targets):
        if not can_transpose(target, int(semitones[row]), vocabulary):
            semitones[row] = 0
    ratios = 2.0 ** (semitones / 12 + cents / 1200)
    n_steps = frames * spectrogram.hop / spectrogram.sample_rate * vocabulary.steps_per_second
    moved = [
        move_labels(target, int(shift), ratio, n_steps, vocabulary)
        for target, shift, ratio in zip(targets, semitones, ratios.tolist(), strict=True)
    ]
    tokens, lengths = pad_tokens(moved)
    n_frames = np.minimum(frames, np.floor(batch.n_frames / ratios)).astype(np.int32)
    n_samples = batch.audio.shape[1] - (frames_read - frames) * spectrogram.hop
    batch = dataclasses.replace(batch, tokens=tokens, lengths=lengths, n_frames=n_frames)
    return batch, Retuning(torch.from_numpy(ratios), n_samples, config)


def can_transpose(target: np.ndarray, semitones: int, config: VocabularyConfig) -> bool:
    """Checks whether all pitches of a target remain in the range of MIDI after a transposition."""
    first = NUM_SPECIAL_IDS + get_codec(config).first["pitch"]
    pitches = target[(target >= first) & (target < first + 128)].astype(np.int64) - first
    return len(pitches) == 0 or bool(
        0 <= pitches.min() + semitones <= pitches.max() + semitones <= 127
    )


def move_labels(
    target: np.ndarray, semitones: int, ratio: float, n_steps: float, config: VocabularyConfig
) -> np.ndarray:
    """Returns the target of a crop that is transposed and played faster.

    Args:
        target: tokens, EOS last.
        semitones: added to all pitches but those of drums.
        ratio: divides all times.
        n_steps: length of the new crop in time steps; later events are left out.
        config: the vocabulary.
    Returns:
        Tokens, int16, EOS last.
    """
    types, moved = event_types(config), list[int]()
    step = written = 0
    after_shift = False
    for event_id in (target[:-1].astype(np.int64) - NUM_SPECIAL_IDS).tolist():
        if types[event_id] == "shift":  # successive shifts add up to one time
            step = event_id + (step if after_shift else 0)
            after_shift = True
            continue
        after_shift = False
        new_step = round(step / ratio)
        if new_step >= n_steps:  # all later events have later times
            break
        if new_step != written:
            whole, rest = divmod(new_step, config.max_shift_steps)
            moved += [config.max_shift_steps] * whole + [rest] * (rest > 0)
            written = new_step
        moved.append(event_id + semitones if types[event_id] == "pitch" else event_id)
    return np.array([*moved, EOS_ID - NUM_SPECIAL_IDS], np.int16) + np.int16(NUM_SPECIAL_IDS)


def augment_audio(audio_BN: Tensor, retuning: Retuning, sample_rate: int) -> Tensor:
    """Changes the audio of crops at random, on its device, by torch's global generator.

    Args:
        audio_BN: crops, int16 or floating point in [-1, 1].
        retuning: from `retune`, on the same device.
        sample_rate: of the audio, in hertz.
    Returns:
        float32 [B, retuning.n_samples].
    """
    config, n_samples = retuning.config, retuning.n_samples
    x_BN = audio_BN.float() if audio_BN.is_floating_point() else audio_BN / INT16_FULL_SCALE
    x_BN = resample(x_BN, retuning.ratios, n_samples)
    n_crops, device = len(x_BN), x_BN.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n_crops, 1, device=device)

    def chosen(probability: float) -> Tensor:
        return (torch.rand(n_crops, 1, device=device) < probability).float()

    # Equalization, reverberation and noise are products and sums of spectra, over a length that has
    # room for the longest reverberation: none of it may wrap round to the beginning.
    room = math.ceil(config.reverb_seconds[1] * sample_rate) if config.reverb else 0
    size = scipy.fft.next_fast_len(n_samples + room, real=True)
    hertz_K = torch.fft.rfftfreq(size, 1 / sample_rate, device=device)
    spectrum_BK = torch.fft.rfft(x_BN, size)
    if config.equalize:
        knots_db = torch.randn(n_crops, KNOTS, device=device) * uniform(*config.equalize_db)
        curve_db = interpolate_octaves(knots_db * chosen(config.equalize), hertz_K)
        spectrum_BK = spectrum_BK * 10 ** (curve_db / 20)
    if config.reverb:
        seconds_B1 = torch.exp(uniform(*map(math.log, config.reverb_seconds)))
        wet_B1 = 10 ** (uniform(*WET_DB) / 20) * chosen(config.reverb)
        response_BR = impulse_responses(seconds_B1, room, sample_rate)
        spectrum_BK = spectrum_BK * (1 + wet_B1 * torch.fft.rfft(response_BR, size))
    if config.gain:
        gain_db = uniform(*config.gain_db) * chosen(config.gain)
        spectrum_BK = spectrum_BK * 10 ** (gain_db / 20)
    if config.noise:
        rms_B1 = 10 ** (uniform(*config.noise_dbfs) / 20) * chosen(config.noise)
        shape_BK = (hertz_K.clamp(min=30) / 1000) ** -uniform(*NOISE_SLOPE)
        shape_BK = shape_BK / shape_BK.square().mean(1, keepdim=True).sqrt()
        white_BK = torch.view_as_complex(torch.randn(*shape_BK.shape, 2, device=device))
        spectrum_BK = spectrum_BK + white_BK * shape_BK * (rms_B1 * math.sqrt(size / 2))
    return torch.fft.irfft(spectrum_BK, size)[:, :n_samples]


def resample(x_BN: Tensor, ratios_B: Tensor, n_samples: int) -> Tensor:
    """Reads every row `ratio` times as fast, by cubic interpolation. Returns [B, n_samples].

    Sample i of the result is the input at position i * ratio, so times are divided by the ratio. Rows
    with a ratio of 1 keep their values. Past the end of a row there are zeros.
    """
    if bool((ratios_B == 1).all()):
        return F.pad(x_BN, (0, max(0, n_samples - x_BN.shape[1])))[:, :n_samples]
    places = torch.arange(n_samples, device=x_BN.device) * ratios_B[:, None]
    left = places.floor().long()
    part = (places - left).to(x_BN.dtype)
    missing = max(0, int(left.max()) + 4 - x_BN.shape[1] - 1)
    padded = F.pad(x_BN, (1, missing + 1))  # padded[i + 1] is x[i]
    a, b, c, d = (padded.gather(1, left + k) for k in range(4))
    slope_b, slope_c = (c - a) / 2, (d - b) / 2
    bend = 3 * (c - b) - 2 * slope_b - slope_c
    twist = slope_b + slope_c - 2 * (c - b)
    return b + part * (slope_b + part * (bend + part * twist))


def interpolate_octaves(knots_BK: Tensor, hertz_F: Tensor) -> Tensor:
    """Draws a line through knots that lie evenly in octaves from 20 Hz on. Returns [B, F]."""
    octaves = torch.log2(hertz_F.clamp(min=20) / 20)
    places = octaves / octaves[-1] * (knots_BK.shape[1] - 1)
    left = places.floor().long().clamp(max=knots_BK.shape[1] - 2)
    part = places - left
    return knots_BK[:, left] * (1 - part) + knots_BK[:, left + 1] * part


def impulse_responses(seconds_B1: Tensor, n_samples: int, sample_rate: int) -> Tensor:
    """Makes synthetic rooms: white noise that decays by 60 dB in the given seconds, of energy 1.

    Returns:
        float32 [B, n_samples]; sample 0 is 0, where the direct sound comes.
    """
    times = torch.arange(n_samples, device=seconds_B1.device) / sample_rate
    noise = torch.randn(len(seconds_B1), n_samples, device=seconds_B1.device)
    response = noise * 10 ** (-3 * times / seconds_B1)
    response[:, 0] = 0
    return response / response.square().sum(1, keepdim=True).sqrt()
