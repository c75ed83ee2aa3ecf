"""What torchrun adds: restarts, its signals, several machines. Real commands, so some are slow."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import fakes
import needs
import pytest
from events import HANG_SECONDS, Pause, Point, environment, wait_until
from worlds import metrics

import mt3train.train
from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.shards.windows import WindowConfig
from mt3train.weights.checkpoint import checkpoints, load_model

needs.skip_module_without_posix()

SCRIPT = Path(mt3train.train.__file__)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TINY = [
    "demo.toml", "batch=4", "log_every=10", "precision=float32", "threads=1", "keep_checkpoints=2",
    "model.emb_dim=8", "model.num_heads=1", "model.mlp_dim=8", "model.num_encoder_layers=1",
    "model.num_decoder_layers=1", "optim.warmup_steps=0",
]  # fmt: skip


STEPS = 10**9  # more than any machine does before a signal comes


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = fakes.slakh_tree(
        tmp_path_factory.mktemp("source"), "demo", {"Track00001": "train"}, seconds=3.0
    )
    out = tmp_path_factory.mktemp("shards")
    build(make_plan(BuildConfig("demo", root, out, windows=WindowConfig(256))))
    return out


def started(options, arguments, environment=os.environ):
    return subprocess.Popen(
        [*TORCHRUN, *options, SCRIPT, *TINY, *arguments],
        env=environment | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process):
    try:
        return process.communicate(timeout=HANG_SECONDS)[1]
    finally:
        process.kill()


def workers_of(process):
    """Process ids of the ranks that torchrun started, in their order."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8").split()
    ranks = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        for variable in variables:
            if variable.startswith(b"RANK="):
                ranks[int(variable[5:])] = int(child)
    return [ranks[rank] for rank in sorted(ranks)]


@needs.posix
@pytest.mark.slow
def test_ranks_that_are_killed_restart_all_from_the_last_checkpoint(shards, tmp_path):
    for name in ("whole", "killed"):
        arguments = [f"data.train={shards}", f"run={tmp_path}/{name}", "steps=120", "save_every=20"]
        options = ["--standalone", "--nproc_per_node=2", "--max-restarts=2"]
        # Rank 0 stops before each checkpoint has its name. Of three it never gets that far.
        with Pause(Point("os.rename", r"/killed/checkpoint-\d+\.safetensors$")) as pause:
            process = started(options, arguments, environment(tmp_path / f"{name}-hooks", pause))
            if name == "killed":
                for rank, nth in ((1, 2), (0, 3)):
                    pause.wait(process, nth)
                    os.kill(workers_of(process)[rank], signal.SIGKILL)
                    pause.go_on()
        said = ended(process)
        assert process.returncode == 0, said
    begun = [
        line.split("steps ")[1].split()[0] for line in said.splitlines() if " to 120 of" in line
    ]
    assert begun[0] == "0" and len(begun) == 3
    assert {int(step) for step in begun[1:]} <= set(range(20, 120, 20))
    ends = [checkpoints(tmp_path / name)[-1].read_bytes() for name in ("whole", "killed")]
    assert ends[0] == ends[1]
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


@needs.posix
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_torchrun_reaches_the_ranks_which_save(shards, tmp_path, number):
    options = [
        "--standalone", "--nproc_per_node=2", "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1",
    ]  # fmt: skip
    process = started(options, [f"data.train={shards}", f"run={tmp_path}/run", f"steps={STEPS}"])
    log = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: log.is_file() and log.stat().st_size, process)  # ten steps are done
    process.send_signal(number)
    said = ended(process)
    assert "stopped" in said
    assert 0 < load_model(tmp_path / "run")[1].step < STEPS


@pytest.mark.slow
def test_two_machines_train_as_one(shards, tmp_path):
    arguments = [f"data.train={shards}", "steps=3", "log_every=1"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=two"]
    nodes = [
        started(["--nnodes=2", "--nproc_per_node=1", *place], [*arguments, f"run={tmp_path}/two"])
        for _ in range(2)
    ]
    for node in nodes:
        said = ended(node)
        assert node.returncode == 0, said
    alone = started(["--standalone", "--nproc_per_node=1"], [*arguments, f"run={tmp_path}/one"])
    ended(alone)
    ours, theirs = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert len(ours) == 3
    for line, expected in zip(ours, theirs, strict=True):
        assert line == pytest.approx(expected, rel=1e-4)
