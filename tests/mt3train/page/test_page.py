"""The page of a transcription: its notes, its recording, and that nothing in it can break out."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import soundfile
from events import HANG_SECONDS
from html_page import Page

from mt3data.errors import UserError
from mt3data.files import mark
from mt3data.music.midi import midi_bytes, read_midi
from mt3data.music.notes import Notes
from mt3train.page import page as page_module
from mt3train.page.page import clock, colour_class, note_data, page_bytes, write_page

# An instrument cannot be named by a file, but a recording can; "/" is all that a name cannot hold.
NASTY = "<script>alert(1)<!-- $name ${x} \"quoted\" & 'so' .wav"
NOTES = Notes(
    onset=[0.5, 0.0, 1.0, 1.0], offset=[1.25, 0.5, 1.01, 1.0004], pitch=[64, 60, 36, 40],
    velocity=[100, 90, 80, 70], program=[33, 0, 0, 0], is_drum=[False, False, True, True],
    instrument=[1, 0, 9, 9],
)  # fmt: skip


def record(path: Path, seconds: float = 2.0, rate: int = 16000, click: float = 1.0) -> Path:
    """Silence but for a click."""
    samples = np.zeros(int(rate * seconds))
    samples[int(rate * click)] = 0.9
    soundfile.write(path, samples, rate)
    return path


def make(folder: Path, notes: Notes = NOTES, velocity: bool = False, name: str = "song.wav") -> str:
    write_page(
        folder / "page.html", record(folder / name), notes, 2.0, "about </script> it", velocity
    )
    return (folder / "page.html").read_text(encoding="utf-8")


def scripts(text: str, attributes: str) -> list[str]:
    return re.findall(f"<script {attributes}>(.*?)</script>", text, re.DOTALL)


def recording_in(text: str) -> bytes:
    return base64.b64decode("".join(scripts(text, 'type="text/plain" class="audio"')))


def test_notes_are_columns_in_milliseconds_with_drums_as_the_last_voice():
    assert note_data(NOTES.sorted(), 2.0, True) == {
        "seconds": 2.0,
        "voices": [{"name": "Acoustic Grand Piano", "program": 0},
                   {"name": "Electric Bass (finger)", "program": 33},
                   {"name": "Drums", "program": None}],
        "drums": {36: "Bass Drum 1", 40: "Electric Snare"},
        "onset": [0, 500, 1000, 1000], "length": [500, 750, 10, 1], "pitch": [60, 64, 36, 40],
        "voice": [0, 1, 2, 2], "velocity": [90, 100, 80, 70],
    }  # fmt: skip


def test_a_drum_that_general_midi_does_not_know_has_its_number():
    odd = Notes([0.0], [0.1], [3], [90], [0], [True], [9])
    assert note_data(odd, 1.0, False)["drums"] == {3: "Drum 3"}


@pytest.mark.parametrize("velocity", [False, True])
def test_the_page_holds_the_notes_and_the_midi_file(tmp_path: Path, velocity: bool):
    text = make(tmp_path, velocity=velocity)
    data = json.loads(scripts(text, 'type="application/json" id="data"')[0])
    assert data == json.loads(json.dumps(note_data(NOTES.sorted(), 2.0, velocity)))
    assert ("velocity" in data) == velocity
    midi = base64.b64decode(re.findall(r'href="data:audio/midi;base64,([^"]*)"', text)[0])
    assert (
        midi == midi_bytes(NOTES.sorted(), mark("mt3train transcribe"), 2.0)
        and len(read_midi(midi)[0]) == 4
    )
    assert 'download="song.mid"' in text
    assert "0:02 · 4 notes of 3 instruments" in text
    assert "The MIDI file is in seconds" in text
    assert pretty_midi.PrettyMIDI(io.BytesIO(midi)).get_tempo_changes()[1].tolist() == [120.0]


def test_the_recording_inside_lasts_as_long_and_stands_where_it_stood(tmp_path: Path):
    samples, rate = soundfile.read(io.BytesIO(recording_in(make(tmp_path))))
    assert rate == 44100 and samples.ndim == 1
    assert len(samples) / rate == pytest.approx(2.0, abs=0.001)
    assert np.abs(samples).argmax() / rate == pytest.approx(1.0, abs=0.001)


def test_the_recording_has_a_constant_bit_rate_so_that_jumps_are_exact(tmp_path: Path):
    mp3 = recording_in(make(tmp_path))
    assert b"Info" in mp3[:64] and b"Xing" not in mp3  # what variable ones say there
    assert len(mp3) == pytest.approx(2 * page_module.KBPS * 1000 / 8, rel=0.05)


def test_a_long_recording_is_cut_into_elements_that_join_without_a_gap(tmp_path, monkeypatch):
    whole = recording_in(make(tmp_path))
    monkeypatch.setattr(page_module, "CHUNK", 3000)
    cut = make(tmp_path)
    assert len(scripts(cut, 'type="text/plain" class="audio"')) == -(-len(whole) // 3000) > 5
    assert recording_in(cut) == whole


def test_the_same_recording_and_notes_give_the_same_bytes(tmp_path: Path):
    assert make(tmp_path) == make(tmp_path)


def test_what_names_say_is_text_and_not_markup(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(page_module, "instrument_name", lambda program: "</script><b>bold</b>")
    text = make(tmp_path, name=NASTY)
    page = Page(tmp_path / "page.html")
    assert page.tags.isdisjoint({"b"}) and NASTY in "".join(page.text)
    assert [value for tag, name, value in page.attributes if name == "download"] == [
        NASTY.replace(".wav", ".mid")
    ]
    assert len(scripts(text, 'type="module"')) == text.count("<script ") - 2
    assert "<script>" not in text and "</script><b>" not in text
    data = json.loads(scripts(text, 'type="application/json" id="data"')[0])
    assert data["voices"][0]["name"] == "</script><b>bold</b>"


def test_the_page_runs_its_own_script_alone_and_loads_nothing(tmp_path: Path):
    text = make(tmp_path)
    page = Page(tmp_path / "page.html")
    policy = next(v for _, name, v in page.attributes if name == "content" and "default-src" in v)
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    code, style = scripts(text, 'type="module"')[0], re.findall("<style>(.*?)</style>", text, re.S)
    for directive, content in (("script-src", code), ("style-src", style[0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed.pop(directive) == f"'sha256-{digest}'"
    assert allowed == {"default-src": "'none'", "media-src": "blob:", "base-uri": "'none'",
                       "form-action": "'none'"}  # fmt: skip
    assert "://" not in text and "@import" not in text and "url(" not in text
    links = [v for _, name, v in page.attributes if name in ("src", "href", "srcset", "action")]
    assert [link.split(",")[0] for link in links] == ["data:audio/midi;base64"]
    assert not [name for _, name, _ in page.attributes if name == "style" or name.startswith("on")]


def test_where_nothing_was_found_the_page_says_so_and_plays_the_recording(tmp_path: Path):
    text = make(tmp_path, Notes.empty())
    assert "0:02 · no notes were found" in text and "No notes were found in this recording." in text
    assert len(soundfile.read(io.BytesIO(recording_in(text)))[0]) == 88200


def test_notes_that_end_after_the_recording_are_on_the_page_and_do_not_lengthen_it(tmp_path: Path):
    late = Notes([1.0], [3.5], [60], [90], [0], [False], [0])
    text = make(tmp_path, late)
    assert "0:02 · 1 note of 1 instrument<" in text
    assert '{"seconds":2.0,' in text and '"onset":[1000],"length":[2500]' in text


def test_every_instrument_has_a_colour_and_the_eleventh_is_hollow():
    assert [colour_class(k, k) for k in (0, 9, 10, 19, 20)] == [
        "voice0", "voice9", "voice0 hollow", "voice9 hollow", "voice0",
    ]  # fmt: skip
    assert colour_class(3, None) == "drums"
    style = Path(page_module.__file__).with_name("page.css").read_text("utf-8")
    assert all(f".voice{k} {{ color" in style for k in range(page_module.COLOURS))


@pytest.mark.parametrize(
    "seconds, said", [(0.1, "0:00"), (59.6, "1:00"), (205, "3:25"), (3723, "1:02:03")]
)
def test_durations_are_said_as_on_a_clock(seconds: float, said: str):
    assert clock(seconds) == said


def test_the_size_of_a_page_is_known_before(tmp_path: Path):
    write_page(tmp_path / "a.html", record(tmp_path / "a.wav", 20.0), NOTES, 20.0, "", False)
    own = (tmp_path / "a.html").stat().st_size - page_bytes(20.0)
    assert 30_000 < own < 60_000  # script, style, notes


def test_a_recording_that_breaks_off_leaves_neither_a_page_nor_a_part_of_one(tmp_path: Path):
    path = record(tmp_path / "a.wav", 30.0)
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(UserError, match="ends early"):
        write_page(tmp_path / "a.html", path, NOTES, 2.0, "", False)
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch):
    def write(file: soundfile.SoundFile, block: np.ndarray) -> None:
        raise soundfile.LibsndfileError(2)  # "System error."

    path = record(tmp_path / "a.wav")
    monkeypatch.setattr(soundfile.SoundFile, "write", write)
    with pytest.raises(UserError, match="as MP3 .*; make room on the disk"):
        write_page(tmp_path / "a.html", path, NOTES, 2.0, "", False)
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]


def test_a_browser_decodes_the_recording_and_finds_nothing_to_complain_about(tmp_path: Path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("neither chromium nor google-chrome is on the PATH")
    make(tmp_path, name=NASTY)
    done = subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom",
         (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=HANG_SECONDS,
    )  # fmt: skip
    if "<html" not in done.stdout:
        pytest.skip(f"{browser} shows no page here: {done.stderr[-200:]}")
    assert '<button id="play" type="button" class="main" aria-keyshortcuts="Space">' in done.stdout
    assert "0:00.0 / 0:02.0" in done.stdout
    assert 'id="problem" class="warn" role="status" hidden' in done.stdout
    assert "CONSOLE" not in done.stderr, done.stderr
