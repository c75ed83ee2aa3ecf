"""Cerberus4: every quartet of a song, its programs, its split, and what is said of songs without."""

from pathlib import Path

import fakes
import numpy as np
import pytest
import yaml

from mt3data.audio.load import read_audio
from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.datasets.adapters import cerberus4
from mt3data.datasets.manifest import load
from mt3data.datasets.stem_mixes import MAX_QUARTETS, mixes, quartets
from mt3data.datasets.track import Stem, Track
from mt3data.shards.index import ShardSet, read_tracks
from mt3data.shards.windows import WindowConfig

MANIFEST = load("cerberus4")
# A second guitar, of another class, and a second piano beside those of every fake track.
MORE_STEMS = fakes.SLAKH_STEMS | {
    "S05": (26, "Guitar"),
    "S06": (5, "Piano"),
    "S07": (48, "Strings"),
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fakes, "SLAKH_STEMS", MORE_STEMS)
    fakes.slakh_tree(tmp_path)
    return tmp_path


def found(root: Path) -> list[Track]:
    return list(cerberus4.tracks(root, MANIFEST))


def test_a_song_gives_every_combination_of_one_stem_of_each_group(root: Path) -> None:
    names = [track.name for track in found(root) if track.name.startswith("Track00001")]
    assert names == [
        "Track00001:S03:S01:S00:S02", "Track00001:S03:S01:S00:S06",
        "Track00001:S03:S01:S05:S02", "Track00001:S03:S01:S05:S06",
    ]  # fmt: skip


def test_labels_carry_the_programs_of_the_groups(root: Path) -> None:
    for track in found(root):
        assert [(stem.program, stem.is_drum) for stem in track.stems] == [
            (32, False), (0, True), (24, False), (0, False),
        ]  # fmt: skip


def test_quartets_of_a_song_share_its_split_and_only_training_is_trimmed(root: Path) -> None:
    splits = {(t.id.split("-")[0], t.split, t.trim) for t in found(root)}
    assert splits == {
        ("Track00001", "train", True), ("Track01501", "validation", False), ("Track01877", "test", False),
    }  # fmt: skip


def test_the_audio_is_the_sum_of_the_four_stems_and_not_the_mix(root: Path) -> None:
    track = found(root)[0]
    (audio,) = mixes(track, 16000)
    folder = track.audio.parent
    want = sum(read_audio(folder / "stems" / f"{s}.flac") for s in ("S03", "S01", "S00", "S02"))
    np.testing.assert_allclose(audio, want, atol=1e-6)
    assert np.abs(audio - read_audio(track.audio)).max() > 0.01
    assert track.audio not in track.audio_files


def test_a_song_without_a_group_is_reported(root: Path) -> None:
    path = next(root.glob("*/train/Track00001/metadata.yaml"))
    described = yaml.safe_load(path.read_text())
    described["stems"]["S03"]["inst_class"] = "Strings"
    path.write_text(yaml.safe_dump(described))
    track = found(root)[0]
    assert (track.id, track.variants) == ("Track00001", ())
    assert track.failure == "no quartet: it has 0 Bass, 1 Drums, 2 Guitar, 2 Piano"


def test_a_song_with_very_many_gives_a_seeded_share() -> None:
    groups = [[Stem(f"{name}{n}", None, None, 0, False, name) for n in range(4)] for name in "ABCD"]
    chosen = quartets(groups, "song")
    assert len(set(chosen)) == MAX_QUARTETS
    assert chosen == quartets(groups, "song")
    assert chosen != quartets(groups, "another song")


def test_a_build_holds_every_quartet_once_with_its_references(root: Path, tmp_path: Path) -> None:
    config = BuildConfig("cerberus4", root, tmp_path / "out", windows=WindowConfig(256))
    summary = build(make_plan(config))
    assert summary.quarantined == ()
    assert {name: s["tracks"] for name, s in summary.manifest["splits"].items()} == {
        "train": 4, "validation": 4, "test": 4,
    }  # fmt: skip
    assert set(ShardSet(summary.folder, "train").index["variant"]) == {0}
    track = next(read_tracks(summary.folder, "test"))
    assert track.track == "Track01877-q00"
    pitched = track.notes[~track.notes.is_drum]
    assert set(pitched.program.tolist()) == {0, 24, 32}
