"""Shards open unchanged in other people's libraries, and nothing planted in them is ever run."""

import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import webdataset

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.errors import UserError
from mt3data.shards.check import check
from mt3data.shards.format import read_npy
from mt3data.shards.index import ShardSet
from mt3data.shards.reader import IndexedShards
from mt3data.shards.stream import stream
from mt3data.shards.windows import WindowConfig

needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None,
    reason="Hugging Face's datasets is not installed; it belongs to the extra `bench`",
)


def make(folder: Path, first_note: float) -> Path:
    """Two tracks of ten windows each, with notes from `first_note` seconds on."""
    tracks = {"Track00001": "train", "Track00002": "train", "Track00003": "test"}
    root = fakes.slakh_tree(folder / "root", "demo", tracks, seconds=5.0)
    notes = [(first_note + 0.2 * k, first_note + 0.2 * k + 0.1, 60 + k, 80) for k in range(3)]
    for path in root.glob("train/*/MIDI/*.mid"):
        fakes.write_midi(path, [(30, notes)])
    windows = WindowConfig(64, right_context="zeros", align="off")
    return build(make_plan(BuildConfig("demo", root, folder / "out", windows=windows))).folder


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first five windows, and more, hold no notes."""
    return make(tmp_path_factory.mktemp("late"), 4.0)


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("early"), 0.1)


def wanted(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of every training record, as our own reader has them."""
    source = ShardSet(folder, "train")
    return {
        key: {name: read_npy(source.member(row, name)) for name in ("mel", "notes", "tokens")}
        for row, key in enumerate(source.index["key"])
    }


