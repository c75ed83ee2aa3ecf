"""Varied pieces: kinds, several SoundFonts, effects that keep labels true, and one's own stems."""

import io
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import soundfile
import yaml
from click.testing import CliRunner

from mt3data.audio.room import room_response
from mt3data.cli.main import main
from mt3data.datasets import manifest
from mt3data.datasets.adapters.slakh import tracks
from mt3data.errors import UserError
from mt3data.music.midi import read_midi
from mt3data.synth.compose import compose
from mt3data.synth.demo_dataset import _kind, _shares, synth
from mt3data.synth.effects import (
    PieceEffects,
    StemEffects,
    draw_piece_effects,
    draw_stem_effects,
    equalize,
    noise_floor,
    perform,
)
from mt3data.synth.ensembles import ENSEMBLES, SUSTAINED
from mt3data.synth.render import default_soundfont, render, write_stems, write_track
from mt3data.synth.soundfont import SoundFont

pytest.importorskip("midirenderer", reason="rendering needs the extra mt3kit[synth]")
RATE = 44100
PLAIN = StemEffects(0.0, 0.0, 5.0, 0.0, 0.0, (0.0,) * 7, 0.0, 0)


def line(program=40, notes=((0.1, 1.0, 69), (1.2, 2.0, 74))):
    part = pretty_midi.Instrument(program)
    part.notes = [pretty_midi.Note(90, pitch, on, off) for on, off, pitch in notes]
    return part


# ---- kinds


@pytest.mark.parametrize("kind", [kind for kind in ENSEMBLES if kind != "band"])
def test_every_kind_is_tidy_seeded_and_of_its_instruments(kind):
    slakh = manifest.load("slakh")
    for seed in range(8):
        midi, again = compose(seed, 30.0, kind), compose(seed, 30.0, kind)
        assert [part.notes for part in midi.instruments] == [
            p.notes for p in again.instruments
        ] or all(
            [(n.start, n.pitch) for n in a.notes] == [(n.start, n.pitch) for n in b.notes]
            for a, b in zip(midi.instruments, again.instruments, strict=True)
        )
        assert 15 < midi.get_end_time() <= 30.0
        drums = [part.is_drum for part in midi.instruments]
        assert drums == [True] if kind == "drums" else not any(drums)
        for part in midi.instruments:
            assert part.is_drum or slakh.label_program(part.program) is not None
            ends: dict[int, float] = {}
            for note in sorted(part.notes, key=lambda note: note.start):
                assert note.start > ends.get(note.pitch, -1) and note.end - note.start >= 0.04
                ends[note.pitch] = note.end


def test_pianos_are_dense_and_chamber_notes_long_and_within_the_instrument_s_range():
    pianos = [compose(seed, 30.0, "piano").instruments for seed in range(8)]
    assert all(len(parts) == 1 and parts[0].program < 8 for parts in pianos)
    assert np.median([len(parts[0].notes) for parts in pianos]) > 150
    assert any(parts[0].control_changes for parts in pianos)
    chamber = [part for seed in range(8) for part in compose(seed, 30.0, "chamber").instruments]
    lengths = [note.end - note.start for part in chamber for note in part.notes]
    assert np.median(lengths) > 0.4 and max(lengths) > 3
    for part in chamber:
        low, high = SUSTAINED[part.program]
        assert all(low <= note.pitch <= high for note in part.notes)


def test_kinds_come_in_their_shares():
    shares = _shares({"piano": 3, "drums": 1})
    drawn = Counter(_kind(seed, shares) for seed in range(400))
    assert set(drawn) == {"piano", "drums"} and 0.68 < drawn["piano"] / 400 < 0.82


@pytest.mark.parametrize("kinds", [{"opera": 1.0}, {"piano": 0.0}])
def test_unknown_kinds_and_shares_of_nothing_are_refused(kinds, tmp_path):
    with pytest.raises(UserError, match="expected shares above 0 of band, piano, chamber"):
        synth(tmp_path / "out", tracks=1, kinds=kinds)
    assert not (tmp_path / "out").exists()


# ---- effects


