"""`mt3train transcribe`: files and folders in, MIDI, JSON or CSV out, mistakes in one line."""

import base64
import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mido
import needs
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from recordings import record, save_model
from videos import write_media

from mt3data import files as disk
from mt3data import terminal
from mt3data.audio import ffmpeg
from mt3data.music.midi import read_midi
from mt3data.music.vocabulary import EOS_ID, Event, VocabularyConfig, get_codec
from mt3train.cli import transcribe as cli_transcribe
from mt3train.cli.main import main
from mt3train.transcription import note_files
from mt3train.transcription.decode import DecodedSegment, SegmentDecoder
from mt3train.weights.checkpoint import load_model, save_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "a.safetensors", VocabularyConfig())


@pytest.fixture
def says(monkeypatch):
    """Makes every model say the same events in every segment."""

    def install(config: VocabularyConfig, *events: tuple[str, int]) -> None:
        words = [get_codec(config).encode(Event(*event)) + 3 for event in events]

        def decode(self: SegmentDecoder, mels: Iterator[np.ndarray]) -> Iterator[DecodedSegment]:
            for index, _ in enumerate(mels):
                yield DecodedSegment(index, np.array([*words, EOS_ID]))

        monkeypatch.setattr(SegmentDecoder, "decode", decode)

    return install


def test_passes_are_chosen_and_told(tmp_path, checkpoint):
    song, any_segments = record(tmp_path / "song.wav"), tmp_path / "audio.safetensors"
    model, info = load_model(checkpoint)
    save_weights(any_segments, model, replace(info, right_context="audio"))
    for weights, words, told in (
        (any_segments, (), ", 5 passes"), (any_segments, ("--passes", 1), ""),
        (any_segments, ("--plain",), ""), (checkpoint, (), ""), (checkpoint, ("--passes", 3), ", 3 passes"),
    ):  # fmt: skip
        page = tmp_path / "a.html"
        done = run(song, "-o", page, "--checkpoint", weights, *words)
        assert done.exit_code == 0, done.output
        assert f"0 updates{told}</p>" in page.read_text()
    refused = run(song, "--checkpoint", checkpoint, "--passes", 0)
    assert refused.exit_code == 2 and "--passes" in refused.output


NOTE = (
    ("tie", 0), ("shift", 123), ("program", 33), ("velocity", 1), ("pitch", 40), ("shift", 150),
    ("velocity", 0), ("pitch", 40), ("velocity", 1), ("drum", 36),
)  # fmt: skip


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["transcribe", *map(str, words)])


def test_midi_json_and_csv_say_the_same_to_the_millisecond(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE)
    song = record(tmp_path / "song.wav")
    for name in ("song.mid", "song.json", "song.csv"):
        done = run(song, "--checkpoint", checkpoint, "-o", tmp_path / name)
        assert done.exit_code == 0, done.output
        assert f"{name}: 2 notes of 2 instruments in 1 segment" in done.output
    midi = read_midi(tmp_path / "song.mid")[0]
    assert sorted(zip(midi.onset, midi.offset, midi.pitch, midi.program, strict=True)) == [
        (pytest.approx(1.23), pytest.approx(1.5), 40, 33),
        (pytest.approx(1.5), pytest.approx(1.51), 36, 0),
    ]
    bass = {"onset": 1.23, "offset": 1.5, "pitch": 40, "program": 33, "is_drum": False,
            "instrument": 0, "name": "Electric Bass (finger)"}  # fmt: skip
    drum = {"onset": 1.5, "offset": 1.51, "pitch": 36, "program": 0, "is_drum": True,
            "instrument": 9, "name": "Drums"}  # fmt: skip
    assert json.loads((tmp_path / "song.json").read_text()) == {
        "made_by": "Made by mt3train transcribe of mt3kit", "notes": [bass, drum],
    }  # fmt: skip
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
    assert read_midi(tmp_path / "a.mid")[0].velocity.tolist() == [77]


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
        assert len(read_midi(out)[0]) == 0
    elif kind == "json":
        assert json.loads(out.read_text())["notes"] == []
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


