"""A user's own folder: pairs by name, splits, safe ids, and shards in one command."""

import re
from pathlib import Path

import needs
import pytest
import soundfile
from click.testing import CliRunner
from fakes import write_midi
from fakes_listed import folder_tree, melody

from mt3data.cli.main import main
from mt3data.datasets import manifest
from mt3data.datasets.adapters import folder
from mt3data.errors import UserError
from mt3data.shards.format import read_build_manifest

FOLDER = manifest.load("folder")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def failures(root: Path) -> dict[str, str]:
    return {track.name: track.failure for track in folder.tracks(root, FOLDER)}


def splits(root: Path) -> dict[str, str]:
    return {track.name: track.split for track in folder.tracks(root, FOLDER)}


def test_audio_and_midi_of_one_name_are_paired_anywhere(tmp_path):
    touch(tmp_path, "audio/a.WAV", "midi/a.mid", "b.flac", "b.midi", "x/y/c.mp3", "x/c.MID")
    found = list(folder.tracks(tmp_path, FOLDER))
    assert [(t.name, t.labels.path.name, t.failure) for t in found] == [
        ("audio/a.WAV", "a.mid", ""), ("b.flac", "b.midi", ""), ("x/y/c.mp3", "c.MID", ""),
    ]  # fmt: skip


def test_hidden_files_and_other_kinds_are_ignored(tmp_path):
    touch(tmp_path, "a.wav", "a.mid", "._a.wav", ".git/b.wav", ".git/b.mid", "a.txt", "cover.jpg")
    assert failures(tmp_path) == {"a.wav": ""}


def test_files_without_a_partner_fail_and_name_what_is_missing(tmp_path):
    touch(tmp_path, "a.wav", "a.mid", "b.wav", "c.mid")
    assert failures(tmp_path) == {
        "a.wav": "", "b.wav": "no MIDI file is named b.mid or b.midi",
        "c.mid": "no audio file is named c",
    }  # fmt: skip


def test_files_of_one_name_are_paired_within_their_folders(tmp_path):
    touch(tmp_path, "one/a.wav", "one/a.mid", "two/a.wav", "two/a.mid", "three/a.flac")
    found = failures(tmp_path)
    assert (found["one/a.wav"], found["two/a.wav"]) == ("", "")
    assert found["three/a.flac"].startswith("3 audio and 2 MIDI files are named a, and not one of")
    ids = [track.id for track in folder.tracks(tmp_path, FOLDER)]
    assert len(set(ids)) == 3 and all(i.startswith("a-") for i in ids)


def test_two_recordings_of_one_name_and_folder_are_not_guessed_at(tmp_path):
    touch(tmp_path, "a.wav", "a.flac", "a.mid", "b.wav", "b.mid")
    found = failures(tmp_path)
    assert found.pop("b.wav") == ""
    assert set(found) == {"a.wav", "a.flac", "a.mid"}
    assert all("2 audio and 1 MIDI files are named a" in why for why in found.values())


@pytest.mark.parametrize(
    ("stem", "pattern"),
    [("song_1", "song_1"), ("My song (live)", "My-song-live"), ("Étude #3", "Etude-3"),
     ("夜曲", r"track-[0-9a-f]{8}"), ("x" * 60, r"x{31}-[0-9a-f]{8}"), ("..a", None)],
)  # fmt: skip
def test_ids_are_safe_and_as_near_to_the_name_as_may_be(tmp_path, stem, pattern):
    touch(tmp_path, f"{stem}.wav", f"{stem}.mid", "other.wav", "other.mid")
    found = [t.id for t in folder.tracks(tmp_path, FOLDER) if t.id != "other"]
    assert [bool(re.fullmatch(pattern or "", i)) for i in found] == ([True] if pattern else [])


