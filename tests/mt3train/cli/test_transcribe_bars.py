"""`mt3train transcribe` with bars: beats of a file, of a constant tempo, and estimated ones."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import mir_eval
import numpy as np
import pretty_midi
import pytest
import soundfile
from click.testing import CliRunner, Result
from recordings import record, save_model

from mt3data.music.midi import read_midi
from mt3data.music.notes import Notes
from mt3data.music.vocabulary import EOS_ID, Event, VocabularyConfig, get_codec
from mt3train.cli.main import main
from mt3train.transcription.beat_tracking import find_beats, onset_strength, track_beats
from mt3train.transcription.decode import DecodedSegment, SegmentDecoder

EVENTS = (
    ("tie", 0), ("shift", 23), ("program", 33), ("velocity", 1), ("pitch", 40), ("shift", 51),
    ("velocity", 0), ("pitch", 40), ("velocity", 1), ("drum", 36),
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "a.safetensors", VocabularyConfig())


@pytest.fixture(autouse=True)
def same_notes_in_every_segment(monkeypatch) -> None:
    codec = get_codec(VocabularyConfig())
    tokens = np.array([*(codec.encode(Event(*event)) + 3 for event in EVENTS), EOS_ID])

    def decode(self: SegmentDecoder, mels: Iterator[np.ndarray]) -> Iterator[DecodedSegment]:
        for index, _ in enumerate(mels):
            yield DecodedSegment(index, tokens)

    monkeypatch.setattr(SegmentDecoder, "decode", decode)


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["transcribe", *map(str, words)])


def clicks(path: Path, times: np.ndarray, seconds: float) -> Path:
    """A recording of short decaying tones."""
    samples, t = np.zeros(int(16000 * seconds)), np.arange(1600) / 16000
    for time in times:
        start = round(time * 16000)
        samples[start : start + 1600] += np.sin(2 * np.pi * 440 * t) * np.exp(-30 * t) * 0.5
    soundfile.write(path, samples, 16000)
    return path


def onsets(path: Path) -> list[float]:
    return sorted(read_midi(path)[0].onset.tolist())


def test_beats_of_a_file_give_bar_lines_and_leave_the_notes(tmp_path, checkpoint):
    song = record(tmp_path / "song.wav", 6.0)
    times = [0.4, 1.0, 1.5, 2.1, 2.6, 3.3, 4.0, 4.4, 5.0]
    lines = (f"{time}\t{(k + 2) % 3 + 1}" for k, time in enumerate(times))
    (tmp_path / "song.beats").write_text("\n".join(lines))
    plain = run(song, "--checkpoint", checkpoint, "-o", tmp_path / "plain.mid")
    assert plain.exit_code == 0, plain.output
    done = run(song, "--checkpoint", checkpoint, "--beats", tmp_path / "song.beats",
               "-o", tmp_path / "bars.mid", "-o", tmp_path / "bars.json", "-o", tmp_path / "bars.html",
               "--per-instrument")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "bars of 3/4 at about" in done.output and "estimated" not in done.output
    for name in ("bars.mid", "bars-drums.mid"):
        midi = pretty_midi.PrettyMIDI(str(tmp_path / name))
        lines = midi.get_downbeats()
        assert np.abs(lines[:, None] - [1.0, 2.6, 4.4]).min(axis=0).max() < 1e-5
    assert onsets(tmp_path / "bars.mid") == pytest.approx(onsets(tmp_path / "plain.mid"), abs=1e-3)
    notes = json.loads((tmp_path / "bars.json").read_text())["notes"]
    assert notes[0]["onset"] == pytest.approx(0.23)
    assert "bar lines of the recording" in (tmp_path / "bars.html").read_text()


def test_a_constant_tempo_and_a_grid(tmp_path, checkpoint):
    song = record(tmp_path / "song.wav", 4.0)
    done = run(song, "--checkpoint", checkpoint, "--bpm", 120, "--first-beat", 0.5, "--quantize", "1/8",
               "-o", tmp_path / "a.mid", "-o", tmp_path / "a.jsonl")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert onsets(tmp_path / "a.mid")[:2] == pytest.approx([0.25, 0.5])  # of 0.23 and 0.51
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["onset"] for row in rows[:2]] == [0.25, 0.5]
    assert min(row["offset"] - row["onset"] for row in rows) >= 0.25
    signatures = pretty_midi.PrettyMIDI(str(tmp_path / "a.mid")).time_signature_changes
    assert [(s.numerator, s.time) for s in signatures] == [(1, 0.0), (4, 0.5)]


def test_beats_are_estimated(tmp_path, checkpoint):
    song = clicks(tmp_path / "song.wav", 0.51 + np.arange(30) * 0.6, 19.0)
    done = run(song, "--checkpoint", checkpoint, "--beats", "auto", "-o", tmp_path / "a.mid")
    assert done.exit_code == 0, done.output
    assert "of 4/4 at about 100 bpm, estimated" in done.output


@pytest.mark.parametrize("swing", [0.0, 0.06])
def test_estimated_beats_are_those_of_clicks_at_a_varying_tempo(tmp_path, swing):
    times = 0.7 + np.cumsum(0.55 * (1 + swing * np.sin(np.arange(70) / 7)))
    song = clicks(tmp_path / "song.wav", times, times[-1] + 1)
    found = track_beats(onset_strength(song))
    assert mir_eval.beat.f_measure(times, found) > 0.97
    near = np.abs(found[:, None] - times).min(axis=0)
    assert np.median(near) < 0.02  # a frame; before notes move them
    zeros = np.zeros(len(times))
    notes = Notes(times, times + 0.1, zeros + 60, zeros + 90, zeros, zeros, zeros)
    beats = find_beats(song, notes, float(times[-1] + 1))
    assert np.median(np.abs(beats.times[:, None] - times).min(axis=0)) < 1e-9


def test_a_given_tempo_decides_between_octaves(tmp_path):
    times = 0.5 + np.arange(60) * 0.4  # 150 bpm
    song = clicks(tmp_path / "song.wav", times, 25.0)
    for bpm in (75, 150):
        beats = find_beats(song, Notes.empty(), 25.0, bpm=bpm)
        assert 60 / np.median(np.diff(beats.times)) == pytest.approx(bpm, rel=0.03)


def test_silence_has_no_beats(tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(64000), 16000)
    with pytest.raises(ValueError, match="0 beats found.*--bpm"):
        find_beats(tmp_path / "silence.wav", Notes.empty(), 4.0)


def test_auto_needs_librosa(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "librosa", None)
    song = record(tmp_path / "song.wav")
    done = run(song, "--checkpoint", checkpoint, "--beats", "auto", "-o", tmp_path / "a.mid")
    assert done.exit_code == 2 and "analysis" in done.output and "librosa" in done.output


@pytest.mark.parametrize("words, fact", [
    (["--quantize", "1/8"], "--quantize needs bars"),
    (["--first-beat", "1"], "--first-beat needs bars"),
    (["--meter", "3/4"], "--meter needs bars"),
    (["--bpm", "0"], "--bpm 0; expected 4 to 1,000"),
    (["--bpm", "1e9"], r"--bpm 1e\+09"),
    (["--bpm", "nan"], "--bpm nan"),
    (["--bpm", "90", "--first-beat", "9"], "9 s.*2 s"),
    (["--bpm", "90", "--first-beat", "nan"], "nan s"),
    (["--bpm", "90", "--meter", "4/5"], "4/5"),
    (["--bpm", "90", "--quantize", "1/7"], "1/7"),
    (["--beats", "auto", "--first-beat", "1"], "--first-beat is for --bpm"),
    (["--beats", "LIST", "--bpm", "90"], "holds the tempo"),
    (["--beats", "nowhere.beats"], "nowhere.beats: cannot be read"),
    (["--beats", "."], "a folder; expected a file"),
    (["--beats", "LATE"], "31 s.*2 s"),
    (["--beats", "LONG"], "99.5 s.*2 s"),
    (["--beats", "LIST", "--meter", "3/4"], "4 beats.*3/4"),
    (["--beats", "LIST", "OTHER"], "one recording, not of 2"),
])  # fmt: skip
def test_a_mistake_takes_one_line_before_the_work(tmp_path, checkpoint, monkeypatch, words, fact):
    def never(*args: object, **options: object) -> None:
        raise AssertionError("transcribed")

    monkeypatch.setattr("mt3train.transcription.transcribe.transcribe", never)
    song = record(tmp_path / "song.wav")
    record(tmp_path / "other.wav")
    lists = {
        "LIST": [(0.1 * k, k % 4 + 1) for k in range(20)],
        "LATE": [(30, 1), (31, 2)],
        "LONG": [(k / 2, k % 4 + 1) for k in range(200)],
    }
    for name, rows in lists.items():
        text = "".join(f"{time:g}\t{number}\n" for time, number in rows)
        (tmp_path / f"{name}.beats").write_text(text)
    words = [str(tmp_path / f"{word}.beats") if word in lists else word for word in words]
    words = [str(tmp_path / "other.wav") if word == "OTHER" else word for word in words]
    done = run(song, "--checkpoint", checkpoint, "-o", tmp_path / "out/", *words)
    assert done.exit_code == 2, done.output
    lines = [line for line in done.output.splitlines() if "is now a folder" not in line]
    assert len(lines) == 1
    assert re.search(fact, lines[0]), lines[0]


def test_bars_without_a_format_that_has_them_are_refused(tmp_path, checkpoint):
    song = record(tmp_path / "song.wav")
    done = run(song, "--checkpoint", checkpoint, "--bpm", 90, "-o", tmp_path / "a.csv")
    assert done.exit_code == 2 and "--quantize" in done.output


def test_the_list_of_beats_is_never_replaced(tmp_path, checkpoint):
    song, beats = record(tmp_path / "song.wav"), tmp_path / "song.csv"
    beats.write_text("0.5\n1.0\n1.5\n")
    done = run(song, "--checkpoint", checkpoint, "--beats", beats, "--force", "-o", tmp_path / "a.mid",
               "-o", beats)  # fmt: skip
    assert done.exit_code == 2 and beats.read_text() == "0.5\n1.0\n1.5\n"


def test_a_score_has_the_name_of_the_recording_and_is_replaced(tmp_path, checkpoint):
    pytest.importorskip("music21", reason="music21 (extra `notation`) is not installed")
    song = record(tmp_path / "My song.wav", 4.0)
    for _ in range(2):
        done = run(song, "--checkpoint", checkpoint, "--bpm", 120, "-o", tmp_path / "a.musicxml")
        assert done.exit_code == 0, done.output
    text = (tmp_path / "a.musicxml").read_text()
    assert "My song" in text and "Made by mt3train transcribe" in text
    assert re.findall("<part-name>(.*?)</part-name>", text) == ["Electric Bass (finger)", "Drums"]


def test_a_score_needs_bars_and_music21(tmp_path, checkpoint, monkeypatch):
    song = record(tmp_path / "song.wav")
    words = [song, "--checkpoint", checkpoint, "-o", tmp_path / "a.musicxml"]
    done = run(*words)
    assert done.exit_code == 2 and "--bpm" in done.output
    monkeypatch.setitem(sys.modules, "music21", None)
    done = run(*words, "--bpm", 90)
    assert done.exit_code == 2 and "music21" in done.output and "[notation]" in done.output
