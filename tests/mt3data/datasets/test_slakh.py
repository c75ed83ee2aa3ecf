"""The Slakh adapter on fakes of both layouts and on the real sample track."""

from pathlib import Path

import numpy as np
import pytest
from fakes import slakh_notes, slakh_tree, write_midi

from mt3data.datasets import manifest
from mt3data.datasets.adapters import slakh
from mt3data.datasets.track import Stem, Track
from mt3data.errors import UserError

SLAKH, DEMO = manifest.load("slakh"), manifest.load("demo")
SAMPLES = Path(__file__).resolve().parents[3] / "../shared/samples/slakh"
needs_samples = pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="the real samples, ../shared/samples/slakh, are not here"
)
NO_CLASS = "S04: program 98 has no Slakh class; no label"


def one(root: Path, **faults: object) -> Track:
    """The only track of a fake tree with these faults."""
    return next(slakh.tracks(slakh_tree(root, tracks=["Track00001"], **faults), SLAKH))  # type: ignore[arg-type]


def programs(track: Track) -> dict[str, int]:
    return {stem.id: -1 if stem.is_drum else stem.program for stem in track.stems}


@pytest.mark.parametrize(("layout", "mix"), [("redux", "mix.flac"), ("baby", "mix.wav")])
def test_both_layouts_give_the_same_stems_with_the_programs_of_their_class(tmp_path, layout, mix):
    found = list(slakh.tracks(slakh_tree(tmp_path, layout), SLAKH))
    assert [track.id for track in found] == ["Track00001", "Track01501", "Track01877"]
    for track in found:
        assert track.audio.name == mix and track.audio.is_file()
        assert programs(track) == {"S00": 29, "S01": -1, "S02": 0, "S03": 33}
        assert [stem.name for stem in track.stems] == [
            "Distorted Electric Guitar", "Drums", "Acoustic Piano", "Electric Bass",
        ]  # fmt: skip
        assert (track.problems, track.failure) == ((NO_CLASS,), "")


def test_mt3_splits_by_number_and_trims_in_training_only(tmp_path):
    names = ["Track01500", "Track01501", "Track01875", "Track01876", "Track02100"]
    tracks = dict.fromkeys(names, "omitted")
    found = slakh.tracks(slakh_tree(tmp_path, tracks=tracks), SLAKH)
    assert [(track.split, track.trim) for track in found] == [
        ("train", True), ("validation", False), ("validation", False), ("test", False), ("test", False),
    ]  # fmt: skip


def test_redux_splits_by_the_published_ids_wherever_the_folder_stands(tmp_path):
    tracks = {"Track00001": "train", "Track00049": "train"}
    found = slakh.tracks(slakh_tree(tmp_path, tracks=tracks), SLAKH, "redux")
    assert [track.split for track in found] == ["train", "omitted"]


def test_a_number_in_no_split_is_a_failure(tmp_path):
    (track,) = slakh.tracks(slakh_tree(tmp_path, tracks=["Track09999"]), SLAKH)
    assert track.failure == "in no split of the scheme 'mt3'"


def test_the_demo_splits_by_folder(tmp_path):
    slakh_tree(tmp_path, "demo", {"Track00001": "test", "Track00002": "train"})
    found = list(slakh.tracks(tmp_path, DEMO))
    assert [(t.dataset, t.split, t.trim) for t in found] == [
        ("demo", "test", False), ("demo", "train", True),
    ]  # fmt: skip


def test_notes_carry_program_drum_flag_and_stem_number(tmp_path):
    notes = one(tmp_path, seconds=0.5).load_notes()
    expected = [n for stem in ("S00", "S01", "S02", "S03") for n in slakh_notes(stem, 0.5)]
    assert (
        list(zip(notes.onset, notes.offset, notes.pitch, notes.velocity, strict=True)) == expected
    )
    assert notes.program.tolist() == [29, 29, 0, 0, 0, 0, 33, 33]
    assert notes.is_drum.tolist() == [False, False, True, True, False, False, False, False]
    assert notes.instrument.tolist() == [0, 0, 9, 9, 1, 1, 2, 2]