def test_plain_tarfile_and_numpy_read_every_record(early: Path) -> None:
    want = wanted(early)
    with tarfile.open(early / "train-00000-of-00001.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert len(files) == 4 * len(want) == 80
    for key, arrays in want.items():
        assert json.loads(files[f"{key}.json"])["start_frame"] == int(key[-7:])
        for name, array in arrays.items():
            loaded = np.load(io.BytesIO(files[f"{key}.{name}.npy"]), allow_pickle=False)
            np.testing.assert_array_equal(loaded, array, strict=True)


def test_bare_webdataset_with_its_default_decoding_reads_every_record(early: Path) -> None:
    want = wanted(early)
    urls = [str(path) for path in early.glob("train-*.tar")]
    records = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [record["__key__"] for record in records] == list(want)
    for record in records:
        assert record["json"]["track"] == record["__key__"][5:15]
        for name, array in want[record["__key__"]].items():
            np.testing.assert_array_equal(record[f"{name}.npy"], array, strict=True)


HUGGING_FACE = """
import json, sys
import datasets, numpy as np

def opened(how, folder):
    # A cache each: datasets takes two folders of one name for the same data.
    some = {"split": "train", "cache_dir": f"{sys.argv[2]}/{len(read)}"}
    if how != "builder":
        return datasets.load_dataset(folder, streaming=how == "streaming", **some)
    features = datasets.load_dataset_builder(folder).info.features
    files = {"train": folder + "/train-*.tar"}
    return datasets.load_dataset("webdataset", data_files=files, features=features, **some)

def sums(records):
    found = {}
    for record in records:
        notes, mel = np.array(record["notes.npy"]).reshape(-1, 7), np.array(record["mel.npy"])
        tokens = np.array(record["tokens.npy"]).tolist()
        found[record["__key__"]] = [len(notes), notes.sum(), mel.astype(np.float64).sum(), tokens,
                                    record["json"]["start_frame"]]
    return found

read = {}
for name, folder in json.loads(sys.argv[1]).items():
    for how in ("folder", "streaming", "builder"):
        try:
            read[f"{name} {how}"] = sums(opened(how, folder))
        except Exception as error:
            read[f"{name} {how}"] = f"{error} {error.__cause__}"
print(json.dumps(read))
"""


@pytest.fixture(scope="module")
def by_hugging_face(
    early: Path, late: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What `datasets` reads in a process of its own, which may use nothing from outside."""
    folder = tmp_path_factory.mktemp("hugging-face")
    for path in late.glob("train-*.tar"):
        (folder / "no card").mkdir()
        (folder / "no card" / path.name).symlink_to(path)
    folders = {"early": str(early), "late": str(late), "no card": str(folder / "no card")}
    done = subprocess.run(
        [sys.executable, "-c", HUGGING_FACE, json.dumps(folders), folder / "cache"], capture_output=True, text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_datasets
@pytest.mark.parametrize("how", ["folder", "streaming", "builder"])
@pytest.mark.parametrize("notes", ["early", "late"])
def test_hugging_face_datasets_reads_every_record(
    how: str, notes: str, by_hugging_face: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    assert by_hugging_face[f"{notes} {how}"] == {
        key: [len(a["notes"]), a["notes"].sum(), a["mel"].astype(np.float64).sum(), a["tokens"].tolist(), int(key[-7:])]
        for key, a in wanted(request.getfixturevalue(notes)).items()
    }  # fmt: skip


@needs_datasets
def test_without_the_card_five_silent_windows_mislead_hugging_face(
    by_hugging_face: dict[str, Any],
) -> None:
    # The control: what the features in the card's header are for.
    assert "Couldn't cast array of type int64 to null" in by_hugging_face["no card folder"]


# What is planted in a copied build


def planted(folder: Path, copy: Path, name: str, data: bytes) -> Path:
    """A copy of a build with one more file in its shard, and a manifest that agrees."""
    import hashlib
    import shutil

    shutil.copytree(folder, copy)
    (shard,) = copy.glob("train-*.tar")
    with tarfile.open(shard) as tar:
        files = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo(f"{files[-1][0].name.partition('.')[0]}.{name}")
        info.size = len(data)
        for member, content in [*files, (info, data)]:
            tar.addfile(member, io.BytesIO(content))
    manifest = json.loads((copy / "manifest.json").read_text())
    for entry in manifest["shards"]:
        if entry["name"] == shard.name:
            sha256 = hashlib.sha256(shard.read_bytes()).hexdigest()
            entry |= {"bytes": shard.stat().st_size, "sha256": sha256}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


class Planted:
    """Unpickling this makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_a_planted_pickle_is_refused_and_never_run(early: Path, tmp_path: Path) -> None:
    import pickle

    mark = tmp_path / "it ran"
    copy = planted(early, tmp_path / "copy", "pyd", pickle.dumps(Planted(mark)))
    with pytest.raises(UserError, match=r"holds \S+\.pyd; expected"):
        list(stream([copy]))
    assert check(copy) == []  # its checksums were made to fit
    keys = IndexedShards([copy]).batch(0, 40, frames=64).keys  # what the index names, no more
    assert set(keys) == set(wanted(early))
    assert not mark.exists()


def test_webdataset_would_run_the_planted_pickle(early: Path, tmp_path: Path) -> None:
    # The control: that what is planted is dangerous.
    import pickle

    mark = tmp_path / "it ran"
    copy = planted(early, tmp_path / "copy", "pyd", pickle.dumps(Planted(mark)))
    urls = [str(path) for path in copy.glob("train-*.tar")]
    list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert mark.exists()


@pytest.mark.parametrize("reader", ["indexed", "stream", "check"])
def test_a_planted_command_in_the_manifest_is_refused_and_never_run(
    early: Path, tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, mark = tmp_path / "copy", tmp_path / "it ran"
    copy.mkdir()
    text = (early / "manifest.json").read_text()
    command = f"pipe:mkdir '{mark}'; cat {early}/train-00000-of-00001.tar"
    (copy / "manifest.json").write_text(text.replace("train-00000-of-00001.tar", command))
    monkeypatch.chdir(copy)
    read = {"indexed": lambda: IndexedShards([copy]), "stream": lambda: list(stream([copy])),
            "check": lambda: check(copy)}  # fmt: skip
    with pytest.raises(UserError, match=r"shards\[1\].name is .pipe:mkdir"):
        read[reader]()
    assert not mark.exists()
    list(webdataset.WebDataset(command, shardshuffle=False))  # the control: webdataset runs it
    assert mark.exists()
