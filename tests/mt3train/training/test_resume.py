"""Where a run goes on: its newest whole checkpoint, or the weights of another."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from worlds import MODEL, Made, config, metrics

from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig
from mt3train.train import train
from mt3train.weights.checkpoint import (
    METADATA_KEY,
    SCHEMA,
    checkpoints,
    load_model,
    optimizer_file,
    read_state,
)


def break_file(path, how):
    if how == "altered":  # one bit of the last array
        data = path.read_bytes()
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 4]) + data[-2:])
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    if how == "emptied":
        path.write_bytes(b"")
    if how == "lost":
        path.unlink()


def test_a_copy_under_the_name_of_a_later_step_is_named_and_loses_no_training(tmp_path, capsys):
    run = tmp_path / "run"
    whole = train(config(tmp_path / "whole"), Made())
    early = train(config(run, steps=2), Made())
    for part in (early, optimizer_file(early)):
        shutil.copy(part, run / part.name.replace("00000002", "00000099"))
    train(config(run, steps=4, keep_checkpoints=1), Made())
    capsys.readouterr()
    ended = train(config(run, keep_checkpoints=1), Made())
    assert "checkpoint-00000099.safetensors holds another step" in capsys.readouterr().err
    assert ended.read_bytes() == whole.read_bytes()
    assert (run / "checkpoint-00000099.safetensors").is_file()


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
    assert said in line and line.endswith("from step 2")
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


def test_a_run_resumes_from_its_own_checkpoint_and_says_that_init_checkpoint_is_another(
    tmp_path, capsys
):
    first = str(train(config(tmp_path / "first", steps=3), Made()))
    tuned = config(tmp_path / "tuned", steps=1, init_checkpoint=first)
    train(tuned, Made())
    capsys.readouterr()
    train(dataclasses.replace(tuned, steps=2), Made())
    assert "init_checkpoint" not in capsys.readouterr().err
    train(dataclasses.replace(tuned, steps=4, init_checkpoint="nowhere"), Made())
    said = capsys.readouterr().err
    assert f"began with init_checkpoint={first!r}, now 'nowhere'" in said
    assert metrics(tmp_path / "tuned")[-1]["step"] == 4


@pytest.mark.parametrize("progress", [
    {"settings": {}}, {"settings": 1, "order": {}}, {"settings": {}, "order": {}, "step": "x"},
    {"settings": {}, "order": {}, "sums": {"loss": None}}, {"settings": {}, "order": {}, "x": 1},
])  # fmt: skip
def test_a_checkpoint_without_the_progress_of_a_run_is_one_line(tmp_path, progress):
    path = train(config(tmp_path, steps=1), Made())
    _, state = read_state(path)
    metadata = {"schema": SCHEMA, "progress": progress}
    save_file(state, optimizer_file(path), {METADATA_KEY: json.dumps(metadata)})
    with pytest.raises(UserError, match="00000001.safetensors holds no progress of a run"):
        train(config(tmp_path), Made())


@pytest.mark.parametrize("changes, made, message", [
    ({}, {"right_context": "audio"}, "right_context 'zeros', the shards have 'audio'; build shards with the"),
    ({}, {"vocabulary": VocabularyConfig(127)}, "vocabulary.num_velocity_bins 1, the shards have 127"),
    ({"model": dataclasses.replace(MODEL, emb_dim=16)}, {},
     "model.emb_dim=8, this run 16; start it with model.emb_dim=8"),
    ({"init_checkpoint": "nowhere"}, {}, "nowhere: no such file; expected"),
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
