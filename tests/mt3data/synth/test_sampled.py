"""SoundFonts of recorded notes: they sound at their pitch, from the start, as long as they are held."""

import numpy as np
import pretty_midi
import pytest
import soundfile
import yaml

import mt3data
from mt3data.errors import UserError
from mt3data.music.midi import read_midi
from mt3data.synth.render import (
    _midi_bytes,
    attack_times,
    open_soundfont,
    play_early,
    render,
    write_track,
)
from mt3data.synth.sampled import write_soundfont
from mt3data.synth.soundfont import SoundFont

pytest.importorskip("midirenderer", reason="rendering needs the extra mt3kit[synth]")
RATE = 44100
NOTES = {"A3": 57, "Cs4": 61, "F#4": 66, "Bb4": 70}


def hertz_of(pitch):
    return 440 * 2 ** ((pitch - 69) / 12)


def write_notes(folder, notes, *, seconds=3.0, silence=0.3, layer="", rise=0.01):
    """Writes a tone with two overtones per note, which rises in `rise` seconds, after some silence."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pitch in notes.items():
        times = np.arange(round(seconds * RATE)) / RATE
        tone = sum(np.sin(2 * np.pi * k * hertz_of(pitch) * times) / k for k in (1, 2, 3))
        tone *= 0.2 * np.minimum(1, times / rise)
        sound = np.concatenate([np.zeros(round(silence * RATE)), tone])
        soundfile.write(folder / f"{name}{layer}.wav", sound, RATE)
    return folder


def play(font, program, pitch, seconds, velocity=100):
    part = pretty_midi.Instrument(program)
    part.notes = [pretty_midi.Note(velocity, pitch, 1.0, 1.0 + seconds)]
    return render(_midi_bytes([part], 120.0, seconds + 2), font.instrument(program, False))


def pitch_of(sound):
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 2**18))
    return 69 + 12 * np.log2(np.argmax(spectrum) * RATE / 2**18 / 440)


@pytest.mark.parametrize("program, held", [(40, True), (24, False)])
def test_notes_sound_at_their_pitch_from_their_start_on_and_held_ones_go_on(
    program, held, tmp_path
):
    folder = write_notes(tmp_path / "notes", NOTES)
    font = tmp_path / "font.sf2"
    assert write_soundfont(font, {(program,): folder}, name="Odd", licence="CC0") == 4
    sounds = SoundFont(font)
    assert sounds.facts()["copyright"] == "CC0" and sounds.facts()["name"] == "Odd"
    for pitch in (50, 57, 59, 61, 62, 66, 70, 80):  # recorded and between
        sound = play(sounds, program, pitch, 9.0)
        begin = np.flatnonzero(np.abs(sound) > 0.05 * np.abs(sound).max())[0] / RATE
        assert begin == pytest.approx(1.0, abs=0.006)
        assert pitch_of(sound[round(1.2 * RATE) : round(2.2 * RATE)]) == pytest.approx(
            pitch, abs=0.05
        )
        late = sound[round(8.0 * RATE) : round(9.5 * RATE)]
        if not held:
            assert np.abs(late).max() < 1e-4
            continue
        assert pitch_of(late) == pytest.approx(pitch, abs=0.05)
        level = np.sqrt(np.mean(np.square(sound[round(1.2 * RATE) : round(9.9 * RATE)].reshape(-1, 441)), 1))  # fmt: skip
        assert level.min() > 0.7 * level.max()  # no beat at the seams of the loop


def test_layers_share_the_velocities_and_have_one_level(tmp_path):
    folder = tmp_path / "notes"
    for layer, pitch in (("v1", 57), ("v8", 69), ("v16", 81)):  # told apart by the octave
        write_notes(folder, {"A3": pitch}, layer=layer)
    write_soundfont(tmp_path / "font.sf2", {(0,): folder}, name="Layers", licence="CC0")
    font = SoundFont(tmp_path / "font.sf2")
    for velocity, octave in ((20, 0), (42, 0), (43, 1), (84, 1), (85, 2), (127, 2)):
        sound = play(font, 0, 57, 1.0, velocity)[RATE : 2 * RATE]
        assert pitch_of(sound) == pytest.approx(57 + 12 * octave, abs=0.1)


def test_a_stem_gets_a_soundfont_that_has_its_instrument(tmp_path):
    notes = write_notes(tmp_path / "notes", NOTES)
    fonts = []
    for program in (40, 73):
        fonts.append(tmp_path / f"{program}.sf2")
        write_soundfont(fonts[-1], {(program,): notes}, name="One", licence="CC0")
    assert open_soundfont(fonts[0]).has_instrument(40, False)
    assert not open_soundfont(fonts[0]).has_instrument(73, False)
    assert not open_soundfont(fonts[0]).has_instrument(40, True)

    def piece(*programs):
        midi = pretty_midi.PrettyMIDI()
        for program in programs:
            midi.instruments.append(pretty_midi.Instrument(program))
            midi.instruments[-1].notes = [pretty_midi.Note(90, 60, 0.5, 1.5)]
        return midi

    for seed in range(4):
        folder = tmp_path / f"track{seed}"
        write_track(piece(40, 73), folder, fonts, track="t", source="s", seed=seed)
        stems = yaml.safe_load((folder / "metadata.yaml").read_text())["stems"]
        assert [stem["plugin_name"] for stem in stems.values()] == ["40.sf2", "73.sf2"]
    with pytest.raises(UserError, match=r"40.sf2 gives no sound for S00, program 0"):
        write_track(piece(0), tmp_path / "none", fonts[0], track="t", source="s")
    bank = piece(0)  # a MIDI file that selects a bank itself decides about its instruments
    bank.instruments[0].control_changes.append(pretty_midi.ControlChange(0, 1, 0.0))
    done = write_track(bank, tmp_path / "bank", fonts[0], track="t", source="s", effects=True)
    assert done.stems == 1


def test_held_instruments_begin_early_so_that_they_are_heard_at_their_labels(tmp_path):
    notes = write_notes(tmp_path / "notes", NOTES, rise=0.2)
    font = tmp_path / "slow.sf2"
    write_soundfont(font, {(40,): notes, (24,): notes}, name="Slow", licence="CC0")
    pitches, times = attack_times(font, 40)
    assert pitches[0] == 55 and pitches[-1] == 91 and len(times) == 10
    assert times[:5] == pytest.approx([0.07] * 5, abs=0.015)  # 8 to 40 % of the rise
    for program, early in ((40, 0.07), (24, 0.0)):
        midi = pretty_midi.PrettyMIDI()
        midi.instruments.append(pretty_midi.Instrument(program))
        midi.instruments[0].notes = [
            pretty_midi.Note(90, 60, 1.0, 2.0), pretty_midi.Note(90, 60, 2.05, 3.0)
        ]  # fmt: skip
        found = {}
        for effects in (False, True):
            folder = tmp_path / f"{program}{effects}"
            write_track(midi, folder, font, track="t", source="s", effects=effects)
            assert read_midi(folder / "MIDI/S00.mid")[0].onset == pytest.approx(
                [1.0, 2.05], abs=1e-3
            )
            sound = np.abs(soundfile.read(folder / "stems/S00.flac")[0])
            sound = sound[round(0.9 * RATE) : round(1.4 * RATE)]
            found[effects] = np.flatnonzero(sound > 0.1 * sound.max())[0] / RATE + 0.9
        assert found[False] - found[True] == pytest.approx(early, abs=0.02)


def test_a_note_that_begins_early_ends_the_same_pitch_before_it():
    part = pretty_midi.Instrument(40)
    part.notes = [pretty_midi.Note(90, 60, 0.02, 1.0), pretty_midi.Note(90, 60, 1.01, 2.0),
                  pretty_midi.Note(90, 72, 1.0, 2.0)]  # fmt: skip
    early = play_early(part, (60, 72), (0.1, 0.02)).notes
    assert [(note.pitch, round(note.start, 3), round(note.end, 3)) for note in early] == [
        (60, 0.0, 0.907), (60, 0.91, 2.0), (72, 0.98, 2.0)
    ]  # fmt: skip
    assert part.notes[0].end == 1.0  # of the labels


@pytest.mark.parametrize(
    "files, programs, message",
    [
        ((), (0,), "has no sound files named by notes, such as A3.wav"),
        (("piano.wav",), (0,), "has no sound files named by notes"),
        (("A#3.wav", "Bb3.wav"), (0,), "two files are the note 58 of layer 0"),
        (("B-9.wav",), (0,), "MIDI pitch -85; expected 0 to 127"),
        (("A3.wav",), (0, 0), "expected different numbers from 0 to 127"),
        (("A3.wav",), (128,), "expected different numbers from 0 to 127"),
        (("silent.wav", "A3.wav"), (0,), "A3.wav is silent"),
        (("text", "A3.wav"), (0,), "A3.wav"),
    ],
)
def test_folders_without_usable_notes_are_refused(files, programs, message, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in files:
        if "." in name:
            level = 0.0 if "silent.wav" in files else 0.1
            soundfile.write(folder / name, np.full(999, level), RATE)
    if "text" in files:
        (folder / "A3.wav").write_text("no sound")
    with pytest.raises(UserError, match=message):
        mt3data.write_soundfont(tmp_path / "o.sf2", {programs: folder}, name="", licence="")
    assert not (tmp_path / "o.sf2").exists()
    with pytest.raises(UserError, match="is no folder"):
        write_soundfont(tmp_path / "o.sf2", {(0,): tmp_path / "none"}, name="", licence="")
