"""MAPS: splits by piano and piece, labels from text files."""

from pathlib import Path

import numpy as np
import pytest
from fakes_listed import maps_tree

from mt3data.datasets import manifest
from mt3data.datasets.adapters import maps
from mt3data.errors import UserError

MAPS = manifest.load("maps")


def splits(root: Path, scheme: str | None = None) -> dict[str, str]:
    return {track.id: track.split for track in maps.tracks(root, MAPS, scheme)}


def test_the_disklavier_is_the_test_set_and_its_pieces_are_left_out_elsewhere(tmp_path, capsys):
    maps_tree(tmp_path)
    expected = {
        "bk_xmas1_ENSTDkAm": "test", "bk_xmas1_ENSTDkCl": "test", "chpn-p1_AkPnBcht": "train",
        "mond_1_AkPnBsdf": "validation",
    }  # fmt: skip
    assert splits(tmp_path) == expected
    assert "left out 1 of 5" in (message := capsys.readouterr().err)
    assert "bk_xmas1_SptkBGCl" in message
    assert splits(tmp_path, "published") == expected | {"mond_1_AkPnBsdf": "train"}


def test_pieces_of_the_test_set_are_left_out_where_its_recordings_are_absent(tmp_path):
    top = maps_tree(tmp_path)
    for piano in ("ENSTDkAm", "ENSTDkCl"):
        for path in (top / piano / "MUS").iterdir():
            path.unlink()
    assert sorted(splits(tmp_path)) == ["chpn-p1_AkPnBcht", "mond_1_AkPnBsdf"]


def test_no_piece_is_in_two_of_the_lists_and_the_test_set_has_53():
    test, validation = MAPS.layout["test_pieces"], MAPS.layout["validation_pieces"]
    assert len(test) == len(set(test)) == 53
    assert not set(test) & set(validation) and len(set(validation)) == 5


def test_archives_that_were_unpacked_side_by_side_are_read(tmp_path):
    top = maps_tree(tmp_path)
    for piano in list(top.iterdir()):
        (tmp_path / f"MAPS_{piano.name}_2").mkdir()
        piano.rename(tmp_path / f"MAPS_{piano.name}_2" / piano.name)
    assert len(splits(tmp_path)) == 4


def test_notes_are_the_lines_of_the_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"OnsetTime\tOffsetTime\tMidiPitch\r\n0.5\t1.25\t60\r\n0.75\t1\t21\r\n\r\n")
    notes, problems = maps.TextLabels(path).load()
    assert (notes.onset.tolist(), notes.offset.tolist()) == ([0.5, 0.75], [1.25, 1.0])
    assert (notes.pitch.tolist(), notes.velocity.tolist()) == ([60, 21], [100, 100])
    assert not np.any(notes.program) and not np.any(notes.is_drum) and problems == ()


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "line 1"),
        ("Onset\tOffset\tPitch\n", "line 1"),
        ("OnsetTime\tOffsetTime\tMidiPitch\n1\t2\n", "line 2"),
        ("OnsetTime\tOffsetTime\tMidiPitch\n1\t2\t60\n1\tnan\t60\n", "line 3"),
        ("OnsetTime\tOffsetTime\tMidiPitch\n1\t2\t128\n", "line 2"),
        ("OnsetTime\tOffsetTime\tMidiPitch\n-1\t2\t60\n", "line 2"),
    ],
)
def test_a_damaged_text_file_is_refused_with_its_line(tmp_path, text, fact):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=fact):
        maps.TextLabels(tmp_path / "a.txt").load()


def test_a_recording_without_labels_fails_with_the_name_of_the_file(tmp_path):
    top = maps_tree(tmp_path)
    (top / "AkPnBcht/MUS/MAPS_MUS-chpn-p1_AkPnBcht.txt").unlink()
    failed = {track.id: track.failure for track in maps.tracks(tmp_path, MAPS) if track.failure}
    assert failed == {"chpn-p1_AkPnBcht": "no MAPS_MUS-chpn-p1_AkPnBcht.txt"}