def test_only_notes_of_chosen_instruments_are_written(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE)  # a bass and a drum
    song = record(tmp_path / "song.wav")
    done = run(song, "--checkpoint", checkpoint, "-o", tmp_path / "a.json", "--programs", "33")
    assert done.exit_code == 0, done.output
    notes = json.loads((tmp_path / "a.json").read_text())["notes"]
    assert [(note["program"], note["is_drum"]) for note in notes] == [(33, False)]


@pytest.mark.parametrize("name", ["rec.mid", "rec.csv", "rec.json", "rec.html"])
def test_a_file_of_the_user_is_replaced_only_with_force(tmp_path, checkpoint, says, name):
    """Labels beside the recording keep their content; a file of an earlier run is replaced."""
    says(VocabularyConfig(), *NOTE)
    song, out = record(tmp_path / "rec.wav"), tmp_path / name
    labels = b"onset,offset,pitch,program,is_drum,held\n0.5,1.0,60,0,0,0\n"
    out.write_bytes(labels)
    words = [song, "--checkpoint", checkpoint, "-o", out]
    done = run(*words)
    assert done.exit_code == 2 and "was not written by `mt3train transcribe`" in done.output
    assert out.read_bytes() == labels
    assert run(*words, "--force").exit_code == 0 and out.read_bytes() != labels
    first = out.read_bytes()
    assert run(*words).exit_code == 0 and out.read_bytes() == first  # its own file


def test_labels_beside_one_recording_of_a_folder_stop_only_that_one(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE)
    for name in "ab":
        record(tmp_path / "in" / f"{name}.wav")
    (tmp_path / "in" / "a.mid").write_bytes(b"my labels")
    done = run(tmp_path / "in", "--checkpoint", checkpoint, "-o", tmp_path / "in")
    assert done.exit_code == 1 and "a.mid exists and was not written by" in done.output
    assert (tmp_path / "in" / "a.mid").read_bytes() == b"my labels"
    assert len(read_midi(tmp_path / "in" / "b.mid")[0]) == 2


@needs.posix
def test_a_dash_is_standard_output_and_a_link_is_written_through(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE)
    song = record(tmp_path / "song.wav")
    done = run(song, "--checkpoint", checkpoint, "-o", "-", "--format", "json")
    assert done.exit_code == 0 and len(json.loads(done.stdout)["notes"]) == 2
    assert "2 notes of 2 instruments" in done.stderr
    (tmp_path / "b.csv").symlink_to(tmp_path / "a.csv")
    assert run(song, "--checkpoint", checkpoint, "-o", tmp_path / "b.csv").exit_code == 0
    assert (tmp_path / "b.csv").is_symlink() and (tmp_path / "a.csv").read_text().count("\n") == 3


@needs.posix
@pytest.mark.parametrize("kind", ["mid", "csv", "html"])
def test_a_device_is_written_into(tmp_path, checkpoint, says, kind):
    says(VocabularyConfig(), *NOTE)
    song = record(tmp_path / "song.wav")
    words = [song, "--checkpoint", checkpoint, "-o", "/dev/null", "--format", kind]
    done = run(*words)
    assert done.exit_code == 0 and "/dev/null: 2 notes of 2 instruments" in done.stdout
    assert Path("/dev/null").is_char_device()
    twice = run(*words[:-1], "mid,csv")
    assert twice.exit_code == 2 and "/dev/null is a device, for one format" in twice.stderr
    several = run(song, *words)
    assert several.exit_code == 2 and "a device, for one recording" in several.stderr


