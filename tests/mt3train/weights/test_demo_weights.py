"""The weights that come with the package: what is said of them, and that the files fit together."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner, Result

from mt3data.music.vocabulary import VocabularyConfig, num_embeddings
from mt3train.cli.main import main
from mt3train.model import MT3, ModelConfig
from mt3train.weights import pretrained as demo_weights
from mt3train.weights.checkpoint import CheckpointInfo, checksum, load_model, save_weights
from mt3train.weights.pretrained import CARD, FOLDER, MAX_BYTES, WEIGHTS


def record(path: Path) -> Path:
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 8000), 16000)
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words)])


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation whose demo weights are those of a tiny model."""
    folder = tmp_path / "weights"
    folder.mkdir()
    vocabulary = VocabularyConfig(granularity="midi_class")
    torch.manual_seed(0)
    config = ModelConfig(num_embeddings(vocabulary), 16, 2, 8, 1, 1, 16)
    info = CheckpointInfo(model=config, vocabulary=vocabulary, max_target_length=16)
    save_weights(folder / WEIGHTS, MT3(config), info, half=True)
    monkeypatch.setattr(demo_weights, "FOLDER", folder)
    return folder


def test_without_a_checkpoint_the_demo_weights_are_taken_and_said_to_be(tmp_path, installed):
    song = record(tmp_path / "song.wav")
    done = run("transcribe", song, "-o", tmp_path / "a.json")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("\n") == 1
    assert demo_weights.ABOUT in done.stderr and str(installed / CARD) in done.stderr
    named = run("transcribe", song, "-o", tmp_path / "b.json", "--checkpoint", installed / WEIGHTS)
    assert named.exit_code == 0 and named.stderr == ""
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def test_where_there_are_none_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_weights, "FOLDER", tmp_path / "nowhere")
    done = run("transcribe", record(tmp_path / "song.wav"), "-o", tmp_path / "a.mid")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "comes without demo weights" in done.stderr and "--checkpoint" in done.stderr


def test_a_page_tells_the_limits_of_the_demo_weights_alone(tmp_path, installed):
    song, page = record(tmp_path / "song.wav"), tmp_path / "a.html"
    limits = "0 updates. A small model trained on rendered pieces alone: expect mistakes</p>"
    for words, told in (([], True), (["--checkpoint", installed / WEIGHTS], False)):
        done = run("transcribe", song, "-o", page, *words)
        assert done.exit_code == 0, done.output
        assert (limits in page.read_text()) == told


# --- the packaged files --------------------------------------------------------------------------

packaged = pytest.mark.skipif(
    not (FOLDER / WEIGHTS).is_file(), reason="the demo weights are not in the package yet"
)


@packaged
def test_the_packaged_weights_are_small_and_in_half_precision():
    from safetensors import safe_open

    assert (FOLDER / WEIGHTS).stat().st_size <= MAX_BYTES
    with safe_open(FOLDER / WEIGHTS, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118


@packaged
def test_the_model_card_and_the_line_about_it_state_the_facts_of_the_packaged_weights():
    model, info = load_model(FOLDER / WEIGHTS)
    tensors = model.state_dict()
    n_parameters = sum(tensor.numel() for tensor in tensors.values())
    card = (FOLDER / CARD).read_text(encoding="utf-8")
    facts = (f"`{checksum(tensors)}`", f"{(FOLDER / WEIGHTS).stat().st_size:,} bytes", f"step {info.step:,}",
             f"{n_parameters:,} parameters", "| 86.1 / 34.4 / 54.6 |", "| 68.0 / ", "| 64.5 / ")  # fmt: skip
    assert [fact for fact in facts if fact not in card] == []
    assert f"({n_parameters / 1e6:.1f} million parameters)" in demo_weights.ABOUT
    assert "0.86 on real close piano, 0.68 on ambient piano, 0.64 on quartets" in demo_weights.ABOUT
