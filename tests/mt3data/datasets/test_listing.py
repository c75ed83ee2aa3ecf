"""What `mt3data list` prints about the datasets."""

import json

import pytest
import yaml

from mt3data.datasets import listing, manifest

ALL = {name: manifest.load(name) for name in manifest.names()}


def test_every_dataset_has_one_line_with_its_numbers():
    head, *rows = listing.table(ALL.values())
    assert head.split() == "name title licence tracks hours download unverified".split()
    assert [row.split()[0] for row in rows] == list(ALL)
    (slakh,) = (row for row in rows if row.startswith("slakh"))
    assert slakh.split() == "slakh Slakh2100 CC-BY-4.0 2100 145.0 104.3 GB 5".split()


def test_unknown_numbers_are_not_printed_as_zero():
    row = listing.summary(ALL["maestro_v2"])
    assert (row["download_bytes"], row["sizes_unknown"]) == (0, 1)
    (line,) = (x for x in listing.table([ALL["maestro_v2"]]) if x.startswith("maestro"))
    assert "201.2           ?" in line
    assert listing.summary(ALL["cerberus4"])["tracks"] is None


@pytest.mark.parametrize("name", ALL)
def test_everything_unverified_is_an_open_question(name):
    m = ALL[name]
    questions = listing.facts(m)["open_questions"]
    assert questions == list(m.open_questions())
    assert set(m.unverified) <= set(questions)
    unsure = [issue.what for issue in m.known_issues if issue.status == "unverified"]
    assert all(any(what in question for question in questions) for what in unsure)


@pytest.mark.parametrize("name", ALL)
def test_text_and_json_have_the_same_facts(name):
    facts, shown = (
        json.loads(json.dumps(listing.facts(ALL[name]))),
        yaml.safe_load(listing.text(ALL[name])),
    )
    assert list(facts["split_schemes"]) == list(ALL[name].schemes)
    assert set(shown) <= set(facts)
    for key, value in facts.items():
        assert listing._without_empty(value) == shown.get(key, type(value)()), key


def test_files_that_rows_name_are_one_entry():
    (entry,) = [x for x in listing.facts(ALL["urmp"])["sources"] if x["files"] > 1]
    assert (entry["group"], entry["files"], entry["status"]) == ("urmp-files", 193, "unverified")


def test_an_empty_fact_is_left_out_and_a_zero_is_not():
    assert listing._without_empty({"a": "", "b": 0, "c": {"d": None}, "e": [{"f": False, "g": 0.0}]}) == {
        "b": 0, "e": [{"g": 0.0}],
    }  # fmt: skip
