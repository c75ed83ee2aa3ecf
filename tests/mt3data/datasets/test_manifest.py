"""Manifests hold facts that can be counted or compared here."""

import dataclasses
import re

import pytest

from mt3data.datasets import manifest
from mt3data.errors import UserError

ALL = {name: manifest.load(name) for name in manifest.names()}
SLAKH = ALL["slakh"]
DOWNLOADED = [name for name in ALL if name not in ("demo", "folder")]


def test_every_manifest_loads_and_bears_the_name_of_its_file():
    assert [manifest.load(name).name for name in manifest.names()] == manifest.names()
    assert set(manifest.names()) >= set(
        "cerberus4 demo folder guitarset maestro_v1 maestro_v2 maestro_v3 musicnet musicnet_em slakh "
        "urmp".split()
    )


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("slack", "slakh"),
        ("MusicNetEM", "musicnet_em"),
        ("maestro-v3", "maestro_v3"),
        ("ceberus4", "cerberus4"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(wrong, right):
    with pytest.raises(UserError, match=rf"no dataset '{wrong}' \(did you mean '{right}'\?\)"):
        manifest.load(wrong)


def test_an_unknown_split_scheme_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"no split scheme 'redox' \(did you mean 'redux'\?\)"):
        SLAKH.scheme("redox")


def test_the_slakh_archive_has_the_published_size_and_checksum():
    source = SLAKH.sources[0]
    assert source.url.startswith("https://zenodo.org/records/4599666/files/slakh2100_flac_redux")
    assert (source.bytes, source.md5) == (104322767708, "f4b71b6c45ac9b506f59788456b3f0c4")


@pytest.mark.parametrize("name", ALL)
def test_ranges_of_a_scheme_do_not_overlap(name):
    for scheme in ALL[name].schemes.values():
        numbers = [n for _, first, last in scheme.ranges for n in range(first, last + 1)]
        assert numbers == list(range(1, len(numbers) + 1))


# --- what papers say -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOWNLOADED)
def test_counts_and_hours_are_the_papers_or_the_manifest_states_why_not(name):
    m = ALL[name]
    counts = m.expected.get(m.default_scheme, {})
    for figures in m.paper:
        same = [not figures.tracks or sum(counts.values()) == figures.tracks]
        same += [not figures.hours or m.hours == pytest.approx(figures.hours, abs=0.1)]
        same += [counts.get(split) == count for split, count in figures.splits.items()]
        assert all(same) != bool(figures.difference)


@pytest.mark.parametrize(
    ("name", "tracks", "hours"),
    [("slakh", 1405, 968.5), ("cerberus4", 1327, 542.6), ("maestro_v3", 1276, 198.7),
     ("musicnet", 330, 34.0), ("guitarset", 360, 3.0), ("urmp", 44, 1.3)],
)  # fmt: skip
def test_every_row_of_the_papers_table_1_is_quoted(name, tracks, hours):
    assert (tracks, hours) in {(figures.tracks, figures.hours) for figures in ALL[name].paper}


def test_the_papers_split_of_guitarset_is_quoted_beside_ours():
    quoted = [figures.splits for figures in ALL["guitarset"].paper]
    assert {"train": 478, "validation": 238} in quoted


def test_the_mixture_names_the_six_sets_of_mt3():
    mixture = manifest.load_mixture("mt3")
    assert set(mixture.datasets) == {
        "maestro_v3", "guitarset", "urmp", "musicnet_em", "cerberus4", "slakh"
    }  # fmt: skip
    assert mixture.temperature == 10 / 3
    assert set(mixture.datasets) <= set(ALL)


def test_an_unknown_mixture_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"no mixture 'mt4' \(did you mean 'mt3'\?\)"):
        manifest.load_mixture("mt4")


# --- how sure ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_every_fact_states_how_sure_it_is(name):
    m = ALL[name]
    needed = {"layout": True, "reader": True} | {f"splits.{scheme}": True for scheme in m.schemes}
    needed |= {
        "programs": m.programs, "classes": m.classes, "hours": m.hours, "licence": m.licence_url,
        "citation": m.sources,
    }  # fmt: skip
    missing = [fact for fact, known in needed.items() if known and fact not in m.status]
    assert missing == [], f"[status] of {name} lacks {', '.join(missing)}; see docs/new-dataset.md"
    everything = [*m.status.values(), *(x.status for x in (*m.sources, *m.known_issues))]
    assert set(everything) <= set(manifest.STATUSES)


@pytest.mark.parametrize("name", ALL)
def test_sources_are_complete(name):
    for source in ALL[name].sources:
        assert source.kind in ("zip", "tar.gz", "file")
        assert re.fullmatch(r"https://\S+", source.url)
        assert re.fullmatch(r"([0-9a-f]{32})?", source.md5)
        assert re.fullmatch(r"([0-9a-f]{64})?", source.sha256)
        assert (source.status == "unverified") or source.md5 or source.sha256


