"""mt3data.datasets.documents and what adapters make of damaged metadata of publishers."""

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import slakh_tree
from fakes_listed import write_jams
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt3data.datasets import manifest
from mt3data.datasets.adapters import maestro, slakh
from mt3data.datasets.adapters.guitarset import JamsLabels
from mt3data.datasets.adapters.musicnet import CsvLabels
from mt3data.datasets.adapters.urmp import PartLabels
from mt3data.datasets.documents import read_csv, read_json, read_text, read_yaml
from mt3data.datasets.listing import text
from mt3data.errors import UserError

FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([-1, 0, 128, 1e300, "S00", "0", "train"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, document: Any) -> Any:
    """A document in which one value, at any depth, is another one or missing."""
    if draw(st.integers(0, 3)) == 0 or not isinstance(document, (dict, list)) or not document:
        return draw(VALUES)
    keys = list(document) if isinstance(document, dict) else range(len(document))
    key = draw(st.sampled_from(keys))
    copy = document.copy()
    if draw(st.integers(0, 5)) == 0:
        del copy[key]
    else:
        copy[key] = draw(damaged(document[key]))
    return copy


def one_line(error: UserError, name: str) -> bool:
    return "\n" not in str(error) and name in str(error)


@pytest.mark.parametrize(
    ("read", "text", "fault"),
    [
        (read_json, "[" * 100_000, "nested too deeply"),
        (read_json, "[1,", "not valid JSON"),
        (read_json, "[" + "[]," * 500_000 + "[]]", "more than 500,000 values"),
        (read_yaml, "- " * 200_000, "levels deep"),
        (read_yaml, "[" * 200_000, "not valid YAML"),
        (read_yaml, "a: 2026-99-99", "not valid YAML"),
        (read_yaml, "a: [1", "not valid YAML"),
        (read_text, " " * ((16 << 20) + 1), "more than 16,777,216 bytes"),
    ],
)
def test_a_damaged_document_is_one_line_that_names_the_file(tmp_path, read, text, fault):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=fault) as error:
        read(tmp_path / "a.txt")
    assert one_line(error.value, "a.txt")


def test_what_is_no_text_or_no_file_is_one_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_text(tmp_path / "a.txt")
    with pytest.raises(UserError, match="a folder; expected a file"):
        read_text(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('a,b\n1,"2\n3,4\n', "row 2 is not valid CSV"),
        ("a,b\n1\n", "row 2 ends early"),
        ("a,c\n1,2\n", "expected columns a,b"),
        ("", "expected columns a,b"),
        ('a,b\n1,"' + "x" * 200_000 + '"\n', "not valid CSV"),
    ],
)
def test_a_damaged_table_names_its_row(tmp_path, text, fault):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=fault) as error:
        list(read_csv(tmp_path / "a.csv", ("a", "b")))
    assert one_line(error.value, "a.csv")


