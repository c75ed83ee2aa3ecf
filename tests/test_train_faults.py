"""What a cluster does to a run, done to two processes: none may hang, lose or repeat anything."""

import errno
import os
import signal
import threading
from pathlib import Path

import fakes
import pytest
import torch
from safetensors.torch import load_file
from worlds import PLAIN, Made, World, config, metrics

from mt3data.build import build
from mt3data.plan import BuildConfig, make_plan
from mt3data.reader import IndexedShards
from mt3data.vocabulary import VocabularyConfig
from mt3data.windows import WindowConfig
from mt3train.checkpoint import checkpoints, weights_path
from mt3train.config import DataConfig

SOON = 20.0  # seconds in which a run has to end


def plain(rank, run, changes):
    return config(run, **changes), Made(), None


def ended(folder, prepare, *arguments, size=2, seconds=SOON):
    """Exit codes of a world, and what its ranks said."""
    world = World(folder, size, prepare, *arguments)
    codes = world.codes(seconds)
    return codes, [world.said(rank) for rank in range(size)]


def errors(said):
    return [line for line in said.splitlines() if line.startswith("error:")]


def after(step):
    return weights_path(Path(), step).name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert ended(folder, plain, folder / "run", {})[0] == [0, 0]
    return folder / "run"


def same(run, whole):
    """Bit for bit."""
    newest = [checkpoints(path)[-1] for path in (run, whole)]
    assert newest[0].name == newest[1].name == after(6)
    assert newest[0].read_bytes() == newest[1].read_bytes()
    assert metrics(run) == metrics(whole)


# Signals


def signalled(rank, run, number, at):
    """Rank 1 alone gets the signal, while it reads a batch."""
    send = (lambda step: step == at and os.kill(os.getpid(), number)) if rank == 1 else None
    return config(run), Made(at_step=send), None


@pytest.mark.parametrize("number, at, code", [
    (signal.SIGTERM, 3, 0), (signal.SIGUSR1, 0, 0), (signal.SIGINT, 5, 130),
])  # fmt: skip
def test_a_signal_to_one_rank_stops_both_at_one_step_and_they_go_on_exactly(
    whole, tmp_path, number, at, code
):
    codes, said = ended(tmp_path, signalled, tmp_path / "run", number, at)
    assert codes == [code, code], said
    # It comes while step `at` is read ahead, which is before that step or the one before is done.
    assert checkpoints(tmp_path / "run")[-1].name in (after(at), after(max(0, at - 1)))
    assert "stopped, the same command goes on" in said[0]
    assert ended(tmp_path, plain, tmp_path / "run", {})[0] == [0, 0]
    same(tmp_path / "run", whole)


def blocked(rank, run, started):
    """Rank 1's disk does not answer from step 2 on."""

    def wait(step):
        if rank == 1 and step == 2:
            started.set()
            threading.Event().wait()

    return config(run), Made(at_step=wait), None


def test_a_signal_is_heard_while_another_rank_waits_for_a_disk_that_does_not_answer(
    whole, tmp_path
):
    from worlds import CONTEXT

    started = CONTEXT.Manager().Event()
    world = World(tmp_path, 2, blocked, tmp_path / "run", started)
    assert started.wait(SOON)
    os.kill(world.processes[0].pid, signal.SIGTERM)
    assert world.codes(SOON) == [0, 0]
    assert checkpoints(tmp_path / "run")[-1].name == after(2)
    assert ended(tmp_path, plain, tmp_path / "run", {})[0] == [0, 0]
    same(tmp_path / "run", whole)


def stopped_in_evaluation(rank, run, number):
    """Rank 1 gets the signal in its second evaluation."""
    evaluations = []

    def at_step(step):
        evaluations.append(step)
        if rank == 1 and number and len(evaluations) == 2:
            os.kill(os.getpid(), number)

    return config(run, eval_every=2, eval_segments=6), Made(), Made(at_step=at_step)


