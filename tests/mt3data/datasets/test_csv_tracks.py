"""The track lists beside the manifests: splits, ids and checksums, some held against real files."""

import hashlib
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from mt3data.datasets import manifest

ALL = {name: manifest.load(name) for name in manifest.names()}
MAESTRO, MUSICNET, SLAKH = ALL["maestro_v3"], ALL["musicnet"], ALL["slakh"]
SCHEMES = [(name, scheme) for name, m in ALL.items() for scheme in m.expected]
SAMPLES = Path(__file__).resolve().parents[4] / "shared" / "samples"


def division(m: manifest.DatasetManifest, scheme: str) -> dict[str, list[str]]:
    """Split -> ids of its tracks; each recording of a row counts."""
    rule, found = m.scheme(scheme), {}
    for track_id, row in m.rows.items():
        number = int(re.sub(r"\D", "", track_id) or 0)
        split = row.get(rule.column) or next(s for s, lo, hi in rule.ranges if lo <= number <= hi)
        found.setdefault(split, []).extend([track_id] * len(row.get("audio", "").split(";")))
    return found


@pytest.mark.parametrize(("name", "scheme"), SCHEMES)
def test_every_split_has_the_expected_number_of_tracks(name, scheme):
    counted = {split: len(ids) for split, ids in division(ALL[name], scheme).items()}
    assert counted == dict(ALL[name].expected[scheme])


@pytest.mark.parametrize(
    ("name", "scheme"),
    [(n, s) for n, s in SCHEMES if s in ALL[n].expected_hours],
)
def test_hours_are_the_sum_of_the_tracks(name, scheme):
    m = ALL[name]
    for split, ids in division(m, scheme).items():
        hours = sum(float(m.rows[i]["seconds"]) for i in ids) / 3600
        assert hours == pytest.approx(m.expected_hours[scheme][split], abs=6e-4)


@pytest.mark.parametrize("name", [name for name in ALL if ALL[name].rows])
def test_no_recording_is_listed_twice(name):
    m = ALL[name]
    recordings = [
        path for row in m.rows.values() for path in row.get("audio", "").split(";") if path
    ]
    assert len(recordings) == len(set(recordings))


# --- MAESTRO -------------------------------------------------------------------------------------


def test_a_maestro_id_is_the_year_and_a_hash_of_the_midi_files_name():
    row = MAESTRO.rows["2018-df46fbe9"]
    name = "2018/MIDI-Unprocessed_Chamber3_MID--AUDIO_10_R3_2018_wav--1.midi"
    assert row["labels"] == name
    assert row["audio"] == name.removesuffix("midi") + "wav"
    assert row["title"] == "Sonata Op. 1"
    for track_id, row in ALL["maestro_v1"].rows.items():
        digest = hashlib.sha256(row["labels"].encode()).hexdigest()[:8]
        assert track_id == f"{row['labels'][:4]}-{digest}"


def test_312_recordings_change_their_split_from_maestro_v1_to_v2_and_none_from_v2_to_v3():
    one, two, three = (ALL[f"maestro_v{v}"].rows for v in (1, 2, 3))
    assert len(one.keys() & two.keys()) == 1183
    assert sum(one[i]["split_v1"] != two[i]["split_v2"] for i in one.keys() & two.keys()) == 312
    assert all(three[i]["split_v3"] == two[i]["split_v2"] for i in three)


def test_maestro_v3_is_v2_without_the_six_chamber_recordings():
    two, three = ALL["maestro_v2"].rows, MAESTRO.rows
    (issue,) = (i for i in ALL["maestro_v2"].known_issues if i.id == "chamber")
    assert two.keys() - three.keys() == set(issue.tracks)
    assert sorted(two[i]["labels"][22:30] for i in issue.tracks) == [
        f"Chamber{n}" for n in range(1, 7)
    ]


