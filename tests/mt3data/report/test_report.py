"""The report: one page that loads nothing, says what the build holds, and trusts no name."""

import errno
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import fakes
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.cli.main import main
from mt3data.music.notes import Notes
from mt3data.report import charts
from mt3data.report.markup import Html, element, table
from mt3data.report.page import n_windows, write_report
from mt3data.report.statistics import SAMPLE, sounding, survey
from mt3data.shards.format import read_build_manifest

NASTY = '<img src=x onerror=alert(1)> & "quoted" ' + "very-long-name-" * 9
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Elements, their attributes and the text of a page; raises where tags do not pair."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _, _ in self.attributes}

    @property
    def rows(self) -> list[str]:
        """The text, an item for each piece between tags."""
        return [piece for piece in self.text if piece.strip()]


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def write_track(root: Path, stem: str, programs: int, seconds: float = 4.0) -> None:
    """A recording and a MIDI file in which each of so many programs plays a note; and drums."""
    root.mkdir(parents=True, exist_ok=True)
    notes = [(0.1 + 0.05 * k, 0.14 + 0.05 * k, 40 + k, 90) for k in range(programs)]
    parts = [(k, [note]) for k, note in enumerate(notes)] + [(128, [(1.0, 1.1, 38, 90)])]
    soundfile.write(root / f"{stem}.flac", fakes.tones(notes, seconds, 16000) / 2, 16000)
    fakes.write_midi(root / f"{stem}.mid", parts)


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`odd`: 50 programs, a nasty name, a broken track, segments; `plain`: no train split."""
    folder = tmp_path_factory.mktemp("report")
    write_track(folder / "odd/train", NASTY, 50)
    write_track(folder / "odd/test", "fine", 3)
    write_track(folder / "odd/train", "broken", 3)
    broken = folder / "odd/train/broken.flac"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    write_track(folder / "plain/test", "alone", 2)
    for name, *options in (
        ("odd", "--window", 256, "--max-failures", 1),
        ("plain", "--align", "off"),
    ):
        done = run("build", "folder", "--root", folder / name, "--out", folder / "shards",
                   "--name", name, "--workers", 1, "--no-download", *options)  # fmt: skip
        assert done.exit_code == 0, done.output
    return folder / "shards"


@pytest.fixture(scope="module")
def page(builds: Path) -> Page:
    out = builds.parent / "odd.html"
    assert run("report", builds / "odd", "--out", out).exit_code == 0
    return Page(out)


def test_the_numbers_of_the_manifest_are_on_the_page(builds: Path, page: Page) -> None:
    manifest = read_build_manifest(builds / "odd")
    for split in manifest["splits"].values():
        for number in (split["tracks"], split["records"], split["notes"], split["tokens"]):
            assert f"{number:,}" in page.rows
    assert manifest["splits"]["train"]["quarantined"] == 1
    assert manifest["fingerprint"] in page.rows
    assert "51 instruments in 8 classes" in " ".join(page.rows)


def test_nothing_is_loaded_from_elsewhere_and_no_script_runs(page: Page) -> None:
    assert not page.tags & {"script", "link", "iframe", "img", "object", "embed", "base", "form"}
    loaded = [
        value for tag, name, value in page.attributes
        if name in ("src", "href", "xlink:href") and tag != "a"
    ]  # fmt: skip
    assert loaded
    assert all(value.startswith("data:image/png;base64,") for value in loaded)
    assert not any(name.startswith("on") or name == "style" for _, name, _ in page.attributes)
    assert "url(" not in "".join(page.text) and "@import" not in "".join(page.text)
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes


def test_names_from_files_are_text_and_not_markup(page: Page, builds: Path) -> None:
    source = (builds.parent / "odd.html").read_text(encoding="utf-8")
    assert "<img" not in source
    assert any(NASTY in piece for piece in page.rows)


def test_a_track_in_quarantine_has_its_stage_and_its_reason(page: Page) -> None:
    assert "train/broken.flac" in page.rows
    assert "train, audio" in page.rows
    assert any("damaged" in piece for piece in page.rows)


def test_every_picture_says_what_it_shows_to_those_who_do_not_see_it(page: Page) -> None:
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    shown = page.attributes.count(("svg", "role", "img"))
    assert len(labels) == shown > 3
    assert any("40 notes between 0.00 and 2.05 s" in label for label in labels)


def test_the_same_build_gives_the_same_bytes_and_replaces_the_page(
    builds: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    out.write_text("an older page")
    write_report(builds / "odd", out)
    assert out.read_bytes() == (builds.parent / "odd.html").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_folder_of_builds_is_one_page_with_a_section_for_each(
    builds: Path, tmp_path: Path
) -> None:
    seen = []
    surveys = write_report(builds, tmp_path / "all.html", lambda: seen.append(1))
    found = Page(tmp_path / "all.html")
    assert [each.manifest["dataset"] for each in surveys] == ["odd", "plain"]
    assert {value for tag, name, value in found.attributes if (tag, name) == ("section", "id")} == {
        "build-0", "build-1",
    }  # fmt: skip
    assert {"2 builds", "Your own folder (odd)", "Your own folder (plain)"} <= set(found.rows)
    assert "The lag between labels and audio was not measured (--align off)." in found.rows
    assert "No track is in quarantine." in found.rows
    assert len(seen) == n_windows(builds) == 5


def test_notes_are_counted_where_they_begin_and_once(builds: Path) -> None:
    found = survey(builds / "plain", 12)
    assert found.sample.windows == len(found.n_tokens) == 1
    assert dict(found.sample.notes) == {0: 1, 1: 1, -1: 1}
    assert np.flatnonzero(found.sample.pitches).tolist() == [40, 41]
    assert [one.name for one in found.instruments] == [
        "Drums", "Acoustic Grand Piano", "Bright Acoustic Piano",
    ]  # fmt: skip
    assert found.sample.polyphony.tolist() == [501 - 12, 12]


def test_segments_of_one_track_count_each_note_once(builds: Path) -> None:
    found = survey(builds / "odd", 12)
    assert sum(found.sample.notes.values()) == 51 + 4
    assert {one.tracks for one in found.instruments if one.program > 2} == {1}
    assert SAMPLE >= found.sample.windows == len(found.n_tokens) == 4


def test_a_window_of_audio_alone_is_drawn_as_one_with_mel(builds: Path, tmp_path: Path) -> None:
    done = run("build", "folder", "--root", builds.parent / "plain", "--out", tmp_path,
               "--store", "audio", "--workers", 1, "--no-download")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert run("report", tmp_path, "--out", tmp_path / "a.html").exit_code == 0
    mel, from_audio = (
        survey(folder, 1).shown[0].mel for folder in (builds / "plain", tmp_path / "folder")
    )
    assert mel.shape == from_audio.shape == (501, 512)
    loud = mel > -1
    assert loud.sum() > 1000
    np.testing.assert_allclose(from_audio[loud], mel[loud], atol=0.02)


def test_polyphony_counts_the_notes_that_sound_in_each_frame() -> None:
    notes = Notes.from_columns({
        "onset": [0.0, 0.008, 0.5], "offset": [0.024, 0.012, 0.6], "pitch": [60, 64, 70],
        "velocity": [90] * 3, "program": [0] * 3, "is_drum": [False] * 3, "instrument": [0] * 3,
    })  # fmt: skip
    assert sounding(notes, 0, 4).tolist() == [1, 2, 1, 0]
    assert sounding(notes, 2, 2).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "edges"),
    [([1, 2, 2, 5], [1, 2, 3, 4, 5, 6]), ([7], [7, 8]), ([0, 400], range(0, 411, 10))],
)
def test_bins_of_whole_numbers_begin_at_round_ones(values: list[int], edges: list[int]) -> None:
    found, counts = charts.binned(np.array(values))
    assert found.tolist()[: len(edges)] == list(edges)
    assert counts.sum() == len(values)


def test_a_picture_is_a_png_whose_brightest_row_is_the_loudest_pitch() -> None:
    config = SpectrogramConfig()
    mel = np.full((20, config.n_mels), -8.0, np.float32)
    loud = round(float(charts.mel_bin(np.array(440.0), config))) - 1
    mel[:, loud] = 6.0
    png = charts.mel_png(mel, 60, 80, config)
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) == (20, 3 * 21)
    start = png.index(b"IDAT") + 4
    length = struct.unpack(">I", png[start - 8 : start - 4])[0]
    rows = np.frombuffer(zlib.decompress(png[start : start + length]), np.uint8)
    rows = rows.reshape(height, width + 1)[:, 1:]
    from_below = height - 1 - int(rows[:, 0].argmax())
    assert from_below // 3 == 69 - 60


def test_text_is_escaped_and_markup_is_not() -> None:
    assert element("p", "a < b", element("b", "c"), title='"') == (
        '<p title="&quot;">a &lt; b<b>c</b></p>'
    )
    assert isinstance(element("p"), Html)


def test_a_long_table_says_how_much_it_leaves_out() -> None:
    assert "50 more rows are left out." in table("many", ["n"], [[str(n)] for n in range(250)])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["report", "nowhere", "--out", "a.html"], "nowhere: no such folder"),
        (["report", "shards/odd", "--out", "no/a.html"], "lies in no, which does not exist"),
        (["report", "shards/odd", "--out", "shards"], "shards is a folder"),
    ],
)
def test_a_mistake_is_one_line(
    builds: Path, words: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(builds.parent)
    result = run(*words)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_full_disk_is_one_line_and_leaves_nothing(
    builds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = run("report", builds / "plain", "--out", tmp_path / "a.html")
    assert result.exit_code == 2
    assert (
        result.stderr == f"Error: {tmp_path}/a.html: cannot be written (No space left on device)\n"
    )
    assert not any(tmp_path.iterdir())


def test_a_lost_shard_is_one_line(builds: Path, tmp_path: Path) -> None:
    shard = next((builds / "plain").glob("*.tar"))
    content = shard.read_bytes()
    shard.unlink()
    try:
        result = run("report", builds / "plain", "--out", tmp_path / "a.html")
    finally:
        shard.write_bytes(content)
    assert result.exit_code == 2
    assert "is missing; the manifest says" in result.stderr
    assert not (tmp_path / "a.html").exists()