def test_the_tenth_pitched_stem_skips_the_number_of_drums(tmp_path):
    write_midi(tmp_path / "S.mid", [(0, [(0.1, 0.2, 60, 80)])])
    stem = Stem("S", tmp_path / "a.wav", tmp_path / "S.mid", 0, False, "Acoustic Piano")
    track = Track("t", "t", "slakh", "train", tmp_path / "mix.wav", (stem,) * 11)
    assert track.load_notes().instrument.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11]


def test_the_pedal_prolongs_the_notes_of_its_own_stem_only(tmp_path):
    import pretty_midi

    stems = []
    for name, changes in (("S00", [(64, 127, 0.1), (64, 0, 0.9)]), ("S01", [])):
        midi, part = pretty_midi.PrettyMIDI(resolution=500), pretty_midi.Instrument(0)
        part.notes = [pretty_midi.Note(80, 60, 0.2, 0.4)]
        part.control_changes = [pretty_midi.ControlChange(*change) for change in changes]
        midi.instruments.append(part)
        midi.write(str(tmp_path / f"{name}.mid"))
        stems.append(Stem(name, None, tmp_path / f"{name}.mid", 0, False, "Acoustic Piano"))
    track = Track("t", "t", "slakh", "train", tmp_path / "mix.wav", tuple(stems))
    np.testing.assert_allclose(track.load_notes().offset, [0.9, 0.4])


@pytest.mark.parametrize(
    ("faults", "lost", "problem"),
    [
        ({"missing_audio": ["Track00001/S02"]}, "S02", "S02: MIDI without audio; label dropped"),
        (
            {"missing_midi": ["Track00001/S02"]}, "S02",
            "S02: audio without MIDI; it sounds in the mix and has no label",
        ),
        (
            {"orphan_midi": ["Track00001/S09"]}, "S09",
            "S09: not in metadata.yaml, so its program is unknown; no label",
        ),
    ],
)  # fmt: skip
def test_a_stem_that_lacks_something_is_dropped_and_named(tmp_path, faults, lost, problem):
    track = one(tmp_path, **faults)
    assert set(programs(track)) == {"S00", "S01", "S02", "S03"} - {lost}
    assert problem in track.problems and track.failure == ""


def test_zero_length_notes_are_dropped_and_counted(tmp_path):
    notes, problems = one(tmp_path, seconds=0.5, zero_length=["Track00001/S00"]).load_labels()
    lost = "S00: 1 of 3 note-ons without an end; dropped"
    assert problems == (NO_CLASS, lost)
    assert len(notes) == 8 and (notes.offset > notes.onset).all() and 90 not in notes.pitch


def test_midi_without_notes_is_fine_when_another_stem_has_some(tmp_path):
    track = one(tmp_path, seconds=0.5, empty_midi=["Track00001/S00"])
    assert len(track.load_notes()) == 6


def test_a_track_without_any_note_is_refused(tmp_path):
    track = one(tmp_path, empty_midi=[f"Track00001/S0{k}" for k in range(4)])
    with pytest.raises(UserError, match="slakh Track00001: no note in any of 4 MIDI files"):
        track.load_notes()


def test_a_broken_midi_file_is_named_relative_to_its_track(tmp_path):
    track = one(tmp_path)
    assert track.stems[0].midi is not None
    track.stems[0].midi.write_bytes(b"not midi")
    with pytest.raises(UserError, match=r"^slakh Track00001: MIDI/S00.mid: not a MIDI file"):
        track.load_notes()


@pytest.mark.parametrize(
    ("faults", "failure"),
    [
        ({"missing_mix": ["Track00001"]}, "no mix, expected mix.flac or mix.wav"),
        ({"missing_metadata": ["Track00001"]}, "metadata.yaml: cannot be read"),
        ({"broken_metadata": ["Track00001"]}, "metadata.yaml: is not valid YAML"),
        (
            {"missing_audio": [f"Track00001/S0{k}" for k in range(4)]},
            "no stem with a class, audio and MIDI",
        ),
    ],
)
def test_an_unusable_track_is_yielded_with_its_reason_and_raises_when_read(
    tmp_path, faults, failure
):
    track = one(tmp_path, **faults)
    assert track.failure.startswith(failure)
    assert str(tmp_path) not in track.failure
    with pytest.raises(UserError, match=f"slakh Track00001: {failure}"):
        track.load_notes()