def test_a_line_break_in_a_quoted_field_stays_in_it(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\r\n1,"2\n3"\r\n')
    assert list(read_csv(tmp_path / "a.csv", ("a", "b"))) == [(3, {"a": "1", "b": "2\n3"})]


# --- adapters ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("songs")
    slakh_tree(root, "redux", {"Track00001": "train", "Track00002": "train"}, seconds=0.2)
    return root


def damage_metadata(songs: Path, change: Any) -> list[Any]:
    """Writes the metadata.yaml of the first track, changed, and returns both tracks."""
    path = next(songs.rglob("Track00001/metadata.yaml"))
    whole = path.read_bytes()
    try:
        path.write_text(yaml.safe_dump(change(yaml.safe_load(whole))))
        return list(slakh.tracks(songs, manifest.load("slakh")))
    finally:
        path.write_bytes(whole)


def intact(songs: Path) -> Any:
    return list(slakh.tracks(songs, manifest.load("slakh")))[1]


def test_a_stem_described_by_null_loses_its_label_alone(songs):
    def change(content):
        content["stems"]["S01"] = None
        return content

    first, second = damage_metadata(songs, change)
    assert "S01" not in [stem.id for stem in first.stems] and len(first.stems) >= 2
    assert (
        "S01: metadata.yaml has a NoneType for it, expected a mapping; no label" in first.problems
    )
    assert not first.failure and second == intact(songs)


def test_a_number_as_the_key_of_a_stem_is_reported(songs):
    def change(content):
        content["stems"][0] = content["stems"].pop("S00")
        return content

    first, second = damage_metadata(songs, change)
    assert "S00: not in metadata.yaml, so its program is unknown; no label" in first.problems
    assert "0: neither audio nor MIDI" in first.problems
    assert second == intact(songs)


@FUZZ
@given(data=st.data())
def test_damaged_metadata_of_a_song_costs_that_song_alone(songs, data):
    first, second = damage_metadata(songs, lambda content: data.draw(damaged(content)))
    assert second == intact(songs)
    assert first.failure or first.stems


@FUZZ
@given(data=st.data())
def test_damaged_jams_are_one_line_or_notes(tmp_path, data):
    write_jams(path := tmp_path / "x.jams", [(0, 0.5, 0.25, 60.1), (5, 1.0, 0.25, 40.0)])
    content = data.draw(damaged(json.loads(path.read_text())))
    path.write_text(json.dumps(content))
    try:
        notes, _ = JamsLabels(path).load()
    except UserError as error:
        assert one_line(error, "x.jams")
    else:
        assert ((notes.pitch >= 0) & (notes.pitch <= 127)).all()
        assert ((notes.onset >= 0) & (notes.offset <= 86400)).all()


CELLS = st.sampled_from(["", "0", "1", "-5", "44100", "90000", "60", "999", "1e9", "9" * 30, '"', "x",
                         "nan", "inf", "٣", "\x00"])  # fmt: skip


@FUZZ
@given(rows=st.lists(st.lists(CELLS, min_size=3, max_size=6), max_size=4))
def test_damaged_csv_labels_are_one_line_or_notes(tmp_path, rows):
    lines = ["start_time,end_time,instrument,note", *(",".join(row) for row in rows)]
    (tmp_path / "1.csv").write_text("\n".join(lines))
    (tmp_path / "1.txt").write_text("\n".join("\t".join(row) for row in rows))
    for labels in (CsvLabels(tmp_path / "1.csv"), PartLabels((tmp_path / "1.txt",), (40,))):
        try:
            notes, _ = labels.load()
        except UserError as error:
            assert one_line(error, labels.files[0].name)
        else:
            assert (notes.offset <= 86400).all() and (
                (notes.pitch >= 0) & (notes.pitch <= 127)
            ).all()


@FUZZ
@given(data=st.data())
def test_a_damaged_table_of_maestro_is_one_line_or_a_table(tmp_path, data):
    columns = {"midi_filename": {"0": "2004/a.midi"}, "split": {"0": "train"}}
    rows = [{"midi_filename": "2004/a.midi", "split": "train"}]
    content = data.draw(damaged(columns) | damaged(rows))
    (tmp_path / "maestro-v3.0.0.json").write_text(json.dumps(content))
    try:
        found = maestro.read_table(tmp_path)
    except UserError as error:
        assert one_line(error, "maestro-v3.0.0.json")
    else:
        assert all(isinstance(text, str) for pair in found.items() for text in pair)


# --- manifests of datasets -----------------------------------------------------------------------

SMALL = ("guitarset", "urmp", "musicnet_em", "demo", "folder")  # with short tables, or with none


def to_toml(value: Any) -> str:
    """Writes a value in one line of TOML, which has no null."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(k)} = {to_toml(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(to_toml(one) for one in value if one is not None) + "]"
    if isinstance(value, float):
        return repr(value)  # nan and inf are TOML, too
    return json.dumps(value).replace("\x7f", "\\u007f")


@pytest.fixture
def manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the manifests, which the package reads from now on."""
    shutil.copytree(manifest._folder(), tmp_path / "manifests")
    monkeypatch.setattr(manifest, "_folder", lambda: tmp_path / "manifests")
    return tmp_path / "manifests"


@pytest.fixture(scope="module")
def demo_piece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slakh_tree(tmp_path_factory.mktemp("demo"), "demo", {"Track00001": "train"}, seconds=0.2)


def use(name: str, songs: Path) -> None:
    """Reads all that commands read of a manifest; a UserError is one line that names a file."""
    try:
        found = manifest.load(name)
        assert text(found)
        if name == "demo":
            assert all(track.id == "Track00001" for track in slakh.tracks(songs, found))
        assert len(found.rows) < 1000
        found.scheme()
        found.open_questions()
        assert found.label_program(0) is None or 0 <= found.label_program(0) < 128
        assert 0 <= found.hours < 1e7
        for source in found.sources:
            assert source.urls and manifest.safe_name(source.id, "") == source.id
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        assert re.search(r"\.(toml|csv): |no dataset '|holds no .* tracks", str(error))


def test_a_manifest_that_names_a_table_that_is_not_there_is_named(manifests):
    path = manifests / "urmp.toml"
    path.write_text(path.read_text().replace('rows = "urmp.csv"', 'rows = "0"'))
    with pytest.raises(UserError, match=r"^manifest urmp\.toml: rows is '0'; expected the name"):
        assert manifest.load("urmp").rows


@settings(FUZZ, max_examples=1000)
@given(data=st.data(), name=st.sampled_from(SMALL))
def test_any_manifest_of_a_dataset_is_read_or_refused_in_one_line(
    manifests, demo_piece, data, name
):
    path = manifests / f"{name}.toml"
    whole = path.read_text()
    try:
        changed = data.draw(damaged(tomllib.loads(whole)))
        lines = changed.items() if isinstance(changed, dict) else [("x", changed)]
        text = "".join(f"{json.dumps(k)} = {to_toml(v)}\n" for k, v in lines if v is not None)
        path.write_text(text, encoding="utf-8", errors="replace")
        use(name, demo_piece)
    finally:
        path.write_text(whole)


@settings(FUZZ, max_examples=500)
@given(
    data=st.data(),
    name=st.sampled_from([f"{n}.toml" for n in SMALL] + ["guitarset.csv", "urmp.csv"]),
)
def test_a_manifest_or_table_with_changed_bytes_is_read_or_refused_in_one_line(
    manifests, demo_piece, data, name
):
    path = manifests / name
    whole = path.read_bytes()
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))])
    for place, byte in data.draw(
        st.lists(
            st.tuples(st.integers(0, len(whole)), st.sampled_from(b'\0"\n,[]{}=;./\\\xff\x1b9')),
            max_size=3,
        )
    ):
        content[place : place + 1] = bytes([byte])
    try:
        path.write_bytes(content)
        use(Path(name).stem, demo_piece)
    finally:
        path.write_bytes(whole)
