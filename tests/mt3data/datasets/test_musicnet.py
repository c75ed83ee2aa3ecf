"""MusicNet's CSV and MusicNetEM's MIDI over the same recordings."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from fakes_listed import melody, musicnet_em_tree, musicnet_tree, write_em_midi

from mt3data.datasets import manifest
from mt3data.datasets.adapters import musicnet, musicnet_em
from mt3data.datasets.adapters.csv_tracks import MidiLabels
from mt3data.datasets.adapters.musicnet import CsvLabels
from mt3data.errors import UserError

MUSICNET, EM = manifest.load("musicnet"), manifest.load("musicnet_em")
SAMPLES = Path(__file__).resolve().parents[3] / "../shared/samples"
ARCHIVE = SAMPLES / "musicnet_em/musicnet_em.zip"
HEADER = "start_time,end_time,instrument,note,start_beat,end_beat,note_value\n"
needs_samples = pytest.mark.skipif(
    not (SAMPLES / "musicnet").is_dir(),
    reason="the real samples, ../shared/samples/musicnet, are not here",
)
needs_archive = pytest.mark.skipif(
    not ARCHIVE.is_file(), reason="the real samples, ../shared/samples/musicnet_em, are not here"
)


def read(folder: Path, *lines: str):
    (folder / "1.csv").write_text(HEADER + "\n".join(lines) + "\n")
    return CsvLabels(folder / "1.csv").load()


def test_splits_are_mt3_s_and_not_the_folders(tmp_path):
    musicnet_tree(tmp_path)
    found = {t.id: (t.split, t.audio.parent.name) for t in musicnet.tracks(tmp_path, MUSICNET)}
    assert found == {
        "1727": ("train", "train_data"), "1729": ("test", "train_data"),
        "1733": ("validation", "train_data"), "1759": ("train", "test_data"),
    }  # fmt: skip


def test_the_copy_on_kaggle_with_its_extra_folder_is_taken(tmp_path):
    musicnet_tree(tmp_path, top="musicnet/musicnet")
    assert len(list(musicnet.tracks(tmp_path, MUSICNET))) == 4


def test_times_are_samples_at_44100_and_programs_are_one_less(tmp_path):
    notes, problems = read(
        tmp_path, "9182,90078,43,53,4.0,1.5,Dotted Quarter", "44100,66150,1,69,4.0,0.5,Eighth"
    )
    assert notes.onset.tolist() == [9182 / 44100, 1.0]
    assert notes.offset.tolist() == [90078 / 44100, 1.5]
    assert notes.pitch.tolist() == [53, 69]
    assert notes.program.tolist() == [42, 0]  # cello and piano
    assert notes.instrument.tolist() == [0, 1]
    assert problems == ()


def test_beats_are_not_used(tmp_path):
    notes, _ = read(tmp_path, "0,44100,1,60,nonsense,,")
    assert notes.offset.tolist() == [1.0]


def test_overlaps_and_coinciding_notes_are_kept_and_counted(tmp_path):
    notes, problems = read(
        tmp_path, "0,500,1,60,0,0,x", "100,200,1,60,0,0,x",  # overlap
        "0,500,1,62,0,0,x", "0,400,1,62,0,0,x",  # together
        "0,500,1,64,0,0,x", "0,500,41,64,0,0,x",  # another instrument
    )  # fmt: skip
    assert len(notes) == 6
    assert problems == (
        "1 of 6 notes overlap one of the same pitch and program, 1 begin together with one",
    )


@pytest.mark.parametrize(
    "bad",
    ["x,500,1,60,0,0,q", "10,5,1,60,0,0,q", "5,5,1,60,0,0,q", "-1,5,1,60,0,0,q", "0,5,0,60,0,0,q",
     "0,5,129,60,0,0,q", "0,5,1,128,0,0,q", "0,5", "0,5.5,1,60,0,0,q"],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_file(tmp_path, bad):
    with pytest.raises(
        UserError, match=r"1\.csv: row 3 (has start_time,end_time,instrument,note = |ends early)"
    ):
        read(tmp_path, "0,500,1,60,0,0,q", bad, "0,500,1,61,0,0,q")


def test_a_file_with_other_columns_is_refused(tmp_path):
    (tmp_path / "1.csv").write_text("onset,offset\n1,2\n")
    with pytest.raises(
        UserError, match=r"1\.csv: row 1 is 'onset,offset'; expected columns start_time"
    ):
        CsvLabels(tmp_path / "1.csv").load()


def test_a_track_tells_its_fault_without_the_place_of_its_files(tmp_path):
    musicnet_tree(tmp_path)
    track = next(musicnet.tracks(tmp_path, MUSICNET))
    track.labels.path.write_text(HEADER + "oops\n")
    with pytest.raises(UserError) as error:
        track.load_notes()
    assert str(error.value).startswith("musicnet 1727: 1727.csv: row 2 ends early")
    assert str(tmp_path) not in str(error.value)


def test_fake_notes_come_back_whole(tmp_path):
    musicnet_tree(tmp_path)
    notes = next(musicnet.tracks(tmp_path, MUSICNET)).load_notes()
    onset, offset, pitch, _ = np.array(melody(60) + melody(72)).T
    np.testing.assert_allclose(notes.onset, onset, atol=1e-4)
    np.testing.assert_allclose(notes.offset, offset, atol=1e-4)
    np.testing.assert_array_equal(notes.pitch, pitch)


def test_the_first_note_off_ends_all_open_notes_of_a_pitch(tmp_path):
    events = [(0.1, "on", 60), (0.2, "on", 60), (0.3, "off", 60), (0.5, "off", 60), (0.6, "on", 60)]
    write_em_midi(tmp_path / "1.mid", [*events, (0.7, "off", 60)])
    notes, problems = MidiLabels(tmp_path / "1.mid", count_reonsets=True).load()
    # A reader that matches first-in first-out would end the second note at 0.5 s.
    np.testing.assert_allclose(notes.onset, [0.1, 0.2, 0.6], atol=1e-3)
    np.testing.assert_allclose(notes.offset, [0.3, 0.3, 0.7], atol=1e-3)
    (told,) = problems
    assert told.startswith("1 of 3 notes begin before the note-off of the same pitch")


def test_em_labels_lie_over_musicnet_s_recordings(tmp_path):
    musicnet_em_tree(tmp_path)
    found = list(musicnet_em.tracks(tmp_path, EM))
    assert [(t.id, t.audio.name, t.labels.path.name) for t in found] == [
        (i, f"{i}.wav", f"{i}.mid") for i in ("1727", "1729", "1733", "1759")
    ]


def test_em_labels_that_were_unpacked_by_hand_are_found(tmp_path):
    top = musicnet_em_tree(tmp_path)
    (tmp_path / "musicnet_em").mkdir()
    (top / "musicnet_em").rename(tmp_path / "musicnet_em" / "musicnet_em")
    assert [t.failure for t in musicnet_em.tracks(tmp_path, EM)] == [""] * 4


def test_em_has_no_track_for_the_seven_recordings_without_labels(tmp_path):
    musicnet_tree(tmp_path, {"1727": "train", "2194": "train", "2310": "train"})
    assert [t.id for t in musicnet_em.tracks(tmp_path, EM)] == ["1727"]


def test_incomplete_em_tracks_are_flagged(tmp_path):
    musicnet_tree(tmp_path, {"1727": "train", "2466": "train", "2477": "train"})
    found = {t.id: str(t.problems) for t in musicnet_em.tracks(tmp_path, EM)}
    assert {track for track, told in found.items() if "incomplete" in told} == {"2466", "2477"}


@needs_samples
def test_real_label_files_have_their_counted_notes_and_programs():
    paths = sorted((SAMPLES / "musicnet").glob("*_labels/*.csv"))
    assert len(paths) == 16
    for path in paths:
        row = MUSICNET.rows[path.stem]
        notes, _ = CsvLabels(path).load()
        assert len(notes) == int(row["notes"])
        assert sorted(set(notes.program.tolist())) == sorted(map(int, row["programs"].split()))


@needs_samples
def test_the_overlaps_and_coincidences_of_a_real_file_are_counted():
    _, problems = CsvLabels(SAMPLES / "musicnet/test_labels/1819.csv").load()
    assert "5 of " in problems[0] and "51 begin together with one" in problems[0]


def read_archive(ids: list[str], folder: Path) -> tuple[int, int]:
    """Reads these files, each checked against the manifest; numbers of notes and of re-onsets."""
    total = again = 0
    with zipfile.ZipFile(ARCHIVE) as archive:
        for track in ids:
            (folder / "em.mid").write_bytes(archive.read(f"musicnet_em/{track}.mid"))
            notes, problems = MidiLabels(folder / "em.mid", count_reonsets=True).load()
            row = EM.rows[track]
            assert len(notes) == int(row["notes"]), track
            assert sorted(set(notes.program.tolist())) == sorted(map(int, row["programs"].split()))
            assert (notes.offset > notes.onset).all() and set(notes.velocity) == {127}
            total += len(notes)
            again += int(problems[0].split(" of ")[0]) if problems else 0
    return total, again


@needs_archive
def test_the_real_archive_has_a_file_for_every_row_and_no_other():
    with zipfile.ZipFile(ARCHIVE) as archive:
        names = {name for name in archive.namelist() if name.endswith(".mid")}
    assert names == {row["labels"] for row in EM.rows.values()}
    assert len(names) == 323


@needs_archive
def test_the_real_incomplete_files_are_read(tmp_path):
    ids = ["2131", "2147", "2420", "2433", "2466", "2476", "2477", "2478"]
    assert read_archive(ids, tmp_path)[0] == sum(int(EM.rows[i]["notes"]) for i in ids)


@needs_archive
@pytest.mark.slow
def test_all_323_real_files_are_read(tmp_path):
    assert read_archive(list(EM.rows), tmp_path) == (1_067_749, 189_605)
