"""`check` finds whatever a disk, a copy or a hand can do to a build."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fakes
import numpy as np
import pytest

from mt3data.build import build
from mt3data.check import check
from mt3data.plan import BuildConfig, make_plan
from mt3data.records import ShardSet
from mt3data.windows import WindowConfig


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    root = fakes.slakh_tree(
        folder / "root", "demo", {"Track00001": "train", "Track00002": "train"}, seconds=3.0
    )
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
        (cut_at_a_member, "train-00000-of-00001.tar: .* bytes, the manifest says"),
        (lose_a_shard, "train-00000-of-00001.tar: missing"),
        (add_a_foreign_shard, "train-00001-of-00002.tar: not part of this build"),
        (lose_the_index, "index/train.parquet: missing"),
        (bring_an_old_index, "index/train.parquet: its bytes have changed"),
        (edit_the_card, "README.md: its bytes have changed"),
    ],
)
def test_harm_is_found_and_named(copy: Path, harm: Callable[[Path], None], complaint: str) -> None:
    import re

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


def change_and_reseal(folder: Path, member: str, change: Callable[[bytearray], None]) -> None:
    """Changes the bytes of one member and makes the manifest agree with the new shard."""
    source = ShardSet(folder, "train")
    start, size = (int(source.index[f"{member}_{what}"][0]) for what in ("offset", "size"))
    data = bytearray(shard_of(folder).read_bytes())
    body = data[start : start + size]
    change(body)
    data[start : start + size] = body
    shard_of(folder).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def put_nan(body: bytearray) -> None:
    body[-2:] = np.float16(np.nan).tobytes()


def put_foreign_token(body: bytearray) -> None:
    body[-4:-2] = np.int16(1500).tobytes()


def lose_the_end(body: bytearray) -> None:
    body[-2:] = np.int16(7).tobytes()


def change_a_value(body: bytearray) -> None:
    body[-2:] = np.float16(1.5).tobytes()


@pytest.mark.parametrize(
    ("member", "change", "complaint"),
    [
        ("mel", put_nan, "mel holds values that are not finite"),
        ("mel", change_a_value, "mel differs from its checksum"),
        ("tokens", put_foreign_token, "token 1500 is outside the vocabulary of 1491"),
        ("tokens", lose_the_end, "tokens are no int16 list that ends with EOS"),
    ],
)
def test_a_record_that_makes_no_sense_is_found_even_if_its_checksum_fits(
    copy: Path, member: str, change: Callable[[bytearray], None], complaint: str
) -> None:
    change_and_reseal(copy, member, change)
    assert [complaint in fault for fault in check(copy)] == [True]