@needs.posix
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("name", ["song.wav", "other.wav", "run/checkpoint-00000000.safetensors"])
def test_an_input_is_not_replaced_even_by_force(tmp_path, checkpoint, says, link, name):
    says(VocabularyConfig(), *NOTE)
    recordings = record(tmp_path / "song.wav"), record(tmp_path / "other.wav", 2.5)
    for folder in ("run", "out"):
        (tmp_path / folder).mkdir()
    weights = tmp_path / "run/checkpoint-00000000.safetensors"
    weights.write_bytes(checkpoint.read_bytes())
    before = (tmp_path / name).read_bytes()
    link(tmp_path / "out/song.mid", tmp_path / name)
    words = ["--checkpoint", tmp_path / "run", "-o", tmp_path / "out", "--force"]
    done = run(*recordings, *words)
    assert done.exit_code == 1 and f"is the input {tmp_path / name}" in done.output
    assert len(read_midi(tmp_path / "out/other.mid")[0]) == 2
    if name != "other.wav":
        assert run(recordings[0], *words).exit_code == 2
    assert (tmp_path / name).read_bytes() == before
    assert (tmp_path / "out/song.mid").samefile(tmp_path / name)


def test_whatever_one_recording_raises_the_others_are_transcribed(
    tmp_path, checkpoint, says, monkeypatch
):
    says(VocabularyConfig(), *NOTE)
    for name in ("a", "b", "c"):
        record(tmp_path / "in" / f"{name}.wav")
    write_notes = cli_transcribe._write_notes

    def fail(*given: object) -> list[str]:
        if given[-1].name == "b.mid":  # type: ignore[attr-defined]
            raise ZeroDivisionError("a bug")
        return write_notes(*given)

    monkeypatch.setattr(cli_transcribe, "_write_notes", fail)
    done = run(tmp_path / "in", "--checkpoint", checkpoint, "-o", tmp_path / "out")
    assert done.exit_code == 1 and "1 of 3 recordings could not be transcribed" in done.stderr
    assert "b.wav: ZeroDivisionError('a bug')" in done.stderr and "Traceback" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.mid", "c.mid"]


@pytest.mark.parametrize("length", [219, 251])
def test_long_names_and_names_that_are_not_utf_8_are_transcribed(
    tmp_path, checkpoint, says, length
):
    """A name of 251 bytes and .wav has no room for .html, which is reported before any work."""
    says(VocabularyConfig(), *NOTE)
    (tmp_path / "in").mkdir()
    for stem in ("x" * length, os.fsdecode(b"caf\xe9")):
        record(tmp_path / "a.wav").rename(tmp_path / "in" / f"{stem}.wav")
    words = [tmp_path / "in", "--checkpoint", checkpoint]
    assert run(*words, "-o", tmp_path / "out").exit_code == 0
    names = sorted(len(os.fsencode(path.name)) for path in (tmp_path / "out").iterdir())
    assert names == [8, length + 4]
    done = run(*words, "-o", tmp_path / "pages", "--format", "html")
    assert (
        done.exit_code == (length == 251)
        and "\ufffd" in (tmp_path / "pages" / os.fsdecode(b"caf\xe9.html")).read_text()
    )
    assert ("a name of 256 bytes" in done.stderr) == (length == 251)


def test_a_page_shows_the_notes_that_the_file_holds(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE)
    song = record(tmp_path / "song.wav")
    words = ["--checkpoint", checkpoint, "-o", tmp_path / "a.mid", "-o", tmp_path / "a.html"]
    done = run(song, *words, "--programs", "bass,drums")
    assert done.exit_code == 0, done.output
    assert re.search(r"a.mid and \S*a.html \(\d+\.\d kB\): 2 notes of 2 instruments", done.output)
    page = (tmp_path / "a.html").read_text()
    told = (
        "Model: a.safetensors, 0.0[0-9]+ million parameters, 0 updates; asked for bass,drums alone"
    )
    assert re.search(told, page)
    midi = base64.b64decode(re.findall(r'href="data:audio/midi;base64,([^"]*)"', page)[0])
    assert midi == (tmp_path / "a.mid").read_bytes()


