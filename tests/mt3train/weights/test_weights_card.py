"""The demo weights' model card: measured by benchmarks/weights.py, written by weights_card.py."""

import json
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from fakes import slakh_tree
from test_demo_weights import packaged

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.music.vocabulary import VocabularyConfig, num_embeddings
from mt3data.shards.windows import WindowConfig
from mt3train.model import MT3, ModelConfig
from mt3train.weights.checkpoint import CheckpointInfo, checksum, save_weights, weights_path
from mt3train.weights.pretrained import CARD, FOLDER, SCORES

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
VOCABULARY = VocabularyConfig(granularity="midi_class")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import weights
    import weights_card

    return weights, weights_card


@packaged
def test_the_packaged_card_says_what_was_measured(scripts) -> None:
    _, weights_card = scripts
    measured = json.loads((FOLDER / SCORES).read_text())
    notes = weights_card.NOTES.read_text() if weights_card.NOTES.is_file() else ""
    assert (FOLDER / CARD).read_text() == weights_card.card(measured, notes)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Namespace:
    """What the script is given: two test pieces, their build, a run of one checkpoint."""
    folder = tmp_path_factory.mktemp("card")
    tracks = {"Track00001": "train", "Track00002": "test", "Track00003": "test"}
    pieces = slakh_tree(folder / "pieces", "demo", tracks, seconds=2.5)
    synth = {"tracks": 3, "seed": 7, "seconds": 2.5, "renderer": "none", "soundfont": "0abc"}
    (pieces / "synth.json").write_text(json.dumps(synth))
    windows = WindowConfig(vocabulary=VOCABULARY)
    build(make_plan(BuildConfig("demo", pieces, folder / "shards", windows=windows, subsets=2, min_stems=1)))  # fmt: skip
    run = folder / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(
        {"run": "/home/me/weights", "batch": 4, "model": {"emb_dim": 16}, "data": {"train": "/home/me/demo"}}
    ))  # fmt: skip
    lines = [{"step": 2, "loss": 3.0, "seconds": 3600.0}, {"step": 2, "eval_loss": 2.75},
             {"step": 3, "loss": 2.5, "seconds": 1800.0}]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.manual_seed(0)
    config = ModelConfig(num_embeddings(VOCABULARY), 16, 2, 8, 1, 1, 16)
    model = MT3(config).eval()
    info = CheckpointInfo(3, config, vocabulary=VOCABULARY, right_context="audio", frames=128, max_target_length=24)  # fmt: skip
    save_weights(weights_path(run, 3), model, info)
    save_weights(folder / "demo.safetensors", model, info, half=True)
    return Namespace(
        weights=folder / "demo.safetensors", out=folder / "out", pieces=pieces, run=[run], full=None,
        shards=folder / "shards" / "demo", tracks=2, controls=1, solo=1, hours=0.0, batch=2, again=[],
    )  # fmt: skip


def test_what_is_measured_is_kept_for_the_same_weights_and_written_as_a_card(
    scripts, given: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, weights_card = scripts
    weights.measure(given)
    path = given.out / SCORES
    measured = json.loads(path.read_text())
    assert measured["test"]["n_tracks"] == 2 and measured["backwards"]["n_tracks"] == 1
    assert measured["weights"]["sha256"] == checksum(
        weights.load_model(given.weights)[0].state_dict()
    )
    (run,) = measured["training"]
    assert (run["hours"], run["steps"], run["segments"]) == (1.5, 3, 12)
    assert run["settings"] == {"run": "runs/weights", "batch": 4, "model.emb_dim": 16, "data.train": "shards/demo"}  # fmt: skip
    text = (given.out / CARD).read_text()
    assert "/home/me" not in text
    assert "mt3data synth --out data/demo --tracks 3 --seconds 2.5 --seed 7" in text
    assert (
        "mt3data build demo --out shards/ --granularity midi_class --subsets 2 --min-stems 1\n"
        in text
    )
    assert '[model]\nemb_dim = 16\n\n[data]\ntrain = "shards/demo"' in text
    capsys.readouterr()
    path.write_text(json.dumps(measured | {"machine": measured["machine"] | {"kept": True}}))
    weights.measure(given)
    assert json.loads(path.read_text())["machine"]["kept"]
    assert capsys.readouterr().err == ""  # nothing was measured again


def test_the_card_shows_the_scores_in_its_tables(scripts) -> None:
    _, weights_card = scripts
    one = {"name": "Piano", "n_tracks": 3, "n_reference": 200, "n_estimate": 180, "onset_f1": 0.5,
           "onset_precision": 0.6, "onset_recall": 0.4, "onset_offset_f1": None,
           "heard_as": {"Guitar": 50, "Organ": 1}}  # fmt: skip
    assert weights_card.instruments({"instruments": [one]}).endswith(
        "| Piano | 3 | 200 | 0.600 | 0.400 | 0.500 | - | Guitar 25 % |\n"
    )
    tracks = [{"parts": p, **dict.fromkeys(weights_card.ROWS.values(), v)} for p, v in ((4, 0.5), (5, None), (4, 0.7))]  # fmt: skip
    lines = weights_card.by_parts({"test": {"tracks": tracks}}).splitlines()
    assert lines[-2:] == ["| 4 | 2" + " | 0.600" * 6 + " |", "| 5 | 1" + " | -" * 6 + " |"]
    score = {"mean": 0.5, "interval": [0.25, 0.75]}
    assert weights_card.mean_and_interval(score) == "0.500 [0.250, 0.750]"
