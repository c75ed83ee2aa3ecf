"""Several transcribers compared on the same recordings."""

import json
import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mt3data.errors import UserError
from mt3data.music.midi import write_midi
from mt3data.music.notes import Notes
from mt3train.cli.main import main
from mt3train.evaluation.systems import compare_systems, markdown, paired_p


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def write(path: Path, pitches: list[int], program: int = 0, drums: int = 0) -> None:
    """Writes notes of half a second, one each second, and then drums."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n = len(pitches)
    onset = np.arange(n + drums, dtype=float)
    is_drum = np.arange(n + drums) >= n
    programs = np.where(is_drum, 0, program)
    notes = Notes(onset, onset + 0.5, pitches + [36] * drums, [90] * (n + drums),
                  programs, is_drum, programs + 200 * is_drum)  # fmt: skip
    write_midi(notes, path)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """refs/ with three recordings; good/ finds all, half/ finds half, and lacks one."""
    for name, drums in (("a", 0), ("b", 2), ("sub/c", 0)):
        write(tmp_path / "refs" / f"{name}.mid", [60, 62, 64, 65], 24, drums)
        write(tmp_path / "good" / f"{name}.mid", [60, 62, 64, 65], 24, drums)
        if name != "b":
            write(tmp_path / "half" / f"{name.rpartition('/')[2]}.midi", [60, 62], 25)
    return tmp_path


def test_means_are_over_the_recordings_that_have_such_notes(made: Path) -> None:
    found = compare_systems(made / "refs", [made / "good", made / "half"])
    assert found.recordings == ["a", "b", "sub/c"]
    onset = {system: found.scores[system]["corrected"]["onset_f1"] for system in found.scores}
    assert onset["good"].tolist() == [1, 1, 1]
    assert onset["half"] == pytest.approx([2 / 3, 0, 2 / 3])
    drums = found.scores["good"]["corrected"]["drum_f1"]
    assert math.isnan(drums[0]) and drums[1] == 1 and math.isnan(drums[2])
    assert found.missing == {"good": [], "half": ["b"]}
    program = found.scores["half"]["corrected"]
    assert program["program_full_f1"].tolist() == [0, 0, 0]  # 25 in place of 24
    assert program["program_midi_class_f1"] == pytest.approx([2 / 3, 0, 2 / 3])


def test_instruments_count_the_notes_of_all_recordings(made: Path) -> None:
    table = markdown(compare_systems(made / "refs", [made / "good", made / "half"]))
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    assert ["", "Acoustic Guitar (nylon)", "12", "1.000", "0.500", ""] in rows
    assert ["", "Drums", "2", "1.000", "0.000", ""] in rows
    assert "- half: b" in table


def test_the_command_takes_folders_as_the_manual_shows_them(made: Path) -> None:
    words = ("score", "--references", made / "refs", "--systems", made / "good", made / "half")
    result = run(*words)
    assert result.exit_code == 1  # a file is missing
    assert "| half   | 1 " in result.stdout and "half: 1 file missing, first b" in result.stderr
    found = json.loads(run(*words, "--json").stdout)
    assert found["systems"]["half"]["corrected"]["onset_f1"]["mean"] == pytest.approx(4 / 9)
    assert found["systems"]["half"]["missing"] == ["b"]
    assert found["pairs"][0]["systems"] == ["good", "half"]
    assert found["pairs"][0]["p"]["onset_f1"] is None  # of three recordings
    whole = run("score", "--references", made / "refs", "--systems", made / "good")
    assert whole.exit_code == 0


def test_a_picture_is_drawn_and_a_foreign_file_is_kept(made: Path) -> None:
    words = ("score", "--references", made / "refs", "--systems", made / "good", "--plot")
    assert run(*words, made / "out.png").exit_code == 0
    assert (made / "out.png").read_bytes().startswith(b"\x89PNG")
    assert run(*words, made / "out.png").exit_code == 0  # its own file
    (made / "own.png").write_bytes(b"mine")
    assert run(*words, made / "own.png").exit_code == 2
    assert (made / "own.png").read_bytes() == b"mine"


def test_names_match_in_both_unicode_forms(tmp_path: Path) -> None:
    name = "Dvořák"
    write(tmp_path / "refs" / (unicodedata.normalize("NFC", name) + ".mid"), [60])
    write(tmp_path / "sys" / (unicodedata.normalize("NFD", name) + ".kar"), [60])
    found = compare_systems(tmp_path / "refs", [tmp_path / "sys"])
    assert found.missing == {"sys": []}
    assert found.scores["sys"]["corrected"]["onset_f1"].tolist() == [1.0]


def test_a_broken_file_costs_that_file_and_a_broken_reference_that_recording(made: Path) -> None:
    (made / "good" / "a.mid").write_bytes(b"no midi")
    (made / "refs" / "b.mid").write_bytes(b"")
    result = run("score", "--references", made / "refs", "--systems", made / "good", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["recordings"] == ["a", "sub/c"]
    assert found["systems"]["good"]["corrected"]["onset_f1"]["values"] == [0.0, 1.0]
    assert [Path(fault.split(":")[0]).name for fault in found["faults"]] == ["b.mid", "a.mid"]


def test_files_without_a_reference_are_counted(made: Path) -> None:
    write(made / "good" / "other.mid", [60])
    result = run("score", "--references", made / "refs", "--systems", made / "good")
    assert result.exit_code == 0 and "good: ignored 1 file without a reference" in result.stderr


def test_a_file_of_one_reference_is_never_scored_against_another(made: Path) -> None:
    write(made / "refs" / "other" / "a.mid", [60])
    compared = compare_systems(made / "refs", [made / "good"])
    assert compared.missing["good"] == ["other/a"]


def test_a_file_that_may_be_of_two_references_is_one_line(tmp_path: Path) -> None:
    for name in ("refs/x/song", "refs/y/song", "sys/song"):
        write(tmp_path / f"{name}.mid", [60])
    result = run("score", "--references", tmp_path / "refs", "--systems", tmp_path / "sys")
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert all(name in line for name in ("x/song", "y/song", str(tmp_path / "sys" / "song.mid")))


@pytest.mark.parametrize("change, words", [
    (lambda folder: write(folder / "refs" / "a.kar", [60]), "have one name"),
    (lambda folder: write(folder / "good" / "a.midi", [60]), "have one name"),
    (lambda folder: [(folder / "good" / "sub" / "c.mid").unlink(),
                     *(write(folder / "good" / part / "c.mid", [60]) for part in "xy")],
     "may both be of sub/c"),
    (lambda folder: [(folder / "good" / "sub" / "c.mid").unlink(), write(folder / "refs" / "c.mid", [60]),
                     write(folder / "good" / "x" / "c.mid", [60])],
     "may be of c and of sub/c"),
    (lambda folder: [path.write_bytes(b"") for path in (folder / "refs").rglob("*.mid")],
     "no reference can be read"),
])  # fmt: skip
def test_what_cannot_be_compared_is_one_line(made: Path, change, words: str) -> None:
    change(made)
    with pytest.raises(UserError, match=words):
        compare_systems(made / "refs", [made / "good"])


@pytest.mark.parametrize("words, message", [
    (["--references", "refs"], "expected --references DIR --systems"),
    (["--systems", "good"], "expected --references DIR --systems"),
    (["--references", "refs", "--systems", "none"], "none: no such file; expected a folder"),
    (["--references", "refs", "--systems", "good", "good"], "good and good are one folder"),
    (["--references", "refs", "--systems", "good", "half/../good"], "are one folder"),
    (["--references", "refs/a.mid", "--systems", "good"], "refs/a.mid: a file; expected a folder"),
    (["--references", "refs", "--systems", "other"], "seen a_other.mid, expected a.mid"),
    (["refs", "good"], "refs is a folder; expected two MIDI files, or --references"),
    (["--references", "refs", "--systems", "good", "--part", "Bass=33"], "without --part"),
    (["--references", "refs", "--systems", "good", "--plot", "x.txt"], ".png, .svg or .pdf"),
    (["refs/a.mid"], "expected two MIDI files"),
    (["refs/a.mid", "good/a.mid", "half/a.midi"], "expected two MIDI files"),
])  # fmt: skip
def test_mistakes_on_the_command_line_are_one_line(
    made: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(made)
    write(made / "other" / "a_other.mid", [60])
    result = run("score", *words)
    assert result.exit_code == 2 and message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_systems_in_folders_of_one_name_are_told_apart_by_their_paths(made: Path) -> None:
    write(made / "x" / "midi" / "a.mid", [60])
    write(made / "y" / "midi" / "a.mid", [60, 62])
    found = compare_systems(made / "refs", [made / "x" / "midi", made / "y" / "midi"])
    assert [Path(name).parts[-2:] for name in found.scores] == [("x", "midi"), ("y", "midi")]


def test_p_is_large_for_equal_systems_and_small_for_different_ones() -> None:
    rng = np.random.default_rng(3)
    one = rng.uniform(0, 1, 40)
    noise = rng.normal(0, 0.1, 40)
    assert paired_p(one, one) == 1.0
    assert paired_p(one, one + noise - noise.mean()) > 0.5
    assert paired_p(one, one + 0.1) == pytest.approx(2 / 2001)
    shift = 0.1 / math.sqrt(40) * 1.96  # the difference at which a t-test gives about 0.05
    assert 0.02 < paired_p(one, one + noise / noise.std() * 0.1 - noise.mean() + shift) < 0.1
    assert paired_p(one[:6], one[:6] + 0.1) == pytest.approx(2 / 2001)
    assert math.isnan(paired_p(one[:5], one[:5] + 0.1))
