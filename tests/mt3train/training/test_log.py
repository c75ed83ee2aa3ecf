"""What a run writes about itself."""

import json
import sys

import pytest
import torch
from worlds import TIMES, Made, config

from mt3train.train import train
from mt3train.training.logger import Log, read_metrics

CPU = torch.device("cpu")


def test_a_line_every_few_steps_holds_all_that_one_watches(tmp_path):
    train(config(tmp_path, eval_every=6), Made(), Made())
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 6]
    assert set(lines[0]) == {"step", "loss", "accuracy", "lr", "gradient_norm", "tokens",
                             "skipped", "overflows", *TIMES}  # fmt: skip
    assert set(lines[3]) == {"step", "eval_loss", "eval_accuracy"}
    assert 0 <= lines[0]["data_wait"] <= 1 and 0.05 < lines[0]["memory_gb"] < 50


def test_the_line_for_people_says_the_same(tmp_path, capsys):
    train(config(tmp_path, steps=1), Made())
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("step 1/1")]
    assert [word for word in line.split() if word.isalpha()] == [
        "step", "loss", "accuracy", "lr", "gradient", "data", "wait", "GB", "min", "left",
    ]  # fmt: skip
    assert "segments/s" in line


def test_a_line_that_a_kill_cut_short_is_dropped_and_infinity_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    zeros = "\0" * 40 + '{"step": 2, "loss": 1.5}\n'
    path.write_text(zeros + '{"step": 1, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    log = Log(config(tmp_path), done=2, rank=0, device=CPU)
    log.write_evaluation(3, {"eval_loss": float("inf")})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 2.0},
        {"step": 3, "eval_loss": None},
    ]


def test_other_ranks_write_nothing(tmp_path):
    log = Log(config(tmp_path / "run"), done=0, rank=1, device=CPU)
    log.write_evaluation(1, {"eval_loss": 1.0})
    log.close()
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_the_same_numbers_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config(tmp_path, steps=4), Made())
    train(config(tmp_path, steps=6), Made())  # continues in a file of its own
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in lines]


def test_without_tensorboard_a_run_is_none_the_worse(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(config(tmp_path, steps=2), Made())
    assert not (tmp_path / "tensorboard").exists()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
