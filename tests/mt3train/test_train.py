"""The trainer: the same with one or two processes, the same after a stop, and its refusals."""

import dataclasses
import os
import signal
import threading

import needs
import pytest
import torch
from safetensors.torch import load_file
from worlds import PLAIN, Made, World, config, metrics

from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig
from mt3train.config import OptimConfig
from mt3train.train import train
from mt3train.weights.checkpoint import checkpoints, load_model


def compared(rank, folder, precision, size, micro_batch):
    """One of the runs that must agree; dropout is off as its draws differ."""
    steps, every = (20, 5) if precision == "float64" else (1, 1)
    run = folder / f"{precision}-{size}-{micro_batch}"
    same = config(
        run, precision=precision, model=PLAIN, steps=steps, log_every=every, eval_every=every,
        micro_batch=micro_batch,
    )  # fmt: skip
    return same, Made(), Made()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, all segments in one micro-batch."""
    folder = tmp_path_factory.mktemp("alone")
    for precision in ("float64", "float32"):
        train(*compared(0, folder, precision, 1, 6))
    return folder


@pytest.mark.parametrize("precision, digits", [("float64", 1e-9), ("float32", 1e-6)])
@pytest.mark.parametrize("size, micro_batch", [(1, 1), (2, 2), (4, 2)])
def test_processes_and_micro_batches_change_nothing_but_rounding(
    alone, tmp_path, precision, digits, size, micro_batch
):
    world = World(tmp_path, size, compared, tmp_path, precision, size, micro_batch)
    assert world.codes() == [0] * size, world.said(0)
    ours = metrics(tmp_path / f"{precision}-{size}-{micro_batch}")
    theirs = metrics(alone / f"{precision}-1-6")
    assert len(ours) == len(theirs) == (8 if precision == "float64" else 2)
    for line, expected in zip(ours, theirs, strict=True):
        assert line == pytest.approx(expected, rel=digits)
    assert sum(line.get("skipped", 0) for line in ours) > 0 or precision == "float32"
    if precision == "float64":
        weights = load_file(checkpoints(tmp_path / f"{precision}-{size}-{micro_batch}")[-1])
        for name, value in load_file(checkpoints(alone / "float64-1-6")[-1]).items():
            torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=1e-12)


@needs.posix
@pytest.mark.parametrize("optimizer", ["adafactor", "adamw", "muon"])
def test_a_run_that_was_stopped_ends_with_the_same_weights_and_metrics(tmp_path, optimizer):
    optim = OptimConfig(name=optimizer, lr=1e-2, decay="cosine")
    whole = train(config(tmp_path / "whole", optim=optim), Made())

    # Step 3 is read ahead, while update 3 runs.
    made = Made(at_step=lambda step: step == 3 and os.kill(os.getpid(), signal.SIGTERM))
    stopped = train(config(tmp_path / "cut", optim=optim), made)
    done = load_model(stopped)[1].step
    assert done in (2, 3) and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    ended = train(config(tmp_path / "cut", optim=optim), Made())
    assert ended.name == whole.name == "checkpoint-00000006.safetensors"
    assert ended.read_bytes() == whole.read_bytes()
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


@needs.posix
@pytest.mark.parametrize("at", [0, 1, 2, 4, 5])
def test_stopping_at_any_step_and_going_on_is_never_having_stopped(stopless, tmp_path, at):
    """Evaluation and checkpoints fall on some of these steps; all that is written is the same."""
    made = Made(at_step=lambda step: step == at and os.kill(os.getpid(), signal.SIGTERM))
    train(watched(tmp_path), made, Made())
    assert load_model(tmp_path)[1].step < 6
    train(watched(tmp_path), Made(), Made())
    assert metrics(tmp_path) == metrics(stopless)
    for name in ("checkpoint-00000006.safetensors", "best.safetensors"):
        assert (tmp_path / name).read_bytes() == (stopless / name).read_bytes()


def watched(run):
    return config(run, eval_every=2, eval_segments=6, save_every=3)


@pytest.fixture(scope="module")
def stopless(tmp_path_factory):
    run = tmp_path_factory.mktemp("stopless")
    train(watched(run), Made(), Made())
    return run


def test_lines_logged_after_the_checkpoint_are_written_again_and_not_twice(tmp_path):
    first = config(tmp_path, steps=4, save_every=3)

    def crash(step):
        if step == 4:
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        train(dataclasses.replace(first, steps=6), Made(at_step=crash))
    assert [line["step"] for line in metrics(tmp_path)][-1] in (2, 4)
    train(first, Made())
    assert [line["step"] for line in metrics(tmp_path)] == [2, 4]


def test_bfloat16_products_change_the_loss_little_and_keep_float32_weights(tmp_path):
    for precision in ("bf16", "float32"):
        ended = train(config(tmp_path / precision, precision=precision), Made())
        assert {value.dtype for value in load_file(ended).values()} == {torch.float32}
    rounded, exact = metrics(tmp_path / "bf16"), metrics(tmp_path / "float32")
    assert rounded != exact
    assert [m["loss"] for m in rounded] == pytest.approx([m["loss"] for m in exact], rel=0.01)


def in_fp16(monkeypatch, scale):
    """fp16 on the CPU, which users are refused as it is slow, with a first scale of the loss."""
    first = torch.amp.GradScaler.__init__
    monkeypatch.setattr("mt3train.train.choose_precision", lambda *_, **__: "fp16")
    monkeypatch.setattr(
        torch.amp.GradScaler,
        "__init__",
        lambda self, device, enabled: first(self, device, init_scale=scale, enabled=enabled),
    )


def test_fp16_scales_its_loss_and_leaves_weights_updates_and_clipping_as_they_are(
    tmp_path, monkeypatch
):
    exact = config(tmp_path / "exact", model=PLAIN)
    train(exact, Made())
    in_fp16(monkeypatch, 2.0**10)
    ended = train(dataclasses.replace(exact, run=str(tmp_path / "fp16")), Made())
    assert {value.dtype for value in load_file(ended).values()} == {torch.float32}
    rounded, theirs = metrics(tmp_path / "fp16"), metrics(tmp_path / "exact")
    assert rounded != theirs and [line["overflows"] for line in rounded] == [0, 0, 0]
    for key, digits in (("loss", 1e-3), ("gradient_norm", 0.05)):
        assert [m[key] for m in rounded] == pytest.approx([m[key] for m in theirs], rel=digits)


def test_an_overflow_in_fp16_leaves_out_its_update_and_halves_the_scale(tmp_path, monkeypatch):
    in_fp16(monkeypatch, 2.0**30)
    train(config(tmp_path / "cut", steps=1, log_every=1), Made())
    train(config(tmp_path / "cut", steps=40, log_every=1), Made())  # the scale goes on as well
    train(config(tmp_path / "whole", steps=40, log_every=1), Made())
    lines = metrics(tmp_path / "cut")
    assert lines == metrics(tmp_path / "whole")
    n_overflows = sum(line["overflows"] for line in lines)
    assert 0 < n_overflows < 30
    assert [line["gradient_norm"] is None for line in lines] == [
        line["overflows"] == 1 for line in lines
    ]
    assert lines[0]["overflows"] == 1 and lines[-1]["overflows"] == 0


def test_a_run_goes_on_in_another_precision(tmp_path, monkeypatch):
    for steps, precision in ((2, "float32"), (4, "fp16"), (6, "float64")):
        with monkeypatch.context() as patched:
            if precision == "fp16":
                in_fp16(patched, 2.0**10)
                precision = "float32"
            ended = train(config(tmp_path, steps=steps, precision=precision), Made())
    assert {value.dtype for value in load_file(ended).values()} == {torch.float64}
    assert [line["step"] for line in metrics(tmp_path)] == [2, 4, 6]


def test_gradients_that_overflow_at_any_scale_end_the_run(tmp_path, monkeypatch):
    in_fp16(monkeypatch, 4.0)
    monkeypatch.setattr(
        "mt3train.train.token_losses",
        lambda logits, *_: (logits.sum(-1) * 0).sqrt(),  # 0, and its gradient is not a number
    )
    message = r"the gradient norm is nan at step 4, nothing was updated; records: made-3-"
    with pytest.raises(UserError, match=message):
        train(config(tmp_path, save_every=1), Made())


@pytest.mark.slow
def test_compilation_keeps_the_names_and_the_numbers(tmp_path, monkeypatch):
    """With torch's eager backend, which needs no C++ compiler; the graph is the same."""
    used = []
    compiled = torch.compile

    def with_eager(what, dynamic=None):
        used.append(dynamic)
        return compiled(what, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch, "compile", with_eager)
    plain = config(tmp_path / "plain", model=PLAIN, steps=3, eval_every=3, log_every=1)
    ends = [train(plain, Made(), Made())]
    again = dataclasses.replace(plain, run=str(tmp_path / "compiled"), compile=True)
    ends.append(train(again, Made(), Made()))
    n_layers = PLAIN.num_encoder_layers + PLAIN.num_decoder_layers
    assert used == [None, *[True] * n_layers]  # a probe, then the layers
    assert load_file(ends[0]).keys() == load_file(ends[1]).keys()
    for ours, theirs in zip(
        metrics(tmp_path / "compiled"), metrics(tmp_path / "plain"), strict=True
    ):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_records(tmp_path):
    broken = config(tmp_path, save_every=1)
    with pytest.raises(UserError, match="loss is nan at step 3, .*; records: made-2-1$"):
        train(broken, Made(break_at=2))
    model, info = load_model(tmp_path)
    assert info.step == 2 and all(p.isfinite().all() for p in model.parameters())