def test_tuning_moves_the_pitch_of_the_sound_and_not_the_label(tmp_path):
    def hertz(tuning):
        effects = StemEffects(tuning, 0.0, 5.0, 0.0, 0.0, (0.0,) * 7, 0.0, 0)
        midi, folder = pretty_midi.PrettyMIDI(), tmp_path / f"{tuning}"
        midi.instruments = [perform(line(73), effects, random.Random(0))]
        write_track(midi, folder, default_soundfont(), track="t", source="s")
        assert read_midi(folder / "MIDI/S00.mid")[0].pitch.tolist() == [69, 74]
        sound = soundfile.read(folder / "mix.flac")[0][round(0.3 * RATE) : round(0.9 * RATE)]
        spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 2**19))
        low, high = (round(limit * 2**19 / RATE) for limit in (415, 466))
        return (low + np.argmax(spectrum[low:high])) * RATE / 2**19

    assert 1200 * np.log2(hertz(30.0) / hertz(0.0)) == pytest.approx(30, abs=3)


def test_only_sustained_lines_get_vibrato_scoops_and_swells():
    all_on = StemEffects(5.0, 30.0, 6.0, 1.0, 1.0, (0.0,) * 7, 0.0, 0)
    violin = perform(line(40), all_on, random.Random(0))
    bends = np.array([(bend.time, bend.pitch) for bend in violin.pitch_bends])
    assert (bends[:, 0] >= 0).all() and np.ptp(bends[:, 1]) > 8192 * 60 / 200
    inside = bends[(bends[:, 0] > 0.6) & (bends[:, 0] < 1.0), 1] * 200 / 8192
    assert 25 < inside.max() <= 35.1 and -25.1 <= inside.min() < -15  # around the tuning of 5
    swells = [change for change in violin.control_changes if change.number == 11]
    assert len(swells) == 22 and min(change.value for change in swells) < 86
    chords = ((0.1, 1.0, 60), (0.1, 1.0, 64), (0.1, 1.0, 67))
    for plain in (perform(line(0), all_on, random.Random(0)),
                  perform(line(40, chords), all_on, random.Random(0))):  # fmt: skip
        assert [(b.time, round(b.pitch * 200 / 8192)) for b in plain.pitch_bends] == [(0.0, 5)]
        assert plain.control_changes == []


def test_a_part_with_bends_of_its_own_keeps_them():
    part = line()
    part.pitch_bends = [pretty_midi.PitchBend(100, 0.5)]
    done = perform(part, StemEffects(30, 30, 5, 1, 1, (0.0,) * 7, 0, 0), random.Random(0))
    assert [(b.pitch, b.time) for b in done.pitch_bends] == [(100, 0.5)]


def test_draws_lie_in_their_ranges_and_vary():
    rng = random.Random(1)
    pieces = [draw_piece_effects(rng) for _ in range(300)]
    peaks = [piece.peak_db for piece in pieces]
    assert -31 <= min(peaks) < -28 and max(peaks) == -1 and 80 < peaks.count(-1.0) < 160
    rooms = [piece.room_seconds for piece in pieces if piece.room_seconds]
    assert 150 < len(rooms) < 210 and 0.15 <= min(rooms) < 0.2 and 2 < max(rooms) <= 2.25
    assert 8 < np.std([piece.tuning_cents for piece in pieces]) < 14
    stems = [draw_stem_effects(rng, pieces[0], is_drum=False) for _ in range(300)]
    assert np.std([stem.tuning_cents for stem in stems]) < 4
    assert 1 < np.std([stem.equalizer_db for stem in stems]) < 6
    assert {draw_stem_effects(rng, pieces[0], True).kit for _ in range(100)} > {0, 8, 40}