def test_pages_alone_of_a_folder_keep_its_order(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE)
    record(tmp_path / "in" / "a.wav")
    record(tmp_path / "in" / "live" / "b.flac")
    (tmp_path / "in" / "broken.mp3").write_bytes(b"this is no audio")
    words = ["--checkpoint", checkpoint, "-o", tmp_path / "out", "--format", "html"]
    done = run(tmp_path / "in", *words)
    assert done.exit_code == 1 and "broken.mp3: not audio" in done.output
    made = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert made == ["a.html", "live/b.html"]


def test_a_folder_that_is_there_is_a_folder_whatever_its_name(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE)
    for name in ("a.mid", "b.txt"):
        (tmp_path / name).mkdir()
        done = run(record(tmp_path / "song.wav"), "--checkpoint", checkpoint, "-o", tmp_path / name)
        assert done.exit_code == 0 and len(read_midi(tmp_path / name / "song.mid")[0]) == 2


@pytest.mark.parametrize("name", ["a.mid", "a.html"])
def test_a_folder_without_permission_is_told_before_the_work(tmp_path, monkeypatch, name):
    song = record(tmp_path / "song.wav")
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    done = run(song, "-o", tmp_path / name)  # the demo weights are not even looked for
    assert done.exit_code == 2 and "no permission to write there" in done.output


def test_the_size_of_a_long_recording_s_page_is_said_and_room_for_it_asked(
    tmp_path, checkpoint, says, monkeypatch
):
    says(VocabularyConfig(), *NOTE)
    song, words = record(tmp_path / "song.wav", 60.0), ["--checkpoint", checkpoint]
    monkeypatch.setattr(cli_transcribe, "LONG_SECONDS", 59)
    done = run(song, *words, "-o", tmp_path / "a.html")
    assert done.exit_code == 0 and "song.wav lasts 1:00: its page takes 960.0 kB" in done.output
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1_000_000)
    done = run(song, *words, "-o", tmp_path / "b.html")
    assert done.exit_code == 2 and "1.7 MB needed for the page about" in done.output
    assert not (tmp_path / "b.html").exists()


