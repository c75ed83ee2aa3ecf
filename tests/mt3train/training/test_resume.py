"""Where a run goes on: its newest whole checkpoint, or the weights of another."""

import dataclasses

import pytest
import torch
from test_checkpoint import INFO, TINY, flip, model_and_optimizer
from worlds import MODEL, Made, config, metrics

from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig
from mt3train.model import MT3
from mt3train.train import train
from mt3train.training.optimizers import make_optimizer
from mt3train.training.resume import resume
from mt3train.weights.checkpoint import checkpoints, load_model, optimizer_file, save

SETTINGS = {"optim.name": "adafactor"}


@pytest.mark.parametrize("name", ["adafactor", "adamw", "muon"])
def test_an_optimiser_goes_on_where_it_was(tmp_path, name):
    model, optimizer = model_and_optimizer(name)
    save(tmp_path, model, INFO, optimizer, {"settings": SETTINGS, "tokens": 5})
    fresh = MT3(TINY)
    other = make_optimizer(fresh, name, 1e-2)
    restored = resume(tmp_path, INFO, SETTINGS, fresh, other)
    assert restored is not None and (restored.step, restored.progress["tokens"]) == (12, 5)
    for m, o in ((model, optimizer), (fresh, other)):
        m.zero_grad()
        m.eval()(torch.ones(1, 4, 6), torch.tensor([[5, 2, 1]])).square().sum().backward()
        o.step()
    for ours, theirs in zip(fresh.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    assert resume(tmp_path, INFO, SETTINGS, *model_and_optimizer()) is None


def break_file(path, how):
    if how == "altered":
        flip(path)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    if how == "emptied":
        path.write_bytes(b"")
    if how == "lost":
        path.unlink()


@pytest.mark.parametrize("part, how, said", [
    ("weights", "cut", "00000004.safetensors is not a whole safetensors file"),
    ("weights", "emptied", "00000004.safetensors is not a whole safetensors file"),
    ("weights", "altered", "00000004.safetensors was altered"),
    ("optimizer", "altered", "00000004.optimizer.safetensors was altered"),
    ("optimizer", "cut", "00000004.optimizer.safetensors is not a whole"),
    ("optimizer", "emptied", "00000004.optimizer.safetensors is not a whole"),
    ("optimizer", "lost", "00000004.optimizer.safetensors is missing"),
])  # fmt: skip
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_saying_so(
    tmp_path, capsys, part, how, said
):
    whole = train(config(tmp_path / "whole", save_every=2), Made())
    newest = train(config(tmp_path / "run", save_every=2, steps=4), Made())
    break_file(newest if part == "weights" else optimizer_file(newest), how)
    capsys.readouterr()
    ended = train(config(tmp_path / "run", save_every=2, keep_checkpoints=1), Made())
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "set aside" in text]
    assert said in line and line.endswith("set aside, going on from step 2")
    assert ended.read_bytes() == whole.read_bytes()
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert checkpoints(tmp_path / "run") == [ended]
    assert (tmp_path / "run" / (newest.name + ".damaged")).is_file()


def test_a_run_without_any_whole_checkpoint_says_so_and_stays(tmp_path):
    newest = train(config(tmp_path, steps=1), Made())
    newest.write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint in .* is whole; of the newest: .*00000001"):
        train(config(tmp_path), Made())
    assert newest.is_file()


def test_another_run_s_weights_start_a_new_one_at_step_0(tmp_path):
    first = train(config(tmp_path / "first", steps=3), Made())
    tuned = config(tmp_path / "tuned", steps=1, init_checkpoint=str(tmp_path / "first"),
                   model=dataclasses.replace(MODEL, dropout_rate=0.0),
                   optim=dataclasses.replace(config("").optim, lr=0.0))  # fmt: skip
    model, info = load_model(train(tuned, Made()))
    assert info.step == 1
    for ours, theirs in zip(model.parameters(), load_model(first)[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # The second time it is the run's own checkpoint that counts.
    train(dataclasses.replace(tuned, steps=2, init_checkpoint="nowhere"), Made())
    assert metrics(tmp_path / "tuned")[-1]["step"] == 2


@pytest.mark.parametrize("changes, made, message", [
    ({}, {"right_context": "audio"}, "right_context 'zeros', the shards have 'audio'; build shards with the"),
    ({}, {"vocabulary": VocabularyConfig(127)}, "vocabulary.num_velocity_bins 1, the shards have 127"),
    ({"model": dataclasses.replace(MODEL, emb_dim=16)}, {},
     "model.emb_dim=8, this run 16; start it with model.emb_dim=8"),
    ({"init_checkpoint": "nowhere"}, {}, "no checkpoint nowhere; expected"),
])  # fmt: skip
def test_weights_that_do_not_fit_are_refused_with_what_would(tmp_path, changes, made, message):
    train(config(tmp_path / "first", steps=1), Made())
    other = Made()
    for name, value in made.items():
        setattr(other, name, value)
    tuned = config(tmp_path / "tuned", init_checkpoint=str(tmp_path / "first"))
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(tuned, **changes), other)
    assert not (tmp_path / "tuned").exists()


def test_frozen_parameters_stay_and_keep_no_optimiser_state(tmp_path):
    first = train(config(tmp_path / "first", steps=1), Made())
    tuned = config(tmp_path / "tuned", init_checkpoint=str(first),
                   freeze="encoder.*, decoder.token_embedder.weight")  # fmt: skip
    before, after = (dict(load_model(path)[0].named_parameters())
                     for path in (first, train(tuned, Made())))  # fmt: skip
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {n for n in before if n.startswith(("encoder.", "decoder.token_embedder"))}
    from safetensors import safe_open

    with safe_open(optimizer_file(checkpoints(tmp_path / "tuned")[-1]), "pt") as state:
        assert {key.rpartition("/")[0] for key in state.keys()} == set(before) - same  # noqa: SIM118
    with pytest.raises(UserError, match="with freeze 'encoder.*', now asked for is ''"):
        train(dataclasses.replace(tuned, freeze="", steps=9), Made())


@pytest.mark.parametrize("patterns, message", [
    ("encoder.layer.*", "'encoder.layer.*' matches no parameter; names are such as encoder.layers"),
    ("*", "leaves no parameter to train"),
])  # fmt: skip
def test_a_pattern_that_freezes_nothing_or_all_is_refused(tmp_path, patterns, message):
    with pytest.raises(UserError, match=message):
        train(config(tmp_path, freeze=patterns), Made())
