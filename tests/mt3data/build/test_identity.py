"""A build notices every change of what its bytes depend on.

Each test edits one input of a small build and gives the same command again. The command must refuse
the change by its name, or end with the bytes of a fresh build.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import pytest
from builds import digests

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.build import identity
from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import Summary, build
from mt3data.datasets import manifest
from mt3data.datasets.manifest import DatasetManifest, KnownIssue
from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig
from mt3data.shards.format import read_build_manifest
from mt3data.shards.windows import WindowConfig

SPLITS = {"Track00001": "train", "Track00002": "train", "Track00003": "test"}
FIRST = "train/Track00001"
STATES = ("finished", "interrupted")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.slakh_tree(tmp_path_factory.mktemp("source"), "demo", SPLITS, seconds=1.0)


@pytest.fixture(autouse=True, scope="module")
def a_shard_for_each_track() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mt3data.build.plan.MIN_SHARD_BYTES", 1)
        yield


def config(root: Path, out: Path, **changes: Any) -> BuildConfig:
    windows = WindowConfig(**{"frames": 256, "align": "off"} | changes.pop("windows", {}))
    return BuildConfig("demo", root, out, windows=windows, **changes)


@pytest.fixture(scope="module")
def begun(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same build by state: finished, and interrupted after its first shard."""

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    out = {state: tmp_path_factory.mktemp(state) for state in STATES}
    build(make_plan(config(source, out["finished"])))
    with pytest.raises(KeyboardInterrupt):
        build(make_plan(config(source, out["interrupted"])), on_shard=stop)
    return out


class Again:
    """The same command after an edit, in a copy of a build."""

    def __init__(self, begun: Path, source: Path, folder: Path) -> None:
        # With the times of the files, so that only the edit differs; the log knows other inodes.
        self.root, self.out, self.fresh = folder / "root", folder / "out", folder / "fresh"
        shutil.copytree(source, self.root)
        shutil.copytree(begun, self.out)

    def refusal(self, **changes: Any) -> str:
        """Returns why the command refuses to go on; "" where it ends with a fresh build's bytes."""
        try:
            summary = self.run(self.out, **changes)
        except UserError as error:
            return str(error)
        # The property: what is reported as done has the bytes of a fresh build.
        assert digests(summary.folder) == digests(self.run(self.fresh, **changes).folder)
        assert summary.manifest == read_build_manifest(summary.folder)
        return ""

    def run(self, out: Path, **changes: Any) -> Summary:
        return build(make_plan(config(self.root, out, **changes)))


@pytest.fixture(params=STATES)
def again(
    request: pytest.FixtureRequest, begun: dict[str, Path], source: Path, tmp_path: Path
) -> Again:
    return Again(begun[request.param], source, tmp_path)