def test_names_that_would_give_one_id_are_distinguished_by_their_paths(tmp_path):
    touch(tmp_path, "a b.wav", "a b.mid", "a-b.wav", "a-b.mid")
    ids = [track.id for track in folder.tracks(tmp_path, FOLDER)]
    assert len(set(ids)) == 2 and all(re.fullmatch(r"a-b-[0-9a-f]{8}", i) for i in ids)


def test_folders_named_after_splits_decide(tmp_path):
    touch(tmp_path, "train/a.wav", "train/a.mid", "in/validation/b.wav", "midi/b.mid")
    touch(tmp_path, "test/c.wav", "test/c.mid", "d.wav", "d.mid")
    assert splits(tmp_path) == {
        "train/a.wav": "train", "in/validation/b.wav": "validation", "test/c.wav": "test",
        "d.wav": "",
    }  # fmt: skip
    assert failures(tmp_path)["d.wav"].startswith("in no split: ")


def test_splits_csv_comes_before_folders(tmp_path):
    touch(tmp_path, "train/a.wav", "train/a.mid", "b.wav", "b.mid", "c.wav", "c.mid")
    (tmp_path / "splits.csv").write_text("stem,split\na,test\nb.wav, train\n")
    assert splits(tmp_path) == {"train/a.wav": "test", "b.wav": "train", "c.wav": ""}
    assert failures(tmp_path)["c.wav"] == "in no split: splits.csv does not name it"


