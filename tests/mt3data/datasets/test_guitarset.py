"""GuitarSet: strings, fractional pitches, late excerpts, two recordings of each performance."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fakes_listed import guitarset_tree, write_jams

from mt3data.datasets import manifest
from mt3data.datasets.adapters import guitarset
from mt3data.datasets.adapters.guitarset import JamsLabels
from mt3data.errors import UserError

GUITARSET = manifest.load("guitarset")
SAMPLES = Path(__file__).resolve().parents[3] / "../shared/samples/guitarset"
needs_samples = pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="the real samples, ../shared/samples/guitarset, are not here"
)


def read(path, *notes):
    write_jams(path / "x.jams", notes)
    return JamsLabels(path / "x.jams").load()


def test_both_recordings_of_a_performance_are_tracks_with_the_same_labels(tmp_path):
    guitarset_tree(tmp_path, ["00_Funk3-112-C#_solo"])
    found = list(guitarset.tracks(tmp_path, GUITARSET))
    assert [(track.id, track.name, track.split) for track in found] == [
        ("00_Funk3-112-Csharp_solo-mic", "00_Funk3-112-C#_solo_mic", "validation"),
        ("00_Funk3-112-Csharp_solo-mix", "00_Funk3-112-C#_solo_mix", "validation"),
    ]
    assert found[0].labels == found[1].labels


def test_every_listed_performance_gives_two_tracks_and_the_paper_s_split(tmp_path):
    names = [row["name"] for row in GUITARSET.rows.values()]
    top = guitarset_tree(tmp_path, [])
    for name in names:
        (top / "annotation" / f"{name}.jams").touch()
        (top / "audio_mono-mic" / f"{name}_mic.wav").touch()
        (top / "audio_mono-pickup_mix" / f"{name}_mix.wav").touch()
    found = list(guitarset.tracks(tmp_path, GUITARSET))
    splits = [track.split for track in found]
    assert len({track.id for track in found}) == len(found) == 720
    assert (splits.count("train"), splits.count("validation")) == (480, 240)
    # the final progression of each style is for validation (paper B.4)
    assert {t.name.split("-")[0][-1] for t in found if t.split == "validation"} == {"3"}


def test_an_archive_that_was_not_fetched_gives_no_tracks(tmp_path):
    top = guitarset_tree(tmp_path, ["00_BN1-129-Eb_comp"])
    (top / "audio_mono-pickup_mix" / "00_BN1-129-Eb_comp_mix.wav").unlink()
    (top / "audio_mono-pickup_mix").rmdir()
    assert [t.id for t in guitarset.tracks(tmp_path, GUITARSET)] == ["00_BN1-129-Eb_comp-mic"]


def test_a_recording_that_is_missing_beside_others_is_a_failure(tmp_path):
    top = guitarset_tree(tmp_path, ["00_BN1-129-Eb_comp"])
    (top / "audio_mono-pickup_mix" / "00_BN1-129-Eb_comp_mix.wav").unlink()
    found = list(guitarset.tracks(tmp_path, GUITARSET))
    assert [t.failure for t in found] == ["", "no 00_BN1-129-Eb_comp_mix.wav"]


@pytest.mark.parametrize(
    ("value", "pitch"), [(51.04, 51), (51.499, 51), (51.5, 52), (52.5, 53), (51.96, 52)]
)
def test_pitches_go_to_the_nearest_semitone_and_halves_go_up(tmp_path, value, pitch):
    assert read(tmp_path, (0, 0.1, 0.2, value))[0].pitch.tolist() == [pitch]


def test_pitches_near_a_half_are_counted(tmp_path):
    values = (40.2, 41.46, 42.5, 43.54, 44.44, 45.56)
    _, problems = read(tmp_path, *((0, 0.1 + k, 0.2, v) for k, v in enumerate(values)))
    assert problems == ("3 of 6 pitches lie within 0.05 semitones of a half",)


def test_strings_are_merged_in_order_of_onset_as_one_guitar(tmp_path):
    notes, problems = read(tmp_path, (5, 0.3, 0.2, 64.0), (0, 0.1, 0.4, 40.0), (2, 0.2, 0.1, 50.0))
    assert notes.onset.tolist() == [0.1, 0.2, 0.3]  # the session's offset of 543.742 s is not added
    np.testing.assert_allclose(notes.offset, [0.5, 0.3, 0.5])
    assert notes.pitch.tolist() == [40, 50, 64]
    assert set(notes.program) == {24} and set(notes.instrument) == {0} and not notes.is_drum.any()
    assert problems == ()


def test_one_pitch_on_two_strings_is_kept_and_counted(tmp_path):
    notes, problems = read(tmp_path, (0, 0.1, 0.5, 50.0), (1, 0.3, 0.5, 50.1))
    assert notes.offset.tolist() == [0.6, 0.8]
    assert problems == ("1 notes begin while another string sounds their pitch",)


def test_a_duplicate_on_one_string_is_distinguished(tmp_path):
    notes, problems = read(tmp_path, (0, 0.1, 0.5, 50.0), (0, 0.1, 0.4, 50.0))
    assert len(notes) == 2
    assert problems == ("1 notes begin while their own string sounds that pitch",)


def test_late_excerpts_are_reported_and_moved_only_if_the_manifest_is_reported(tmp_path):
    top = guitarset_tree(tmp_path, ["04_BN3-154-E_comp"])
    notes = [(0, 0.5, 0.2, 40.0), (1, 0.3, 0.3, 45.0)]
    write_jams(top / "annotation" / "04_BN3-154-E_comp.jams", notes)
    for action, onsets in (("keep", [0.3, 0.5]), ("flag", [0.3, 0.5]), ("shift", [0.0, 0.091])):
        issues = tuple(
            dataclasses.replace(issue, action=action, shift_seconds=-0.409)
            for issue in GUITARSET.known_issues
            if "04_BN3-154-E_comp" in issue.tracks
        )
        assert len(issues) == 1
        described = dataclasses.replace(GUITARSET, known_issues=issues)
        track = next(guitarset.tracks(tmp_path, described))
        notes, problems = track.load_labels()
        # what would begin before the recording begins with it
        np.testing.assert_allclose(notes.onset, onsets)
        told = f"known issue late-BN3: {issues[0].what}"
        if action == "shift":
            told += " (note times moved by -0.409 s)"
        assert problems == (() if action == "keep" else (told,))


def test_the_fixed_profile_moves_the_two_late_excerpts_and_flags_the_duplicate(tmp_path):
    guitarset_tree(tmp_path)
    moved = {t.id: t.labels.shift_seconds for t in guitarset.tracks(tmp_path, GUITARSET)}
    assert {track_id[:-4]: shift for track_id, shift in moved.items() if shift} == {
        "04_BN3-154-E_comp": -0.409, "04_Jazz1-200-B_comp": -0.309,
    }  # fmt: skip
    flagged = [
        t.id for t in guitarset.tracks(tmp_path, GUITARSET) if "duplicate" in str(t.problems)
    ]
    assert flagged == ["02_Funk2-119-G_comp-mic", "02_Funk2-119-G_comp-mix"]


def test_a_file_without_permission_is_a_failure_of_its_track(tmp_path, monkeypatch):
    guitarset_tree(tmp_path, ["00_BN1-129-Eb_comp"])
    is_file = Path.is_file

    def refuse(path):
        if path.name.endswith("_mic.wav"):
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    found = {track.id[-3:]: track.failure for track in guitarset.tracks(tmp_path, GUITARSET)}
    assert found == {"mic": "no 00_BN1-129-Eb_comp_mic.wav", "mix": ""}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"annotations": []}', '{"annotations": [{"namespace": "note_midi"}]}']
)
def test_a_file_that_is_not_guitarset_s_jams_is_refused_by_name(tmp_path, text):
    (tmp_path / "x.jams").write_text(text)
    with pytest.raises(UserError, match=r"x\.jams: (not GuitarSet's JAMS|is not valid JSON)"):
        JamsLabels(tmp_path / "x.jams").load()


@needs_samples
@pytest.mark.parametrize(
    ("name", "count"), [("00_BN1-129-Eb_comp", 133), ("00_BN1-147-Gb_comp", 151)]
)
def test_real_annotations_have_their_counted_notes(name, count):
    notes, problems = JamsLabels(SAMPLES / "annotation" / f"{name}.jams").load()
    assert len(notes) == count
    assert notes.onset.min() >= 0 and notes.offset.max() < 23  # no session offset
    assert notes.pitch.min() >= 38 and notes.pitch.max() <= 88
    assert any("of a half" in problem for problem in problems)


@needs_samples
def test_the_real_layout_excerpt_is_read(tmp_path):
    found = list(guitarset.tracks(SAMPLES / "mirdata_excerpt", GUITARSET))
    usable = [track for track in found if not track.failure]
    assert [t.id for t in usable] == ["03_BN3-119-G_solo-mic", "03_BN3-119-G_solo-mix"]
    assert len(usable[0].load_notes()) == 6
