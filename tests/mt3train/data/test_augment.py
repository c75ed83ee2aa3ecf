"""Augmentation: labels stay true to the audio, draws are seeded, and each change does what it says."""

import dataclasses

import numpy as np
import pytest
import torch
from note_rows import notes

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.errors import UserError
from mt3data.music.detokenizer import decode_segments
from mt3data.music.fast_tokenizer import encode_notes
from mt3data.music.vocabulary import VocabularyConfig, describe_tokens
from mt3data.shards.reader import Batch, pad_tokens
from mt3train.config import AugmentConfig, Config, load_config
from mt3train.data.augment import (
    Retuning,
    augment_audio,
    frames_to_read,
    impulse_responses,
    resample,
    retune,
)
from mt3train.data.loader import read_step, to_device

RATE, FRAMES = 16000, 250  # 2 s
MEL, TIES = SpectrogramConfig(), VocabularyConfig()
ONSETS, PITCHES = np.array([0.1, 0.7, 1.2, 1.7, 2.2]), [69, 76, 81, 64, 72]
EVERY = {
    "transpose up": {"transpose": 1.0, "transpose_semitones": (2, 2)},
    "transpose down": {"transpose": 1.0, "transpose_semitones": (-2, -2)},
    "detune": {"detune": 1.0, "detune_cents": (-30, 30)},
    "equalize": {"equalize": 1.0},
    "reverb": {"reverb": 1.0, "reverb_seconds": (0.1, 0.3)},
    "gain": {"gain": 1.0},
    "noise": {"noise": 1.0},
    "all": {"transpose": 1.0, "detune": 1.0, "equalize": 1.0, "reverb": 1.0, "gain": 1.0, "noise": 1.0,
            "reverb_seconds": (0.1, 0.3)},
}  # fmt: skip


def tones(n_frames):
    """Decaying tones with an instant attack at ONSETS, as a crop with audio behind its last frame."""
    samples = np.zeros(3 * RATE)
    for onset, pitch in zip(ONSETS, PITCHES, strict=True):
        times = np.arange(round(0.35 * RATE)) / RATE
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        tone = 0.4 * np.cos(2 * np.pi * hertz * times) * np.exp(-6 * times)
        begin = round(onset * RATE)
        samples[begin : begin + len(tone)] += tone
    crop = samples[: n_frames * MEL.hop + MEL.fft_size - MEL.hop]
    return np.rint(crop * 32767).astype(np.int16)


class Tones:
    """Training data whose every crop holds the tones and a drum hit at 0.4 s."""

    spectrogram, vocabulary, right_context, feature = MEL, TIES, "audio", "audio"

    def batch(self, step, global_batch, rank, world_size, frames):
        n = global_batch // world_size
        rows = [(on, on + 0.35, p, 100, 0, 0) for on, p in zip(ONSETS, PITCHES, strict=True)]
        track = notes(*rows, (0.4, 0.41, 38, 100, 0, 1))
        target = encode_notes(track, 0, frames, 10_000, TIES)
        audio = np.tile(tones(frames), (n, 1))
        ends = np.full(n, frames, np.int32)
        return Batch(None, audio, *pad_tokens([target] * n), ["k"] * n, np.zeros(n, int), ends)


def read(augment, step=0, augmenting=True, n=4):
    config = Config(batch=n, micro_batch=n, seed=1)
    data = dataclasses.replace(config.data, frames=FRAMES)
    config = dataclasses.replace(config, data=data, augment=augment)
    return read_step(Tones(), step, n, config, 0, 1, augmenting)