def test_what_a_folder_holds_that_cannot_be_read_is_said_and_leftovers_are_not_read(
    tmp_path, checkpoint, says, monkeypatch
):
    says(VocabularyConfig(), *NOTE)
    monkeypatch.setattr(ffmpeg, "find_decoder", lambda: None)
    record(tmp_path / "in" / "song.wav")
    for name in ("a b.m4a", "c.WMA", "._song.wav", ".hidden.m4a", "notes.txt"):
        (tmp_path / "in" / name).write_bytes(b"\x00\x05\x16\x07")
    done = run(tmp_path / "in", "--checkpoint", checkpoint, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    first = tmp_path / "in" / "a b.m4a"
    assert done.stderr.startswith("skipped 2: ") and ".hidden.m4a (hidden)" in done.stderr
    assert done.stderr.endswith(
        f"{tmp_path / 'in'}: passed over 2 files of other formats, the first is {first}; "
        f"{ffmpeg.missing_decoder_hint()}\n"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["song.mid"]


@pytest.mark.parametrize("words", [["no.wav"], ["song.wav", "--programs", "kazoo"]])
def test_a_mistyped_word_is_told_before_anything_is_loaded(tmp_path, monkeypatch, words):
    def load(checkpoint: Path | None, device: str) -> None:
        raise AssertionError("loaded")

    record(tmp_path / "song.wav")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_transcribe, "load_checkpoint", load)
    done = run(*words, "-o", "a.mid")
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert run("song.wav", "-o", "a.mid").exception.args == ("loaded",)


def test_a_name_without_an_ending_becomes_a_folder_and_is_said_to(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE)
    words = [record(tmp_path / "a.wav"), "--checkpoint", checkpoint, "-o", tmp_path / "song"]
    done = run(*words)
    told = f"-o {tmp_path / 'song'} does not end as a file does (.mid), so it is now a folder\n"
    assert done.stderr == told and f"{tmp_path / 'song' / 'a.mid'}: 2 notes" in done.stdout
    assert run(*words).stderr == ""  # it was a folder before


def test_invalid_outputs_are_counted(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE[:3], ("tie", 0), *NOTE[3:])
    done = run(record(tmp_path / "a.wav"), "--checkpoint", checkpoint, "-o", tmp_path / "a.mid")
    said = "segment; ignored 1 invalid model output\n"
    assert done.stdout.endswith(said)


def test_an_interrupted_folder_keeps_what_is_written(tmp_path, checkpoint, says, monkeypatch):
    says(VocabularyConfig(), *NOTE)
    write_notes = cli_transcribe._write_notes

    def interrupt(*given: object) -> list[str]:
        if given[-1].name == "b.mid":  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return write_notes(*given)

    monkeypatch.setattr(cli_transcribe, "_write_notes", interrupt)
    for name in "abc":
        record(tmp_path / "in" / f"{name}.wav")
    done = run(tmp_path / "in", "--checkpoint", checkpoint, "-o", tmp_path / "out")
    assert done.exit_code == 130
    told = "interrupted; files that are written stay, the same command starts over\n"
    assert done.stderr == told
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.mid"]


@needs.proc
@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere.wav", "-o", "a.mid"], "nowhere.wav: no such file; expected an audio file"),
        (["song.wav", "-o", "a.mid", "--batch", "0"], "'--batch': 0 is not in the range x>=1"),
        (["song.wav", "-o", "a.mid", "--programs", "kazoo"], "no instrument 'kazoo'"),
        (
            ["song.wav", "in", "-o", "out"],
            "song.wav and in/song.wav would both become out/song.mid",
        ),
        (["song.wav", "empty", "-o", "out"], "empty holds no recordings"),
        (["song.wav"], "nowhere to write to; expected -o song.mid"),
        (
            ["song.wav", "song.flac", "-o", "a.mid"],
            "a.mid is the name of one file; several recordings",
        ),
        (["in", "-o", "a.html"], "-o a.html is the name of one file; several"),
        (["song.wav", "-o", "a.mid", "--format", "csv"], "--format csv is for folders and -o -"),
        (["song.wav", "-o", "-", "--format", "mid,csv"], "standard output, for one format"),
        (["in", "-o", "-"], "standard output, for one recording"),
        (["-", "-", "-o", "out"], "- is standard input, which holds one recording"),
        (["song.wav", "-o", "a.csv", "--per-instrument"], "--per-instrument is for MIDI files"),
        (["song.wav", "-o", "notes.txt"], "notes.txt does not end in"),
        (["song.wav", "song.flac", "-o", "notes.txt"], "for a folder of that name, make it first"),
        (
            ["song.wav", "-o", "out", "--format", "mid,wav"],
            "--format wav: expected, between commas",
        ),
        (["song.wav", "-o", "in", "-o", "in/song.mid"], "both become in/song.mid"),
        (["song.wav", "no.wav", "-o", "out"], "no.wav: no such file; expected an audio file"),
        (["https://a.org/b.mp3", "-o", "a.mid"], "https://a.org/b.mp3: a web address;"),
        (["phone", "-o", "out"], "phone holds no recordings; 2 files of other formats"),
        (["song.wav", "-o", "song.wav/out.html"], "cannot be made"),
        (["song.wav", "-o", "/proc/a.html"], "/proc"),
        (["song.wav", "-o", "taken"], "taken/song.mid is a folder; choose another -o"),
        (["song.wav", "-o", "taken", "--format", "html"], "taken/song.html is a folder; choose"),
        (["song.wav", "-o", "song.wav/out"], "cannot be made"),
        (["song.wav", "-o", "song.wav"], "song.wav does not end in .mid"),
        (["song.wav", "-o", "/dev/null/out"], "/dev/null/out: the folder cannot be made"),
        (["song.wav", "-o", "/proc/out.mid"], "/proc"),
        (["song.wav", "-o", "a.mid", "--checkpoint", "song.wav"], "song.wav is no"),
    ],
)
def test_a_mistake_takes_one_line_and_exits_with_2(
    tmp_path, checkpoint, monkeypatch, words, message
):
    record(tmp_path / "song.wav")
    record(tmp_path / "song.flac")
    record(tmp_path / "in" / "song.wav")
    for name in ("a.m4a", "b.wma", "._c.mp3"):
        (tmp_path / "phone").mkdir(exist_ok=True)
        (tmp_path / "phone" / name).touch()
    for folder in ("empty", "taken/song.mid", "taken/song.html"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ffmpeg, "find_decoder", lambda: None)
    done = run("--checkpoint", checkpoint, *words)
    assert done.exit_code == 2, done.output
    start = ("song", "nowhere", "skipped")
    errors = [line for line in done.output.splitlines() if not line.startswith(start)]
    assert len(errors) == 1 and message in errors[0]


