"""One bad track costs itself alone, whatever it raises, in planning as in building."""

import os
from collections.abc import Callable
from pathlib import Path

import fakes
import numpy as np
import pytest
import soundfile
from builds import digests

from mt3data.build import plan as planning
from mt3data.build.executor import run
from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import Summary, build
from mt3data.errors import UserError
from mt3data.music.notes import Notes
from mt3data.shards.check import check
from mt3data.shards.format import read_npy
from mt3data.shards.index import ShardSet, track_rows
from mt3data.shards.windows import WindowConfig

RATE = 16_000
FakeNotes = list[tuple[float, float, int, int]]


def song(folder: Path, name: bytes | str, notes: FakeNotes, seconds: float = 3.0) -> None:
    """Writes NAME.wav and NAME.mid; the name may be bytes that are no UTF-8."""
    folder.mkdir(parents=True, exist_ok=True)
    sound = 0.1 * np.sin(np.arange(round(seconds * RATE)) / 9)
    for suffix, write in (
        (".wav", lambda path: soundfile.write(path, sound, RATE)),
        (".mid", lambda path: fakes.write_midi(path, [(0, notes)])),
    ):
        write(plain := folder / f"new{suffix}")
        plain.rename(folder / f"{os.fsdecode(name)}{suffix}")


NOTES: FakeNotes = [(0.2 * k, 0.2 * k + 0.1, 60 + k % 5, 80) for k in range(10)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        song(tmp_path / "root", name, NOTES)
    return tmp_path / "root"


def built(root: Path, dataset: str = "folder") -> Summary:
    windows = WindowConfig(256, align="off")
    return build(make_plan(BuildConfig(dataset, root, root.parent / "out", windows=windows)))


def rename(stem: bytes) -> Callable[[Path], object]:
    return lambda root: [
        path.rename(root / f"{os.fsdecode(stem)}{path.suffix}") for path in root.glob("two.*")
    ]


def test_a_name_that_is_no_utf8_is_built_under_an_escaped_name(root: Path) -> None:
    rename(b"t\xfc\xffe")(root)
    summary = built(root)
    assert summary.quarantined == ()
    names = sorted(row["name"] for row in track_rows(summary.folder))
    assert names == ["one.wav", "t\\udcfc\\udcffe.wav", "three.wav"]
    assert check(summary.folder) == []


@pytest.mark.parametrize(
    "raised", [RuntimeError("odd"), KeyError(3), MemoryError(), TypeError("x")]
)
def test_whatever_a_header_raises_costs_one_track(
    root: Path, raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = planning.audio_info

    def info(path: Path) -> object:
        if path.stem == "two":
            raise raised
        return reading(path)

    monkeypatch.setattr(planning, "audio_info", info)
    summary = built(root)
    (row,) = summary.quarantined
    assert (row["name"], row["stage"]) == ("two.wav", "plan")
    assert row["error"].startswith(type(raised).__name__)
    assert sum(split["tracks"] for split in summary.manifest["splits"].values()) == 2


@pytest.mark.parametrize(
    "text",
    ["stems: {S00: null, S01: {program_num: 3}}", "stems: {0: {program_num: 3}, S01: 7}", "[", "\0",
     "stems: {S00: {program_num: [1]}}", "stems: " + "[" * 3000],
)  # fmt: skip
def test_a_damaged_metadata_yaml_costs_one_track(tmp_path: Path, text: str) -> None:
    splits = {"Track00001": "train", "Track00002": "train", "Track00003": "test"}
    root = fakes.slakh_tree(tmp_path / "root", "demo", splits, seconds=1.0)
    (root / "train" / "Track00002" / "metadata.yaml").write_text(text)
    summary = built(root, "demo")
    assert [row["track"] for row in summary.quarantined] in (["Track00002"], [])
    rows = {row["track"]: row for row in track_rows(summary.folder)}
    assert rows["Track00001"]["status"] == rows["Track00003"]["status"] == "ok"
    assert rows["Track00002"]["status"] != "ok" or rows["Track00002"]["problems"]


def test_labels_after_the_end_of_the_audio_are_reported(root: Path) -> None:
    song(root, "two", [*NOTES * 3, (4.0, 4.5, 90, 80)])
    summary = built(root)
    rows = {row["name"]: row for row in track_rows(summary.folder)}
    assert rows["two.wav"]["notes_after_audio"] == 1
    assert any("1 of 31 notes begin after the end" in p for p in rows["two.wav"]["problems"])
    assert (rows["one.wav"]["notes_after_audio"], rows["one.wav"]["problems"]) == (0, [])


@pytest.mark.parametrize("onset", [1.0, 3.5])
def test_notes_that_last_long_after_the_end_of_the_audio_are_cut_and_reported(
    root: Path, onset: float
) -> None:
    song(root, "two", [*NOTES * 3, (onset, 3600.0, 90, 80), (2.5, 5.0, 91, 80)])
    summary = built(root)
    rows = {row["name"]: row for row in track_rows(summary.folder)}
    told = "1 notes last until more than 60 s after the end of the audio; cut there"
    assert told in rows["two.wav"]["problems"]
    assert max(split["max_tokens"] for split in summary.manifest["splits"].values()) < 150
    ends = {}
    for split in summary.manifest["splits"]:
        source = ShardSet(summary.folder, split)
        for row in range(len(source)):
            notes = Notes.from_array(read_npy(source.member(row, "notes")))
            ends |= dict(zip(notes.pitch.tolist(), notes.offset.tolist(), strict=True))
    assert ends[90] == pytest.approx(max(3.0, onset + 0.01))
    assert ends[91] == pytest.approx(5.0)  # a usual end is kept


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        (NOTES + [(3.0 + k, 3.5 + k, 60, 80) for k in range(2)], "2 of 12 notes"),
        ([(4.0, 4.5, 60, 80)], "1 of 1 notes"),
        ([(0.5 * k, 0.5 * k + 0.3, 40 + k % 40, 80) for k in range(7200)], "7194 of 7200 notes"),
        ([*NOTES * 5, (3700.0, 3701.0, 60, 80)], "the last 3697.0 s later"),
    ],
)
def test_labels_of_another_recording_quarantine_the_track(
    root: Path, notes: FakeNotes, told: str
) -> None:
    song(root, "two", notes)
    summary = built(root)
    (row,) = summary.quarantined
    assert (row["name"], row["stage"]) == ("two.wav", "labels")
    assert told in row["error"]
    longest = max(split["max_tokens"] for split in summary.manifest["splits"].values())
    assert longest < 100
    source = ShardSet(summary.folder, "train")
    assert max(len(read_npy(source.member(row, "notes"))) for row in range(len(source))) == 10


