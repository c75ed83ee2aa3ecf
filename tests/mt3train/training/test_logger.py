"""What a run writes about itself, and that it trains on where nobody can read that."""

import json
import os
import sys

import pytest
import torch
from worlds import TIMES, Made, config

from mt3train.train import train
from mt3train.training.logger import Log, SafeStderr, read_metrics

CPU = torch.device("cpu")


def test_a_line_every_few_steps_holds_all_that_one_watches_and_so_does_stderr(tmp_path, capsys):
    train(config(tmp_path, eval_every=6), Made(), Made())
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 6]
    assert set(lines[0]) == {"step", "loss", "accuracy", "lr", "gradient_norm", "tokens",
                             "skipped", "overflows", *TIMES}  # fmt: skip
    assert set(lines[3]) == {"step", "eval_loss", "eval_accuracy"}
    assert 0 <= lines[0]["data_wait"] <= 1 and 0.05 < (lines[0]["memory_gb"] or 1) < 50
    shown = [text for text in capsys.readouterr().err.splitlines() if text.startswith("step ")]
    assert [text.split()[1] for text in shown] == ["2/6", "4/6", "6/6", "6"]
    for line, text in zip(lines[:3], shown, strict=False):
        assert f"loss {line['loss']:.4f}" in text and "segments/s" in text


def test_a_line_that_a_kill_cut_short_is_dropped_and_infinity_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    zeros = "\0" * 40 + '{"step": 2, "loss": 1.5}\n'
    path.write_text(zeros + '{"step": 1, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    log = Log(config(tmp_path), done=2, device=CPU, is_writer=True)
    log.write_evaluation(3, {"eval_loss": float("inf")})
    log.close("done", tmp_path, (0.0, 0.0, 0.0))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 2.0},
        {"step": 3, "eval_loss": None},
    ]


def test_other_ranks_write_nothing(tmp_path, capsys):
    log = Log(config(tmp_path / "run"), done=0, device=CPU, is_writer=False)
    log.write_evaluation(1, {"eval_loss": 1.0})
    log.close("done", tmp_path, (0.0, 0.0, 0.0))
    assert not (tmp_path / "run").exists() and capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["broken pipe", "closed file", "none"])
def test_training_goes_on_where_stderr_cannot_be_written(tmp_path, monkeypatch, kind):
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    os.close(reader)
    if kind == "closed file":
        stream.close()
    monkeypatch.setattr(sys, "stderr", None if kind == "none" else stream)
    path = train(config(tmp_path / "run", log_every=1), Made())
    print("after the run", file=SafeStderr())
    with pytest.raises((BrokenPipeError, ValueError)):  # the control: this stream is of no use
        print("x", file=stream, flush=True)
        stream.close()
    assert path.name == "checkpoint-00000006.safetensors" and path.is_file()


def test_tensorboard_gets_the_same_numbers_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config(tmp_path, steps=4), Made())
    train(config(tmp_path, steps=6), Made())  # continues in a file of its own
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in lines]


def test_without_tensorboard_a_run_has_its_metrics_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(config(tmp_path, steps=2), Made())
    assert not (tmp_path / "tensorboard").exists()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_lines_that_a_run_does_not_write_are_not_read(tmp_path):
    path, whole = tmp_path / "metrics.jsonl", b'{"step": 2, "loss": 1.5, "gradient_norm": null}'
    others = [b'{"step": "x"}', b'{"step": null}', b'{"step": 1e400}', b'{"step": 1, "loss": "a"}',
              b'{"step": 1, "loss": NaN}', b"[1]", b"\xff", b"[" * 100_000, b'{"step": 1, "lo']  # fmt: skip
    path.write_bytes(b"\n".join([others[0], whole, *others[1:]]))
    assert read_metrics(path) == [{"step": 2, "loss": 1.5, "gradient_norm": None}]
