"""Verification tells missing from wrong from extra, file by file."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from mt3data.datasets.manifest import DatasetManifest, Source, load
from mt3data.download.dataset import DownloadOptions, download
from mt3data.download.state import STATE
from mt3data.download.verify import verify
from mt3data.errors import UserError

CONTENT = {"a.wav": b"audio", "sub/a.mid": b"midi"}


@pytest.fixture
def toy(tmp_path: Path) -> DatasetManifest:
    """A dataset of two files that was unpacked into tmp_path/toy."""
    archive = tmp_path / "toy.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for name, content in CONTENT.items():
            packed.writestr(name, content)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    source = Source("toy", "http://127.0.0.1:9/toy.zip", md5=md5, kind="zip")
    manifest = replace(load("demo"), name="toy", folder="toy", sources=(source,))
    download(manifest, tmp_path, DownloadOptions(archives=(archive,)))
    return manifest


def faults(manifest: DatasetManifest, root: Path, fast: bool = False) -> list[tuple[str, str]]:
    return [(fault.kind, fault.path) for fault in verify(manifest, root, fast=fast)]


def test_an_unpacked_dataset_is_whole(toy: DatasetManifest, tmp_path: Path) -> None:
    assert faults(toy, tmp_path) == []
    assert faults(toy, tmp_path / "toy") == []  # the dataset's own folder is as good a root


def test_missing_wrong_and_extra_files_are_distinguished(
    toy: DatasetManifest, tmp_path: Path
) -> None:
    (tmp_path / "toy" / "a.wav").unlink()
    (tmp_path / "toy" / "sub" / "a.mid").write_bytes(b"MIDI")
    (tmp_path / "toy" / "sub" / "b.mid").write_bytes(b"")
    assert faults(toy, tmp_path) == [
        ("missing", "a.wav"),
        ("wrong", "sub/a.mid"),
        ("extra", "sub/b.mid"),
    ]


def test_a_fast_look_sees_sizes_only(toy: DatasetManifest, tmp_path: Path) -> None:
    (tmp_path / "toy" / "sub" / "a.mid").write_bytes(b"MIDI")
    (tmp_path / "toy" / "a.wav").write_bytes(b"longer")
    assert faults(toy, tmp_path, fast=True) == [("wrong", "a.wav")]


def test_both_values_are_reported(toy: DatasetManifest, tmp_path: Path) -> None:
    (tmp_path / "toy" / "a.wav").write_bytes(b"AUDIO")
    (fault,) = verify(toy, tmp_path)
    sums = [hashlib.sha256(content).hexdigest() for content in (b"AUDIO", b"audio")]
    assert str(fault) == f"wrong: a.wav (sha256 is {sums[0]}, expected {sums[1]})"


def test_an_unfinished_download_is_missing(toy: DatasetManifest, tmp_path: Path) -> None:
    (tmp_path / "toy" / STATE / "download.json").unlink()
    assert faults(toy, tmp_path) == [("missing", "toy.zip")]


def guitarset_by_hand(root: Path) -> tuple[DatasetManifest, Path]:
    """The first row of GuitarSet, laid out by hand with contents that are not the publisher's."""
    manifest = load("guitarset")
    row = next(iter(manifest.rows.values()))
    for path in (*row["audio"].split(";"), row["labels"]):
        (root / "guitarset" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "guitarset" / path).write_bytes(b"other")
    return manifest, root / "guitarset" / row["labels"]


def test_a_dataset_laid_out_by_hand_is_compared_with_the_publishers_sums(tmp_path: Path) -> None:
    manifest, labels = guitarset_by_hand(tmp_path)
    (labels.parent / "README").write_bytes(b"")
    (labels.parent / "more.jams").write_bytes(b"")
    found = verify(manifest, tmp_path)
    assert [fault.kind for fault in found].count("wrong") == 3
    assert [fault.kind for fault in found].count("missing") == 359 * 3
    assert [fault.path for fault in found if fault.kind == "extra"] == ["annotation/more.jams"]


def test_a_real_file_of_guitarset_has_the_publishers_sum(tmp_path: Path) -> None:
    samples = (
        Path(__file__).resolve().parents[4] / "shared" / "samples" / "guitarset" / "annotation"
    )
    if not samples.is_dir():
        pytest.skip("no ../shared/samples beside the repository")
    manifest, labels = guitarset_by_hand(tmp_path)
    labels.write_bytes((samples / labels.name).read_bytes())
    wrong = {fault.path for fault in verify(manifest, tmp_path) if fault.kind == "wrong"}
    assert len(wrong) == 2
    assert f"annotation/{labels.name}" not in wrong


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("slakh", "no facts of the files of slakh"), ("urmp", "does not exist")],
)
def test_what_cannot_be_verified_is_reported(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "slakh").mkdir()
    with pytest.raises(UserError, match=complaint):
        verify(load(name), tmp_path)
