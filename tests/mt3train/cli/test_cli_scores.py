"""`mt3train evaluate` and `mt3train score`, as a user types them."""

import csv
import io
import json
import shutil
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from events import Pause, Point, environment, wait_for_end
from fakes import slakh_tree

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.music.midi import write_midi
from mt3data.music.notes import Notes
from mt3data.shards.windows import WindowConfig
from mt3train.cli.main import main
from mt3train.evaluation.evaluate import score_track
from mt3train.model import MT3, ModelConfig
from mt3train.transcription.decode import DecodingConfig
from mt3train.weights import checkpoint
from mt3train.weights.checkpoint import CheckpointInfo

TINY = ModelConfig(
    emb_dim=16, num_heads=1, head_dim=8, num_encoder_layers=1, num_decoder_layers=1, mlp_dim=16
)


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards/slakh (two test tracks), tiny.safetensors, and two MIDI files."""
    folder = tmp_path_factory.mktemp("scores")
    tracks = {"Track00001": "train", "Track01877": "test", "Track01878": "test"}
    slakh_tree(folder, "redux", tracks, seconds=2.5)
    windows = WindowConfig(frames=256)
    build(make_plan(BuildConfig("slakh", folder, folder / "shards", windows=windows)))
    info = CheckpointInfo(model=TINY, right_context="zeros", frames=256, max_target_length=8)
    checkpoint.save_weights(folder / "tiny.safetensors", MT3(TINY), info)
    there = Notes([0, 1, 2], [1, 2, 3], [60, 62, 36], [90] * 3, [0, 0, 0], [0, 0, 1], [0, 0, 9])
    found = Notes([0, 1], [1, 2], [60, 62], [90] * 2, [0, 24], [0, 0], [0, 1])
    write_midi(there, folder / "there.mid")
    write_midi(found, folder / "found.mid")
    write_midi(found[found.onset < 1], folder / "short.mid")
    return folder


def evaluate(made: Path, *words: object) -> Result:
    return run("evaluate", made / "shards", "--checkpoint", made / "tiny.safetensors", *words)


def test_two_files_are_compared_line_by_line(made: Path) -> None:
    result = run("score", made / "there.mid", made / "found.mid", "--part", "Guitar=24")
    assert result.exit_code == 0, result.output
    lines = {line.split("  ")[0].strip(): line.split() for line in result.stdout.splitlines()}
    assert lines["onset"][-4:] == ["1.000"] * 4
    assert lines["with program"][-4:] == ["0.500", "0.333", "0.400", "0.400"]
    assert lines["Guitar, onset"][-4:] == ["0.000"] * 4
    assert lines["drum onset"][-4:] == ["0.000"] * 4
    assert "leakage: 50.0 %" in result.stdout
    assert lines["Acoustic Grand Piano"][3:] == [
        "2", "1", "0.667", "0.667", "Acoustic", "Guitar", "(nylon)", "1",
    ]  # fmt: skip


def test_what_neither_file_holds_has_no_score_here_and_0_in_the_paper(made: Path) -> None:
    result = run("score", made / "found.mid", made / "found.mid")
    drums = next(line for line in result.stdout.splitlines() if line.startswith("drum onset"))
    assert drums.split()[-4:] == ["-", "-", "-", "0.000"]


def test_json_holds_both_scorings_and_the_instruments(made: Path) -> None:
    result = run("score", made / "there.mid", made / "found.mid", "--json")
    scores = json.loads(result.stdout)
    assert (scores["leakage"], scores["mt3"]["drum_f1"]) == (0.5, 0.0)
    assert [one["name"] for one in scores["instruments"]] == [
        "Acoustic Grand Piano", "Drums", "Acoustic Guitar (nylon)",
    ]  # fmt: skip


def test_note_ons_without_an_end_are_reported(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "open.mid"  # two note-ons at 0 and one note-off, 96 ticks later
    track = bytes.fromhex("00903c5a 00903e5a 60803c00 00ff2f00")
    file.write_bytes(b"MThd" + bytes.fromhex("00000006 0000 0001 0060 4d54726b") + struct.pack(">I", len(track)) + track)  # fmt: skip
    result = run("score", made / "there.mid", file)
    assert result.exit_code == 0
    assert f"{file}: ignored 1 note-on without an end" in result.stderr
    found = json.loads(run("score", made / "there.mid", file, "--json").stdout)
    assert found["note_ons_without_end"] == {"reference": 0, "estimate": 1}


def test_a_note_far_from_all_others_needs_little_memory(made: Path, tmp_path: Path) -> None:
    far = Notes([0, 86_000], [1, 86_001], [60, 60], [90] * 2, [0, 0], [0, 0], [0, 0])
    write_midi(far, tmp_path / "far.mid")
    tracemalloc.start()
    result = run("score", tmp_path / "far.mid", tmp_path / "far.mid", "--json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.exit_code == 0 and peak < 100e6
    assert json.loads(result.stdout)["frame_f1"] == 1


def test_results_of_a_build_are_not_reused_after_it_changed(made: Path, tmp_path: Path) -> None:
    out, shards = tmp_path / "scores.jsonl", tmp_path / "shards"
    shutil.copytree(made / "shards", shards)
    words = ["--checkpoint", made / "tiny.safetensors", "--out", out, "--tracks", 1]
    assert run("evaluate", shards, *words).exit_code == 0
    stored = out.read_bytes()
    path = shards / "slakh" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][-1]["sha256"] = "0" * 64  # other bytes, same fingerprint
    path.write_text(json.dumps(manifest))
    again = run("evaluate", shards, *words)
    assert again.exit_code == 2 and "version of the build" in again.stderr
    assert out.read_bytes() == stored


def test_a_foreign_file_is_refused_before_anything_is_decoded(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "diary.txt"
    out.write_text("dear diary")
    result = evaluate(made, "--out", out)
    assert result.exit_code == 2 and "line 1 is no result" in result.stderr
    assert out.read_text() == "dear diary"


def test_results_go_into_a_device_too(made: Path) -> None:
    done = evaluate(made, "--out", "/dev/null", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads(evaluate(made, "--json").stdout)
    assert Path("/dev/null").is_char_device()


def test_files_of_very_different_length_are_warned_of(made: Path) -> None:
    result = run("score", made / "there.mid", made / "short.mid")
    assert result.exit_code == 0
    assert "the reference ends at 3.0 s, the estimate at 1.0 s" in result.stderr


def test_a_build_is_scored_track_by_track_and_beside_the_paper(made: Path) -> None:
    result = evaluate(made)
    assert result.exit_code == 0, result.output
    assert "shards/slakh, split test" in result.stdout
    assert "Track01878" in result.stdout and "mean of tracks" in result.stdout
    assert result.stdout.splitlines()[-1].split() == ["MT3,", "published", "0.545"]


def test_published_weights_are_scored_by_their_name(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MT3KIT_CACHE", str(tmp_path))
    (tmp_path / "mt3.safetensors").write_bytes((made / "tiny.safetensors").read_bytes())
    by_name = run("evaluate", made / "shards", "--checkpoint", "mt3")
    assert by_name.exit_code == 0, by_name.output
    assert by_name.stdout == evaluate(made).stdout


def test_results_can_be_had_as_json_and_as_csv(made: Path) -> None:
    found = json.loads(evaluate(made, "--json").stdout)["slakh"]
    assert [track["track"] for track in found["tracks"]] == ["Track01877", "Track01878"]
    rows = list(csv.DictReader(io.StringIO(evaluate(made, "--csv", "--tracks", 1).stdout)))
    assert {row["track"] for row in rows} == {"Track01877"}
    assert {row["scoring"] for row in rows} == {"corrected", "mt3"}


def test_decoding_is_plain_unless_constrained_is_asked_for(made: Path, tmp_path, monkeypatch):
    used, out = [], tmp_path / "scores.jsonl"

    def spy(model, info, track, decoding, *rest):
        used.append(decoding)
        return score_track(model, info, track, decoding, *rest)

    monkeypatch.setattr("mt3train.evaluation.evaluate.score_track", spy)
    assert evaluate(made, "--tracks", 1, "--batch", 3, "--out", out).exit_code == 0
    again = evaluate(made, "--tracks", 1, "--constrained", "--out", out)
    assert again.exit_code == 2 and "another checkpoint, decoding" in again.stderr
    assert evaluate(made, "--tracks", 1, "--constrained").exit_code == 0
    assert used == [DecodingConfig(3), DecodingConfig(16, constrained=True)]


def test_an_evaluation_resumes_from_its_results(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    assert evaluate(made, "--out", out, "--tracks", 1).exit_code == 0
    first = out.read_text()
    again = evaluate(made, "--out", out, "--json")
    assert out.read_text().startswith(first)
    assert out.read_text().count("\n") == 2
    assert json.loads(again.stdout) == json.loads(evaluate(made, "--json").stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_evaluation_leaves_no_process_and_goes_on(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    words = ["evaluate", made / "shards", "--checkpoint", made / "tiny.safetensors", "--workers", 2,
             "--out", out]  # fmt: skip
    # Both workers load PyTorch when the driver is killed.
    with Pause(Point("open", r"/mt3train/(__pycache__/)?model\b.*\.pyc?$", "spawned")) as pause:
        driver = subprocess.Popen(
            [sys.executable, "-m", "mt3train.cli.main", *map(str, words)],
            env=environment(tmp_path / "hooks", pause),
        )
        workers = [pause.wait(driver) for _ in range(2)]
        driver.kill()
        driver.wait()
    wait_for_end(*workers)
    again = evaluate(made, "--workers", 2, "--out", out, "--json")
    assert json.loads(again.stdout) == json.loads(evaluate(made, "--json").stdout)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--out", "SHARDS"], "is a folder; name a file in it"),
        (["--out", "-"], "expected the name of a file or folder, not '-'"),
        (["--out", "none/a.jsonl"], "none does not exist; make it first"),
        (["--out", "MANIFEST"], "manifest.json is a file in the input"),
        (["--split", "tset"], "no split 'tset'"),
    ],
)
def test_a_mistake_of_evaluate_is_one_line(made: Path, words: list[str], complaint: str) -> None:
    (manifest,) = (made / "shards").rglob("manifest.json")
    paths = {"SHARDS": made / "shards", "MANIFEST": manifest}
    result = evaluate(made, *(paths.get(word, word) for word in words))
    assert (result.exit_code, complaint in result.stderr) == (2, True), result.output
    assert result.stderr.count("Error") == 1


@pytest.mark.parametrize("part", ["Bass", "Bass=", "=33", "Bass=300", "Bass=-1", "Bass=drum"])
def test_a_part_that_makes_no_sense_is_one_line(made: Path, part: str) -> None:
    result = run("score", made / "there.mid", made / "found.mid", "--part", part)
    assert result.exit_code == 2
    assert f"--part {part}: expected NAME=PROGRAM" in result.stderr
