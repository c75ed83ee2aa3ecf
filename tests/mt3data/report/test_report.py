"""The report: one page with the facts about a build, which loads nothing and trusts no name."""

import errno
from pathlib import Path

import fakes
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from html_page import Page
from matplotlib.figure import Figure

from mt3data.audio.spectrogram import SpectrogramConfig, mel_bin
from mt3data.cli.main import main
from mt3data.files import mark
from mt3data.music.notes import Notes
from mt3data.report.page import Table, n_windows, templates, write_report
from mt3data.report.plots import draw_window, pitch_image
from mt3data.report.statistics import SAMPLE, reason_of, sounding, survey
from mt3data.shards.format import read_build_manifest

NASTY = '<img src=x onerror=alert(1)> & "quoted" ' + "very-long-name-" * 9


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
        if name in ("src", "href", "xlink:href") and tag != "a" and not value.startswith("#")
    ]  # fmt: skip
    assert loaded
    assert all(value.startswith("data:image/png;base64,") for value in loaded)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    styles = [value for _, name, value in page.attributes if name in ("style", "clip-path")]
    assert all("url(" not in value.replace("url(#", "") for value in styles)
    assert "url(" not in "".join(page.text) and "@import" not in "".join(page.text)
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes


def test_names_from_files_are_text_and_not_markup(page: Page, builds: Path) -> None:
    source = (builds.parent / "odd.html").read_text(encoding="utf-8")
    assert "<img" not in source
    assert any(NASTY in piece for piece in page.rows)
    assert ("svg", "onerror", "alert(1)") not in page.attributes


def test_a_track_in_quarantine_has_its_stage_and_its_reason(page: Page) -> None:
    assert "train/broken.flac" in page.rows
    assert "train, audio" in page.rows
    assert any("damaged" in piece for piece in page.rows)


def test_the_reason_of_a_failure_does_not_repeat_dataset_and_name() -> None:
    track = {"name": "b c", "error": "folder b c: no note in b c.mid"}
    assert reason_of(track, {"dataset": "folder"}) == "no note in b c.mid"


def test_a_licence_without_an_address_is_named_alone_on_the_card(builds: Path) -> None:
    card = (builds / "plain" / "README.md").read_text(encoding="utf-8")
    assert "Licence of the source: unknown. Redistribution" in card


def test_every_picture_has_a_description(page: Page) -> None:
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    shown = page.attributes.count(("svg", "role", "img"))
    assert len(labels) == shown > 3
    assert any(
        "40 notes from 0.00 to 2.05 s of Drums, Acoustic Grand Piano" in label for label in labels
    )


def test_the_same_build_gives_the_same_bytes_and_replaces_the_page(
    builds: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    out.write_text(f"an older page. {mark('mt3data report')}")
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


def test_a_note_is_drawn_over_the_loudest_pitch() -> None:
    config = SpectrogramConfig()
    mel = np.full((20, config.n_mels), -8.0, np.float32)
    mel[:, round(float(mel_bin(np.array(440.0), config))) - 1] = 6.0  # bins count from 1
    notes = Notes.from_columns({
        "onset": [0.0, 0.02], "offset": [0.1, 0.03], "pitch": [69, 38], "velocity": [90] * 2,
        "program": [40, 0], "is_drum": [False, True], "instrument": [0, 1],
    })  # fmt: skip
    axes = Figure().subplots()
    legend = draw_window(axes, mel, notes, 0.0, 0.16, config)
    assert [name for name, _ in legend] == ["Drums", "Violin"]
    (line,) = axes.collections[0].get_segments()
    assert line.tolist() == [[0.0, 69], [0.1, 69]]
    image = axes.images[0].get_array()
    assert image.shape == (3 * 88, 20)
    left, right, low, high = axes.images[0].get_extent()
    assert (left, right, low, high) == (0.0, 0.16, 20.5, 108.5)
    assert low + (int(np.argmax(image[:, 0])) + 0.5) / 3 == pytest.approx(69, abs=0.5)
    assert axes.lines[0].get_xdata().tolist() == [0.02]


@pytest.mark.parametrize(("frames", "columns"), [(400, 400), (401, 200), (2048, 341)])
def test_a_long_window_is_averaged_into_few_columns(frames: int, columns: int) -> None:
    config = SpectrogramConfig()
    mel = np.full((frames, config.n_mels), 2.0, np.float32)
    mel[-frames // 2 :] = 0.0  # padding
    image = pitch_image(mel, 59.5, 71.5, config)
    assert image.shape == (36, columns)
    assert (image[:, 0].tolist(), image[:, -1].tolist()) == ([2.0] * 36, [-8.0] * 36)


def test_a_long_table_counts_the_rows_that_it_leaves_out() -> None:
    template = "{% from 'macros.html' import table with context %}{{ table(found) }}"
    found = Table("many", ["n"], [[str(n)] for n in range(250)])
    text = templates().from_string(template).render(found=found, max_rows=200)
    assert text.count("<tr>") == 201
    assert "50 more rows are left out." in text


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["report", "nowhere", "--out", "a.html"], "nowhere: no such folder"),
        (["report", "shards/odd", "--out", "no/a.html"], "does not exist"),
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
    assert "No space left on device" in result.stderr and result.stderr.count("\n") == 1
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
    assert "is missing; the manifest states" in result.stderr
    assert not (tmp_path / "a.html").exists()


def test_a_page_of_another_origin_is_kept_unless_force(builds: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.html"
    out.write_text("by hand")
    refused = run("report", builds / "plain", "--out", out)
    assert (refused.exit_code, out.read_text()) == (2, "by hand")
    assert "--force" in refused.stderr
    assert run("report", builds / "plain", "--out", out, "--force").exit_code == 0
    assert Page(out).rows


def test_a_dash_writes_the_page_to_standard_output(builds: Path, tmp_path: Path) -> None:
    run("report", builds / "plain", "--out", tmp_path / "a.html")
    printed = run("report", builds / "plain", "--out", "-").stdout_bytes
    assert printed == (tmp_path / "a.html").read_bytes()
