"""What `mt3data list` says about the datasets."""

import json

import pytest

from mt3data.datasets import listing as catalogue
from mt3data.datasets import manifest

ALL = {name: manifest.load(name) for name in manifest.names()}


def told(name: str) -> str:
    """The listing with all white space made single spaces."""
    return " ".join(" ".join(catalogue.lines(ALL[name])).split())


def test_every_dataset_has_one_line_with_its_numbers():
    head, *rows = catalogue.table(ALL.values())
    assert head.split() == "name title licence tracks hours download unverified".split()
    assert [row.split()[0] for row in rows] == list(ALL)
    (slakh,) = (row for row in rows if row.startswith("slakh"))
    assert slakh.split() == "slakh Slakh2100 CC-BY-4.0 2100 145.0 104.3 GB 5".split()


def test_what_is_not_known_is_not_told_as_zero():
    row = catalogue.summary(ALL["maestro_v2"])
    assert (row["download_bytes"], row["sizes_unknown"]) == (0, 1)
    (line,) = (x for x in catalogue.table([ALL["maestro_v2"]]) if x.startswith("maestro"))
    assert "201.2           ?" in line
    assert catalogue.summary(ALL["cerberus4"])["tracks"] is None


@pytest.mark.parametrize("name", ALL)
def test_everything_unverified_is_shown(name):
    text = told(name)
    m = ALL[name]
    assert all(question in text for question in m.open_questions())
    assert set(m.unverified) <= set(m.open_questions())
    unsure = [issue.what for issue in m.known_issues if issue.status == "unverified"]
    assert all(any(what in question for question in m.open_questions()) for what in unsure)


@pytest.mark.parametrize("name", ALL)
def test_licence_sources_splits_and_issues_are_shown_with_their_status(name):
    m, text = ALL[name], told(name)
    assert m.licence in text and m.redistribution in text
    for source in m.sources:
        assert f"{source.group or source.id}: " in text
        assert source.md5 in text and source.sha256 in text
    for issue in m.known_issues:
        assert f"{issue.action} {issue.id}" in text
        assert f"{issue.source} [{issue.status}]" in text
    for scheme in m.schemes:
        assert f"[{m.status[f'splits.{scheme}']}]" in text
    for figures in m.paper:
        assert figures.where in text and figures.difference in text


def test_splits_are_told_with_counts_and_hours():
    assert (
        "train 962 tracks 159.24 h validation 137 tracks 19.43 h test 177 tracks 19.98 h"
        in told("maestro_v3")
    )


def test_files_that_rows_name_are_told_in_one_entry():
    assert "urmp-files: 193 files [unverified]" in told("urmp")
    assert told("urmp").count("https://huggingface.co") == 1


def test_a_shift_is_told_with_its_size():
    assert "shift late-BN3 by -0.409 s: all notes are 0.409 s late" in told("guitarset")


def test_lines_fit_a_terminal_but_for_addresses():
    for m in ALL.values():
        assert not [x for x in catalogue.lines(m) if len(x) > 100 and "://" not in x]


@pytest.mark.parametrize("name", ALL)
def test_facts_are_json_with_the_same_questions(name):
    facts = json.loads(json.dumps(catalogue.facts(ALL[name])))
    assert facts["open_questions"] == list(ALL[name].open_questions())
    assert facts["expected"] == {k: dict(v) for k, v in ALL[name].expected.items()}
    assert list(facts["split_schemes"]) == list(ALL[name].schemes)