def test_several_formats_are_written_from_one_transcription(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE)
    words = [record(tmp_path / "song.wav"), "--checkpoint", checkpoint]
    out = tmp_path / "out"
    done = run(*words, "-o", tmp_path / "a.csv", "-o", out, "--format", "mid,jsonl")
    assert done.exit_code == 0 and done.stdout.count("2 notes of 2 instruments") == 1
    assert (tmp_path / "a.csv").read_text().count("\n") == 3
    notes = [json.loads(line) for line in (out / "song.jsonl").read_text().splitlines()]
    assert [(note["onset"], note["name"]) for note in notes] == [
        (1.23, "Electric Bass (finger)"), (1.5, "Drums"),
    ]  # fmt: skip
    assert len(read_midi(out / "song.mid")[0]) == 2
    assert run(*words, "-o", out, "--format", "jsonl").exit_code == 0  # its own file
    (out / "song.jsonl").write_text('{"onset": 1.0, "offset": 2.0, "pitch": 60}\n')
    assert run(*words, "-o", out, "--format", "jsonl").exit_code == 2


def test_a_recording_on_standard_input_gives_the_bytes_of_its_file(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE)
    song = record(tmp_path / "song.flac")
    assert run(song, "--checkpoint", checkpoint, "-o", tmp_path / "a.mid").exit_code == 0
    words = ["transcribe", "-", "--checkpoint", str(checkpoint), "-o", "-"]
    done = CliRunner().invoke(main, words, input=song.read_bytes())
    assert done.exit_code == 0, done.output
    assert done.stdout_bytes == (tmp_path / "a.mid").read_bytes()
    done = CliRunner().invoke(main, words, input=b"")
    assert done.exit_code == 2 and "standard-input: empty file" in done.stderr


def test_the_midi_file_ends_with_the_recording(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE)
    song, out = record(tmp_path / "song.wav", 2.0), tmp_path / "a.mid"
    assert run(song, "--checkpoint", checkpoint, "-o", out).exit_code == 0
    assert mido.MidiFile(out).length == pytest.approx(2.0)


def test_every_instrument_gets_a_file_of_its_own(tmp_path, checkpoint, says):
    says(VocabularyConfig(), *NOTE)
    words = [record(tmp_path / "song.wav"), "--checkpoint", checkpoint, "--per-instrument"]
    (tmp_path / "out").mkdir()
    done = run(*words, "-o", tmp_path / "out")
    assert (
        done.exit_code == 0 and "song.mid and 2 files of single instruments: 2 notes" in done.stdout
    )
    found = {path.name: read_midi(path)[0] for path in (tmp_path / "out").iterdir()}
    assert {name: notes.pitch.tolist() for name, notes in found.items()} == {
        "song.mid": [40, 36], "song-electric-bass-finger.mid": [40], "song-drums.mid": [36],
    }  # fmt: skip
    (tmp_path / "out" / "song-church-organ.mid").write_bytes(b"the user's own")
    done = run(*words, "-o", tmp_path / "out")  # before the work, whatever it would find
    assert done.exit_code == 2 and "song-church-organ.mid exists and was not written" in done.stderr


