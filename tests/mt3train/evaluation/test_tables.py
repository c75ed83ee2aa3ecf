"""mt3train.evaluation.tables: tables, JSON, CSV, intervals, and a file that resumes."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig
from mt3train.evaluation.evaluate import TrackScores
from mt3train.evaluation.leakage import InstrumentScores
from mt3train.evaluation.note_matching import Counts
from mt3train.evaluation.tables import (
    ResultsFile,
    dataset_table,
    from_record,
    identity,
    interval,
    to_csv,
    to_json,
    to_record,
    track_table,
)
from mt3train.model import MT3, ModelConfig
from mt3train.transcription.decode import DecodingConfig
from mt3train.weights.checkpoint import CheckpointInfo

NAMES = ("onset_f1", "onset_offset_f1", "program_f1", "program_full_f1", "frame_f1", "leakage")
NAN = float("nan")


def scored(track: str, value: float, drums: float = NAN) -> TrackScores:
    scores = dict.fromkeys(NAMES, value) | {"drum_f1": drums}
    piano = InstrumentScores(0, Counts(3, 4, 5), Counts(2, 4, 5), {33: 1})
    drum = InstrumentScores(-1, Counts(1, 1, 1), None)
    both = {"corrected": scores, "mt3": scores | {"drum_f1": 0.0}}
    return TrackScores(track, both, [piano, drum], 10, 9, 1, 0, 0)


TWO = [scored("a", 0.5, drums=0.5), scored("b", 0.75)]


def test_the_table_shows_each_track_and_the_mean_of_those_that_have_a_score():
    lines = [line.split() for line in track_table(TWO).splitlines()]
    assert lines[1] == ["a", *["0.500"] * 6, "10", "9", "0", "0"]
    assert lines[2] == ["b", *["0.750"] * 3, "-", *["0.750"] * 2, "10", "9", "0", "0"]
    assert lines[3] == ["mean", "of", "tracks", *["0.625"] * 3, "0.500", *["0.625"] * 2]


def test_published_numbers_stand_beside_ours_where_the_dataset_is_the_papers():
    lines = dataset_table({"slakh": TWO, "demo": TWO}, "test").splitlines()
    assert lines[0].split() == ["slakh", "demo"]
    assert lines[1].split() == ["onset", "F1", "0.625", "[0.500,", "0.750]", "0.625", "[0.500,", "0.750]"]  # fmt: skip
    assert lines[2].split() == ["MT3,", "published", "0.759", "-"]
    assert lines[6].split() == ["MT3,", "published", "0.545", "-"]
    assert "published" not in dataset_table({"demo": TWO}, "test")
    assert "published" not in dataset_table({"slakh": TWO}, "validation")
    assert "0.895" in dataset_table({"guitarset": TWO}, "validation")


def test_an_interval_holds_the_mean_in_19_of_20_samples():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = interval(random.normal(0.5, 0.1, 40))
        held += low <= 0.5 <= high
    assert 180 <= held <= 198


def test_intervals_leave_out_what_is_no_number_and_are_the_same_each_time():
    values = np.array([0.1, 0.5, NAN, 0.9])
    assert interval(values) == interval(values[[0, 1, 3]]) == interval(values)
    assert all(map(math.isnan, interval(np.array([NAN]))))
    assert interval(np.array([0.25])) == (0.25, 0.25)


def test_json_has_both_scorings_the_published_numbers_and_every_track():
    found = json.loads(json.dumps(to_json({"slakh": TWO}, "test"), allow_nan=False))["slakh"]
    assert found["corrected"]["drum_f1"] == {"mean": 0.5, "interval": [0.5, 0.5]}
    assert found["mt3"]["drum_f1"]["mean"] == 0
    assert found["published"] == {
        "onset_f1": 0.759, "onset_offset_f1": 0.573, "program_full_f1": 0.545,
    }  # fmt: skip
    assert [track["track"] for track in found["tracks"]] == ["a", "b"]
    assert found["tracks"][1]["scores"]["corrected"]["drum_f1"] is None


def test_csv_has_a_line_for_each_track_scoring_and_score():
    rows = list(csv.DictReader(io.StringIO(to_csv({"slakh": TWO}))))
    assert len(rows) == 2 * 2 * 7
    wanted = {
        "build": "slakh",
        "track": "b",
        "scoring": "corrected",
        "score": "drum_f1",
        "value": "",
    }
    assert wanted in rows
    assert {row["value"] for row in rows if row["score"] == "onset_f1"} == {"0.5", "0.75"}


def test_a_track_survives_the_way_to_json_and_back():
    record = json.loads(json.dumps(to_record(TWO[1]), allow_nan=False))
    again = from_record(record)
    assert to_record(again) == to_record(TWO[1])
    assert again.instruments == TWO[1].instruments
    assert math.isnan(again.scores["corrected"]["drum_f1"])


def records(file: ResultsFile, build: str = "slakh") -> dict[str, dict]:
    """Returns what a file holds, NaN as None, so that it can be compared."""
    return {track: to_record(result) for track, result in file.done[build].items()}


def open_results(path: Path, identity: str = "ours", build: str = "slakh") -> ResultsFile:
    return ResultsFile(path, {build: identity})


@pytest.mark.parametrize("cut", [1, 30, 500])
def test_results_resume_after_a_kill_cut_the_last_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "results.jsonl"
    file = open_results(path)
    for track in TWO:
        file.add("slakh", track)
    path.write_bytes(path.read_bytes()[:-cut])  # inside the second line
    again = open_results(path)
    assert records(again) == {"a": to_record(TWO[0])}
    again.add("slakh", TWO[1])
    whole = open_results(path)
    assert records(whole) == {"a": to_record(TWO[0]), "b": to_record(TWO[1])}


def test_a_file_holds_several_builds_but_one_version_of_each(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    open_results(path).add("slakh", TWO[0])
    both = ResultsFile(path, {"slakh": "ours", "urmp": "others"})
    assert (list(both.done["slakh"]), both.done["urmp"]) == (["a"], {})
    with pytest.raises(UserError, match="holds results on slakh of another checkpoint"):
        open_results(path, "others")


FOREIGN = ["no json\n", "[1]\n", "null\n", '{"identity": "ours", "build": "x"}\n', "no line end",
           '{"a": 1}', "[" * 100_000 + "\n", '{"build": "slakh", "identity": "ours", "result": 3}\n']  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
def test_a_foreign_file_is_refused_and_not_changed(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(UserError, match="line 1 is no result"):
        open_results(path)
    assert path.read_text() == content


def test_a_cut_line_after_foreign_lines_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    open_results(path).add("slakh", TWO[0])
    content = path.read_bytes() + b'{"build": "sl'
    path.write_bytes(content)
    with pytest.raises(UserError, match="another checkpoint"):
        open_results(path, "others")
    assert path.read_bytes() == content


def test_results_depend_on_weights_settings_build_and_split() -> None:
    tiny = ModelConfig(emb_dim=16, num_heads=1, head_dim=8, num_encoder_layers=1,
                       num_decoder_layers=1, mlp_dim=16)  # fmt: skip
    one, other, info = MT3(tiny), MT3(tiny), CheckpointInfo()
    build = {"fingerprint": "f", "shards": [{"name": "test-0.tar", "sha256": "0a"}]}
    known = identity(one, info, build, "test")
    assert identity(one, replace(info, step=9), build, "test") == known
    changed = {
        identity(other, info, build, "test"), identity(one, info, build, "train"),
        identity(one, replace(info, vocabulary=VocabularyConfig(granularity="flat")), build, "test"),
        identity(one, replace(info, frames=128), build, "test"),
        identity(one, info, build | {"fingerprint": "g"}, "test"),
        identity(one, info, build | {"shards": [{"name": "test-0.tar", "sha256": "0b"}]}, "test"),
        identity(one, info, build, "test", DecodingConfig(constrained=True)),
        identity(one, info, build, "test", DecodingConfig(precision="bf16")),
    }  # fmt: skip
    assert len(changed | {known}) == 9
