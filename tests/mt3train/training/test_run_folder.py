"""A run's folder: which files are its own, what is never lost, and that only one run trains there."""

import dataclasses
import json

import pytest
from worlds import Made, after, config, metrics

from mt3data.errors import UserError
from mt3data.files import file_lock
from mt3train.train import train
from mt3train.training.run_folder import is_better
from mt3train.weights.checkpoint import load_model


def contents(run):
    return {path.name: path.read_bytes() for path in run.iterdir() if path.name != "config.json"}


def test_files_with_other_names_neither_count_as_checkpoints_nor_are_touched(tmp_path):
    newest = train(config(tmp_path, steps=2, save_every=2), Made())
    names = [
        "checkpoint-00000002-mybackup.safetensors", "checkpoint-final.safetensors",
        "checkpoint-0000000099.safetensors", "checkpoint-2.optimizer.safetensors",
        "best.safetensors.tmp-mine", "notes.tmp-0123",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).write_bytes(newest.read_bytes())
    before = contents(tmp_path)
    train(config(tmp_path, steps=6, save_every=2, keep_checkpoints=1), Made())
    assert [line["step"] for line in metrics(tmp_path)] == [2, 4, 6]
    kept = contents(tmp_path)
    assert {name: kept[name] for name in names} == {name: before[name] for name in names}
    assert [name for name in sorted(kept) if name.startswith("checkpoint-0000000")] == [
        "checkpoint-0000000099.safetensors", "checkpoint-00000002-mybackup.safetensors",
        "checkpoint-00000006.optimizer.safetensors", after(6),
    ]  # fmt: skip


def test_a_checkpoint_that_the_run_did_not_write_is_kept(tmp_path):
    train(config(tmp_path / "other", steps=1), Made())
    train(config(tmp_path / "run", steps=2), Made())
    copied = (tmp_path / "other" / after(1)).read_bytes()
    (tmp_path / "run" / after(1)).write_bytes(copied)
    train(config(tmp_path / "run", save_every=1, keep_checkpoints=1), Made())
    assert (tmp_path / "run" / after(1)).read_bytes() == copied
    assert json.loads((tmp_path / "run" / "run.json").read_text())["checkpoints"] == [6]


@pytest.mark.parametrize("removed", ["checkpoint-*", "[cr]*n*"])
def test_results_are_kept_where_the_checkpoints_were_removed(tmp_path, removed):
    train(config(tmp_path, eval_every=2), Made(), Made())
    for path in tmp_path.glob(removed):
        path.unlink()
    before = contents(tmp_path)
    assert ("run.json" in before) == (removed == "checkpoint-*") and "best.safetensors" in before
    with pytest.raises(UserError, match="checkpoints are gone; put .* back, or choose"):
        train(config(tmp_path, eval_every=2), Made(), Made())
    assert contents(tmp_path) == before


@pytest.mark.parametrize("scores, best, better", [
    ({"eval_loss": 2.0}, None, True),
    ({"eval_loss": 2.0}, {"eval_loss": 2.0}, False),
    ({"eval_loss": 2.0}, {"eval_loss": float("nan")}, True),
    ({"eval_loss": 1.9}, {"eval_loss": 2.0}, True),
    ({"eval_loss": 9.0, "program_f1": 0.0}, {"eval_loss": 2.0}, True),
    ({"eval_loss": 1.0}, {"eval_loss": 2.0, "program_f1": 0.0}, False),
    ({"program_f1": 0.2}, {"program_f1": 0.2}, False),
    ({"program_f1": 0.3}, {"program_f1": 0.2}, True),
])  # fmt: skip
def test_notes_decide_what_is_best_once_they_are_scored_and_the_loss_before(scores, best, better):
    assert is_better(scores, best) is better


def test_the_best_weights_are_kept_when_later_ones_are_worse_and_after_a_fresh_start(tmp_path):
    optim = config("").optim.__class__(lr=3.0, warmup_steps=0)
    rising = config(tmp_path, steps=4, eval_every=1, keep_checkpoints=1, optim=optim)
    train(rising, Made(), Made())
    losses = {line["step"]: line["eval_loss"] for line in metrics(tmp_path) if "eval_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert best < 4
    assert load_model(tmp_path / "best.safetensors")[1].step == best
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["best"]["eval_loss"] == losses[best]
    # As if it had been killed before its first checkpoint, with other random numbers since.
    (tmp_path / "run.json").write_text(json.dumps(facts | {"checkpoints": []}))
    for path in tmp_path.glob("checkpoint-*"):
        path.unlink()
    worse = config(tmp_path, steps=1, seed=2, eval_every=1, optim=optim)
    train(worse, Made(), Made())
    assert metrics(tmp_path)[-1]["eval_loss"] > losses[best]
    assert load_model(tmp_path / "best.safetensors")[1].step == best


def test_scores_on_other_data_replace_no_best_weights(tmp_path, capsys):
    options = {"eval_every": 1, "keep_checkpoints": 1}
    train(config(tmp_path, steps=1, **options), Made(), Made())
    first = (tmp_path / "best.safetensors").read_bytes()
    data = dataclasses.replace(config(tmp_path).data, eval_split="test")
    for steps in (2, 4):
        train(config(tmp_path, steps=steps, data=data, **options), Made(), Made())
        assert (tmp_path / "best-before.safetensors").read_bytes() == first
    assert capsys.readouterr().err.count("is now best-before.safetensors") == 1
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["evaluated"]["split"] == "test"
    train(config(tmp_path, steps=5, **options), Made(), Made())
    assert (tmp_path / "best-before.safetensors").read_bytes() == first
    assert (tmp_path / "best-before1.safetensors").is_file()


def test_a_second_trainer_in_the_same_folder_is_refused(tmp_path):
    train(config(tmp_path, steps=2), Made())
    before = contents(tmp_path)
    with (
        file_lock(tmp_path / "lock", "busy"),
        pytest.raises(UserError, match="another process trains there"),
    ):
        train(config(tmp_path, steps=4), Made())
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", [
    "", "[]", "{", '{"checkpoints": null}', '{"checkpoints": ["../x"]}', '{"checkpoints": [-1]}',
    '{"writing": "x"}', '{"best": 3}', '{"best": {"eval_loss": null}}', "[" * 100_000,
])  # fmt: skip
def test_a_damaged_list_of_checkpoints_is_one_line_and_nothing_is_removed(tmp_path, text):
    train(config(tmp_path, steps=2), Made())
    (tmp_path / "run.json").write_text(text)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="run.json is not what a run writes"):
        train(config(tmp_path), Made())
    assert contents(tmp_path) == before