def flip(path: Path) -> None:
    """Changes one bit in the middle, and keeps size and time of the file."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")


FILES = [
    *(f"{FIRST}/{name}" for name in ("mix.flac", "metadata.yaml")),
    *(f"{FIRST}/MIDI/{stem}.mid" for stem in ("S00", "S01", "S02", "S03")),
    *(f"{FIRST}/stems/{stem}.flac" for stem in ("S00", "S01")),
]


@pytest.mark.parametrize("edit", [flip, append, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_noticed(again: Again, name: str, edit: Callable[[Path], None]) -> None:
    edit(again.root / name)
    refusal = again.refusal()
    if refusal:  # by the name of the file, or by the fact that it decided
        assert Path(name).name in refusal or "Track00001" in refusal


def test_other_audio_of_the_same_size_is_named(again: Again) -> None:
    mix = again.root / FIRST / "mix.flac"
    flip(mix)
    refusal = again.refusal()
    finished = (again.out / "demo" / "manifest.json").is_file() and refusal
    assert "Track00001: other content in mix.flac" in refusal if finished else refusal == ""


def test_other_labels_of_the_same_size_are_named(again: Again) -> None:
    flip(again.root / FIRST / "MIDI" / "S01.mid")
    assert "Track00001: other content in one of S00.mid, S01.mid" in again.refusal()


def test_another_program_in_metadata_yaml_is_named(again: Again) -> None:
    described = again.root / FIRST / "metadata.yaml"
    text = described.read_text()
    described.write_text(re.sub(r"program_num: 33\b", "program_num: 57", text))
    assert described.read_text() != text
    assert re.search(r"Track00001\.stems\[\d\]\.program: 33 there, 57 here", again.refusal())


@pytest.mark.parametrize("harm", ["new track", "lost track", "other split"])
def test_another_set_of_tracks_is_named(again: Again, harm: str) -> None:
    first = again.root / FIRST
    if harm == "new track":
        shutil.copytree(first, first.with_name("Track00009"))
        assert "Track00009: only here" in again.refusal()
    elif harm == "lost track":
        shutil.rmtree(first)
        assert "Track00001: only there" in again.refusal()
    else:
        first.rename(again.root / "test" / "Track00001")
        assert "Track00001: split train there, test here" in again.refusal()


FACTS: dict[str, Callable[[DatasetManifest], dict[str, Any]]] = {
    "class program": lambda m: {
        "classes": {k: (p + 1 if 33 in members else p, members) for k, (p, members) in m.classes.items()}
    },
    "class": lambda m: {"classes": {k: v for k, v in m.classes.items() if 33 not in v[1]}},
    "mix": lambda m: {"layout": {**m.layout, "mix": ["stems/S00.flac"]}},
    "stem audio": lambda m: {"layout": {**m.layout, "stem_audio": ["stems/SNN.wav"]}},
    "splits": lambda m: {"layout": {**m.layout, "split_folders": ["train"]}},
    "title": lambda m: {"title": "Other pieces"},
    "licence": lambda m: {"licence": "MIT"},
    "licence url": lambda m: {"licence_url": "https://example.org"},
    "redistribution": lambda m: {"redistribution": "ask"},
    "citation": lambda m: {"citation": "Nobody (1900)"},
    "known issue": lambda m: {"known_issues": (KnownIssue("x", "late", "shift", shift_seconds=1.0),)},
    "name": lambda m: {"name": "other"},
    "folder": lambda m: {"folder": "elsewhere"},
    "version": lambda m: {"version": "2"},
}  # fmt: skip


@pytest.mark.parametrize("fact", FACTS)
def test_a_changed_fact_of_the_dataset_manifest_is_noticed(
    again: Again, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = replace(manifest.load("demo"), **FACTS[fact](manifest.load("demo")))
    monkeypatch.setattr("mt3data.build.plan.load", lambda name: changed)
    refusal = again.refusal()
    if fact in ("title", "licence", "citation"):
        assert f"{fact}: " in refusal
    if fact.startswith("class"):
        assert "Track00001" in refusal
        assert "program" in refusal or "S01" in refusal


OPTIONS: list[dict[str, Any]] = [
    {"windows": {"frames": 512}}, {"windows": {"right_context": "audio"}}, {"windows": {"variants": 2}},
    {"windows": {"seed": 1}}, {"windows": {"align": "measure"}}, {"windows": {"align": "shift"}},
    {"windows": {"features": ("audio",)}}, {"windows": {"features": ("mel", "audio")}},
    {"windows": {"rooms": True, "variants": 2}},
    {"windows": {"vocabulary": VocabularyConfig(127)}},
    {"windows": {"vocabulary": VocabularyConfig(granularity="flat")}},
    {"windows": {"vocabulary": VocabularyConfig(encoding="noties")}},
    {"windows": {"spectrogram": SpectrogramConfig(n_mels=256)}},
    {"profile": "paper"}, {"subsets": 2}, {"subsets": 2, "min_stems": 2}, {"splits": ("train",)},
    {"tracks": 2}, {"workers": 2}, {"track_timeout": 99.0},
    {"exclude": {"Track00001": ("listed", "left out")}}, {"exclude": {"Track00002": ("audio", "loud")}},
]  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_a_changed_option_is_noticed(again: Again, option: dict[str, Any]) -> None:
    refusal = again.refusal(**option)
    name = next(iter(option))
    if name in ("workers", "track_timeout"):
        assert refusal == ""
    elif name == "windows":
        changed = next(iter(option["windows"]))
        assert {"frames": "window"}.get(changed, changed) in refusal


def test_an_exclusion_that_is_taken_back_is_noticed(again: Again) -> None:
    """The reason is one with which a track may also fail by itself."""
    shutil.rmtree(again.out)
    excluded = {"exclude": {"Track00002": ("audio", "too loud")}}
    again.run(again.out, **excluded)
    assert "leaves out Track00002, which --exclude does not list" in again.refusal()
    assert again.run(again.out, **excluded).already_complete


def test_the_version_of_the_bytes_counts_and_that_of_the_package_does_not(
    again: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mt3data.build.finalize.__version__", "9.9.9")
    summary = again.run(again.out)
    monkeypatch.undo()
    monkeypatch.setattr("mt3data.build.plan.MIN_SHARD_BYTES", 1)
    assert summary.manifest["fingerprint"] == again.run(again.fresh).manifest["fingerprint"]
    monkeypatch.setattr("mt3data.build.plan.BYTES_VERSION", identity.BYTES_VERSION + 1)
    assert "bytes_version" in again.refusal()


@pytest.mark.parametrize("how", ["touched", "copied elsewhere", "comment in metadata.yaml"])
def test_what_decides_no_byte_is_accepted(again: Again, how: str, tmp_path: Path) -> None:
    if how == "touched":
        for path in again.root.rglob("*.*"):
            os.utime(path, (1, 1))
    elif how == "copied elsewhere":
        again.root = shutil.copytree(
            again.root, tmp_path / "else" / "where", copy_function=shutil.copy
        )
    else:
        append(again.root / FIRST / "metadata.yaml")
    was_finished = (again.out / "demo" / "manifest.json").is_file()
    assert again.refusal() == ""
    log = (again.out / "demo" / "build.log.jsonl").read_text()
    assert sum(json.loads(line)["event"] == "start" for line in log.splitlines()) == (
        1 if was_finished else 2
    )


def test_a_finished_build_without_its_log_is_compared_by_content(again: Again) -> None:
    summary = again.run(again.out)
    (summary.folder / "build.log.jsonl").unlink()
    assert again.refusal() == ""
    assert again.run(again.out).already_complete
    (summary.folder / "build.log.jsonl").unlink()
    flip(again.root / FIRST / "mix.flac")
    assert "Track00001: other content in mix.flac" in again.refusal()


def test_content_is_read_again_only_where_times_differ(
    again: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    again.run(again.out)
    again.run(again.out)
    read = list[Path]()
    monkeypatch.setattr(
        "mt3data.build.build_folder.sha256_of", lambda paths: read.extend(paths) or "none"
    )
    assert again.run(again.out).already_complete
    assert read == []
    os.utime(again.root / FIRST / "mix.flac", (1, 1))
    with pytest.raises(UserError, match="other content in mix.flac"):
        again.run(again.out)
    assert [path.name for path in read] == ["mix.flac"]


def test_builds_of_other_audio_have_other_fingerprints(again: Again) -> None:
    first = again.run(again.out).manifest["fingerprint"]
    flip(again.root / FIRST / "mix.flac")
    assert again.run(again.fresh).manifest["fingerprint"] != first


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"identity": 3}', '{"identity": {"tracks": [1]}}']
)
def test_a_plan_that_cannot_be_read_is_one_line(
    begun: dict[str, Path], source: Path, tmp_path: Path, text: str
) -> None:
    again = Again(begun["interrupted"], source, tmp_path)
    (again.out / "demo" / ".state" / "plan.json").write_text(text)
    assert "plan.json: not the plan of a build" in again.refusal()


@pytest.mark.parametrize("line", ['{"event": "sources"', '{"event": "sources", "audio": []}', "[]"])
def test_a_log_that_cannot_be_read_only_costs_reading_the_files(
    begun: dict[str, Path], source: Path, tmp_path: Path, line: str
) -> None:
    again = Again(begun["finished"], source, tmp_path)
    (again.out / "demo" / "build.log.jsonl").write_text(line + "\n")
    assert again.refusal() == ""