@pytest.mark.parametrize(
    ("text", "said"),
    [("stem,split\na,valid\n", "row 2 has stem 'a', split 'valid'"),
     ("stem,split\na,train\na,test\n", "row 3 has stem 'a', split 'test'"),
     ("name,part\na,train\n", "expected columns"),
     ("stem,split\na\n", "row 2"),
     ("stem,split\na,train\nb,train\n", "no file below .* is named 'b'")],
)  # fmt: skip
def test_a_splits_csv_that_is_wrong_is_refused(tmp_path, text, said):
    touch(tmp_path, "a.wav", "a.mid")
    (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(UserError, match=f"splits.csv: .*{said}"):
        folder.tracks(tmp_path, FOLDER)


@pytest.mark.parametrize(
    ("n_tracks", "wanted"), [(1, 0), (2, 1), (3, 1), (29, 1), (40, 2), (100, 5)]
)
def test_otherwise_one_in_twenty_validates(tmp_path, n_tracks, wanted):
    touch(tmp_path, *(f"{i:03d}.{kind}" for i in range(n_tracks) for kind in ("wav", "mid")))
    found = splits(tmp_path)
    assert list(found.values()).count("validation") == wanted
    assert splits(tmp_path) == found


def test_where_the_folder_lies_does_not_change_the_choice(tmp_path):
    for place in ("here", "there/deeper"):
        touch(tmp_path / place, *(f"{i}.{kind}" for i in range(9) for kind in ("wav", "mid")))
    assert splits(tmp_path / "here") == splits(tmp_path / "there/deeper")


def test_a_folder_without_pairs_reports_what_it_found(tmp_path):
    touch(tmp_path, "a.mid", "b.mid")
    with pytest.raises(UserError, match="holds 0 audio files and 2 MIDI files; expected pairs"):
        folder.tracks(tmp_path, FOLDER)


def test_programs_and_drums_are_those_of_the_midi_file(tmp_path):
    touch(tmp_path, "a.wav")
    write_midi(tmp_path / "a.mid", [(33, melody(40)), (128, melody(36)), (0, melody(60))])
    (track,) = folder.tracks(tmp_path, FOLDER)
    notes = track.load_notes()
    assert set(zip(notes.program, notes.is_drum, notes.instrument, strict=True)) == {
        (33, False, 0), (0, True, 9), (0, False, 1),
    }  # fmt: skip


def stranger(root: Path) -> Path:
    """Three recordings with MIDI as people have them: wav, flac and ogg, in two folders."""
    return folder_tree(root, ["Some Song.wav", "takes/second.flac", "takes/third.ogg"], seconds=3.0)


def test_a_stranger_s_folder_becomes_shards_in_one_command(tmp_path):
    root, out = stranger(tmp_path / "recordings"), tmp_path / "shards"
    command = ["build", "folder", "--root", str(root), "--name", "mine", "--out", str(out)]
    done = CliRunner().invoke(main, [*command, "--workers", "1", "--window", "256"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["mine"]
    built = read_build_manifest(out / "mine")
    assert built["dataset"] == "mine"
    assert {name: s["tracks"] for name, s in built["splits"].items()} == {
        "train": 2, "validation": 1,
    }  # fmt: skip
    assert sum(s["notes"] for s in built["splits"].values()) == 3 * len(melody(60, 3.0))
    assert CliRunner().invoke(main, ["check", str(out)]).exit_code == 0


def test_mp3_is_taken_too(tmp_path):
    root = stranger(tmp_path)
    samples, rate = soundfile.read(root / "Some Song.wav")
    (root / "Some Song.wav").unlink()
    soundfile.write(root / "Some Song.mp3", samples, rate)
    command = ["build", "folder", "--root", str(root), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*command, "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert read_build_manifest(tmp_path / "out/folder")["quarantined"] == 0


def test_what_has_no_partner_is_listed_and_the_exit_code_is_1(tmp_path):
    root = stranger(tmp_path / "in")
    (root / "takes/third.mid").unlink()
    command = ["build", "folder", "--root", str(root), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*command, "--workers", "1"])
    assert done.exit_code == 1
    assert "quarantined takes/third.ogg (plan): no MIDI file is named third.mid" in done.output


@pytest.mark.parametrize(
    ("dataset", "name", "said"),
    [("folder", "My Songs", "--name 'My Songs': expected"), ("folder", "slakh", "choose another"),
     ("folder", "../up", "expected up to 40"), ("slakh", "mine", "--name is for the dataset")],
)  # fmt: skip
def test_a_name_that_cannot_be_is_refused_in_one_line(tmp_path, dataset, name, said):
    command = ["build", dataset, "--root", str(tmp_path), "--name", name]
    done = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2 and said in done.output


@needs.posix
def test_linked_folders_are_read_and_what_is_skipped_is_printed(tmp_path, capsys):
    touch(tmp_path / "elsewhere", "b.wav", "b.mid", ".c.mid")
    touch(tmp_path / "music", "a.wav", "a.mid")
    (tmp_path / "music/linked").symlink_to(tmp_path / "elsewhere")
    assert failures(tmp_path / "music") == {"a.wav": "", "linked/b.wav": ""}
    assert capsys.readouterr().err == f"skipped 1: {tmp_path}/music/linked/.c.mid (hidden)\n"


def test_names_of_composed_and_decomposed_accents_are_paired(tmp_path):
    touch(tmp_path, "Caf\u00e9.wav", "Cafe\u0301.mid", "b.oga", "b.kar")
    (tmp_path / "splits.csv").write_text("stem,split\nCafe\u0301,test\nb,train\n", "utf-8")
    assert list(failures(tmp_path).values()) == ["", ""]
    assert splits(tmp_path) == {"Caf\u00e9.wav": "test", "b.oga": "train"}


def test_a_recording_of_a_format_that_is_not_read_counts_where_there_is_no_other(tmp_path):
    touch(tmp_path, "a.m4a", "a.wav", "a.mid", "b.m4a", "b.mid")
    assert failures(tmp_path) == {"a.wav": "", "b.m4a": ""}


def test_a_video_keeps_the_midi_file_beside_it_if_another_folder_has_its_name(tmp_path):
    touch(tmp_path, "x/song.mp4", "x/song.mid", "y/song.wav")
    found = failures(tmp_path)
    assert found.pop("x/song.mp4") == ""
    assert list(found) == ["y/song.wav"] and "2 audio and 1 MIDI files" in found["y/song.wav"]