def test_five_titles_of_maestro_are_in_two_splits():
    splits: dict[tuple[str, str], set[str]] = {}
    for row in MAESTRO.rows.values():
        splits.setdefault((row["composer"], row["title"]), set()).add(row["split_v3"])
    leaking = {key for key, found in splits.items() if len(found) > 1}
    assert {title for _, title in leaking} == {
        "Song Transcriptions: Aufenthalt, Gretchen am Spinnrade, Standchen von Shakespeare, Der Erlkonig",
        "Sonata in B-flat Major, Hob.XVI:41",
        "Sonata in D Major, Hob. XVI:24",
        "Romances Op. 28, Nos. 2 and 3",
        "Sonata in F Major, K280",
    }  # fmt: skip
    (issue,) = (i for i in MAESTRO.known_issues if i.id == "titles-in-two-splits")
    assert set(issue.tracks) == {
        i for i, row in MAESTRO.rows.items() if (row["composer"], row["title"]) in leaking
    }


# --- the others ----------------------------------------------------------------------------------

MT3_VALIDATION = "1733 1765 1790 1818 2160 2198 2289 2300 2308 2315 2336 2466 2477 2504 2611"
MT3_TEST = "1729 1776 1813 1893 2118 2186 2296 2431 2432 2487 2497 2501 2507 2537 2621"


@pytest.mark.parametrize("name", ["musicnet", "musicnet_em"])
@pytest.mark.parametrize(
    ("scheme", "split", "ids"),
    [
        ("mt3", "validation", MT3_VALIDATION),
        ("mt3", "test", MT3_TEST),
        ("archive", "test", "1759 1819 2106 2191 2298 2303 2382 2416 2556 2628"),
        ("thickstun", "test", "1819 2303 2382"),
    ],
)
def test_musicnets_splits_are_the_published_lists(name, scheme, split, ids):
    assert division(ALL[name], scheme)[split] == ids.split()


def test_musicnet_em_lacks_seven_recordings_and_keeps_eight_incomplete_ones():
    em = ALL["musicnet_em"]
    missing = {"2194", "2211", "2227", "2230", "2292", "2305", "2310"}
    assert MUSICNET.rows.keys() - em.rows.keys() == missing
    few = {i for i, row in em.rows.items() if int(row["notes"]) < 0.8 * int(MUSICNET.rows[i]["notes"])}  # fmt: skip
    (issue,) = (i for i in em.known_issues if i.id == "incomplete")
    assert few == set(issue.tracks)
    assert {"2466", "2477"} <= few
    assert em.rows["1727"]["labels"] == "musicnet_em/1727.mid"
    assert em.rows["1759"]["audio"] == MUSICNET.rows["1759"]["audio"] == "test_data/1759.wav"


def test_musicnets_labels_number_1089540_and_musicnet_ems_1067749():
    assert sum(int(row["notes"]) for row in MUSICNET.rows.values()) == 1_089_540
    assert sum(int(row["notes"]) for row in ALL["musicnet_em"].rows.values()) == 1_067_749


def test_musicnets_instrument_column_is_the_program_plus_one():
    assert all(int(code) == program + 1 for code, program in MUSICNET.programs.items())
    found = {p for row in MUSICNET.rows.values() for p in row["programs"].split()}
    assert found == {str(program) for program in MUSICNET.programs.values()}


def test_guitarsets_third_progressions_validate():
    rows = ALL["guitarset"].rows
    assert rows["00_Funk3-112-Csharp_comp"]["audio"].split(";") == [
        "audio_mono-mic/00_Funk3-112-C#_comp_mic.wav",
        "audio_mono-pickup_mix/00_Funk3-112-C#_comp_mix.wav",
    ]
    for row in rows.values():
        progression = re.fullmatch(r"\d\d_[A-Za-z]+(\d)-.*", row["name"])[1]
        assert row["split_mt3"] == ("validation" if progression == "3" else "train")


def test_two_excerpts_of_guitarset_are_moved_to_an_earlier_time():
    shifts = {i.tracks: i.shift_seconds for i in ALL["guitarset"].known_issues if i.action == "shift"}  # fmt: skip
    assert shifts == {("04_BN3-154-E_comp",): -0.409, ("04_Jazz1-200-B_comp",): -0.309}