def test_a_run_stopped_during_an_evaluation_begins_with_it_again(tmp_path):
    codes, said = ended(tmp_path, stopped_in_evaluation, tmp_path / "cut", signal.SIGTERM)
    assert codes == [0, 0], said
    assert checkpoints(tmp_path / "cut")[-1].name == after(4)
    assert [line["step"] for line in metrics(tmp_path / "cut") if "eval_loss" in line] == [2]
    for run in ("cut", "whole"):
        assert ended(tmp_path, stopped_in_evaluation, tmp_path / run, None)[0] == [0, 0]
    same(tmp_path / "cut", tmp_path / "whole")
    assert len([line for line in metrics(tmp_path / "cut") if "eval_loss" in line]) == 3
    best = [(tmp_path / run / "best.safetensors").read_bytes() for run in ("cut", "whole")]
    assert best[0] == best[1]


# Death


def killed_while_writing(rank, run, name):
    """Rank 0 dies half way through the weights of step 4."""
    if rank == 0:
        from mt3train import checkpoint

        write = checkpoint.write_durably

        def write_half(path, data):
            if path.name == name:
                path.with_name(path.name + ".tmp-half").write_bytes(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            write(path, data)

        checkpoint.write_durably = write_half
    return config(run, save_every=2), Made(), None


@pytest.mark.parametrize("part", [after(4), after(4).replace(".s", ".optimizer.s")])
def test_a_rank_killed_while_it_writes_a_checkpoint_leaves_the_one_before(whole, tmp_path, part):
    codes, said = ended(tmp_path, killed_while_writing, tmp_path / "run", part)
    assert codes[0] == -signal.SIGKILL and codes[1] not in (0, None), said
    assert [path.name for path in checkpoints(tmp_path / "run")] == [after(2)]
    codes, said = ended(tmp_path, plain, tmp_path / "run", {"save_every": 2})
    assert codes == [0, 0] and "steps 2 to 6" in said[0]
    same(tmp_path / "run", whole)
    assert not list((tmp_path / "run").glob("*.tmp-*"))


def crashing(rank, run):
    """A bug that only rank 1 has."""
    import mt3train.train as trainer

    if rank == 1:
        trainer.to_device = lambda *_: [][1]
    return config(run), Made(), None


def test_a_bug_on_one_rank_keeps_its_traceback_and_the_other_does_not_wait_for_it(tmp_path):
    codes, said = ended(tmp_path, crashing, tmp_path / "run")
    assert codes[1] == 1 and codes[0] not in (0, None)
    assert "IndexError: list index out of range" in said[1]


# Disks


def full_disk(rank, run, name):
    """The disk fills up after the checkpoint of step 2."""
    import mt3data.shards

    def fill(step):
        if rank == 0 and step == 3:
            (run / f"{name}.tmp-0").symlink_to("/dev/full")

    mt3data.shards.temporary = lambda path: path.with_name(f"{path.name}.tmp-0")
    return config(run, save_every=2), Made(at_step=fill), None


def test_a_full_disk_at_a_checkpoint_is_one_line_and_the_earlier_ones_count(whole, tmp_path):
    codes, said = ended(tmp_path, full_disk, tmp_path / "run", after(4))
    assert codes == [2, 2]
    (line,) = errors(said[0]) + errors(said[1])
    assert line.endswith(
        "/checkpoint-00000004.safetensors: cannot be written (No space left on device); earlier "
        "checkpoints are whole, and the same command goes on from the newest"
    )
    assert [path.name for path in checkpoints(tmp_path / "run")] == [after(2)]
    assert ended(tmp_path, plain, tmp_path / "run", {"save_every": 2})[0] == [0, 0]
    same(tmp_path / "run", whole)


def no_metrics(rank, run):
    """metrics.jsonl cannot take another line from step 4 on."""
    if rank == 0:
        from mt3train.log import Log

        write = Log.write

        def full(self, done, *rest):
            if done == 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run / "metrics.jsonl"))
            write(self, done, *rest)

        Log.write = full
    return config(run), Made(), None


def test_metrics_that_cannot_be_written_end_both_ranks_with_one_line(tmp_path):
    codes, said = ended(tmp_path, no_metrics, tmp_path / "run")
    assert codes == [2, 2]
    (line,) = errors(said[0]) + errors(said[1])
    assert "metrics.jsonl: No space left on device" in line


# Data


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
    import shutil

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
        "error: the loss is nan at step 3, nothing was updated; records: made-2-1"
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
    ({"edge": "track"}, "edge 'segment', now asked for is 'track'"),
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
    assert errors(said[0]) == ["error: batch=1 for 2 processes; expected at least one each"]
