"""Stems as variants: which are drawn, that audio and labels of a variant agree, and what is recorded."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fakes
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from mt3data.audio.load import read_audio
from mt3data.audio.spectrogram import log_mel, pad_to_frames
from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.datasets import stem_mixes as mix
from mt3data.datasets.adapters import slakh
from mt3data.datasets.manifest import KnownIssue, load
from mt3data.datasets.track import Stem, Track
from mt3data.errors import UserError
from mt3data.shards.check import check
from mt3data.shards.format import read_npy
from mt3data.shards.index import ShardSet, read_tracks
from mt3data.shards.windows import WindowConfig

IDS = tuple(f"S{n:02d}" for n in range(8))
SPLITS = {"Track00001": "train", "Track00002": "train", "Track00003": "validation"}


def test_a_subset_holds_four_to_all_stems_each_size_as_often() -> None:
    drawn = mix.subsets(IDS, 0, "t", 2000)
    sizes = Counter(len(subset) for subset in drawn)
    assert set(sizes) == {4, 5, 6, 7, 8}
    first = Counter(len(mix.subsets(IDS, seed, "t", 1)[0]) for seed in range(1000))
    assert min(first.values()) > 150


def test_the_smallest_subset_can_be_one_stem() -> None:
    drawn = mix.subsets(IDS, 0, "t", 2000, least=1)
    assert set(map(len, drawn)) == set(range(1, 9))


def test_subsets_are_distinct_ordered_and_follow_from_seed_and_track() -> None:
    drawn = mix.subsets(IDS, 0, "t", 10)
    assert len(set(drawn)) == 10
    assert all(list(subset) == sorted(set(subset)) for subset in drawn)
    assert drawn == mix.subsets(IDS, 0, "t", 10)
    assert drawn != mix.subsets(IDS, 1, "t", 10)
    assert drawn != mix.subsets(IDS, 0, "u", 10)


@pytest.mark.parametrize("n", [1, 3, 4])
def test_a_track_of_at_most_four_stems_is_taken_whole_every_time(n: int) -> None:
    assert mix.subsets(IDS[:n], 0, "t", 3) == (IDS[:n],) * 3


def stems(tmp_path: Path, lengths: list[int]) -> tuple[Stem, ...]:
    made = []
    for n, length in enumerate(lengths):
        path = tmp_path / f"S{n:02d}.wav"
        soundfile.write(path, np.full(length, 2.0**-n), 16000, subtype="FLOAT")
        made.append(Stem(f"S{n:02d}", path, None, 0, False, "Piano"))
    return tuple(made)


def test_a_mix_is_the_plain_sum_of_its_stems_as_long_as_the_longest(tmp_path: Path) -> None:
    track = Track("t", "t", "d", "train", tmp_path / "none.wav", stems(tmp_path, [3, 5, 4]),
                  variants=(("S00", "S01"), ("S02",)))  # fmt: skip
    one, other = mix.mixes(track, 16000)
    assert one.tolist() == [1.5, 1.5, 1.5, 0.5, 0.5]
    assert other.tolist() == [0.25, 0.25, 0.25, 0.25, 0]
    assert [path.name for path in track.audio_files] == ["S00.wav", "S01.wav", "S02.wav"]


@pytest.mark.parametrize("kept", ["validation", "without stems", "failed", "quartet"])
def test_only_training_tracks_with_stems_get_subsets(tmp_path: Path, kept: str) -> None:
    track = Track(
        "t", "t", "d", "validation" if kept == "validation" else "train", tmp_path / "mix.wav",
        () if kept == "without stems" else stems(tmp_path, [3]),
        failure="broken" if kept == "failed" else "",
        variants=(("S00",),) if kept == "quartet" else (),
    )  # fmt: skip
    assert mix.with_subsets(track, 0, 10) is track


# --- in a build ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.slakh_tree(tmp_path_factory.mktemp("source"), "demo", SPLITS, seconds=2.5)


@pytest.fixture(scope="module")
def three(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build with three subsets, of at least two stems so that they differ."""
    config = BuildConfig("demo", source, tmp_path_factory.mktemp("out"), windows=WindowConfig(256),
                         subsets=3, min_stems=2)  # fmt: skip
    return build(make_plan(config)).folder


