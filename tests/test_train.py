"""The trainer: the same with one or two processes, the same after a stop, and its refusals."""

import dataclasses
import json
import os
import signal
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mt3data.errors import UserError
from mt3data.reader import Batch, pad_tokens
from mt3data.spectrogram import SpectrogramConfig
from mt3data.vocabulary import VocabularyConfig
from mt3train.checkpoint import checkpoints, load_model
from mt3train.config import Config, DataConfig, OptimConfig
from mt3train.model import ModelConfig
from mt3train.train import choose_precision, train


class Made:
    """Segments made from (step, member) alone, in place of shards."""

    def __init__(self, edge="segment", break_at=-1, at_step=None):
        self.spectrogram, self.vocabulary = SpectrogramConfig(n_mels=6), VocabularyConfig()
        self.edge, self.n_records = edge, 8
        self.break_at, self.at_step = break_at, at_step or (lambda step: None)

    def batch(self, step, global_batch, rank=0, world=1, frames=256):
        self.at_step(step)
        mel, tokens, keys = [], [], []
        for member in range(rank, global_batch, world):
            draw = np.random.default_rng([step, member])
            mel.append(draw.normal(size=(frames, 6)).astype(np.float16))
            tokens.append(
                np.append(draw.integers(3, 1400, draw.integers(2, 40)), 1).astype(np.int16)
            )
            keys.append(f"made-{step}-{member}")
            if step == self.break_at and member == 1:
                mel[-1][0, 0] = np.nan
        tokens, lengths = pad_tokens(tokens)
        whole = np.full(len(keys), frames, np.int32)
        return Batch(np.stack(mel), None, tokens, lengths, keys, np.zeros(len(keys)), whole)


def config(run, **changes):
    base = Config(
        run=str(run), seed=1, steps=6, batch=6, micro_batch=2, precision="float32", threads=1,
        log_every=2, save_every=100, keep=2, eval_every=0,
        model=ModelConfig(emb_dim=8, num_heads=2, head_dim=4, num_encoder_layers=1,
                          num_decoder_layers=1, mlp_dim=8, dropout_rate=0.1),
        data=DataConfig(frames=5, max_target_length=36),
        optim=OptimConfig(lr=1e-2, warmup_steps=2, clip_norm=1.0),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def metrics(run):
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def compared(run, precision):
    """The two runs, 1 process or 2, that must agree; dropout is off as its draws differ."""
    steps, every = (20, 5) if precision == "float64" else (1, 1)
    model = ModelConfig(emb_dim=8, num_heads=2, head_dim=4, num_encoder_layers=1,
                        num_decoder_layers=1, mlp_dim=8, dropout_rate=0.0)  # fmt: skip
    return config(
        run, precision=precision, model=model, steps=steps, log_every=every, eval_every=every
    )


def one_of_two(rank, port, folder):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    for precision in ("float64", "float32"):
        train(compared(Path(folder) / precision, precision), Made(), Made())
    train(config(Path(folder) / "whole"), Made())
    cut = config(Path(folder) / "cut")
    train(cut, Made(at_step=lambda step: rank == 1 and step == 3 and stop()))
    if rank == 0:
        (Path(folder) / "stopped_at").write_text(checkpoints(Path(folder) / "cut")[-1].name)
    train(cut, Made())


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (port, str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize("precision, digits", [("float64", 1e-9), ("float32", 1e-6)])
def test_two_processes_train_as_one(two_processes, tmp_path, precision, digits):
    alone = train(compared(tmp_path, precision), Made(), Made())
    ours, theirs = metrics(two_processes / precision), metrics(tmp_path)
    assert len(ours) == len(theirs) == (8 if precision == "float64" else 2)
    for line, expected in zip(ours, theirs, strict=True):
        assert line == pytest.approx(expected, rel=digits)
    assert sum(line.get("skipped", 0) for line in ours) > 0 or precision == "float32"
    if precision == "float64":
        weights = load_file(checkpoints(two_processes / precision)[-1])
        for name, value in load_file(alone).items():
            torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=1e-12)


def test_a_signal_to_one_process_stops_both_at_one_step_and_they_go_on_exactly(two_processes):
    assert (two_processes / "stopped_at").read_text() in (
        "checkpoint-00000002.safetensors",
        "checkpoint-00000003.safetensors",
    )
    ended, whole = (checkpoints(two_processes / run)[-1] for run in ("cut", "whole"))
    assert ended.name == whole.name == "checkpoint-00000006.safetensors"
    assert ended.read_bytes() == whole.read_bytes()
    assert metrics(two_processes / "cut") == metrics(two_processes / "whole")


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_a_run_that_was_stopped_ends_with_the_same_weights_and_metrics(tmp_path, optimizer):
    optim = OptimConfig(name=optimizer, lr=1e-2, decay="cosine")
    whole = train(config(tmp_path / "whole", optim=optim), Made())

    # Step 3 is read ahead, while update 3 runs.
    made = Made(at_step=lambda step: step == 3 and stop())
    stopped = train(config(tmp_path / "cut", optim=optim), made)
    done = load_model(stopped)[1].step
    assert done in (2, 3) and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    ended = train(config(tmp_path / "cut", optim=optim), Made())
    assert ended.name == whole.name == "checkpoint-00000006.safetensors"
    assert ended.read_bytes() == whole.read_bytes()
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


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


def test_micro_batches_change_nothing_but_rounding(tmp_path):
    model = dataclasses.replace(config("").model, dropout_rate=0.0)
    runs = [
        train(config(tmp_path / str(n), model=model, precision="float64", micro_batch=n), Made())
        for n in (1, 6)
    ]
    whole = load_file(runs[1])
    for name, value in load_file(runs[0]).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-9, atol=1e-12)


