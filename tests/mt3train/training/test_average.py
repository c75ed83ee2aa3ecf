"""The average of the weights, and the end of a run whose score no longer improves."""

import dataclasses
import sys
import types

import pytest
import torch
from worlds import Made, config, ended, metrics, plain

from mt3data.errors import UserError
from mt3train.config import OptimConfig, load_config
from mt3train.train import train
from mt3train.training import validation
from mt3train.weights.checkpoint import load_model, optimizer_file, read_state, weights_path

EMA = OptimConfig(lr=1e-2, warmup_steps=2, clip_norm=1.0, ema=0.75)
WITHOUT = dataclasses.replace(EMA, ema=0.0)


def weights(run, step):
    return load_model(weights_path(run, step))[0].state_dict()


def test_the_checkpoint_holds_the_average_of_the_weights_after_each_update(tmp_path):
    train(config(tmp_path / "plain", optim=WITHOUT, save_every=1, keep_checkpoints=9), Made())
    train(config(tmp_path / "run", optim=EMA), Made())
    averaged = weights(tmp_path / "run", 6)
    for name, value in weights(tmp_path / "plain", 1).items():
        for step in range(2, 7):
            value = 0.75 * value + 0.25 * weights(tmp_path / "plain", step)[name]
        assert torch.allclose(averaged[name], value, atol=1e-6), name
    _, state = read_state(weights_path(tmp_path / "run", 6))
    for name, value in weights(tmp_path / "plain", 6).items():
        assert torch.equal(state[f"{name}/trained"], value)


def test_a_resumed_run_has_the_same_average_bit_for_bit(tmp_path):
    whole = train(config(tmp_path / "whole", optim=EMA), Made())
    train(config(tmp_path / "run", optim=EMA, steps=3), Made())
    path = train(config(tmp_path / "run", optim=EMA), Made())
    assert path.read_bytes() == whole.read_bytes()
    assert optimizer_file(path).read_bytes() == optimizer_file(whole).read_bytes()


def test_two_processes_that_are_resumed_have_the_same_average_bit_for_bit(tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    for folder, changes in [(whole, {}), (run, {"steps": 3}), (run, {})]:
        codes, said = ended(tmp_path, plain, folder, {"optim": EMA, **changes})
        assert codes == [0, 0], said
    ours, theirs = weights_path(run, 6), weights_path(whole, 6)
    assert ours.read_bytes() == theirs.read_bytes()
    assert optimizer_file(ours).read_bytes() == optimizer_file(theirs).read_bytes()


@pytest.mark.parametrize("before, after", [(WITHOUT, EMA), (EMA, WITHOUT)])
def test_a_run_with_another_average_is_not_resumed(tmp_path, before, after):
    train(config(tmp_path, optim=before, steps=2), Made())
    with pytest.raises(UserError, match=r"trained with optim.ema .* choose another folder"):
        train(config(tmp_path, optim=after), Made())


def test_the_average_is_evaluated_not_the_weights_of_the_last_update(tmp_path):
    train(config(tmp_path / "plain", optim=WITHOUT, eval_every=6), Made(), Made())
    train(config(tmp_path / "run", optim=EMA, eval_every=6), Made(), Made())
    best = load_model(tmp_path / "run" / "best.safetensors")[0].state_dict()
    last = weights(tmp_path / "run", 6)
    assert all(torch.equal(best[name], last[name]) for name in best)
    losses = [metrics(tmp_path / name)[-1]["eval_loss"] for name in ("plain", "run")]
    assert abs(losses[0] - losses[1]) > 1e-4


def scored(monkeypatch, losses):
    """Lets the evaluation of each step have a given loss."""
    seen = []

    def loss(model, data, config, ranks):
        seen.append(1)
        return {"eval_loss": losses[len(seen) - 1], "eval_accuracy": 0.5}

    monkeypatch.setattr(validation, "evaluation_loss", loss)
    return seen


def test_a_run_ends_after_so_many_evaluations_without_a_better_score(tmp_path, monkeypatch, capsys):
    seen = scored(monkeypatch, [3.0, 2.0, 2.5, 1.9, 2.0, 2.0, 1.0, 0.9])
    settings = config(tmp_path, steps=20, eval_every=1, patience=2)
    path = train(settings, Made(), Made())
    assert path.name == "checkpoint-00000006.safetensors" and len(seen) == 6
    message = "ended by patience=2: no better score in 2 evaluations"
    assert message in capsys.readouterr().err
    assert load_model(tmp_path / "best.safetensors")[1].step == 4
    train(settings, Made(), Made())  # the same command again trains no further
    assert message in capsys.readouterr().err and len(seen) == 6
    again = train(dataclasses.replace(settings, patience=3, steps=8), Made(), Made())
    assert again.name == "checkpoint-00000008.safetensors"


def test_a_repeated_evaluation_of_the_best_step_counts_as_the_best(tmp_path, monkeypatch):
    scored(monkeypatch, [3.0, 2.0, 2.0, 2.5, 2.6])
    settings = config(tmp_path, steps=2, eval_every=1, save_every=1, patience=2)
    train(settings, Made(), Made())
    weights_path(tmp_path, 2).unlink()  # as if it was killed between evaluation and checkpoint
    path = train(dataclasses.replace(settings, steps=20), Made(), Made())
    assert path.name == "checkpoint-00000004.safetensors"


def test_patience_without_evaluations_is_refused():
    with pytest.raises(UserError, match="patience counts evaluations"):
        load_config(["demo.toml", "patience=2", "eval_every=0"])


def fake_wandb(monkeypatch):
    runs = []

    def init(**arguments):
        runs.append({"arguments": arguments, "lines": [], "finished": False})
        return types.SimpleNamespace(
            log=lambda values, step: runs[-1]["lines"].append((step, values)),
            finish=lambda: runs[-1].update(finished=True),
        )

    module = types.ModuleType("wandb")
    module.init = init
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_gets_the_same_numbers_and_a_resumed_run_goes_on_there(tmp_path, monkeypatch):
    runs = fake_wandb(monkeypatch)
    settings = load_config(["demo.toml", "log.wandb=true", "log.project=mine"])
    settings = config(tmp_path / "run", log=settings.log)
    train(dataclasses.replace(settings, steps=4), Made())
    train(settings, Made())
    first, second = (run["arguments"] for run in runs)
    assert first["project"] == "mine" and first["name"] == "run"
    assert first["id"] == second["id"] and second["resume"] == "allow"
    lines = [line for run in runs for line in run["lines"]]
    assert [step for step, _ in lines] == [2, 4, 6] and all(run["finished"] for run in runs)
    assert [values["loss"] for _, values in lines] == [
        line["loss"] for line in metrics(tmp_path / "run")
    ]


def test_wandb_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"log.wandb=true needs wandb.*\[wandb\]"):
        load_config(["demo.toml", "log.wandb=true"])
