"""MAESTRO: three versions, two layouts of its JSON, mixed rates, the pedal."""

from pathlib import Path

import pytest
from fakes_listed import MAESTRO_TRACKS, maestro_tree, write_em_midi

from mt3data.audio.load import audio_info, read_audio
from mt3data.datasets import manifest
from mt3data.datasets.adapters import maestro
from mt3data.errors import UserError

VERSIONS = {version: manifest.load(f"maestro_v{version}") for version in (1, 2, 3)}
SAMPLES = Path(__file__).resolve().parents[3] / "../shared/samples/maestro/mirdata_v2_excerpt"
needs_samples = pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="the real samples, ../shared/samples/maestro, are not here"
)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_splits_are_those_of_the_version(tmp_path, version):
    maestro_tree(tmp_path, version)
    found = {t.name: t for t in maestro.tracks(tmp_path, VERSIONS[version])}
    wanted = {name: splits.split()[version - 1] for name, (splits, _) in MAESTRO_TRACKS.items()}
    assert {name: track.split for name, track in found.items()} == wanted
    assert {track.failure for track in found.values()} == {""}


def test_a_recording_has_the_same_id_in_every_version(tmp_path):
    ids = []
    for version in (1, 2, 3):
        maestro_tree(tmp_path, version)
        ids.append({t.name: t.id for t in maestro.tracks(tmp_path, VERSIONS[version])})
    assert ids[0] == ids[1] == ids[2]


@pytest.mark.parametrize("table", ["json", "csv", ""])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_layout_of_the_publisher_s_table_is_read(tmp_path, version, table):
    top = maestro_tree(tmp_path, version, table=table)
    splits = {f"{n}.midi": s.split()[version - 1] for n, (s, _) in MAESTRO_TRACKS.items()}
    assert maestro.read_table(top) == (splits if table else {})


def test_a_folder_of_v1_that_is_built_as_v3_is_reported(tmp_path):
    maestro_tree(tmp_path, 1).rename(tmp_path / "maestro-v3.0.0")
    found = list(maestro.tracks(tmp_path, VERSIONS[3]))
    told = [t.problems[-1] for t in found if "table" in str(t.problems)]
    assert told == [f"the table beside the files states test, {VERSIONS[3].title} validation"]


@pytest.mark.parametrize("text", ["{", "[1]", '{"split": {}}'])
def test_a_table_that_is_no_table_is_refused_by_name(tmp_path, text):
    top = maestro_tree(tmp_path)
    (top / "maestro-v3.0.0.json").write_text(text)
    with pytest.raises(
        UserError, match=r"maestro-v3\.0\.0\.json: (not MAESTRO's table|is not valid JSON)"
    ):
        list(maestro.tracks(tmp_path, VERSIONS[3]))


def test_both_rates_come_out_at_16_khz(tmp_path):
    maestro_tree(tmp_path, seconds=0.5)
    found = list(maestro.tracks(tmp_path, VERSIONS[3]))
    assert sorted(audio_info(t.audio).rate for t in found) == [44100, 44100, 44100, 48000]
    assert {audio_info(t.audio).channels for t in found} == {2}
    assert {len(read_audio(t.audio)) for t in found} == {8000}


def test_an_empty_midi_file_is_an_error_that_names_it(tmp_path):
    maestro_tree(tmp_path)
    track = next(maestro.tracks(tmp_path, VERSIONS[3]))
    write_em_midi(track.labels.path, [])
    with pytest.raises(UserError, match=r"no note in .*Track12_wav--1\.midi"):
        track.load_notes()


def test_a_note_that_never_ends_is_reported(tmp_path):
    maestro_tree(tmp_path)
    track = next(maestro.tracks(tmp_path, VERSIONS[3]))
    write_em_midi(track.labels.path, [(0.1, "on", 60), (0.2, "off", 60), (0.3, "on", 62)])
    notes, problems = track.load_labels()
    assert notes.pitch.tolist() == [60]
    assert problems == ("1 of 2 note-ons without an end; dropped",)


def test_midi_without_its_recording_is_a_failure(tmp_path):
    top = maestro_tree(tmp_path)
    for path in top.rglob("*.wav"):
        path.unlink()
    failures = {t.failure for t in maestro.tracks(tmp_path, VERSIONS[3])}
    assert failures == {f"no {name.split('/')[1]}.wav" for name in MAESTRO_TRACKS}


def test_a_root_one_folder_too_high_names_the_right_one(tmp_path):
    maestro_tree(tmp_path / "data")
    with pytest.raises(UserError, match=r"there are files in .*/data/maestro-v3\.0\.0: point"):
        maestro.tracks(tmp_path, VERSIONS[3])


def test_a_root_one_folder_too_deep_names_the_right_one(tmp_path):
    top = maestro_tree(tmp_path)
    with pytest.raises(UserError, match=r"there are files in .*/maestro-v3\.0\.0: point"):
        maestro.tracks(top / "2008", VERSIONS[3])


@needs_samples
def test_the_real_recording_of_v2_is_read():
    (track,) = maestro.tracks(SAMPLES, VERSIONS[2])
    notes, problems = track.load_labels()
    assert (track.id[:5], track.split, problems) == ("2018-", "train", ())
    assert len(notes) == 4197
    assert set(notes.program) == {0} and not notes.is_drum.any()
    assert len(set(notes.velocity)) > 50
    assert notes.onset[:2].round(2).tolist() == [0.98, 1.78]
    info = audio_info(track.audio)
    assert (info.rate, info.channels, info.seconds) == (48000, 2, 2.0)
