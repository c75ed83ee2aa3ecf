"""The shard writer: what tarfile would write, and nothing of a track that fails in the middle."""

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import fakes
import numpy as np
import pytest

from mt3data.build import track_examples as examples
from mt3data.build.track_examples import TrackExamples, TrackFailure
from mt3data.datasets.track import Stem, Track
from mt3data.errors import UserError
from mt3data.music.notes import Notes
from mt3data.shards.format import npy_parts, read_npy
from mt3data.shards.windows import Window, WindowConfig, windows_of
from mt3data.shards.writer import ShardWriter, record_key

NOTES = Notes([0.1, 1.0], [0.5, 2.5], [60, 64], [90, 80], [0, 0], [False, True], [0, 9])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def records() -> list[Window]:
    samples = np.random.default_rng(0).normal(0, 0.1, 50_000).astype(np.float32)
    config = WindowConfig(150, features=("mel", "audio"))
    return list(windows_of(samples, NOTES, "t", 1, config))


def write(path: Path, windows: list[Window]) -> ShardWriter:
    writer = ShardWriter(path)
    for window in windows:
        writer.add("demo", "train", "t", "a track", window)
    return writer


def test_the_bytes_are_those_of_tarfile_with_time_owner_and_mode_fixed(
    tmp_path: Path, records: list[Window]
) -> None:
    told = write(tmp_path / "ours.tar", records).close()
    ours = (tmp_path / "ours.tar").read_bytes()
    again = io.BytesIO()
    with (
        tarfile.open(tmp_path / "ours.tar") as source,
        tarfile.open(fileobj=again, mode="w", format=tarfile.USTAR_FORMAT) as target,
    ):
        members = source.getmembers()
        for member in members:
            fixed = tarfile.TarInfo(member.name)
            fixed.size, fixed.mode = member.size, 0o644
            target.addfile(fixed, source.extractfile(member))
    assert ours == again.getvalue()
    assert len(members) == 5 * len(records) == 15
    assert (told["bytes"], told["sha256"]) == (len(ours), hashlib.sha256(ours).hexdigest())


def test_the_index_says_where_each_member_begins(tmp_path: Path, records: list[Window]) -> None:
    writer = write(tmp_path / "a.tar", records)
    writer.close()
    data = (tmp_path / "a.tar").read_bytes()
    for window, row in zip(records, writer.rows, strict=True):
        stored = window.sound | {"notes": window.notes.to_array(), "tokens": window.tokens}
        for name, array in stored.items():
            start = row[f"{name}_offset"]
            member = data[start : start + row[f"{name}_size"]]
            assert member == b"".join(npy_parts(array))
            np.testing.assert_array_equal(read_npy(member), array)


@pytest.mark.parametrize("before", [0, 1])
def test_records_of_a_track_that_fails_are_taken_back(
    tmp_path: Path, records: list[Window], before: int
) -> None:
    writer = write(tmp_path / "broken.tar", records[:before])
    with pytest.raises(OSError, match="gone"), writer.all_or_nothing():
        for window in records[1:]:
            writer.add("demo", "train", "t", "a track", window)
        raise OSError("gone")
    with writer.all_or_nothing():
        writer.add("demo", "train", "t", "a track", records[2])
    told = writer.close()
    whole = write(tmp_path / "whole.tar", [*records[:before], records[2]])
    assert told["sha256"] == whole.close()["sha256"]
    assert [row["key"] for row in writer.rows] == [row["key"] for row in whole.rows]
    assert (tmp_path / "broken.tar").read_bytes() == (tmp_path / "whole.tar").read_bytes()


def test_an_abandoned_shard_leaves_no_file(tmp_path: Path, records: list[Window]) -> None:
    write(tmp_path / "a.tar", records).abandon()
    assert list(tmp_path.iterdir()) == []


def test_keys_have_no_dot_and_fit_into_a_tar_name() -> None:
    assert record_key("demo", "T-1", 2, 256) == "demo-T-1-p2-0000256"
    for track in ("a.wav", "é", "x" * 80):
        with pytest.raises(ValueError, match="key"):
            record_key("demo", track, 0, 0)


def test_python_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="Python objects"):
        npy_parts(np.array([{}]))


@pytest.fixture
def track(tmp_path: Path) -> Track:
    folder = fakes.slakh_tree(tmp_path, "demo", {"Track00001": "train"}, seconds=3) / "train"
    folder /= "Track00001"
    piano = Stem(
        "S02", folder / "stems" / "S02.flac", folder / "MIDI" / "S02.mid", 0, False, "Piano"
    )
    return Track("Track00001", "Track00001", "demo", "train", folder / "mix.flac", (piano,))


def test_windows_come_one_by_one_before_the_track_is_told_of(track: Track) -> None:
    made = TrackExamples(track, WindowConfig(100))
    windows = iter(made)
    assert next(windows).start_frame == 0
    assert made.row == {}
    assert [window.start_frame for window in windows] == [100, 200, 300]
    assert (made.row["records"], made.row["status"], made.row["notes"]) == (4, "ok", 14)
    assert len(made.notes) == 14


def test_whatever_goes_wrong_with_a_track_is_told_with_its_stage(
    track: Track, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a library's bug")

    monkeypatch.setattr(examples, "_align", fail)
    seen = []
    with pytest.raises(TrackFailure, match="align: a library's bug") as caught:
        for window in TrackExamples(track, WindowConfig(100)):
            seen.append(window.start_frame)
    assert (caught.value.stage, seen) == ("align", [0, 100, 200, 300])
    monkeypatch.setattr(examples, "read_audio", fail)
    with pytest.raises(TrackFailure) as caught:
        list(TrackExamples(track, WindowConfig(100)))
    assert caught.value.stage == "audio"
    assert isinstance(caught.value.reason, ZeroDivisionError)


def test_a_note_out_of_range_is_a_fault_of_the_labels(
    track: Track, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = track.load_notes()
    high = replace(notes, pitch=notes.pitch + 100)
    monkeypatch.setattr(examples, "_notes_of_variants", lambda _: ([high], ()))
    with pytest.raises(TrackFailure, match="notes have a pitch outside 0-127") as caught:
        list(TrackExamples(track, WindowConfig(100)))
    assert caught.value.stage == "labels"
    assert isinstance(caught.value.reason, UserError)


def test_what_goes_wrong_with_the_one_who_takes_the_windows_is_not_the_tracks_fault(
    track: Track,
) -> None:
    with pytest.raises(OSError, match="disk full"):
        for _ in TrackExamples(track, WindowConfig(100)):
            raise OSError("disk full")
