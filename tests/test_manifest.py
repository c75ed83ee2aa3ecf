"""Manifests hold facts that can be counted or compared here."""

import dataclasses

import pytest

from mt3data import manifest
from mt3data.errors import UserError

SLAKH = manifest.load("slakh")


def test_every_manifest_loads_and_bears_the_name_of_its_file():
    assert [manifest.load(name).name for name in manifest.names()] == manifest.names()
    assert {"demo", "slakh"} <= set(manifest.names())


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"no dataset 'slack' \(did you mean 'slakh'\?\)"):
        manifest.load("slack")


def test_an_unknown_split_scheme_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"no split scheme 'redox' \(did you mean 'redux'\?\)"):
        SLAKH.scheme("redox")


def test_the_slakh_archive_has_the_published_size_and_checksum():
    source = SLAKH.sources[0]
    assert source.url.startswith("https://zenodo.org/records/4599666/files/slakh2100_flac_redux")
    assert (source.bytes, source.md5) == (104322767708, "f4b71b6c45ac9b506f59788456b3f0c4")


@pytest.mark.parametrize("scheme", ["mt3", "original", "redux", "v2"])
def test_slakh_splits_have_the_expected_numbers_of_tracks(scheme):
    expected = SLAKH.expected[scheme]
    rule = SLAKH.scheme(scheme)
    if rule.column:
        column = [row[rule.column] for row in SLAKH.rows.values()]
        counted = {split: column.count(split) for split in expected}
    else:
        counted = {split: last - first + 1 for split, first, last in rule.ranges}
    assert counted == dict(expected)
    assert sum(counted.values()) == 2100


def test_slakh_rows_name_22_problem_stems_and_1710_distinct_midi_files():
    rows = SLAKH.rows.values()
    assert len({row["midi_md5"] for row in rows}) == 1710
    assert sum(len(row["problem_stems"].split()) for row in rows) == 22
    assert SLAKH.rows["Track01931"]["problem_stems"] == "S01:wrong-pitch"


def test_slakh_has_34_pitched_classes_over_92_programs():
    assert len(SLAKH.classes) == 34
    members = [p for _, programs in SLAKH.classes.values() for p in programs]
    assert len(members) == len(set(members)) == 92
    assert sorted(set(range(128)) - set(members)) == [38, 39, 62, 63, *range(96, 128)]


@pytest.mark.parametrize(
    ("program", "label"),
    [(1, 0), (2, 4), (15, 8), (31, 26), (30, 29), (37, 33), (45, 48), (59, 56), (65, 64), (79, 73)],
)
def test_labels_carry_the_program_of_the_class(program, label):
    assert SLAKH.label_program(program) == label


@pytest.mark.parametrize("program", [38, 39, 62, 63, 96, 127])
def test_programs_without_a_class_have_no_label(program):
    assert SLAKH.label_program(program) is None


def test_the_demo_has_slakhs_classes_and_splits_by_folder():
    demo = manifest.load("demo")
    assert demo.classes == SLAKH.classes
    assert demo.scheme() == manifest.SplitScheme("folder")
    assert demo.sources == () and demo.rows == {}


def test_manifests_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SLAKH.name = "other"