def rows_of(folder: Path) -> dict[str, dict[str, list[str]]]:
    rows = pq.read_table(folder / "tracks.parquet").to_pylist()
    return {row["track"]: row for row in rows}


def test_each_variant_sums_and_labels_its_own_stems(source: Path, three: Path) -> None:
    assert check(three) == []
    shards = ShardSet(three, "train")
    variants = [said.split("+") for said in rows_of(three)["Track00001"]["variants"]]
    assert len(variants) == len({tuple(members) for members in variants}) == 3
    folder = source / "train" / "Track00001"
    for k, members in enumerate(variants):
        row = shards.index["key"].index(f"demo-Track00001-p{k}-0000000")
        heard = np.sum([read_audio(folder / "stems" / f"{s}.flac") for s in members], axis=0)
        want = log_mel(pad_to_frames(heard)[: 256 * 128]).astype(np.float16)
        np.testing.assert_array_equal(read_npy(shards.member(row, "mel")), want)
        onsets = sum(len(fakes.slakh_notes(stem, 2.5)) for stem in members)
        of_variant = [r for r, key in enumerate(shards.index["key"]) if f"Track00001-p{k}-" in key]
        notes = np.concatenate([read_npy(shards.member(r, "notes")) for r in of_variant])
        assert len(np.unique(notes, axis=0)) == onsets


def test_every_variant_begins_at_the_first_frame(three: Path) -> None:
    index = ShardSet(three, "train").index
    assert Counter(index["start_frame"]) == {0: 6, 256: 6}


def test_evaluation_uses_the_full_mix_in_one_variant(source: Path, three: Path) -> None:
    assert rows_of(three)["Track00003"]["variants"] == []
    track = next(read_tracks(three, "validation"))
    assert len(track.notes) == sum(len(fakes.slakh_notes(s, 2.5)) for s in ("S00", "S01", "S02", "S03"))  # fmt: skip


def test_one_and_two_workers_write_the_same_subsets(source: Path, tmp_path: Path) -> None:
    hashes = []
    for workers in (1, 2):
        config = BuildConfig("demo", source, tmp_path / str(workers), windows=WindowConfig(256),
                             workers=workers, profile="paper")  # fmt: skip
        hashes.append([shard["sha256"] for shard in build(make_plan(config)).manifest["shards"]])
    assert hashes[0] == hashes[1]


def test_the_profile_and_its_law_stand_in_the_manifest(source: Path, tmp_path: Path) -> None:
    paper, fixed = (
        make_plan(BuildConfig("demo", source, tmp_path, profile=profile)).identity
        for profile in ("paper", "fixed")
    )
    assert (paper["profile"], paper["subsets"]["variants"]) == ("paper", 10)
    assert "gain 1" in paper["subsets"]["law"]
    assert (fixed["profile"], fixed["subsets"]) == ("fixed", None)
    assert json.dumps(paper["tracks"]) != json.dumps(fixed["tracks"])


def test_the_papers_profile_keeps_what_the_fixed_one_would_move(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[str]] = {}
    original = slakh.tracks

    def spy(root, manifest, scheme=None):  # type: ignore[no-untyped-def]
        seen[len(seen)] = [issue.action for issue in manifest.known_issues]
        return original(root, manifest, scheme)

    late = KnownIssue("late", "labels are late", "shift", shift_seconds=-0.4)
    described = replace(load("demo"), known_issues=(late,))
    monkeypatch.setattr("mt3data.build.plan.load", lambda name: described)
    monkeypatch.setattr(slakh, "tracks", spy)
    for profile in ("fixed", "paper"):
        make_plan(BuildConfig("demo", source, tmp_path, profile=profile))
    assert seen == {0: ["shift"], 1: ["flag"]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"profile": "papre"}, "papre: expected fixed or paper"),
        ({"subsets": 3, "windows": WindowConfig(256, variants=2)}, "exclude each other"),
    ],
)
def test_mistakes_are_one_line(
    source: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        make_plan(BuildConfig("demo", source, tmp_path, **changes))  # type: ignore[arg-type]
