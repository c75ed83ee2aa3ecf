"""Ranks that agree: sums, failures, signals, the environment, and new processes after a crash."""

import signal

import needs
import pytest
import torch.distributed as dist
from worlds import World, after, config, killed_while_writing, plain

from mt3data.errors import UserError
from mt3train.training.distributed import Ranks, connected
from mt3train.weights.checkpoint import checkpoints

needs.skip_module_without_posix()


def test_one_process_sums_to_itself_and_gathers_itself():
    ranks = Ranks()
    assert ranks.all_reduce(1.5, 2) == [1.5, 2]
    assert ranks.gather("a") == ["a"]
    assert (ranks.stop, ranks.interrupted) == (False, False)


@needs.posix
@pytest.mark.parametrize("number, interrupted", [(signal.SIGHUP, False), (signal.SIGINT, True)])
def test_a_signal_stops_at_the_next_sum_and_only_ctrl_c_counts_as_an_interruption(
    number, interrupted
):
    with connected(config("")) as ranks:
        signal.raise_signal(number)
        assert not ranks.stop
        ranks.all_reduce()
        assert (ranks.stop, ranks.interrupted) == (True, interrupted)


@needs.posix
def test_a_run_started_by_nohup_outlives_its_terminal():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with connected(config("")) as ranks:
            signal.raise_signal(signal.SIGHUP)
            ranks.all_reduce()
            assert not ranks.stop
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("variables", [
    {"RANK": "1", "WORLD_SIZE": "1"},
    {"RANK": "-1", "WORLD_SIZE": "2"},
    {"RANK": "0", "WORLD_SIZE": "two"},
    {"RANK": "", "WORLD_SIZE": "1"},
    {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
    {"RANK": "0", "WORLD_SIZE": "2"},
    {"LOCAL_RANK": "1.5"},
])  # fmt: skip
def test_an_environment_that_torchrun_does_not_make_is_refused(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    expected = "expected RANK from 0 to WORLD_SIZE - 1"
    with pytest.raises(UserError, match=expected) as refused, connected(config("")):
        pass
    assert all(f"{name}={value}" in str(refused.value) for name, value in variables.items())


@pytest.mark.parametrize("rank", ["0", "3"])
def test_more_processes_than_gpus_are_refused_by_each_of_them(monkeypatch, rank):
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    message = "4 processes .* 2 GPUs; .*--nproc_per_node=2"
    with pytest.raises(UserError, match=message), connected(config("")):
        pass


@needs.posix
def test_new_processes_meet_in_a_store_that_holds_keys_of_crashed_ones(tmp_path):
    """As under torchrun, which keeps its store when it restarts them."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    run = tmp_path / "run"
    world = World(tmp_path, 2, killed_while_writing, run, after(4), store_port=store.port)
    assert world.codes()[0] == -signal.SIGKILL
    for _ in range(2):
        world = World(tmp_path, 2, plain, run, {}, store_port=store.port)
        assert world.codes() == [0, 0], world.said(0)
    assert checkpoints(run)[-1].name == after(6)
