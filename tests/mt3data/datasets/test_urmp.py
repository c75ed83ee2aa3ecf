"""URMP: text labels per part, instruments by the folder's name."""

import numpy as np
import pytest
from fakes_listed import URMP_PIECES, urmp_tree

from mt3data.datasets import manifest
from mt3data.datasets.adapters import urmp
from mt3data.datasets.adapters.urmp import PartLabels
from mt3data.errors import UserError

URMP = manifest.load("urmp")


def read(folder, *texts, programs=(40, 42)):
    paths = []
    for number, text in enumerate(texts):
        paths.append(folder / f"Notes_{number + 1}.txt")
        paths[-1].write_text(text)
    return PartLabels(tuple(paths), programs[: len(texts)]).load()


def test_a_row_is_onset_mean_frequency_and_duration(tmp_path):
    notes, problems = read(tmp_path, "1.5\t440.0\t0.25\n")
    assert (notes.onset.tolist(), notes.offset.tolist()) == ([1.5], [1.75])
    assert (notes.pitch.tolist(), notes.program.tolist()) == ([69], [40])
    assert problems == ()


@pytest.mark.parametrize("space", [" ", "\t", "   ", " \t "])
def test_any_white_space_separates_and_empty_lines_do_not_count(tmp_path, space):
    lines = [space.join(["", "0.1", "261.6", "0.2", ""]), "", space.join(["0.5", "880", "0.1"])]
    notes, _ = read(tmp_path, "\r\n".join(lines) + "\r\n\r\n")
    assert notes.onset.tolist() == [0.1, 0.5] and notes.pitch.tolist() == [60, 81]


@pytest.mark.parametrize(("cents", "pitch"), [(0, 69), (44, 69), (-44, 69), (56, 70), (-56, 68)])
def test_frequencies_go_to_the_nearest_pitch(tmp_path, cents, pitch):
    notes, problems = read(tmp_path, f"0.1 {440 * 2 ** (cents / 1200):.4f} 0.2\n")
    assert notes.pitch.tolist() == [pitch] and problems == ()


def test_frequencies_between_two_pitches_are_counted(tmp_path):
    _, problems = read(tmp_path, f"0.1 440 0.2\n0.4 {440 * 2 ** (48 / 1200):.4f} 0.2\n")
    assert problems == ("part 1: 1 of 2 pitches lie within 0.05 semitones of a half",)


def test_every_part_is_an_instrument_of_its_own_also_of_one_program(tmp_path):
    notes, _ = read(tmp_path, "0.1 440 0.2\n", "0.1 440 0.2\n", programs=(40, 40))
    assert notes.program.tolist() == [40, 40] and notes.instrument.tolist() == [0, 1]


@pytest.mark.parametrize(
    "bad", ["0.3 440", "0.3 440 0.1 9", "x 440 0.1", "0.3 0 0.1", "-1 440 0.1", "0.3 440 nan",
            "0.3 440 -0.1", "inf 440 0.1"],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_file(tmp_path, bad):
    with pytest.raises(UserError, match=r"Notes_1\.txt: row 3 is "):
        read(tmp_path, f"0.1 440 0.2\n\n{bad}\n")


def test_a_part_without_notes_is_reported(tmp_path):
    assert read(tmp_path, "0.1 440 0.2\n", "\n")[1] == ("part 2: no notes",)


def test_programs_follow_the_folder_s_codes(tmp_path):
    urmp_tree(tmp_path)
    found = {t.id: t.labels.programs for t in urmp.tracks(tmp_path, URMP)}
    assert found == {
        "01_Jupiter_vn_vc": (40, 42), "03_Dance_fl_cl": (73, 71),
        "15_Surprise_tpt_tpt_tbn": (56, 56, 57), "22_Rejouissance_sax_tbn_tba": (64, 57, 58),
    }  # fmt: skip


def test_the_trombone_that_is_named_a_trumpet_is_reported(tmp_path):
    urmp_tree(tmp_path)
    found = {t.id: t.problems for t in urmp.tracks(tmp_path, URMP)}
    told = found.pop("15_Surprise_tpt_tpt_tbn")
    assert told[-1] == "part 3 is named tpt, its folder names tbn; read as tbn"
    assert set(found.values()) == {()}


def test_all_44_pieces_have_programs_and_mt3_s_split(tmp_path):
    for row in URMP.rows.values():
        for path in [row["audio"], *row["labels"].split(";")]:
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).touch()
    found = list(urmp.tracks(tmp_path, URMP))
    assert [t.failure for t in found] == [""] * 44
    assert sum(len(t.labels.programs) for t in found) == 149
    validation = [int(t.id[:2]) for t in found if t.split == "validation"]
    assert validation == [1, 2, 12, 13, 24, 25, 31, 38, 39]


@pytest.mark.parametrize("top", ["urmp", "urmp/Dataset", "Dataset", "."])
def test_dot_files_and_supplements_are_ignored_wherever_the_pieces_lie(tmp_path, top):
    urmp_tree(tmp_path, top)
    found = list(urmp.tracks(tmp_path, URMP))
    assert [t.id for t in found] == list(URMP_PIECES)
    assert not any(path.name.startswith(".") for t in found for path in t.labels.files)


def test_a_piece_comes_back_as_it_was_written(tmp_path):
    urmp_tree(tmp_path)
    notes = next(urmp.tracks(tmp_path, URMP)).load_notes()
    assert notes.instrument.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert notes.pitch.tolist() == [60, 61, 62, 60, 72, 73, 74, 72]
    np.testing.assert_allclose(notes.onset, [0.1, 0.3, 0.5, 0.7] * 2)
    np.testing.assert_allclose(notes.offset - notes.onset, 0.15)


def test_a_missing_part_is_a_failure(tmp_path):
    top = urmp_tree(tmp_path)
    (top / "01_Jupiter_vn_vc/Notes_2_vc_01_Jupiter.txt").unlink()
    assert next(urmp.tracks(tmp_path, URMP)).failure == "no Notes_2_vc_01_Jupiter.txt"
