"""Processes that agree: sums, failures, signals, and meeting again after a death."""

import errno
import signal

import pytest
import torch.distributed as dist
from worlds import World, after, config, plain

from mt3data.errors import UserError
from mt3train.training.device import own_device
from mt3train.training.distributed import Ranks, Stopped
from mt3train.weights.checkpoint import checkpoints


def test_one_process_sums_to_itself():
    ranks = Ranks()
    assert ranks.sum(1.5, 2) == ranks.meet(1.5, 2) == [1.5, 2]
    assert ranks.gather("a") == ["a"]


def test_a_signal_stops_at_the_next_meeting_and_only_ctrl_c_counts_as_an_interruption():
    for number, interrupted in ((signal.SIGTERM, False), (signal.SIGINT, True)):
        ranks = Ranks(caught=[number])
        with ranks.together():
            pass  # nothing is stopped here
        with pytest.raises(Stopped):
            ranks.meet()
        assert ranks.interrupted is interrupted


def test_an_error_is_raised_where_it_was_met_and_a_full_disk_is_told_in_one_line():
    ranks = Ranks()
    bug = ValueError("a bug")
    with pytest.raises(ValueError) as caught:
        ranks.meet(error=bug)
    assert caught.value is bug
    with (
        pytest.raises(UserError, match="runs/a: No space left on device; choose"),
        ranks.together(),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a")
    with pytest.raises(FileNotFoundError), ranks.together():
        raise FileNotFoundError("gone")


def test_work_that_fails_in_a_share_is_told_once():
    ranks = Ranks()
    with pytest.raises(KeyError, match="once"), ranks.sharing():
        raise KeyError("once")
    stopped = Ranks(caught=[signal.SIGTERM])
    with pytest.raises(Stopped), stopped.sharing():
        stopped.pace()


@pytest.mark.parametrize("rank", ["0", "3"])
def test_more_processes_than_gpus_are_refused_by_each_of_them(monkeypatch, rank):
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match="4 processes on this machine find 2 GPUs; .*per_node=2"):
        own_device()


def dying(rank, run):
    from test_train_faults import killed_while_writing

    return killed_while_writing(rank, run, after(4))


def test_processes_meet_again_in_a_store_that_remembers_those_that_died(tmp_path):
    """As under torchrun, which keeps its store when it restarts them."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    world = World(tmp_path, 2, dying, tmp_path / "run", store_port=store.port)
    assert world.codes()[0] == -signal.SIGKILL
    for _ in range(2):
        world = World(tmp_path, 2, plain, tmp_path / "run", {}, store_port=store.port)
        assert world.codes() == [0, 0], world.said(0)
    assert checkpoints(tmp_path / "run")[-1].name == after(6)
    assert config("").steps == 6
