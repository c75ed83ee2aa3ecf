"""`mt3train transcribe`: files and folders in, MIDI, JSON or CSV out, mistakes in one line."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner, Result

from mt3data.midi import read_midi
from mt3data.vocabulary import EOS_ID, Event, VocabularyConfig, codec_of, num_embeddings
from mt3train.checkpoint import CheckpointInfo, save_weights
from mt3train.cli import main
from mt3train.decode import Found, SegmentDecoder
from mt3train.model import MT3, ModelConfig


def save_model(path: Path, vocabulary: VocabularyConfig) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(num_embeddings(vocabulary), 16, 2, 8, 1, 1, 16)
    save_weights(path, MT3(config), CheckpointInfo(model=config, vocabulary=vocabulary))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "a.safetensors", VocabularyConfig())


@pytest.fixture
def says(monkeypatch):
    """Makes every model say the same events in every segment."""

    def install(config: VocabularyConfig, *events: tuple[str, int]) -> None:
        words = [codec_of(config).encode(Event(*event)) + 3 for event in events]

        def decode(self: SegmentDecoder, mels: Iterator[np.ndarray]) -> Iterator[Found]:
            for index, _ in enumerate(mels):
                yield Found(index, np.array([[*words, EOS_ID]]), np.zeros(1))

        monkeypatch.setattr(SegmentDecoder, "decode", decode)

    return install


NOTE = (
    ("tie", 0), ("shift", 123), ("program", 33), ("velocity", 1), ("pitch", 40), ("shift", 150),
    ("velocity", 0), ("pitch", 40), ("velocity", 1), ("drum", 36),
)  # fmt: skip


def record(path: Path, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).standard_normal(int(16000 * seconds)) * 0.1
    soundfile.write(path, samples, 16000)
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["transcribe", *map(str, words)])


def test_midi_json_and_csv_say_the_same_to_the_millisecond(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE)
    song = record(tmp_path / "song.wav")
    for name in ("song.mid", "song.json", "song.csv"):
        done = run(song, "--checkpoint", checkpoint, "-o", tmp_path / name)
        assert done.exit_code == 0, done.output
        assert f"{name}: 2 notes of 2 instruments in 1 segment" in done.output
    midi = read_midi(tmp_path / "song.mid")
    assert sorted(zip(midi.onset, midi.offset, midi.pitch, midi.program, strict=True)) == [
        (pytest.approx(1.23), pytest.approx(1.5), 40, 33),
        (pytest.approx(1.5), pytest.approx(1.51), 36, 0),
    ]
    bass = {"onset": 1.23, "offset": 1.5, "pitch": 40, "program": 33, "is_drum": False,
            "instrument": 0, "name": "Electric Bass (finger)"}  # fmt: skip
    drum = {"onset": 1.5, "offset": 1.51, "pitch": 36, "program": 0, "is_drum": True,
            "instrument": 9, "name": "Drums"}  # fmt: skip
    assert json.loads((tmp_path / "song.json").read_text()) == {"notes": [bass, drum]}
    with (tmp_path / "song.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{key: str(value) for key, value in row.items()} for row in (bass, drum)]
    assert not list(tmp_path.glob("*tmp*")) + list(tmp_path.glob("*.part"))


def test_a_model_with_velocities_writes_them(tmp_path, says):
    vocabulary = VocabularyConfig(num_velocity_bins=127)
    model = save_model(tmp_path / "v.safetensors", vocabulary)
    says(vocabulary, ("tie", 0), ("shift", 5), ("program", 0), ("velocity", 77), ("pitch", 60))
    song = record(tmp_path / "song.wav")
    assert run(song, "--checkpoint", model, "-o", tmp_path / "a.json").exit_code == 0
    assert json.loads((tmp_path / "a.json").read_text())["notes"][0]["velocity"] == 77
    assert run(song, "--checkpoint", model, "-o", tmp_path / "a.mid").exit_code == 0
    assert read_midi(tmp_path / "a.mid").velocity.tolist() == [77]


@pytest.mark.parametrize("kind", ["mid", "json", "csv"])
@pytest.mark.parametrize("seconds", [0.1, 3.0])
def test_where_nothing_is_heard_the_file_is_empty_valid_and_said_to_be(
    tmp_path, checkpoint, says, kind, seconds
):
    says(VocabularyConfig(), ("tie", 0))
    soundfile.write(tmp_path / "silence.wav", np.zeros(int(16000 * seconds)), 16000)
    out = tmp_path / f"out.{kind}"
    done = run(tmp_path / "silence.wav", "--checkpoint", checkpoint, "-o", out)
    assert done.exit_code == 0 and "no notes found in" in done.output
    if kind == "mid":
        assert len(read_midi(out)) == 0
    elif kind == "json":
        assert json.loads(out.read_text()) == {"notes": []}
    else:
        assert out.read_text() == "onset,offset,pitch,program,is_drum,instrument,name\n"


def test_a_folder_keeps_its_order_and_one_bad_file_stops_nothing(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE)
    record(tmp_path / "in" / "a.wav")
    record(tmp_path / "in" / "live" / "b.flac")
    (tmp_path / "in" / "broken.mp3").write_bytes(b"this is no audio")
    (tmp_path / "in" / "notes.txt").write_text("not asked for")
    other = record(tmp_path / "c.wav")
    done = run(tmp_path / "in", other, "--checkpoint", checkpoint, "-o", tmp_path / "out")
    assert done.exit_code == 1
    written = sorted(
        str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.mid")
    )
    assert written == ["a.mid", "c.mid", "live/b.mid"]
    assert "broken.mp3: not audio that libsndfile reads" in done.output
    assert "1 of 4 recordings could not be transcribed" in done.output


def test_the_notes_of_chosen_instruments_are_written_with_the_grammar_too(tmp_path, checkpoint):
    song = record(tmp_path / "song.wav", 1.0)
    done = run(song, "--checkpoint", checkpoint, "-o", tmp_path / "a.json", "--programs", "33,drums",
               "--grammar", "--batch", 2)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "invalid" not in done.output
    notes = json.loads((tmp_path / "a.json").read_text())["notes"]
    assert notes and {note["program"] for note in notes if not note["is_drum"]} <= {33}


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere.wav", "-o", "a.mid"], "nowhere.wav: no such file; expected an audio file"),
        (["song.wav", "-o", "a.mid", "--batch", "0"], "'--batch': 0 is not in the range x>=1"),
        (["song.wav", "-o", "a.mid", "--beams", "-1"], "'--beams': -1 is not in the range x>=0"),
        (["song.wav", "-o", "a.mid", "--programs", "kazoo"], "no instrument 'kazoo'"),
        (["song.wav", "song.wav", "-o", "out"], "two recordings would become"),
        (["song.wav", "empty", "-o", "out"], "empty holds no recordings"),
        (["song.wav", "song.flac", "-o", "a.mid"], "is the name of one file; 2 recordings need"),
        (["song.wav", "-o", "a.mid", "--format", "csv"], "is the name of one file; --format csv"),
        (["song.wav", "-o", "song.wav/out"], "cannot be made"),
        (["song.wav", "-o", "/proc/out.mid"], "/proc"),
        (["song.wav", "-o", "a.mid", "--checkpoint", "song.wav"], "not a whole safetensors file"),
    ],
)
def test_a_mistake_takes_one_line_and_exits_with_2(
    tmp_path, checkpoint, monkeypatch, words, message
):
    record(tmp_path / "song.wav")
    record(tmp_path / "song.flac")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    done = run("--checkpoint", checkpoint, *words)
    assert done.exit_code == 2, done.output
    errors = [line for line in done.output.splitlines() if not line.startswith(("song", "nowhere"))]
    assert len(errors) == 1 and message in errors[0]
