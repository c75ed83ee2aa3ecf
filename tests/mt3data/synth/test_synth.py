"""Composed pieces are tidy, and what is rendered agrees with its labels."""

import hashlib
import io
import json
import sys
from pathlib import Path

import mido
import numpy as np
import pretty_midi
import pytest
import soundfile

from mt3data.datasets import manifest
from mt3data.datasets.adapters.slakh import tracks
from mt3data.errors import UserError
from mt3data.music.midi import read_midi
from mt3data.synth.compose import compose
from mt3data.synth.demo_dataset import synth
from mt3data.synth.render import default_soundfont, write_track

pytest.importorskip("midirenderer", reason="rendering needs the extra mt3kit[synth]")
SECONDS = 4.0
SEEDS = range(12)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Three short pieces, one in each split."""
    root = tmp_path_factory.mktemp("demo")
    return synth(root, tracks=3, seed=5, seconds=SECONDS)


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def piece(*parts: tuple[int, list[tuple[float, float, int, int]]]) -> pretty_midi.PrettyMIDI:
    """A MIDI object of (program or -1 for drums, [(onset, offset, pitch, velocity)]) parts."""
    midi = pretty_midi.PrettyMIDI(resolution=960)
    for program, notes in parts:
        part = pretty_midi.Instrument(max(program, 0), is_drum=program < 0)
        part.notes = [pretty_midi.Note(v, pitch, on, off) for on, off, pitch, v in notes]
        midi.instruments.append(part)
    return midi


def render_stems(folder: Path, midi: pretty_midi.PrettyMIDI) -> list[np.ndarray]:
    """The stems of a piece as float audio at 44.1 kHz."""
    write_track(midi, folder, default_soundfont(), track="Track00001", source="test")
    return [soundfile.read(path)[0] for path in sorted((folder / "stems").iterdir())]


# ---- composing


@pytest.mark.parametrize("seed", SEEDS)
def test_a_piece_has_a_band_with_drums_and_enough_notes(seed):
    midi = compose(seed, 30.0)
    assert sum(len(part.notes) for part in midi.instruments) >= 150
    assert 3 <= sum(not part.is_drum for part in midi.instruments) <= 6
    assert sum(part.is_drum for part in midi.instruments) == 1
    assert 26 <= midi.get_end_time() <= 30.0


@pytest.mark.parametrize("seed", SEEDS)
def test_no_instrument_holds_a_pitch_twice_and_no_note_is_shorter_than_40_ms(seed):
    for part in compose(seed, 30.0).instruments:
        ends: dict[int, float] = {}
        for note in sorted(part.notes, key=lambda note: note.start):
            assert note.start > ends.get(note.pitch, -1)
            assert note.end - note.start >= 0.04
            ends[note.pitch] = note.end


def test_every_pitched_program_has_a_slakh_class():
    slakh = manifest.load("slakh")
    parts = [part for seed in SEEDS for part in compose(seed, 8.0).instruments]
    without = [p.program for p in parts if not p.is_drum and slakh.label_program(p.program) is None]
    assert without == []


def test_the_same_seed_gives_the_same_piece_and_another_seed_another():
    def content(seed: int) -> bytes:
        buffer = io.BytesIO()
        compose(seed, 12.0).write(buffer)
        return buffer.getvalue()

    assert content(3) == content(3)
    assert content(3) != content(4)


def test_pieces_differ_in_tempo_density_and_dynamics_and_hold_long_and_repeated_notes():
    pieces = [compose(seed, 30.0) for seed in SEEDS]
    notes = [[n for part in midi.instruments for n in part.notes] for midi in pieces]
    tempi = [midi.get_tempo_changes()[1][0] for midi in pieces]
    assert max(tempi) > 1.5 * min(tempi)
    assert max(map(len, notes)) > 2 * min(map(len, notes))
    assert {n.velocity for piece in notes for n in piece} >= set(range(40, 110))
    assert sum(n.end - n.start > 3 for piece in notes for n in piece) >= 20
    basses = [midi.instruments[1].notes for midi in pieces]
    assert any(a.pitch == b.pitch for line in basses for a, b in zip(line, line[1:], strict=False))
    assert any(part.control_changes for midi in pieces for part in midi.instruments)


def test_a_piece_below_four_seconds_is_refused():
    with pytest.raises(ValueError, match="a piece of 2 s is too short"):
        compose(0, 2)


# ---- rendering


@pytest.mark.parametrize(
    ("program", "pitch"), [(-1, 36), (-1, 38), (-1, 42), (0, 60), (13, 72), (24, 60), (33, 40)]
)
def test_onsets_lie_within_5_ms_of_the_midi(tmp_path, program, pitch):
    onsets = 0.2 + 0.4137 * np.arange(10)
    notes = [(on, on + 0.15, pitch, 100) for on in onsets]
    (stem,) = render_stems(tmp_path / "t", piece((program, notes)))
    written = read_midi(tmp_path / "t/MIDI/S00.mid")[0].onset
    np.testing.assert_allclose(written, onsets, atol=6e-4)
    lags = []
    for onset in written:
        start = round((onset - 0.02) * 44100)
        level = np.abs(stem[start : start + 4410])
        # The sound has begun where it passes 3 % of its peak and what the last note left behind.
        threshold = max(0.03 * level.max(), 1.5 * level[:800].max())
        lags.append(np.argmax(level > threshold) / 44100 - 0.02)
    assert min(lags) >= -0.001
    assert max(lags) <= 0.005


def test_an_instant_attack_begins_within_one_millisecond_of_its_label(tmp_path):
    onsets = 0.2 + 0.2137 * np.arange(20)
    (stem,) = render_stems(tmp_path / "t", piece((13, [(on, on + 0.05, 84, 100) for on in onsets])))
    lags = []
    for onset in onsets:
        start = round((onset - 0.01) * 44100)
        level = np.abs(stem[start : start + 1764])
        threshold = max(0.02 * level.max(), 2 * level[:300].max())
        lags.append(np.argmax(level > threshold) / 44100 - 0.01)
    assert abs(np.mean(lags)) < 5e-4 and max(np.abs(lags)) < 1e-3


def test_pitch_and_velocity_are_heard(tmp_path):
    notes = [(0.1, 1.0, 69, 100), (1.5, 2.4, 69, 40)]
    (stem,) = render_stems(tmp_path / "t", piece((73, notes)))
    loud, soft = stem[8820:39690], stem[70560:101430]
    spectrum = np.abs(np.fft.rfft(loud * np.hanning(len(loud))))
    strongest = np.argmax(spectrum) * 44100 / len(loud)
    assert min(abs(strongest / 440 - harmonic) for harmonic in (1, 2, 3)) < 0.01
    assert np.std(loud) > 2 * np.std(soft)


def test_a_note_ends_in_the_audio_and_the_pedal_holds_it(tmp_path):
    midi = piece((16, [(0.1, 0.5, 60, 100)]), (16, [(0.1, 0.5, 60, 100), (1.9, 2.0, 40, 1)]))
    midi.instruments[1].control_changes = [
        pretty_midi.ControlChange(64, 127, 0.05), pretty_midi.ControlChange(64, 0, 1.5),
    ]  # fmt: skip
    short, held = (np.std(stem[44100:57330]) for stem in render_stems(tmp_path / "t", midi))
    assert held > 10 * short
    assert read_midi(tmp_path / "t/MIDI/S01.mid")[0].offset[0] == pytest.approx(1.5, abs=2e-3)


def test_the_mix_is_the_sum_of_its_stems_and_does_not_clip(rendered):
    folder = rendered.root / "train/Track00001"
    stems = [soundfile.read(p, dtype="int16")[0] for p in sorted((folder / "stems").iterdir())]
    mix = soundfile.read(folder / "mix.flac", dtype="int16")[0]
    assert (np.sum(stems, axis=0, dtype=np.int64) == mix).all()
    assert 0.5 < np.abs(mix / 32768).max() < 0.9
    info = soundfile.info(folder / "mix.flac")
    assert (info.samplerate, info.channels, info.subtype) == (44100, 1, "PCM_16")
    assert 5 < info.duration <= SECONDS + 2.01


def test_the_slakh_adapter_reads_what_was_written(rendered):
    found = list(tracks(rendered.root, manifest.load("demo")))
    assert [(t.id, t.split) for t in found] == [
        ("Track00001", "train"), ("Track00002", "validation"), ("Track00003", "test"),
    ]  # fmt: skip
    slakh = manifest.load("slakh")
    for number, track in enumerate(found, 1):
        composed = compose(500_000 + number, SECONDS)
        parts = [part for part in composed.instruments if part.notes]
        assert (track.problems, track.failure) == ((), "")
        assert [stem.is_drum for stem in track.stems] == [part.is_drum for part in parts]
        assert [stem.program for stem in track.stems if not stem.is_drum] == [
            slakh.label_program(part.program) for part in parts if not part.is_drum
        ]
        notes = track.load_notes()
        written = sorted((n.start, n.pitch) for part in parts for n in part.notes)
        read = sorted(zip(notes.onset, notes.pitch, strict=True))
        assert sorted(notes.pitch) == sorted(pitch for _, pitch in written)
        assert max(abs(a[0] - b[0]) for a, b in zip(written, read, strict=True)) < 6e-4


# ---- runs


def test_a_second_run_with_other_workers_writes_the_same_bytes(rendered, tmp_path):
    synth(tmp_path / "again", tracks=3, seed=5, seconds=SECONDS, workers=2)
    assert digests(tmp_path / "again") == digests(rendered.root)


def test_an_interrupted_run_is_continued(rendered, tmp_path):
    root = tmp_path / "demo"
    synth(root, tracks=3, seed=5, seconds=SECONDS)
    before = digests(root)
    lost = root / "test/Track00003"
    lost.rename(root / "test/.Track00003.part")  # as a killed run leaves it
    (root / "test/.Track00003.part/mix.flac").unlink()
    summary = synth(root, tracks=3, seed=5, seconds=SECONDS)
    assert (summary.kept, [r.track for r in summary.rendered]) == (2, ["Track00003"])
    assert digests(root) == before


def test_other_settings_in_the_same_folder_are_refused_and_named(rendered):
    with pytest.raises(UserError, match=r"other settings \(seed 5 there, 6 asked for\)"):
        synth(rendered.root, tracks=3, seed=6, seconds=SECONDS)


def test_a_folder_with_foreign_tracks_is_refused(tmp_path):
    (tmp_path / "train/Track00001").mkdir(parents=True)
    with pytest.raises(UserError, match="holds tracks that synth did not write"):
        synth(tmp_path, tracks=1, seconds=SECONDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tracks": 0}, "expected at least 1 piece"),
        ({"tracks": 3, "seconds": 1.0}, "4 to 1800 s"),
        ({"tracks": 3, "test": 4}, "1 validation and 4 test pieces do not fit into 3"),
        ({"tracks": 3, "soundfonts": [Path(__file__)]}, "test_synth.py is not a SoundFont"),
        ({"tracks": 3, "soundfonts": [Path("no.sf2")]}, "SoundFont no.sf2 cannot be read"),
        ({"midi_dir": Path("nowhere")}, "nowhere is not a folder"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        synth(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_without_the_renderer_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "midirenderer", None)
    with pytest.raises(UserError, match=r"pip install '\.\[synth\]'"):
        synth(tmp_path, tracks=1)


def test_own_midi_files_are_rendered_and_bad_ones_reported(tmp_path):
    own = tmp_path / "own"
    (own / "sub").mkdir(parents=True)
    (own / "a.mid").write_bytes(b"not midi at all")
    (own / "b.mid").write_bytes(b"")
    piece((0, [(0.5, 0.5, 60, 80)])).write(str(own / "c.mid"))  # no note of positive length
    piece((98, [(0.5, 1.0, 60, 80)])).write(str(own / "d.mid"))  # no Slakh class
    tempo = mido.MidiFile()
    tempo.add_track().extend(
        mido.Message("note_on", note=60, time=t, velocity=v) for t, v in ((0, 64), (480, 0))
    )
    tempo.add_track().append(mido.MetaMessage("set_tempo", tempo=250_000))
    tempo.save(own / "e.mid")
    notes = [(0.5, 1.0, 60, 80), (1.0, 1.5, 64, 80)]
    piece((0, notes), (98, notes), (-1, [(0.5, 0.6, 38, 90)])).write(str(own / "sub/good.MIDI"))
    summary = synth(tmp_path / "out", midi_dir=own, validation=0, test=0)
    assert [r.error.split(" (")[0] for r in summary.failed] == [
        f"{own}/a.mid: not a MIDI file that can be read",
        f"{own}/b.mid: not a MIDI file that can be read",
        f"{own}/c.mid: has no notes",
        f"{own}/d.mid: has no instrument with a Slakh class",
        f"{own}/e.mid: its tempo changes are not in its first track, so that pretty_midi reads wrong "
        "times; save it as a type 0 file",
    ]
    (good,) = summary.rendered
    assert (good.track, good.source, good.stems) == ("Track00006", "good.MIDI", 2)
    assert good.left_out == ("S01: program 98 has no Slakh class, not rendered",)
    (track,) = tracks(tmp_path / "out", manifest.load("demo"))
    assert track.problems == ("S01: program 98 has no Slakh class; no label",)
    labels = track.load_notes()
    assert labels.pitch.tolist() == [60, 64, 38]
    np.testing.assert_allclose(labels.onset, [0.5, 1.0, 0.5], atol=6e-4)


def test_the_settings_are_written_down(rendered):
    settings = json.loads((rendered.root / "synth.json").read_text())
    assert settings["seed"] == 5 and settings["seconds"] == SECONDS and settings["midi"] is None
    assert settings["splits"] == {"train": 1, "validation": 1, "test": 1}
    assert settings["soundfont"] == hashlib.sha256(default_soundfont().read_bytes()).hexdigest()
