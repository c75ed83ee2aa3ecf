"""The commands of mt3train with wrong input. tests/repository/test_first_page.py runs the whole demo."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.music.midi import write_midi
from mt3data.music.notes import Notes
from mt3data.music.vocabulary import VocabularyConfig
from mt3train.cli.main import main
from mt3train.model import MT3, ModelConfig
from mt3train.weights import checkpoint
from mt3train.weights.checkpoint import CheckpointInfo

TINY = ModelConfig(
    emb_dim=16, num_heads=1, head_dim=8, num_encoder_layers=1, num_decoder_layers=1, mlp_dim=16
)


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    info = CheckpointInfo(
        model=TINY,
        spectrogram=SpectrogramConfig(),
        vocabulary=VocabularyConfig(),
        right_context="zeros",
        frames=256,
        max_target_length=24,
    )
    checkpoint.save_weights(path, MT3(TINY), info)
    return path


def sine(path: Path, seconds: float = 0.5) -> Path:
    soundfile.write(path, 0.1 * np.sin(np.arange(int(16000 * seconds)) / 9), 16000)
    return path


def test_recordings_become_midi_files_and_a_bad_one_does_not_stop_the_rest(
    weights: Path, tmp_path: Path
) -> None:
    good, bad = sine(tmp_path / "good.wav"), tmp_path / "bad.wav"
    bad.write_text("no audio")
    result = run("transcribe", bad, good, "--checkpoint", weights, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.mid"]
    assert "bad.wav: not audio" in result.stderr
    assert "1 of 2 recordings could not be transcribed" in result.stderr


def test_scores_of_equal_files_are_one(tmp_path: Path) -> None:
    notes = Notes([0.1, 0.5], [0.4, 0.9], [60, 36], [90, 90], [0, 0], [False, True], [0, 9])
    write_midi(notes, tmp_path / "a.mid")
    result = run("score", tmp_path / "a.mid", tmp_path / "a.mid", "--json")
    scores = json.loads(result.stdout)
    assert {name: scores[f"{name}_f1"] for name in ("onset", "frame", "program_full", "drum")} == {
        "onset": 1.0, "frame": 1.0, "program_full": 1.0, "drum": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["transcribe", "GOOD", "--checkpoint", "nowhere", "-o", "a.mid"],
            "nowhere: no such file; expected",
        ),
        (["transcribe", "GOOD", "--checkpoint", "GOOD", "-o", "a.mid"], "no .safetensors file"),
        (["transcribe", "gone.wav", "--checkpoint", "WEIGHTS", "-o", "a.mid"], "no such file"),
        (
            ["transcribe", "GOOD", "--checkpoint", "WEIGHTS", "-o", "a.mid", "--batch", "0"],
            "--batch",
        ),
        (["transcribe", "GOOD", "GOOD", "--checkpoint", "WEIGHTS", "-o", "x"], "would both become"),
        (["evaluate", "nowhere", "--checkpoint", "WEIGHTS"], "no such folder"),
        (["score", "gone.mid", "gone.mid"], "cannot be read"),
        (["train", "demo.toml", "optim.lrr=1"], "did you mean optim.lr?"),
        (["train", "demo.toml", "data.train=nowhere"], "no such folder"),
        (["train", "data.train=none/*"], "make one with `mt3data build demo --out shards/`"),
        (["train", "nowhere.toml"], "no configuration file nowhere.toml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], complaint: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"GOOD": str(sine(tmp_path / "good.wav")), "WEIGHTS": str(weights)}
    result = run(*(names.get(word, word) for word in words))
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("gpus", "workers", "processes"), [(0, 2, 2), (0, 3, 3), (1, 2, 1), (2, 2, 2), (8, 2, 2)]
)
def test_training_starts_at_most_one_process_for_each_gpu(
    gpus: int, workers: int, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        """Lets every command but the training succeed without running it."""
        commands.append(words)
        return subprocess.CompletedProcess(words, int("torch.distributed.run" in words))

    commands: list[list[str]] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr(subprocess, "run", refuse)
    result = run("demo", "--out", tmp_path, "--workers", workers)
    assert result.exit_code == 2
    assert f"--nproc_per_node={processes}" in commands[-1]
    assert [words[words.index("--workers") + 1] for words in commands if "--workers" in words] == [
        str(workers), str(workers),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["learned.mid", "learned-reference.mid", "control.mid", "control-reference.mid"]
)
def test_the_demo_replaces_no_file_of_the_user(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"my own")
    result = run("demo", "--out", tmp_path)
    assert result.exit_code == 2 and f"{name} exists and was not written by" in result.stderr
    assert (tmp_path / name).read_bytes() == b"my own"
    assert len(list(tmp_path.iterdir())) == 1  # before any work