@pytest.mark.parametrize("name", EVERY)
def test_labels_stay_true_within_5_ms_and_at_the_exact_pitch(name):
    (micro,) = read(AugmentConfig(**EVERY[name]))
    torch.manual_seed(0)
    audio = augment_audio(micro.sound, micro.retuning, RATE).numpy()
    assert audio.shape == (4, FRAMES * 128 + 1920)
    for sound, tokens in zip(audio, micro.targets.numpy(), strict=True):
        found = decode_segments([(0.0, tokens[tokens > 0])], TIES).notes
        pitched = found[~found.is_drum]
        assert 4 <= len(pitched) <= 5
        for onset, pitch in zip(pitched.onset, pitched.pitch, strict=True):
            begin = round((onset - 0.02) * RATE)
            around = np.abs(sound[begin : begin + round(0.06 * RATE)])
            heard = begin / RATE + np.argmax(around > 0.4 * around.max()) / RATE
            assert abs(heard - onset) <= 0.005 + 1e-3 * ("reverb" in name)
            tone = sound[round((onset + 0.01) * RATE) :][: round(0.2 * RATE)]
            spectrum = np.abs(np.fft.rfft(tone * np.hanning(len(tone)), 2**17))
            spectrum[: round(150 * 2**17 / RATE)] = 0  # where noise is loudest
            semitones = 69 + 12 * np.log2(np.argmax(spectrum) * RATE / 2**17 / 440)
            assert abs(semitones - pitch) < 0.4


def test_an_octave_up_doubles_the_speed_of_labels_and_keeps_drums():
    track = notes(
        (0.0, 0.5, 60, 100, 40, 0), (1.0, 3.0, 62, 100, 40, 0), (2.4, 2.5, 38, 100, 0, 1),
        (3.0, 3.2, 66, 100, 40, 0), (4.6, 4.8, 70, 100, 40, 0),
    )  # fmt: skip
    target = encode_notes(track, 25, 625, 625, TIES)  # from 0.2 s on, 5 s long
    audio = np.zeros((1, 625 * 128), np.int16)
    batch = Batch(None, audio, *pad_tokens([target]), ["k"], np.zeros(1, int), np.array([600]))
    octave = AugmentConfig(transpose=1.0, transpose_semitones=(12, 12))
    moved, retuning = retune(batch, 625, 250, octave, MEL, TIES, np.random.default_rng(0))
    assert ", ".join(describe_tokens(moved.tokens[0], TIES)) == (
        "program 40, pitch 72, tie, shift 15, velocity 0, pitch 72, shift 40, velocity 1, pitch 74, "
        "shift 110, drum 38, shift 140, velocity 0, pitch 74, velocity 1, pitch 78, shift 150, "
        "velocity 0, pitch 78, EOS"
    )
    assert retuning.ratios.tolist() == [2.0] and retuning.n_samples == 250 * 128
    assert moved.n_frames.tolist() == [250]


def test_a_crop_whose_notes_would_leave_the_midi_range_keeps_its_pitch():
    rows = [notes((0.1, 0.5, pitch, 100, 0, 0)) for pitch in (126, 60)]
    targets = [encode_notes(row, 0, FRAMES, 1000, TIES) for row in rows]
    audio = np.zeros((2, FRAMES * 128), np.int16)
    batch = Batch(None, audio, *pad_tokens(targets), ["a", "b"], np.zeros(2, int), np.full(2, 9))
    up = AugmentConfig(transpose=1.0, transpose_semitones=(2, 2))
    moved, retuning = retune(batch, FRAMES, FRAMES, up, MEL, TIES, np.random.default_rng(0))
    assert retuning.ratios.tolist() == [1.0, 2 ** (2 / 12)]
    assert moved.tokens[0].tolist() == batch.tokens[0].tolist()
    assert "pitch 62" in describe_tokens(moved.tokens[1], TIES)


def test_without_augmentation_and_in_evaluation_batches_are_as_read():
    plain = read(AugmentConfig())[0]
    evaluated = read(AugmentConfig(transpose=1.0), augmenting=False)[0]
    for micro in (plain, evaluated):
        assert micro.retuning is None and micro.sound.shape[1] == FRAMES * 128 + 1920
    assert torch.equal(plain.targets, evaluated.targets)


