"""Training on real shards, by the command that the documentation gives."""

import subprocess
import sys
from pathlib import Path

import fakes
import pytest
from events import HANG_SECONDS
from worlds import metrics

import mt3train.train
from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig
from mt3data.shards.windows import WindowConfig
from mt3train.config import load_config
from mt3train.train import main, train
from mt3train.weights.checkpoint import load_model

TINY = [
    "steps=2", "batch=4", "micro_batch=1", "log_every=1", "eval_every=2", "precision=float32",
    "model.emb_dim=8", "model.num_heads=1", "model.mlp_dim=8", "model.num_encoder_layers=1",
    "model.num_decoder_layers=1", "optim.warmup_steps=0", "threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"Track00001": "train", "Track00002": "train", "Track00003": "validation"}
    root = fakes.slakh_tree(tmp_path_factory.mktemp("source"), "demo", splits, seconds=3.0)
    out = tmp_path_factory.mktemp("shards")
    build(make_plan(BuildConfig("demo", root, out, windows=WindowConfig(256))))
    return out


def test_torchrun_with_two_processes_trains_as_one_process_does(shards, tmp_path):
    arguments = ["demo.toml", f"data.train={shards}/*", *TINY]
    script = Path(mt3train.train.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*command, script, *arguments, f"run={tmp_path}/two"], check=True, timeout=HANG_SECONDS
    )
    train(load_config([*arguments, f"run={tmp_path}/one"]))
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["step"] for line in one] == [1, 2, 2] and one[2]["eval_loss"] > 0
    for ours, expected in zip(two, one, strict=True):
        assert ours == pytest.approx(expected, rel=1e-5)
    _, info = load_model(tmp_path / "two")
    assert (info.step, info.right_context, info.frames, info.model.n_mels) == (2, "zeros", 256, 512)


def test_a_run_that_is_further_than_it_was_asked_for_says_so(shards, tmp_path, capsys):
    options = ["demo.toml", f"data.train={shards}", *TINY, f"run={tmp_path}"]
    train(load_config([*options, "steps=2"]))
    assert capsys.readouterr().err.endswith("checkpoint-00000002.safetensors: done\n")
    train(load_config([*options, "steps=1"]))
    said = capsys.readouterr().err
    assert "steps 2 to 2 of" in said
    assert "already has 2 steps" in said


def test_a_run_in_a_place_of_a_file_is_one_line_and_exit_code_2(
    shards, tmp_path, monkeypatch, capsys
):
    (tmp_path / "run").write_text("precious")
    options = ["demo.toml", f"data.train={shards}", *TINY, f"run={tmp_path}/run"]
    monkeypatch.setattr(sys, "argv", ["train.py", *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "File exists; choose another path" in capsys.readouterr().err


@pytest.mark.parametrize(
    "windows, message",
    [
        (
            WindowConfig(256, vocabulary=VocabularyConfig(127)),
            "num_velocity_bins: 127 in .*other/demo, 1 in the",
        ),
        (WindowConfig(256, "audio"), "right_context: audio in .*, zeros in the training shards"),
        (
            WindowConfig(512),
            "records of 512 frames with right_context 'zeros' cannot be cut to 256",
        ),
    ],
)
def test_evaluation_shards_of_other_settings_are_refused_at_once(
    shards, tmp_path, windows, message
):
    root = fakes.slakh_tree(tmp_path, "demo", {"Track00003": "validation"}, seconds=3.0)
    build(make_plan(BuildConfig("demo", root, tmp_path / "other", windows=windows)))
    options = [f"data.train={shards}", f"data.eval={tmp_path}/other", f"run={tmp_path}/run"]
    with pytest.raises(UserError, match=message):
        train(load_config(["demo.toml", *TINY, *options]))
    assert not (tmp_path / "run").exists()


def test_a_split_that_no_build_has_means_no_evaluation_and_is_said(shards, tmp_path, capsys):
    train(load_config(["demo.toml", f"data.train={shards}", *TINY, f"run={tmp_path}",
                       "data.eval_split=late", "steps=1"]))  # fmt: skip
    assert "no build has tracks in split 'late': no evaluation" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argument, message",
    [
        ("optim.lrr=1", "Error: command line: unknown key optim.lrr; did you mean optim.lr?"),
        ("data.split=late", "has no split 'late'; it has train, validation"),
        (
            "data.frames=128",
            "records of 256 frames with right_context 'zeros' cannot be cut to 128",
        ),
        ("batch=0", "Error: batch=0; expected 1 to"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    shards, tmp_path, monkeypatch, capsys, argument, message
):
    options = ["demo.toml", f"data.train={shards}", *TINY, f"run={tmp_path}", argument]
    monkeypatch.setattr(sys, "argv", ["train.py", *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error")]
    assert stopped.value.code == 2
    assert len(lines) == 1 and message in lines[0]