def test_urmp_validates_with_the_papers_nine_pieces():
    chosen = division(ALL["urmp"], "mt3")["validation"]
    assert [int(i[:2]) for i in chosen] == [1, 2, 12, 13, 24, 25, 31, 38, 39]
    assert sum(len(row["labels"].split(";")) for row in ALL["urmp"].rows.values()) == 149
    assert Counter(len(r["labels"].split(";")) for r in ALL["urmp"].rows.values()) == {
        2: 11, 3: 12, 4: 14, 5: 7
    }  # fmt: skip


def test_urmps_mislabelled_part_is_listed_under_the_name_that_its_file_has():
    row = ALL["urmp"].rows["15_Surprise_tpt_tpt_tbn"]
    assert row["labels"].endswith("15_Surprise_tpt_tpt_tbn/Notes_3_tpt_15_Surprise.txt")
    assert row["programs"] == "56 56 57"


def test_urmp_is_fetched_file_by_file_from_a_copy_without_the_video():
    sources = [source for source in ALL["urmp"].sources if source.group == "urmp-files"]
    assert len(sources) == 44 + 149
    assert sources[0].url.endswith("/01_Jupiter_vn_vc/AuMix_01_Jupiter_vn_vc.wav")
    assert (sources[0].kind, sources[0].into) == ("file", "01_Jupiter_vn_vc")


def test_cerberus4_is_drawn_from_slakhs_files_and_splits():
    cerberus = ALL["cerberus4"]
    assert cerberus.sources == SLAKH.sources and cerberus.schemes == SLAKH.schemes
    assert cerberus.programs == {"Bass": 32, "Guitar": 24, "Piano": 0}
    assert dict(cerberus.layout) == dict(SLAKH.layout)


def test_non_commercial_sets_state_it_for_their_shards():
    for name in ("maestro_v1", "maestro_v2", "maestro_v3", "musicnet_em"):
        assert ALL[name].licence == "CC-BY-NC-SA-4.0"
        assert "non-commercial only" in ALL[name].redistribution


def test_all_track_lists_stay_small():
    lists = {m.rows_path for m in ALL.values() if m.rows_path}
    assert sum(path.stat().st_size for path in lists) < 600_000


# --- real files ----------------------------------------------------------------------------------


def sample(path: str) -> Path:
    if not (SAMPLES / path).exists():
        pytest.skip(f"no sample file {path} beside the checkout")
    return SAMPLES / path


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def test_real_files_of_musicnet_have_the_listed_checksums():
    folder = sample("musicnet")
    labels = sorted(folder.glob("t*_labels/*.csv"))
    assert len(labels) == 16
    for path in labels:
        row = MUSICNET.rows[path.stem]
        assert row["labels"] == f"{path.parent.name}/{path.name}"
        assert md5(path.read_bytes()) == row["md5_labels"]


def test_the_real_archive_of_musicnet_em_has_the_listed_checksums():
    path = sample("musicnet_em/musicnet_em.zip")
    em = ALL["musicnet_em"]
    assert (path.stat().st_size, md5(path.read_bytes())) == (em.sources[-1].bytes, em.sources[-1].md5)  # fmt: skip
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".mid")]
        found = {Path(name).stem: md5(archive.read(name)) for name in names}
    assert found == {track_id: row["md5_labels"] for track_id, row in em.rows.items()}


def test_real_files_of_guitarset_and_maestro_have_the_listed_checksums():
    jams = sample("guitarset/annotation/00_BN1-129-Eb_comp.jams")
    assert md5(jams.read_bytes()) == ALL["guitarset"].rows[jams.stem]["md5_labels"]
    row = ALL["maestro_v2"].rows["2018-df46fbe9"]
    midi = sample("maestro/mirdata_v2_excerpt") / row["labels"]
    assert md5(midi.read_bytes()) == row["md5_labels"]
