"""`check` finds whatever a disk, a copy or a hand can do to a build."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import fakes
import pytest
from record_checks import record_faults

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.errors import UserError
from mt3data.shards.check import check
from mt3data.shards.index import ShardSet
from mt3data.shards.reader import IndexedShards
from mt3data.shards.windows import WindowConfig

SPLITS = {"Track00001": "train", "Track00002": "train", "Track00003": "test"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    root = fakes.slakh_tree(folder / "root", "demo", SPLITS, seconds=3.0)
    return build(make_plan(BuildConfig("demo", root, folder, windows=WindowConfig(256)))).folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def shard_of(folder: Path) -> Path:
    return folder / "train-00000-of-00001.tar"


def flip_a_bit(folder: Path) -> None:
    data = bytearray(shard_of(folder).read_bytes())
    data[len(data) // 2] ^= 1
    shard_of(folder).write_bytes(data)


def cut_at_a_member(folder: Path) -> None:
    offset = int(ShardSet(folder, "train").index["mel_offset"][-1]) - 512
    shard_of(folder).write_bytes(shard_of(folder).read_bytes()[:offset])


def lose_a_shard(folder: Path) -> None:
    shard_of(folder).unlink()


def add_a_foreign_shard(folder: Path) -> None:
    (folder / "train-00001-of-00002.tar").write_bytes(b"")


def lose_the_index(folder: Path) -> None:
    (folder / "index" / "train.parquet").unlink()


def edit_the_card(folder: Path) -> None:
    path = folder / "README.md"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def bring_an_old_index(folder: Path) -> None:
    path = folder / "index" / "train.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (flip_a_bit, "train-00000-of-00001.tar: its bytes have changed"),
        (cut_at_a_member, "train-00000-of-00001.tar: .* bytes, the manifest states"),
        (lose_a_shard, "train-00000-of-00001.tar: missing"),
        (add_a_foreign_shard, "train-00001-of-00002.tar: not part of this build"),
        (lose_the_index, "index/train.parquet: missing"),
        (bring_an_old_index, "index/train.parquet: its bytes have changed"),
        (edit_the_card, "README.md: its bytes have changed"),
    ],
)
def test_harm_is_found_and_named(copy: Path, harm: Callable[[Path], None], complaint: str) -> None:
    harm(copy)
    faults = check(copy)
    assert any(re.search(complaint, fault) for fault in faults), faults


def test_a_stray_file_or_a_lost_index_is_one_fault(copy: Path) -> None:
    (copy / ".DS_Store").write_bytes(b"")
    assert check(copy) == [".DS_Store: not part of this build; move it elsewhere"]
    (copy / ".DS_Store").unlink()
    lose_the_index(copy)
    assert check(copy) == ["index/train.parquet: missing"]


def test_a_whole_build_has_no_faults(whole: Path) -> None:
    assert check(whole) == []
    assert check(whole, fast=True) == []


def test_fast_does_not_read_bodies(copy: Path) -> None:
    flip_a_bit(copy)
    assert check(copy, fast=True) == []


def test_threads_find_the_same_and_every_byte_is_counted(copy: Path) -> None:
    flip_a_bit(copy)
    seen: list[int] = []
    assert check(copy, workers=1000, on_bytes=seen.append) == check(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    assert sum(seen) == sum(entry["bytes"] for entry in manifest["shards"] + manifest["files"])


@pytest.mark.parametrize(
    ("old", "new"),
    [('"window":256', '"window":512'), ('"seed":0', '"seed":1'), ('"planned":"', '"planned":"0')],
)
def test_a_setting_that_was_changed_in_the_manifest_is_found(
    copy: Path, old: str, new: str
) -> None:
    path = copy / "manifest.json"
    text = path.read_text()
    assert old in text
    changed = text.replace(old, new)
    if new.startswith('"planned'):
        changed = re.sub('"planned":"0(.{63}).', r'"planned":"0\1', changed)
    if new.startswith('"window'):
        changed = changed.replace("[256,512]", "[512,512]")
    path.write_text(changed)
    assert check(copy) == [
        "manifest.json: its settings or tracks have changed (the fingerprint differs); get it again, "
        "then check the rest"
    ]


def test_every_record_agrees_with_its_index_and_its_notes(whole: Path) -> None:
    assert record_faults(whole) == []


def test_a_build_whose_tracks_all_failed_has_no_shard(tmp_path: Path) -> None:
    root = fakes.slakh_tree(tmp_path / "root", "demo", SPLITS, seconds=3.0)
    config = BuildConfig("demo", root, tmp_path, windows=WindowConfig(256),
                         exclude=dict.fromkeys(SPLITS, ("listed", "left out")))  # fmt: skip
    summary = build(make_plan(config))
    assert check(summary.folder) == check(summary.folder, fast=True) == []
    assert (summary.manifest["shards"], summary.manifest["splits"]) == ([], {})
    assert list(summary.folder.rglob("*.tar")) == []
    with pytest.raises(UserError, match="has no split 'train'; it has none"):
        IndexedShards([summary.folder])
    assert build(make_plan(config)).already_complete


def test_a_shard_or_split_that_lost_its_only_track_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mt3data.build.plan.MIN_SHARD_BYTES", 1)
    root = fakes.slakh_tree(tmp_path / "root", "demo", SPLITS, seconds=3.0)
    for track in ("train/Track00001", "test/Track00003"):
        (root / track / "mix.flac").write_bytes(b"fLaC, but no more")
    mix = root / "train" / "Track00001" / "mix.flac"
    shutil.copy(root / "train" / "Track00002" / "mix.flac", mix)
    mix.write_bytes(mix.read_bytes()[:-9000])  # its header is good, its end is not
    summary = build(make_plan(BuildConfig("demo", root, tmp_path, windows=WindowConfig(256))))
    assert {row["track"]: row["stage"] for row in summary.quarantined} == {
        "Track00001": "audio", "Track00003": "plan",
    }  # fmt: skip
    assert list(summary.manifest["splits"]) == ["train"]
    (shard,) = summary.manifest["shards"]
    assert [path.name for path in summary.folder.glob("*.tar")] == [shard["name"]]
    assert set(IndexedShards([summary.folder]).batch(0, 4).keys) == {
        "demo-Track00002-p0-0000000", "demo-Track00002-p0-0000256",
    }  # fmt: skip
    assert record_faults(summary.folder) == []