def test_bfloat16_products_change_the_loss_little_and_keep_float32_weights(tmp_path):
    for precision in ("bf16", "float32"):
        ended = train(config(tmp_path / precision, precision=precision), Made())
        assert {value.dtype for value in load_file(ended).values()} == {torch.float32}
    rounded, exact = metrics(tmp_path / "bf16"), metrics(tmp_path / "float32")
    assert rounded != exact
    assert [m["loss"] for m in rounded] == pytest.approx([m["loss"] for m in exact], rel=0.01)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_records(tmp_path):
    broken = config(tmp_path, save_every=1, micro_batch=1)
    with pytest.raises(FloatingPointError, match="loss is nan at step 3.* made-2-1$"):
        train(broken, Made(break_at=2))
    model, info = load_model(tmp_path)
    assert info.step == 2 and all(p.isfinite().all() for p in model.parameters())


def test_a_run_of_other_shards_or_sizes_is_not_continued(tmp_path):
    train(config(tmp_path), Made())
    with pytest.raises(UserError, match="edge 'segment', now asked for is 'track'; choose another"):
        train(config(tmp_path), Made(edge="track"))
    other = Made()
    other.vocabulary = VocabularyConfig(num_velocity_bins=127)
    with pytest.raises(UserError, match="vocabulary.num_velocity_bins 1, now asked for is 127"):
        train(config(tmp_path), other)
    wider = dataclasses.replace(config("").model, emb_dim=16)
    with pytest.raises(UserError, match="model.emb_dim 8, now asked for is 16"):
        train(config(tmp_path, model=wider), Made())
    with pytest.raises(UserError, match="optim.name 'adafactor', now asked for is 'adamw'"):
        train(config(tmp_path, optim=OptimConfig(name="adamw")), Made())


def test_a_finished_run_stays_as_it_is(tmp_path):
    file = train(config(tmp_path), Made())
    before = file.stat().st_mtime_ns, metrics(tmp_path)
    assert train(config(tmp_path), Made()) == file
    assert (file.stat().st_mtime_ns, metrics(tmp_path)) == before


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


def test_without_a_build_the_command_that_makes_one_is_named(tmp_path):
    data = DataConfig(train=str(tmp_path / "shards" / "*"))
    with pytest.raises(UserError, match="`mt3data build demo --out shards/`"):
        train(config(tmp_path / "run", data=data))


def test_precision_that_the_processor_lacks_is_refused_or_avoided():
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="needs a GPU"):
        choose_precision("fp16", cpu)
    assert choose_precision("float64", cpu) == "float64"
    assert choose_precision("auto", cpu) in ("bf16", "float32")