def test_a_folder_without_permission_costs_its_track_alone(tmp_path, monkeypatch):
    slakh_tree(tmp_path, "redux", {"Track00001": "train", "Track00002": "train"}, seconds=0.2)
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if "Track00001" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    first, second = slakh.tracks(tmp_path, SLAKH)
    assert first.failure == "its folder cannot be read (Permission denied)"
    assert not second.failure


def test_listed_problem_stems_are_kept_and_flagged(tmp_path):
    (track,) = slakh.tracks(slakh_tree(tmp_path, tracks=["Track00262"]), SLAKH)
    assert "S01" in programs(track)
    assert track.problems[-1].startswith("S01: listed as a problem stem (short-labels)")


@pytest.mark.parametrize("point_at", [".", "slakh2100_flac_redux", "slakh2100_flac_redux/train"])
def test_the_root_may_be_the_parent_the_archive_or_a_split_folder(tmp_path, point_at):
    slakh_tree(tmp_path, tracks=["Track00001"])
    assert [t.id for t in slakh.tracks(tmp_path / point_at, SLAKH)] == ["Track00001"]


def test_half_written_folders_are_ignored(tmp_path):
    top = slakh_tree(tmp_path, "demo", ["Track00001"])
    (top / "train" / ".Track00002.part").mkdir()
    assert [t.id for t in slakh.tracks(tmp_path, DEMO)] == ["Track00001"]


@pytest.mark.parametrize(
    ("point_at", "hint"),
    [
        (
            "a/b/slakh2100_flac_redux/train/Track00001",
            "this is one track, point at the folder above",
        ),
        ("a", r"there are tracks in .*slakh2100_flac_redux/train: point there"),
        ("nowhere", "the folder does not exist"),
    ],
)
def test_a_wrong_root_is_refused_with_what_was_looked_for_and_a_hint(tmp_path, point_at, hint):
    slakh_tree(tmp_path / "a/b", tracks=["Track00001"])
    with pytest.raises(UserError, match=f"looked for TrackNNNNN or {{train,.*{hint}"):
        slakh.tracks(tmp_path / point_at, SLAKH)


def test_one_track_in_two_folders_is_refused(tmp_path):
    slakh_tree(tmp_path, tracks={"Track00001": "train"})
    slakh_tree(tmp_path, tracks={"Track00001": "test"})
    with pytest.raises(UserError, match="Track00001 lies in .*train and in .*test; remove one"):
        slakh.tracks(tmp_path, SLAKH)


@needs_samples
@pytest.mark.parametrize("folder", ["slakh2100_flac_redux", "babyslakh_16k"])
def test_the_real_track00001_gives_the_programs_of_its_eleven_stems(folder):
    track = next(slakh.tracks(SAMPLES / folder, SLAKH))
    assert programs(track) == {
        "S00": 29, "S01": -1, "S02": 0, "S03": 33, "S04": 52, "S05": 16,
        "S07": 26, "S08": 29, "S09": 16, "S10": 16,
    }  # fmt: skip
    assert track.problems == ("S06: program 103 has no Slakh class; no label",)
    notes, problems = track.load_labels()
    assert problems == track.problems
    counts = [int((notes.program[~notes.is_drum] == p).sum()) for p in (0, 16, 26, 29, 33, 52)]
    assert counts == [401, 263 + 269 + 212, 208, 108 + 130, 361, 68]
    assert int(notes.is_drum.sum()) == 1076


@needs_samples
def test_a_real_track_that_is_only_midi_is_a_failure():
    failures = {t.id: t.failure for t in slakh.tracks(SAMPLES / "babyslakh_16k", SLAKH)}
    assert failures == {"Track00001": "", "Track00007": "no mix, expected mix.flac or mix.wav"}


@needs_samples
def test_real_metadata_of_four_tracks_is_split_by_number_and_by_id():
    root = SAMPLES / "basic_pitch_metadata"
    by_number = {t.id: t.split for t in slakh.tracks(root, SLAKH)}
    by_id = {t.id: t.split for t in slakh.tracks(root, SLAKH, "redux")}
    assert by_number == {"Track00001": "train", "Track00049": "train",
                         "Track01501": "validation", "Track01876": "test"}  # fmt: skip
    assert by_id == by_number | {"Track00049": "omitted"}
