"""Builds: the same bytes however they were made, nothing lost, mistakes named."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fakes
import needs
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from builds import digests
from events import Pause, Point, environment

from mt3data.build import crash_guard
from mt3data.build.build_folder import BuildFolder
from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.build.shard_job import STATE
from mt3data.errors import UserError
from mt3data.music.notes import Notes
from mt3data.shards.check import check
from mt3data.shards.format import read_npy
from mt3data.shards.index import ShardSet, read_tracks
from mt3data.shards.windows import WindowConfig

SPLITS = {f"Track{n:05d}": s for n, s in [
    (1, "train"), (2, "train"), (3, "train"), (4, "train"), (5, "validation"), (6, "test"),
]}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.slakh_tree(tmp_path_factory.mktemp("source"), "demo", SPLITS, seconds=3.0)


def config(source: Path, out: Path, **changes: object) -> BuildConfig:
    windows = changes.pop("windows", WindowConfig(256))
    return BuildConfig("demo", source, out, windows=windows, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(make_plan(config(source, tmp_path_factory.mktemp("out")))).folder


@pytest.mark.parametrize("small_shards", [True])
def test_one_and_two_workers_write_the_same_bytes(
    source: Path, tmp_path: Path, small_shards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mt3data.build.plan.MIN_SHARD_BYTES", 1 << 19)
    one, two = (
        build(make_plan(config(source, tmp_path / str(n), workers=n))).folder for n in (1, 2)
    )
    assert len(list(one.glob("train-*.tar"))) == 4
    assert digests(one) == digests(two)


def test_a_build_is_whole_and_leaves_nothing_behind(built: Path) -> None:
    assert check(built) == []
    assert sorted(path.name for path in built.iterdir()) == [
        "README.md", "build.log.jsonl", "index", "manifest.json", "references-test.parquet",
        "references-validation.parquet", "test-00000-of-00001.tar", "tracks.parquet",
        "train-00000-of-00001.tar", "validation-00000-of-00001.tar",
    ]  # fmt: skip


def test_a_record_holds_what_the_schema_says(built: Path) -> None:
    source = ShardSet(built, "train")
    row = source.index["key"].index("demo-Track00002-p0-0000256")
    facts = json.loads(source.member(row, "json"))
    assert facts == {
        "dataset": "demo", "track": "Track00002", "split": "train", "variant": 0, "start_frame": 256,
        "frames": 256, "track_frames": 376, "programs": [0, 29, 33], "schema": 2,
    }  # fmt: skip
    mel, tokens, notes = (read_npy(source.member(row, name)) for name in ("mel", "tokens", "notes"))
    assert (mel.dtype, mel.shape) == (np.float16, (256, 512))
    assert (mel[120:] == 0).all()
    assert (tokens.dtype, tokens[-1]) == (np.int16, 1)
    assert (notes.dtype, notes.shape[1]) == (np.float64, 7)


def test_an_unfinished_build_goes_on_and_ends_with_the_same_bytes(
    source: Path, built: Path, tmp_path: Path
) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    plan = make_plan(config(source, tmp_path))
    with pytest.raises(KeyboardInterrupt):
        build(plan, on_shard=stop)
    assert not (plan.folder / "manifest.json").exists()
    (plan.folder / "train-00000-of-00001.tar.tmp-1").write_bytes(b"left by a killed worker")
    (plan.folder / "index").mkdir()
    (plan.folder / "index" / "train.parquet.tmp-1").write_bytes(b"left by a killed build")
    build(plan)
    assert digests(plan.folder) == digests(built)


@needs.posix
def test_a_build_killed_before_its_shard_has_its_name_goes_on(
    source: Path, built: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from mt3data.build.run import build; from mt3data.build.plan import BuildConfig, make_plan\n"
        "from mt3data.shards.windows import WindowConfig\n"
        "root, out = map(Path, sys.argv[1:])\n"
        "build(make_plan(BuildConfig('demo', root, out, windows=WindowConfig(256))))\n"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path)]
    with Pause(Point("os.rename", r"\.tar$")) as pause:
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment(tmp_path / "hooks", pause),
        )  # fmt: skip
        pause.wait(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "demo" / "manifest.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "demo") == digests(built)


def test_building_again_does_nothing(source: Path, built: Path) -> None:
    before = digests(built)
    assert build(make_plan(config(source, built.parent))).already_complete
    assert digests(built) == before


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [Path.unlink, _flip, lambda path: os.truncate(path, 512)])
@pytest.mark.parametrize(
    ("name", "made_again"),
    [
        ("train-00000-of-00001.tar", 1),
        ("README.md", 0),
        ("tracks.parquet", 3),
        ("index/test.parquet", 3),
    ],
)
def test_damaged_files_of_a_finished_build_are_made_again(
    source: Path, built: Path, tmp_path: Path, name: str, made_again: int,
    harm: Callable[[Path], None],
) -> None:  # fmt: skip
    folder, messages = tmp_path / "demo", list[str]()
    shutil.copytree(built, folder)
    harm(folder / name)
    summary = build(make_plan(config(source, tmp_path)), on_message=messages.append)
    assert not summary.already_complete
    assert [name in message for message in messages] == [True]
    log = [json.loads(line) for line in (folder / "build.log.jsonl").read_text().splitlines()]
    assert [entry["todo"] for entry in log if entry["event"] == "start"][-1] == made_again
    assert digests(folder) == digests(built)
    assert build(make_plan(config(source, tmp_path))).already_complete


def test_a_build_of_other_libraries_is_not_mended_with_these(
    source: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(built, tmp_path / "demo")
    (tmp_path / "demo" / "train-00000-of-00001.tar").unlink()
    here = crash_guard.environment()
    monkeypatch.setattr(
        "mt3data.build.build_folder.environment", lambda: here | {"numpy": "0.9", "mt3kit": "9"}
    )
    with pytest.raises(UserError, match=rf"numpy: {here['numpy']} there, 0\.9 here[^;]*;? "):
        build(make_plan(config(source, tmp_path)))


def test_what_a_run_left_that_was_killed_at_its_very_end_is_removed(
    source: Path, built: Path, tmp_path: Path
) -> None:
    shutil.copytree(built, tmp_path / "demo")
    (tmp_path / "demo" / ".state").mkdir()
    (tmp_path / "demo" / ".state" / "lock").touch()
    assert build(make_plan(config(source, tmp_path))).already_complete
    assert check(tmp_path / "demo") == []


def test_other_settings_in_the_same_folder_are_refused_by_name(source: Path, built: Path) -> None:
    before = digests(built)
    other = config(source, built.parent, windows=WindowConfig(512, seed=3))
    with pytest.raises(UserError, match=r"seed: 0 there, 3 here; window: 256 there, 512 here"):
        build(make_plan(other))
    assert digests(built) == before


def test_a_folder_that_holds_something_else_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds thesis.txt and no build"):
        build(make_plan(config(source, tmp_path)))
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "precious"


def test_a_second_run_in_the_same_folder_is_kept_out(source: Path, tmp_path: Path) -> None:
    plan = make_plan(config(source, tmp_path))
    with BuildFolder(plan).lock(), pytest.raises(UserError, match="another build is at work there"):
        build(plan)


def _break(folder: Path, how: str) -> str:
    """Spoils one track; returns what its error must say."""
    mix = folder / "mix.flac"
    if how == "missing":
        mix.unlink()
        return "no mix"
    if how == "unreadable":
        mix.write_bytes(b"this is not audio")
        return "mix.flac"
    if how == "empty":
        soundfile.write(mix, np.zeros(0), 44100)
        return "mix.flac"
    if how == "nan":
        mix.unlink()
        soundfile.write(mix, np.array([0.0, np.nan] * 40_000), 44100, format="WAV", subtype="FLOAT")
        return "NaN|finite"
    for path in (folder / "MIDI").iterdir():
        fakes.write_midi(path, [(0, [])])
    return "no note"


@pytest.mark.parametrize("how", ["missing", "unreadable", "empty", "nan", "no notes"])
def test_a_bad_track_is_quarantined_with_its_reason_and_moves_nothing(
    source: Path, built: Path, tmp_path: Path, how: str
) -> None:
    root = tmp_path / "root"
    shutil.copytree(source, root)
    reason = _break(root / "train" / "Track00003", how)
    summary = build(make_plan(config(root, tmp_path / "out")))
    assert [row["track"] for row in summary.quarantined] == ["Track00003"]
    assert re.search(reason, summary.quarantined[0]["error"])
    rows = {
        row["track"]: row for row in pq.read_table(summary.folder / "tracks.parquet").to_pylist()
    }
    assert rows["Track00003"]["status"] == "quarantined"
    assert {row["status"] for name, row in rows.items() if name != "Track00003"} == {"ok"}
    assert check(summary.folder) == []
    good, bad = ShardSet(built, "train"), ShardSet(summary.folder, "train")
    assert bad.index["key"] == [key for key in good.index["key"] if "Track00003" not in key]
    for row, key in enumerate(bad.index["key"]):
        assert bad.member(row, "mel") == good.member(good.index["key"].index(key), "mel")


def test_a_stem_without_audio_loses_its_label_and_is_reported(tmp_path: Path) -> None:
    root = fakes.slakh_tree(
        tmp_path / "root", "demo", {"Track00001": "train"}, missing_audio=["Track00001/S00"],
        zero_length=["Track00001/S02"],
    )  # fmt: skip
    folder = build(make_plan(config(root, tmp_path / "out"))).folder
    row = pq.read_table(folder / "tracks.parquet").to_pylist()[0]
    assert row["status"] == "ok"
    assert any("S00" in problem for problem in row["problems"])
    assert any(
        "S02: 1 of" in problem or "S02: 1 zero-length" in problem for problem in row["problems"]
    )
    assert json.loads(ShardSet(folder, "train").member(0, "json"))["programs"] == [0, 33]


def test_overlaps_are_trimmed_in_training_and_references_are_not(tmp_path: Path) -> None:
    root = fakes.slakh_tree(
        tmp_path / "root", "demo", {"Track00001": "train", "Track00002": "test"}
    )
    for split, name in (("train", "Track00001"), ("test", "Track00002")):
        notes = [(0.1, 0.6, 60, 80), (0.2, 0.9, 60, 80)]
        # Two files of one class, so that one pitch overlaps itself.
        fakes.write_midi(root / split / name / "MIDI" / "S00.mid", [(30, notes[:1])])
        fakes.write_midi(root / split / name / "MIDI" / "S02.mid", [(30, notes[1:])])
        meta = root / split / name / "metadata.yaml"
        meta.write_text(meta.read_text().replace("program_num: 1\n", "program_num: 30\n"))
    folder = build(make_plan(config(root, tmp_path / "out"))).folder

    def offsets(split: str) -> list[float]:
        notes = next(read_tracks(folder, split)).notes
        return sorted(notes[(notes.pitch == 60) & ~notes.is_drum].offset.round(3).tolist())

    assert offsets("train") == [0.2, 0.9]
    assert offsets("test") == [0.6, 0.9]


def test_tracks_asked_for_are_spread_over_the_splits(source: Path, tmp_path: Path) -> None:
    plan = make_plan(config(source, tmp_path, tracks=3))
    assert {s.split: [t.track.id for t in s.tracks] for s in plan.shards} == {
        "train": ["Track00001"], "validation": ["Track00005"], "test": ["Track00006"],
    }  # fmt: skip


def test_variants_cut_training_tracks_again_and_leave_evaluation_alone(
    source: Path, tmp_path: Path
) -> None:
    windows = WindowConfig(256, variants=3)
    folder = build(make_plan(config(source, tmp_path, windows=windows))).folder
    train, test = ShardSet(folder, "train"), ShardSet(folder, "test")
    assert set(train.index["variant"]) == {0, 1, 2}
    assert set(test.index["variant"]) == {0}
    assert len(set(train.index["key"])) == len(train)


def test_references_of_a_track_are_its_notes(source: Path, built: Path) -> None:
    track = next(read_tracks(built, "test"))
    assert track.track == "Track00006"
    wanted = [
        note for stem in ("S00", "S01", "S02", "S03") for note in fakes.slakh_notes(stem, 3.0)
    ]
    assert isinstance(track.notes, Notes)
    np.testing.assert_allclose(
        sorted(zip(track.notes.onset, track.notes.pitch, strict=True)),
        sorted((note[0], note[2]) for note in wanted),
        atol=1e-9,
    )


def test_an_unknown_split_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split dev; .* has test, train, validation"):
        make_plan(config(source, tmp_path, splits=("dev",)))


def test_nothing_of_the_state_remains_and_no_path_or_time_is_in_the_manifest(built: Path) -> None:
    assert not (built / STATE).exists()
    text = (built / "manifest.json").read_text()
    assert str(built.parent) not in text
    assert os.uname().nodename not in text


def test_a_second_build_in_one_process_may_begin_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # joblib's workers stay in the folder in which they were started.
    for name in ("one", "two"):
        fakes.slakh_tree(
            tmp_path / name / "music", "demo", {"Track00001": "train", "Track00002": "test"}
        )
        monkeypatch.chdir(tmp_path / name)
        summary = build(make_plan(config(Path("music"), Path("out"), workers=2)))
        assert check(summary.folder) == []
    assert digests(tmp_path / "one" / "out") == digests(tmp_path / "two" / "out")
