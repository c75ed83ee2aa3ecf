"""What a cluster does to a run, done to two processes: none may hang, lose or repeat anything."""

import errno
import os
import signal
import threading

import needs
import pytest
from events import HANG_SECONDS
from worlds import (
    CONTEXT,
    Made,
    World,
    after,
    config,
    ended,
    errors,
    killed_while_writing,
    metrics,
    plain,
)

from mt3train.weights.checkpoint import checkpoints

needs.skip_module_without_posix()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert ended(folder, plain, folder / "run", {})[0] == [0, 0]
    return folder / "run"


def resumed(run, folder, whole, **changes):
    """Runs again without a fault and compares with the whole run, bit for bit. Returns the output."""
    codes, said = ended(folder, plain, run, changes)
    assert codes == [0, 0], said
    newest = [checkpoints(path)[-1] for path in (run, whole)]
    assert newest[0].name == newest[1].name == after(6)
    assert newest[0].read_bytes() == newest[1].read_bytes()
    assert metrics(run) == metrics(whole)
    return said[0]


def signalled(rank, run, number, at):
    """Rank 1 alone gets the signal, while it reads a batch. Nobody reads the output of rank 0."""
    if rank == 0:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 2)
    send = (lambda step: step == at and os.kill(os.getpid(), number)) if rank == 1 else None
    return config(run), Made(at_step=send), None


@needs.posix
@pytest.mark.parametrize("number, at, code", [
    (signal.SIGTERM, 3, 0), (signal.SIGUSR1, 0, 0), (signal.SIGHUP, 2, 0), (signal.SIGINT, 5, 130),
])  # fmt: skip
def test_a_signal_to_one_rank_stops_both_after_one_step_though_stderr_is_a_broken_pipe(
    whole, tmp_path, number, at, code
):
    codes, said = ended(tmp_path, signalled, tmp_path / "run", number, at)
    assert codes == [code, code], said
    # It comes while step `at` is read ahead, which is before that step or the one before is done.
    assert checkpoints(tmp_path / "run")[-1].name in (after(at), after(max(0, at - 1)))
    resumed(tmp_path / "run", tmp_path, whole)


def blocked(rank, run, started):
    """Rank 1's disk does not answer from step 2 on."""

    def wait(step):
        if rank == 1 and step == 2:
            started.set()
            threading.Event().wait()

    return config(run), Made(at_step=wait), None


@needs.posix
def test_a_signal_stops_a_rank_that_waits_for_the_disk_of_another(whole, tmp_path):
    started = CONTEXT.Manager().Event()
    world = World(tmp_path, 2, blocked, tmp_path / "run", started)
    assert started.wait(HANG_SECONDS)
    os.kill(world.processes[0].pid, signal.SIGTERM)
    assert world.codes() == [0, 0]
    # Rank 1 reads ahead: when it blocks, the updates before step 2 may still be running.
    assert checkpoints(tmp_path / "run")[-1].name in (after(1), after(2))
    resumed(tmp_path / "run", tmp_path, whole)


def stopped_in_evaluation(rank, run, number):
    """Rank 1 gets the signal in its second evaluation."""
    evaluations = []

    def at_step(step):
        evaluations.append(step)
        if rank == 1 and number and len(evaluations) == 2:
            os.kill(os.getpid(), number)

    return config(run, eval_every=2, eval_segments=6), Made(), Made(at_step=at_step)


@needs.posix
def test_a_run_stopped_during_an_evaluation_begins_with_it_again(tmp_path):
    cut, uncut = tmp_path / "cut", tmp_path / "uncut"
    codes, said = ended(tmp_path, stopped_in_evaluation, cut, signal.SIGTERM)
    assert codes == [0, 0], said
    assert checkpoints(cut)[-1].name == after(4)
    assert [line["step"] for line in metrics(cut) if "eval_loss" in line] == [2]
    for run in (cut, uncut):
        assert ended(tmp_path, stopped_in_evaluation, run, None)[0] == [0, 0]
    assert metrics(cut) == metrics(uncut)
    assert len([line for line in metrics(cut) if "eval_loss" in line]) == 3
    for name in (after(6), "best.safetensors"):
        assert (cut / name).read_bytes() == (uncut / name).read_bytes()


@needs.posix
@pytest.mark.parametrize("part", [after(4), after(4).replace(".s", ".optimizer.s")])
def test_a_rank_killed_while_it_writes_a_checkpoint_leaves_the_one_before(whole, tmp_path, part):
    run = tmp_path / "run"
    codes, said = ended(tmp_path, killed_while_writing, run, part)
    assert codes[0] == -signal.SIGKILL and codes[1] not in (0, None), said
    assert [path.name for path in checkpoints(run)] == [after(2)]
    assert len(list(run.glob("*.tmp-*"))) == 1
    assert "steps 2 to 6" in resumed(run, tmp_path, whole, save_every=2)
    assert not list(run.glob("*.tmp-*"))


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


def full_disk(rank, run, name):
    """The disk fills up after the checkpoint of step 2."""
    import mt3data.files

    def fill(step):
        if rank == 0 and step == 3:
            (run / f"{name}.tmp-0").symlink_to("/dev/full")

    mt3data.files.temp_path = lambda path: path.with_name(f"{path.name}.tmp-0")
    return config(run, save_every=2), Made(at_step=fill), None


@pytest.mark.parametrize("name", [after(4), "run.json"])
def test_a_full_disk_at_a_checkpoint_is_one_line_and_the_earlier_ones_count(whole, tmp_path, name):
    run = tmp_path / "run"
    codes, said = ended(tmp_path, full_disk, run, name)
    assert codes == [2, 2]
    (line,) = errors(said[0]) + errors(said[1])
    assert "No space left on device" in line and "choose another path" in line
    assert [path.name for path in checkpoints(run)] == [after(2)]
    resumed(run, tmp_path, whole, save_every=2)


def no_metrics(rank, run):
    """metrics.jsonl cannot take another line from step 4 on."""
    if rank == 0:
        from mt3train.training.logger import Log

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