@pytest.mark.parametrize("name", ALL)
def test_known_issues_name_tracks_that_exist(name):
    m = ALL[name]
    for issue in m.known_issues:
        assert set(issue.tracks) <= set(m.rows)
        assert issue.what and issue.source


@pytest.mark.parametrize("name", ALL)
def test_an_unverified_repair_is_never_the_default(name):
    repairs = {i.id: i.status for i in ALL[name].known_issues if i.action in ("drop", "shift")}
    assert [key for key, status in repairs.items() if status == "unverified"] == []


# --- Slakh and the demo --------------------------------------------------------------------------


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
    assert (demo.scheme().name, demo.scheme().column, demo.scheme().ranges) == ("folder", "", ())
    assert demo.sources == () and demo.rows == {}


def test_manifests_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SLAKH.name = "other"


# --- wrong manifests -----------------------------------------------------------------------------


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    """Loads a copy of GuitarSet's manifest in which texts were replaced."""

    def load(*changes: tuple[str, str], file: str = "guitarset.toml") -> manifest.DatasetManifest:
        for path in manifest._folder().glob("guitarset.*"):
            text = path.read_text()
            for old, new in changes if path.name == file else ():
                assert old in text
                text = text.replace(old, new, 1)
            (tmp_path / path.name).write_text(text)
        monkeypatch.setattr(manifest, "_folder", lambda: tmp_path)
        return manifest.load("guitarset")

    return load


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (('title = "GuitarSet"', "title = 3"), "title is 3; expected text"),
        (('title = "GuitarSet"', "titel = 3"), "'title' is missing"),
        (('title = "GuitarSet"', 'title = "x"\ntitel = 3'), r"unknown field titel \(did you mean 'title'\?\)"),
        (("[[sources]]\n", "[[sources]]\nmd6 = 1\n"), r"unknown field sources.md6 \(did you mean 'md5'\?\)"),
        (("[[sources]]\n", "[[sources]]\nstrip = []\n"), r"sources\[0\].strip is list; expected a whole number"),
        (("[[sources]]\n", "[[sources]]\nmirrors = [1]\n"), r"sources\[0\].mirrors\[0\] is 1; expected text"),
        (('name = "guitarset"', 'name = "other"'), "name is 'other'"),
        (('title = "GuitarSet"', 'title = "GuitarSet"\nfolder = "../../etc"'), "folder: '../../etc' cannot"),
        (('title = "GuitarSet"', 'title = "GuitarSet'), "not valid TOML"),
        (('title = "GuitarSet"', "title = " + "[" * 10**5), "not valid TOML"),
        (("total_hours = 6.094", "total_hours = nan"), "total_hours is nan; expected a number"),
        (("[programs]\n", "[programs]\nx = 128\n"), "programs.x is 128; expected a whole number from 0 to 127"),
        (("[status]\n", '[status]\nx = "sure"\n'), "status.x is 'sure'; expected verified or several"),
        (('action = "shift"', 'action = "shfit"'), r"action is 'shfit' \(did you mean 'shift'\?\)"),
        (("shift_seconds = -0.409", "shift_seconds = 0"), "'shift' and shift_seconds is 0; expected"),
        (('action = "shift"', 'action = "flag"'), "'flag' and shift_seconds is -0.409; expected"),
        (('action = "flag"\nstatus = "ver', 'action = "drop"\nstatus = "ver'), "'drop' needs the ids in tracks"),
        (('tracks = ["04_BN3', 'tracks = ["04_BN2'), r"no row has the id '04_BN2-154-E_comp' \(did you mean"),
        (('rows = "guitarset.csv"', ""), "action is 'shift'; expected keep or flag"),
    ],
    ids=range(19),
)  # fmt: skip
def test_a_wrong_manifest_is_one_line_that_names_file_and_field(wrong, change, fault):
    with pytest.raises(UserError, match=rf"guitarset\.toml: .*{fault}") as error:
        wrong(change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("\n", "\nx\n"), "row 2 has too few or too many columns"),
        (("\n", '\n"x\n'), "row 2 is not valid CSV"),
        (("\n", "\n" + ",".join(["../../../etc"] * 9) + "\n"), "row 2"),
        (("\n00_BN1-129-Eb_comp", "\n" + "x" * 41), "row 2: 'x{41}' is no id .*1 to 40"),
        (
            ("\n00_BN1-129-Eb_solo", "\n00_BN1-129-Eb_comp"),
            "row 3: '00_BN1-129-Eb_comp' is listed twice",
        ),
    ],
    ids=["short row", "open quote", "path out of the folder", "long id", "id twice"],
)
def test_a_wrong_list_of_tracks_is_one_line_that_names_file_and_row(wrong, change, fault):
    with pytest.raises(UserError, match=rf"guitarset\.csv: {fault}"):
        assert wrong(change, file="guitarset.csv").rows == 0