def test_the_sound_of_a_video_and_of_standard_input_is_transcribed(tmp_path, checkpoint, says):
    pytest.importorskip("av", reason="PyAV writes the video (extra video)")
    says(VocabularyConfig(), *NOTE)
    (tmp_path / "in").mkdir()
    video = write_media(tmp_path / "in" / "clip.mp4", "aac", video="mpeg4")
    write_media(tmp_path / "in" / "song.m4a", "aac")
    record(tmp_path / "in" / "song.wav")  # from which the .m4a was made
    (tmp_path / "in" / "broken.webm").write_bytes(b"this is no video")
    words = ["--checkpoint", checkpoint]
    done = run(tmp_path / "in", *words, "-o", tmp_path / "out")
    assert done.exit_code == 1 and "1 of 3 recordings could not be transcribed" in done.stderr
    assert (
        f"1 file beside audio files of their names, the first is {tmp_path / 'in' / 'song.m4a'}"
        in done.stderr
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip.mid", "song.mid"]
    piped = ["transcribe", "-", "-o", "-", *map(str, words)]
    done = CliRunner().invoke(main, piped, input=video.read_bytes())
    assert done.stdout_bytes == (tmp_path / "out" / "clip.mid").read_bytes()


@pytest.mark.parametrize("words, decodings", [
    (["-o", "a.mid"], 1),
    (["-o", "a.jsonl"], 1),
    (["-o", "a.mid", "-o", "a.csv", "--bpm", "90"], 1),
    (["-o", "a.mid", "-o", "a.html", "--bpm", "90"], 2),  # the page holds the sound
])  # fmt: skip
def test_a_video_is_decoded_once_and_once_more_for_a_page(
    tmp_path, checkpoint, says, monkeypatch, words, decodings
):
    pytest.importorskip("av", reason="PyAV writes the video (extra video)")
    says(VocabularyConfig(), *NOTE)
    decode, opened = ffmpeg.decode, []
    monkeypatch.setattr(ffmpeg, "decode", lambda *given: opened.append(given) or decode(*given))
    monkeypatch.chdir(tmp_path)
    video = write_media(tmp_path / "clip.mp4", "aac", video="mpeg4")
    done = run(video, "--checkpoint", checkpoint, *words)
    assert done.exit_code == 0, done.output
    assert len(opened) == decodings


def test_json_lines_alone_are_written_while_the_recording_is_transcribed(
    tmp_path, checkpoint, says, monkeypatch
):
    says(VocabularyConfig(), *NOTE)
    song, words = record(tmp_path / "song.wav", 9.0), ["--checkpoint", checkpoint]
    assert run(song, *words, "-o", tmp_path / "a.json").exit_code == 0
    notes = json.loads((tmp_path / "a.json").read_text())["notes"]
    shown: list[int] = []  # lines on standard output when each segment is done
    monkeypatch.setattr(terminal.ProgressLines, "update", lambda bar, n: shown.append(len(written)))
    written: list[bytes] = []
    encode = note_files.encode_notes_as

    def watch(*given: object) -> bytes:
        written.append(encode(*given))
        return written[-1]

    monkeypatch.setattr(note_files, "encode_notes_as", watch)
    done = run(song, *words, "-o", "-", "--format", "jsonl")
    assert done.exit_code == 0 and "8 notes of 2 instruments in 5 segments" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(lines, key=lambda note: note["onset"]) == notes and len(notes) == 8
    assert shown == sorted(shown) and shown[0] < shown[-1]