def test_draws_depend_on_seed_and_step_alone():
    config = AugmentConfig(transpose=0.5, detune=0.5, equalize=0.5, noise=0.5)

    def crops(step):
        (micro,) = read(config, step)
        torch.manual_seed(step)
        return to_device(micro, torch.device("cpu"), torch.float32)

    for first, again, other in zip(crops(3), crops(3), crops(4), strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_each_crop_is_changed_with_the_given_probability(probability):
    config = AugmentConfig(gain=probability, gain_db=(-20.0, -6.0))
    audio = torch.full((400, 64), 0.5)
    retuning = Retuning(torch.ones(400, dtype=torch.float64), 64, config)
    torch.manual_seed(0)
    levels = augment_audio(audio, retuning, RATE).mean(1) / 0.5
    changed = levels < 0.99
    assert changed.float().mean().item() == pytest.approx(probability, abs=0.07)
    decibels = 20 * torch.log10(levels[changed])
    assert -20 <= decibels.min() < -18 and -8 < decibels.max() <= -5.99


def test_noise_has_the_given_level_and_equalization_the_given_spread():
    def changed(audio, **settings):
        torch.manual_seed(0)
        retuning = Retuning(torch.ones(len(audio)), audio.shape[1], AugmentConfig(**settings))
        return augment_audio(audio, retuning, RATE)

    noise = changed(torch.zeros(8, 32000), noise=1.0, noise_dbfs=(-40.0, -40.0))
    levels = 20 * torch.log10(noise.square().mean(1).sqrt())
    assert levels.tolist() == pytest.approx([-40.0] * 8, abs=0.5)
    impulses = torch.zeros(200, 4096)
    impulses[:, 0] = 1
    shaped = changed(impulses, equalize=1.0, equalize_db=(6.0, 6.0))
    gains_db = 20 * torch.log10(torch.fft.rfft(shaped).abs()[:, 10:])
    assert 4.0 < gains_db.std().item() < 6.5
    assert gains_db.diff(dim=1).abs().max() < 5.0


def test_a_room_decays_by_60_db_in_its_time_and_has_the_energy_of_the_sound():
    torch.manual_seed(0)
    response = impulse_responses(torch.tensor([[0.2], [0.5]]), RATE, RATE)
    assert response.square().sum(1).tolist() == pytest.approx([1.0, 1.0], rel=1e-5)
    for sound, seconds in zip(response, (0.2, 0.5), strict=True):
        early, late = (
            sound[:800].square().mean(),
            sound[round(seconds * RATE) :][:800].square().mean(),
        )
        assert 10 * torch.log10(early / late).item() == pytest.approx(60, abs=2)


def test_resampling_moves_every_time_by_the_ratio_and_keeps_what_has_none():
    times = torch.arange(4000, dtype=torch.float64) / RATE
    sine = torch.sin(2 * torch.pi * 500 * times).float()
    found = resample(sine.expand(3, -1), torch.tensor([1.0, 1.05, 0.97], dtype=torch.float64), 3500)
    assert torch.equal(found[0], sine[:3500])
    for row, ratio in zip(found[1:], (1.05, 0.97), strict=True):
        want = torch.sin(2 * torch.pi * 500 * times[:3500] * ratio).float()
        torch.testing.assert_close(row, want, rtol=0, atol=2e-3)
    beyond = resample(sine[None], torch.tensor([1.5], dtype=torch.float64), 3500)
    assert (beyond[0, 2700:] == 0).all()


def test_enough_is_read_for_the_fastest_crop_and_no_more_without_a_change_of_pitch():
    up = AugmentConfig(transpose=0.1, transpose_semitones=(-5, 3), detune=0.1)
    ratio = 2 ** (3 / 12 + 20 / 1200)
    samples = (FRAMES * 128 + 1920) * ratio
    assert samples < frames_to_read(FRAMES, up, MEL) * 128 + 1920 < samples + 1000
    assert frames_to_read(FRAMES, AugmentConfig(noise=1.0, transpose=0.0), MEL) == FRAMES


def test_ranges_are_lists_in_a_configuration():
    config = load_config(["augment.gain=0.5", "augment.gain_db=[-30, 0]", "augment.transpose=1"])
    assert (config.augment.gain, config.augment.gain_db) == (0.5, (-30.0, 0.0))
    assert config.augment.is_on and not load_config([]).augment.is_on


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        ("augment.gain=1.5", "expected a probability"),
        ("augment.gain_db=[3, -3]", "smaller one first"),
        ("augment.gain_db=3", "two numbers such as"),
        ("augment.transpose_semitones=[-1.5, 2]", "whole numbers"),
        ("augment.detune_cents=[-500, 0]", "within -100 to 100"),
    ],
)
def test_other_settings_are_refused_with_what_was_expected(setting, seen):
    with pytest.raises(UserError, match=seen):
        load_config([setting])