def test_more_workers_than_the_machine_has_are_clamped(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, messages = list[int](), list[str]()
    monkeypatch.setattr(
        "mt3data.build.executor._run_here", lambda workers, *_: asked.append(workers) or iter(())
    )
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for workers in (1, 16, 1000):
        list(run("local", workers, print, [], messages.append))
    assert asked == [1, 16, 16]
    assert messages == ["--workers 1000: this machine has 8 cores; using 16"]


def test_a_track_that_is_repaired_is_noticed(root: Path) -> None:
    good = (root / "two.wav").read_bytes()
    (root / "two.wav").write_bytes(bytes(len(good)))
    assert [row["name"] for row in built(root).quarantined] == ["two.wav"]
    (root / "two.wav").write_bytes(good)
    with pytest.raises(UserError, match=r"two.*(header_frames|other content in two\.wav)"):
        built(root)


def test_a_track_that_changed_while_it_was_read_is_tried_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mt3data.build.plan.MIN_SHARD_BYTES", 1)
    windows, messages = WindowConfig(256, align="off"), list[str]()
    config = BuildConfig("folder", root, tmp_path / "out", windows=windows)
    plan = make_plan(config)
    before = (root / "two.wav").stat()
    with (root / "two.wav").open("r+b") as file:  # the other size is gone before the next command
        file.truncate(before.st_size - 2)
    assert [(row["name"], row["stage"]) for row in build(plan).quarantined] == [
        ("two.wav", "source")
    ]
    with (root / "two.wav").open("ab") as file:
        file.write(bytes(2))
    summary = build(make_plan(config), on_message=messages.append)
    assert (summary.quarantined, summary.already_complete) == ((), False)
    assert [".tar has a track to be tried again" in message for message in messages] == [True]
    fresh = build(make_plan(BuildConfig("folder", root, tmp_path / "fresh", windows=windows)))
    assert digests(summary.folder) == digests(fresh.folder)
    assert build(make_plan(config)).already_complete
