"""What every adapter must keep to, over all manifests, on tiny twins of the published files."""

import importlib
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fakes_listed import TREES

from mt3data.audio.load import audio_info
from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.datasets import manifest
from mt3data.datasets.manifest import DatasetManifest, KnownIssue
from mt3data.datasets.track import Track
from mt3data.errors import UserError
from mt3data.music.notes import validate
from mt3data.shards.windows import WindowConfig

NAMES = manifest.names()
LISTED = [name for name in NAMES if any("audio" in r for r in manifest.load(name).rows.values())]
TRIMMED = {"slakh", "cerberus4", "demo"}  # and there in training only


def adapter(described: DatasetManifest) -> ModuleType:
    return importlib.import_module(f"mt3data.datasets.adapters.{described.adapter}")


def tracks(root: Path, described: DatasetManifest) -> Iterator[Track]:
    return adapter(described).tracks(root, described)


@pytest.fixture(scope="module", params=NAMES)
def described(request) -> DatasetManifest:
    found = manifest.load(request.param)
    pytest.importorskip(
        f"mt3data.datasets.adapters.{found.adapter}", reason="its adapter is being written"
    )
    return found


@pytest.fixture(scope="module")
def root(described, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(described.name)
    TREES[described.name](folder)
    return folder


@pytest.fixture(scope="module")
def found(described, root) -> list[Track]:
    return list(tracks(root, described))


def test_there_is_an_iterator_of_usable_tracks(described, root, found):
    assert isinstance(tracks(root, described), Iterator)
    assert len(found) > 1  # or unique ids would mean nothing
    assert [track.failure for track in found] == [""] * len(found)


def test_listing_opens_neither_audio_nor_labels(described, root, tmp_path, found):
    TREES[described.name](tmp_path)
    sources = {path.relative_to(root) for track in found for path in track.source_files}
    stems = {path.relative_to(tmp_path) for path in tmp_path.rglob("stems/*")}
    for path in sources | stems:
        (tmp_path / path).write_bytes(b"")
    assert [track.id for track in tracks(tmp_path, described)] == [track.id for track in found]


def test_ids_are_short_safe_and_unique_and_name_the_dataset(described, found):
    ids = [track.id for track in found]
    assert len(set(ids)) == len(ids)
    assert [i for i in ids if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", i)] == []
    assert {track.dataset for track in found} == {described.name}


def test_every_track_has_a_split_of_the_default_scheme(described, found):
    splits = {track.split for track in found}
    known = described.expected.get(described.default_scheme, {})
    assert splits <= (set(known) or {"train", "validation", "test"})
    assert "train" in splits and len(splits) > 1


def test_only_slakh_and_its_kin_are_trimmed_and_in_training_only(described, found):
    should = [described.name in TRIMMED and track.split == "train" for track in found]
    assert [track.trim for track in found] == should


def test_a_track_survives_pickling(found):
    assert pickle.loads(pickle.dumps(found)) == found


def test_audio_and_labels_are_there_and_the_notes_are_valid(found):
    for track in found:
        assert [path for path in track.source_files if not path.is_file()] == []
        notes = track.load_notes()
        validate(notes)
        assert len(notes) > 0
        assert notes.onset.max() < audio_info(track.audio).seconds


def test_the_folder_of_the_dataset_itself_is_taken_too(described, root, found):
    inner = root / described.folder
    if not inner.is_dir():
        pytest.skip(f"the tracks of {described.name} lie right below --root")
    assert [track.id for track in tracks(inner, described)] == [track.id for track in found]


@pytest.mark.parametrize("there", [True, False], ids=["empty", "missing"])
def test_a_wrong_root_is_one_helpful_line(described, tmp_path, there):
    wrong = tmp_path / "elsewhere"
    if there:
        wrong.mkdir()
    with pytest.raises(UserError, match="looked for|expected") as error:
        list(tracks(wrong, described))
    assert str(wrong) in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_split_scheme_is_refused(described, root):
    with pytest.raises(UserError, match="has no split scheme 'nonsense'"):
        list(adapter(described).tracks(root, described, "nonsense"))


def test_a_twin_becomes_shards_without_a_failure(described, root, found, tmp_path):
    plan = make_plan(BuildConfig(described.name, root, tmp_path, windows=WindowConfig(256)))
    summary = build(plan)
    assert summary.quarantined == ()
    assert sum(split["tracks"] for split in summary.manifest["splits"].values()) == len(found)


def tracks_with_issue(root: Path, name: str, *issues: KnownIssue) -> list[Track]:
    """Lists the tracks of a dataset as if these were all its known issues."""
    return list(tracks(root, replace(manifest.load(name), known_issues=issues)))


@pytest.mark.parametrize("name", LISTED)
def test_a_shift_without_tracks_moves_the_notes_of_every_track(name, tmp_path):
    TREES[name](tmp_path)
    late = KnownIssue("late", "all notes are early", "shift", shift_seconds=0.05)
    there = tracks_with_issue(tmp_path, name)
    moved = tracks_with_issue(tmp_path, name, late)
    assert len(there) == len(moved) > 1
    for before, after in zip(there, moved, strict=True):
        onsets = before.load_notes().onset
        np.testing.assert_allclose(after.load_notes().onset, onsets + 0.05, atol=1e-9)
        assert any("moved by +0.050 s" in problem for problem in after.problems)


@pytest.mark.parametrize("name", LISTED)
def test_a_dropped_track_fails_with_the_known_issue_as_its_reason(name, tmp_path):
    TREES[name](tmp_path)
    ids = tuple(manifest.load(name).rows)
    found = tracks_with_issue(tmp_path, name, KnownIssue("bad", "silent", "drop", tracks=ids))
    assert {track.failure for track in found} == {"known issue bad: silent"}


@pytest.mark.parametrize("name", LISTED)
def test_the_whole_dataset_has_the_expected_tracks_in_every_scheme(name, tmp_path):
    described = manifest.load(name)
    for row in described.rows.values():
        for path in f"{row['audio']};{row['labels']}".split(";"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
    for scheme, expected in described.expected.items():
        found = list(adapter(described).tracks(tmp_path, described, scheme))
        assert Counter(track.split for track in found) == expected
        assert len({track.id for track in found}) == len(found)
        assert {track.failure for track in found} == {""}


def test_every_manifest_has_an_adapter_and_a_tree():
    assert set(NAMES) <= set(TREES)
    with pytest.raises(
        LookupError, match=r"'lute' has no fake: .* TREES, in tests/helpers/fakes_listed.py"
    ):
        TREES["lute"]