def test_equalization_and_rooms_leave_onsets_where_they_are():
    click = np.zeros(RATE, np.float32)
    click[1000] = 1
    shaped = equalize(click, (6.0, -6.0, 3.0, 0.0, -9.0, 6.0, 3.0), RATE)
    assert np.argmax(np.abs(shaped)) == 1000 and len(shaped) == RATE
    assert np.array_equal(equalize(click, (0.0,) * 7, RATE), click)
    hertz = np.fft.rfftfreq(RATE, 1 / RATE)
    gain = 20 * np.log10(np.abs(np.fft.rfft(shaped)))
    assert gain[np.argmin(np.abs(hertz - 20))] == pytest.approx(6, abs=0.5)
    response = room_response(0.5, -6.0, RATE, np.random.default_rng(0))
    assert response[0] == 1 and np.abs(response[1:80]).max() < 1e-6
    assert 10 * np.log10(np.sum(response[1:] ** 2)) == pytest.approx(-6, abs=0.1)
    early, late = response[RATE // 20 : RATE // 10], response[RATE // 2 : 11 * RATE // 20]
    assert 20 * np.log10(np.std(early) / np.std(late)) == pytest.approx(54, abs=8)


def test_the_noise_floor_has_its_level_and_slope():
    noise = noise_floor(2 * RATE, -40.0, 1.0, RATE, np.random.default_rng(0))
    assert 20 * np.log10(np.std(noise)) == pytest.approx(-40, abs=0.1)
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    low, high = spectrum[2 * 500 : 2 * 1000].mean(), spectrum[2 * 4000 : 2 * 8000].mean()
    assert 10 * np.log10(low / high) == pytest.approx(18, abs=1.5)  # three octaves at 6 dB


# ---- runs


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """Six short pieces of two kinds with effects and two copies of one SoundFont under other names."""
    folder = tmp_path_factory.mktemp("varied")
    fonts = [folder / "a.sf2", folder / "b.sf2"]
    for font in fonts:
        font.symlink_to(default_soundfont())
    options = {"tracks": 6, "seconds": 5.0, "soundfonts": fonts, "effects": True,
               "kinds": {"chamber": 1, "drums": 1}, "seed": 3}  # fmt: skip
    synth(folder / "out", **options)
    return folder / "out", options


def test_effects_are_described_and_true_of_the_files(varied):
    root, _ = varied
    settings = json.loads((root / "synth.json").read_text())
    assert settings["effects"] is True and settings["kinds"] == {"chamber": 0.5, "drums": 0.5}
    assert [font["file"] for font in settings["soundfonts"]] == ["a.sf2", "b.sf2"]
    assert settings["soundfonts"][0]["name"] == "TimGM6mb"
    kinds, fonts = set(), set()
    for folder in sorted(root.glob("*/Track*")):
        described = yaml.safe_load((folder / "metadata.yaml").read_text())
        kinds.add(described["lmd_midi_dir"].split(",")[0])
        fonts |= {stem["plugin_name"] for stem in described["stems"].values()}
        stems = [soundfile.read(path)[0] for path in sorted(folder.glob("stems/*"))]
        mix = soundfile.read(folder / "mix.flac")[0]
        loudest = max(np.abs(x).max() for x in (*stems, mix))
        assert 20 * np.log10(loudest) == pytest.approx(described["effects"]["peak_db"], abs=1.5)
        assert set(described["effects"]) == set(PieceEffects.__dataclass_fields__)
        for stem in described["stems"].values():
            assert set(stem["effects"]) == set(StemEffects.__dataclass_fields__)
    assert kinds == {"chamber", "drums"} and fonts == {"a.sf2", "b.sf2"}


def test_a_varied_set_is_the_same_in_every_run_and_refuses_other_settings(varied, tmp_path):
    root, options = varied
    synth(tmp_path / "again", **options, workers=2)
    for path in sorted(root.rglob("*.*")):
        if path.is_file() and path.name != ".lock":
            assert (tmp_path / "again" / path.relative_to(root)).read_bytes() == path.read_bytes()
    with pytest.raises(UserError, match="effects True there, False asked for"):
        synth(root, **options | {"effects": False})
    with pytest.raises(UserError, match="other settings"):
        synth(root, tracks=6, seconds=5.0, seed=3)


def test_a_build_of_varied_pieces_states_kinds_and_soundfonts_and_labels_agree(varied, tmp_path):
    root, _ = varied
    words = f"build demo --root {root} --out {tmp_path} --window 256 --align measure --workers 1"
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 0, done.output
    built = json.loads((tmp_path / "demo/manifest.json").read_text())
    assert built["synth"] == json.loads((root / "synth.json").read_text())
    assert sum(split["tracks"] for split in built["splits"].values()) == 6


def test_the_command_parses_shares_and_says_what_is_wrong_with_them(tmp_path):
    out = tmp_path / "out"
    words = ["synth", "--out", str(out), "--tracks", "1", "--seconds", "4", "--workers", "1"]
    done = CliRunner().invoke(main, [*words, "--kinds", "small=2,drums=1"])
    assert done.exit_code == 0, done.output
    assert json.loads((out / "synth.json").read_text())["kinds"] == {"small": 2 / 3, "drums": 1 / 3}
    refused = CliRunner().invoke(main, [*words, "--kinds", "piano"])
    assert refused.exit_code == 2 and "expected KIND=SHARE" in refused.output


def test_what_a_soundfont_states_is_read():
    facts = SoundFont(default_soundfont()).facts()
    assert (facts["file"], facts["name"]) == ("TimGM6mb.sf2", "TimGM6mb")
    assert len(facts["sha256"]) == 64


@pytest.mark.parametrize(
    "program, is_drum",
    [(0, False), (40, False), (118, False), (0, True), (25, True), (7, True)],
)
def test_one_instrument_of_a_soundfont_sounds_as_in_the_whole(program, is_drum):
    part = line(program, ((0.1, 0.4, 50), (0.5, 0.8, 38)))
    part.is_drum = is_drum
    midi, buffer = pretty_midi.PrettyMIDI(), io.BytesIO()
    midi.instruments = [part]
    midi.write(buffer)
    alone = SoundFont(default_soundfont()).instrument(program, is_drum)
    whole = default_soundfont().read_bytes()
    assert len(alone) < len(whole) / 5
    expected = render(buffer.getvalue(), whole)
    assert np.array_equal(render(buffer.getvalue(), alone), expected) and expected.any()


# ---- one's own material


def test_one_s_own_stems_are_written_built_and_nothing_is_composed_beside_them(tmp_path):
    midi = pretty_midi.PrettyMIDI()
    midi.instruments = [line(40), line(0, ((0.5, 1.5, 60),))]
    times = np.arange(3 * RATE) / RATE
    audio = [0.1 * np.sin(880 * np.pi * times), 0.4 * np.sin(523 * np.pi * times[:RATE])]
    folder = tmp_path / "mine/train/Track00001"
    write_stems(midi, audio, folder, source="my own recording")
    stems = [soundfile.read(path)[0] for path in sorted(folder.glob("stems/*"))]
    assert np.abs(stems[1]).max() / np.abs(stems[0]).max() == pytest.approx(4, rel=1e-3)
    assert len(stems[1]) == 3 * RATE
    (track,) = tracks(tmp_path / "mine", manifest.load("demo"))
    assert track.load_notes().pitch.tolist() == [69, 74, 60]
    words = f"build demo --root {tmp_path}/mine --out {tmp_path}/shards --window 256 --workers 1"
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["train"]
    built = json.loads((tmp_path / "shards/demo/manifest.json").read_text())
    assert built["splits"]["train"]["tracks"] == 1 and "synth" not in built


def test_own_stems_must_match_and_sound(tmp_path):
    midi = pretty_midi.PrettyMIDI()
    midi.instruments = [line(40)]
    with pytest.raises(UserError, match="1 instruments with notes and 2 stems"):
        write_stems(midi, [np.ones(9), np.ones(9)], tmp_path / "a", source="s")
    with pytest.raises(UserError, match="S00 is silent"):
        write_stems(midi, [np.zeros(9)], tmp_path / "b", source="s")


@pytest.mark.parametrize("options", ["", "--no-download"])
def test_build_demo_composes_nothing_into_a_folder_of_recordings(tmp_path, options):
    (tmp_path / "song.wav").write_bytes(b"RIFF")
    words = f"build demo --root {tmp_path} --out {tmp_path}/shards {options}"
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 2
    assert ("song.wav" if not options else "holds no") in done.output
    assert not (tmp_path / "demo").exists()


def test_build_demo_composes_nothing_where_nothing_may_be_downloaded(tmp_path):
    words = f"build demo --root {tmp_path}/data --out {tmp_path}/shards --no-download"
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 2 and "holds no" in done.output
    assert not Path(tmp_path / "data").exists()
