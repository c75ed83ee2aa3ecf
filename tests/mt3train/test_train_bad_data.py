"""Shards, records and settings that do not fit, met by two processes: all end alike, or go on."""

import os
import shutil
from pathlib import Path

import fakes
import pytest
import torch
from safetensors.torch import load_file
from worlds import PLAIN, Made, after, config, ended, errors, metrics, plain

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.music.vocabulary import VocabularyConfig
from mt3data.shards.reader import IndexedShards
from mt3data.shards.windows import WindowConfig
from mt3train.config import DataConfig
from mt3train.weights.checkpoint import checkpoints


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    splits = {"Track00001": "train", "Track00002": "train", "Track00003": "validation"}
    root = fakes.slakh_tree(tmp_path_factory.mktemp("source"), "demo", splits, seconds=3.0)
    out = tmp_path_factory.mktemp("shards")
    build(make_plan(BuildConfig("demo", root, out, windows=WindowConfig(256))))
    return out / "demo"


def on_shards(rank, run, folder, changes, broken_from=None):
    """Trains on a build, the shard of which loses its end while it is read at some step."""
    import mt3train.train as trainer

    if broken_from is not None:
        read = trainer.read_step

        def read_broken(segments, step, *rest):
            if step == broken_from and rank == 1:
                path = next(folder.glob("train-*.tar"))
                os.truncate(path, 20_000)
            return read(segments, step, *rest)

        trainer.read_step = read_broken
    data = DataConfig(train=str(folder), max_target_length=1024)
    return config(run, **{"data": data, "batch": 4, "steps": 4, **changes}), None, None


def copied(shards, folder):
    return Path(shutil.copytree(shards, folder / "demo"))


def test_a_shard_that_is_cut_short_while_training_is_one_line_and_ends_both_ranks(shards, tmp_path):
    folder = copied(shards, tmp_path)
    codes, said = ended(tmp_path, on_shards, tmp_path / "run", folder, {}, 2)
    assert codes == [2, 2], said
    (line,) = errors(said[0]) + errors(said[1])
    assert "train-00000-of-00001.tar: ends inside record" in line and "mt3data check" in line


def test_a_shard_that_was_cut_short_before_is_refused_by_both_ranks_in_one_line(shards, tmp_path):
    folder = copied(shards, tmp_path)
    os.truncate(next(folder.glob("train-*.tar")), 20_000)
    codes, said = ended(tmp_path, on_shards, tmp_path / "run", folder, {})
    assert codes == [2, 2]
    (line,) = errors(said[0]) + errors(said[1])
    assert "train-00000-of-00001.tar has 20,000 bytes; the manifest says" in line


def test_fewer_records_than_a_batch_and_uneven_parts_train_as_in_one_process(shards, tmp_path):
    """4 records, 7 members: ranks get 4 and 3, and every record comes before any comes twice."""
    n_records = IndexedShards([shards]).n_records
    changes = {"batch": 7, "model": PLAIN, "precision": "float64", "log_every": 1}
    for size in (1, 2):
        run = tmp_path / str(size)
        codes, said = ended(tmp_path, on_shards, run, shards, changes, size=size)
        assert codes == [0] * size, said
    assert n_records == 4 < 7
    ours, theirs = metrics(tmp_path / "2"), metrics(tmp_path / "1")
    assert len(ours) == 4
    for line, expected in zip(ours, theirs, strict=True):
        assert line == pytest.approx(expected, rel=1e-9)
    parts = [IndexedShards([shards]).batch(0, 7, rank, 2).keys for rank in (0, 1)]
    assert [len(keys) for keys in parts] == [4, 3]
    assert len({*parts[0], *parts[1]}) == 4


def poisoned(rank, run):
    return config(run, save_every=1), Made(break_at=2), None


def test_a_nan_in_one_record_stops_both_ranks_before_the_update_and_names_it(tmp_path):
    codes, said = ended(tmp_path, poisoned, tmp_path / "run")
    assert codes == [2, 2]
    assert errors(said[0]) == [
        "Error: the loss is nan at step 3, nothing was updated; records: made-2-1"
    ]
    assert errors(said[1]) == []  # the record was rank 1's, the line is rank 0's
    newest = checkpoints(tmp_path / "run")[-1]
    assert newest.name == after(2)
    assert all(value.isfinite().all() for value in load_file(newest).values())


# Other settings


def other(rank, run, changes, made):
    segments = Made()
    for name, value in made.items():
        setattr(segments, name, value)
    return config(run, **changes), segments, None


@pytest.mark.parametrize("made, message", [
    ({"vocabulary": VocabularyConfig(127)}, "vocabulary.num_velocity_bins 1, now asked for is 127"),
    ({"right_context": "audio"}, "right_context 'zeros', now asked for is 'audio'"),
])  # fmt: skip
def test_two_ranks_refuse_to_continue_with_other_data_in_one_line(tmp_path, made, message):
    run = tmp_path / "run"
    assert ended(tmp_path, other, run, {"steps": 2}, {})[0] == [0, 0]
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    codes, said = ended(tmp_path, other, run, {}, made)
    assert codes == [2, 2]
    (line,) = errors(said[0]) + errors(said[1])
    assert message in line and line.endswith("choose another folder with run=DIR")
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_another_number_of_processes_goes_on_with_the_same_batches(tmp_path):
    exact = {"model": PLAIN, "precision": "float64", "log_every": 1}
    for size, steps in ((2, 2), (1, 3), (4, 6)):
        codes, said = ended(
            tmp_path, plain, tmp_path / "changing", {**exact, "steps": steps}, size=size
        )
        assert codes == [0] * size, said
    assert ended(tmp_path, plain, tmp_path / "whole", exact, size=1)[0] == [0]
    weights = [load_file(checkpoints(tmp_path / run)[-1]) for run in ("changing", "whole")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-9, atol=1e-12)
    for line, expected in zip(
        metrics(tmp_path / "changing"), metrics(tmp_path / "whole"), strict=True
    ):
        assert line == pytest.approx(expected, rel=1e-9)


def elsewhere(rank, run):
    """Two machines that do not share the folder."""
    return config(run / str(rank), steps=3), Made(), None


def test_ranks_that_find_different_checkpoints_do_not_go_on(tmp_path):
    assert ended(tmp_path, plain, tmp_path / "0", {"steps": 2}, size=1)[0] == [0]
    codes, said = ended(tmp_path, elsewhere, tmp_path)
    assert codes == [2, 2]
    assert "not all processes find the same checkpoints; share this folder" in said[0]


def test_a_batch_smaller_than_the_number_of_processes_is_refused(tmp_path):
    codes, said = ended(tmp_path, plain, tmp_path / "run", {"batch": 1})
    assert codes == [2, 2]
    assert errors(said[0]) == ["Error: batch=1 for 2 processes; expected at least one each"]