def test_a_run_of_other_shards_or_sizes_is_not_continued(tmp_path):
    train(config(tmp_path), Made())
    with pytest.raises(
        UserError, match="right_context 'zeros', now asked for is 'audio'; choose another"
    ):
        train(config(tmp_path), Made(right_context="audio"))
    other = Made()
    other.vocabulary = VocabularyConfig(num_velocity_bins=127)
    with pytest.raises(UserError, match="vocabulary.num_velocity_bins 1, now asked for is 127"):
        train(config(tmp_path), other)
    wider = dataclasses.replace(config("").model, emb_dim=16)
    with pytest.raises(UserError, match="model.emb_dim 8, now asked for is 16"):
        train(config(tmp_path, model=wider), Made())
    with pytest.raises(UserError, match="optim.name 'adafactor', now asked for is 'adamw'"):
        train(config(tmp_path, optim=OptimConfig(name="adamw")), Made())


def test_a_run_whose_hours_are_over_ends_with_a_checkpoint_and_more_hours_continue_it(tmp_path):
    for hours, steps in ((1e-9, 1), (1e-9, 1), (1e3, 3)):
        train(config(tmp_path / "run", hours=hours, steps=3), Made(), None)
        assert load_model(tmp_path / "run")[1].step == steps


def test_training_lowers_the_loss_and_says_what_it_skipped(tmp_path):
    fixed = Made()
    drawn = fixed.batch
    fixed.batch = lambda step, *rest, **named: drawn(0, *rest, **named)
    model = dataclasses.replace(config("").model, emb_dim=32, mlp_dim=32, dropout_rate=0.0)
    train(config(tmp_path, steps=40, log_every=10, model=model), fixed, None)
    lines = metrics(tmp_path)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert all(line["tokens"] + line["skipped"] > 0 for line in lines)


def test_training_off_the_main_thread_leaves_signals_alone(tmp_path):
    thread = threading.Thread(target=train, args=(config(tmp_path, steps=1), Made()))
    thread.start()
    thread.join()
    assert len(checkpoints(tmp_path)) == 1
