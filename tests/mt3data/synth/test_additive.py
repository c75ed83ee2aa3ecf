"""Invented instruments: pitch, harmonics and attacks of the notes, and a SoundFont that plays them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mt3data.errors import UserError
from mt3data.synth import additive
from mt3data.synth.additive import RATE, Timbre, draw_timbre, play_note, write_invented_soundfont
from mt3data.synth.ensembles import SUSTAINED
from mt3data.synth.render import attack_times, open_soundfont
from mt3data.synth.sampled import write_soundfont

SAW = Timbre(
    rolloff_db=6.0, soft_db=6.0, even_db=0.0, formants=(), ripple_db=np.zeros(additive.MAX_HARMONICS),
    attack_seconds=0.01, late=0.0, noise_db=-90.0, noise_slope=0.0, chiff_db=-90.0, players=1,
)  # fmt: skip


def hertz_of(pitch: float) -> float:
    return 440 * 2 ** ((pitch - 69) / 12)


def levels_db(sound: np.ndarray, hertz: float, n_harmonics: int) -> np.ndarray:
    """The levels of the harmonics of the steady part, relative to the first."""
    steady = sound[RATE // 2 : RATE // 2 + RATE]
    spectrum = np.abs(np.fft.rfft(steady * np.hanning(len(steady))))
    peaks = [spectrum[round(k * hertz * 0.98) : round(k * hertz * 1.02) + 1].max()
             for k in range(1, n_harmonics + 1)]  # fmt: skip
    return 20 * np.log10(np.array(peaks) / peaks[0])


def note(timbre: Timbre, pitch: int = 57, loud: bool = True) -> np.ndarray:
    return play_note(timbre, pitch, loud, np.random.default_rng(0))


@pytest.mark.parametrize("pitch", [33, 57, 81, 100])
def test_a_note_has_its_pitch_and_a_peak_of_a_half(pitch: int) -> None:
    sound = note(SAW, pitch)
    assert np.abs(sound).max() == pytest.approx(0.5)
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 2**19))
    found = 69 + 12 * np.log2(np.argmax(spectrum) * RATE / 2**19 / 440)
    assert found == pytest.approx(pitch, abs=0.05)


def test_harmonics_fall_by_octaves_and_even_ones_are_weak_in_hollow_timbres() -> None:
    assert levels_db(note(SAW), 220, 4) == pytest.approx([0, -6, -9.5, -12], abs=5)
    soft = levels_db(note(SAW, loud=False), 220, 4)
    assert soft[3] - levels_db(note(SAW), 220, 4)[3] == pytest.approx(-12, abs=0.5)
    hollow = levels_db(note(replace(SAW, even_db=25.0)), 220, 4) - levels_db(note(SAW), 220, 4)
    assert hollow == pytest.approx([0, -25, 0, -25], abs=1.5)
    formant = replace(SAW, formants=((1.0, 0.3, 12.0),))  # at 880 Hz, the fourth harmonic
    assert (levels_db(note(formant), 220, 4) - levels_db(note(SAW), 220, 4))[3] == pytest.approx(
        12, abs=1
    )


def test_the_attack_is_as_slow_as_stated() -> None:
    for seconds in (0.01, 0.1):
        sound = note(replace(SAW, rolloff_db=60.0, attack_seconds=seconds), 81)
        level = np.sqrt(np.mean(np.square(sound.reshape(-1, RATE // 200)), 1))
        risen = np.flatnonzero(level > 0.63 * np.median(level))[0] / 200
        assert risen == pytest.approx(seconds, abs=0.012)


def test_noise_has_its_level() -> None:
    noisy = note(replace(SAW, rolloff_db=60.0, noise_db=-20.0))
    spectrum = np.square(np.abs(np.fft.rfft(noisy[RATE // 2 :][:RATE] * np.hanning(RATE))))
    tone = spectrum[200:240].sum()
    assert 10 * np.log10((spectrum.sum() - tone) / tone) == pytest.approx(-20, abs=1)


def test_each_program_and_seed_has_a_timbre_of_its_own_within_its_family() -> None:
    for program in SUSTAINED:
        family = additive.FAMILIES[program // 8]
        drawn = [draw_timbre(np.random.default_rng([seed, program]), program) for seed in range(20)]
        for timbre in drawn:
            assert family.rolloff_db[0] <= timbre.rolloff_db <= family.rolloff_db[1]
            assert family.attack_seconds[0] <= timbre.attack_seconds <= family.attack_seconds[1]
        assert len({timbre.rolloff_db for timbre in drawn}) == 20
    hollow = [draw_timbre(np.random.default_rng(seed), 71).even_db > 0 for seed in range(50)]
    assert 30 <= sum(hollow) <= 49


def test_the_soundfont_plays_its_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("midirenderer", reason="rendering needs the extra mt3kit[synth]")
    monkeypatch.setattr(additive, "SUSTAINED", {40: (55, 65), 71: (50, 60)})
    assert write_invented_soundfont(tmp_path / "a.sf2", 1) == 8  # two pitches and layers each
    write_invented_soundfont(tmp_path / "b.sf2", 1)
    write_invented_soundfont(tmp_path / "c.sf2", 2)
    a, b, c = ((tmp_path / f"{name}.sf2").read_bytes() for name in "abc")
    assert a == b != c
    font = open_soundfont(tmp_path / "a.sf2")
    assert font.facts()["copyright"] == "CC0"
    assert [font.has_instrument(program, False) for program in (40, 71, 73)] == [True, True, False]
    _, times = attack_times(tmp_path / "a.sf2", 40)
    assert all(0.0 <= seconds < 0.15 for seconds in times)


@pytest.mark.parametrize(
    "name, seed, message",
    [("", 1, "is a folder"), ("no/a.sf2", 1, "does not exist"), ("a.sf2", -1, "seed=-1")],
)
def test_what_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, seed: int, message: str
) -> None:
    monkeypatch.setattr(additive, "play_note", None)
    with pytest.raises(UserError, match=message):
        write_invented_soundfont(tmp_path / name, seed)
    if seed > 0:
        with pytest.raises(UserError, match=message):
            write_soundfont(tmp_path / name, {}, name="None", licence="CC0")
