"""Small training runs for tests: made segments, a tiny network, and worlds of several processes.

The processes of a world are forked from one server that has imported torch, so that they start in
a moment. Each runs the trainer's own main function and writes its output to a file.
"""

import dataclasses
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from events import HANG_SECONDS

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.files import temp_path
from mt3data.music.vocabulary import VocabularyConfig
from mt3data.shards.reader import Batch, pad_tokens
from mt3train.config import Config, DataConfig, OptimConfig
from mt3train.model import ModelConfig
from mt3train.training.logger import read_metrics
from mt3train.weights.checkpoint import weights_path

METHODS = multiprocessing.get_all_start_methods()  # Windows has "spawn" alone
CONTEXT = multiprocessing.get_context("forkserver" if "forkserver" in METHODS else "spawn")
CONTEXT.set_forkserver_preload(
    ["mt3train.train", "mt3train.evaluation.evaluate", "torch._dynamo", "torch.utils.tensorboard"]
)
MODEL = ModelConfig(
    emb_dim=8, num_heads=2, head_dim=4, num_encoder_layers=1, num_decoder_layers=1, mlp_dim=8,
    dropout_rate=0.1,
)  # fmt: skip
PLAIN = dataclasses.replace(MODEL, dropout_rate=0.0)
TIMES = ("segments_per_second", "data_wait", "memory_gb", "seconds")  # differ from run to run
# A command line that trains the smallest network for three steps.
TINY = [
    "demo.toml", "steps=3", "batch=4", "micro_batch=1", "log_every=1", "precision=float64",
    "threads=1", "model.emb_dim=8", "model.num_heads=1", "model.mlp_dim=8",
    "model.num_encoder_layers=1", "model.num_decoder_layers=1", "optim.warmup_steps=0",
]  # fmt: skip


class Made:
    """Segments made from (step, member) alone, in place of shards."""

    def __init__(
        self,
        right_context: str = "zeros",
        break_at: int = -1,
        at_step: Callable[[int], Any] | None = None,
    ) -> None:
        self.spectrogram, self.vocabulary = SpectrogramConfig(n_mels=6), VocabularyConfig()
        self.right_context, self.feature, self.n_records = right_context, "mel", 8
        self.builds: list[Path] = []
        self.break_at, self.at_step = break_at, at_step or (lambda step: None)

    def batch(
        self, step: int, global_batch: int, rank: int = 0, world_size: int = 1, frames: int = 256
    ) -> Batch:
        self.at_step(step)
        mel, tokens, keys = [], [], []
        for member in range(rank, global_batch, world_size):
            draw = np.random.default_rng([step, member])
            mel.append(draw.normal(size=(frames, 6)).astype(np.float16))
            ids = np.append(draw.integers(3, 1400, draw.integers(2, 40)), 1)
            tokens.append(ids.astype(np.int16))
            keys.append(f"made-{step}-{member}")
            if step == self.break_at and member == 1:
                mel[-1][0, 0] = np.nan
        padded, lengths = pad_tokens(tokens)
        zeros, whole = np.zeros(len(keys), np.int64), np.full(len(keys), frames, np.int32)
        return Batch(np.stack(mel), None, padded, lengths, keys, zeros, whole)


def config(run: Path | str, **changes: Any) -> Config:
    base = Config(
        run=str(run), seed=1, steps=6, batch=6, micro_batch=2, precision="float32", threads=1,
        log_every=2, save_every=100, keep_checkpoints=2, eval_every=0, model=MODEL,
        data=DataConfig(frames=5, max_target_length=36),
        optim=OptimConfig(lr=1e-2, warmup_steps=2, clip_norm=1.0),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def metrics(run: Path) -> list[dict[str, Any]]:
    """What a run logged, without what depends on the machine."""
    lines = read_metrics(Path(run) / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


class World:
    """Processes that train together.

    Args:
        folder: where the output of rank N goes into rank-N.txt.
        size: number of processes.
        prepare: called in each with (rank, *arguments); returns the configuration and the segments
            to train and evaluate on, None for those that the configuration names.
        store_port: of a store that outlives the world, as torchrun's does.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        prepare: Callable,
        *arguments: Any,
        store_port: int | None = None,
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port, is_kept = store_port or probe.getsockname()[1], store_port is not None
        self.folder = folder
        self.processes = [
            CONTEXT.Process(
                target=_work, args=(rank, size, port, is_kept, folder, prepare, arguments)
            )
            for rank in range(size)
        ]
        files = [folder / f"rank-{rank}.txt" for rank in range(size)]
        for process, file in zip(self.processes, files, strict=True):
            file.unlink(missing_ok=True)
            process.start()

    def codes(self) -> list[int | None]:
        """Waits for the processes. Returns their exit codes, None for one that hangs and is killed."""
        end = time.monotonic() + HANG_SECONDS
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return codes

    def said(self, rank: int) -> str:
        """What a rank wrote to stdout and stderr."""
        return (self.folder / f"rank-{rank}.txt").read_text()


def plain(rank: int, run: Path, changes: dict[str, Any]) -> tuple[Config, Made, None]:
    """Nothing happens to this run."""
    return config(run, **changes), Made(), None


def ended(
    folder: Path, prepare: Callable, *arguments: Any, size: int = 2
) -> tuple[list[int | None], list[str]]:
    """Exit codes of a world, and the output of its ranks."""
    world = World(folder, size, prepare, *arguments)
    codes = world.codes()
    return codes, [world.said(rank) for rank in range(size)]


def errors(said: str) -> list[str]:
    """The lines by which a run was ended."""
    return [line for line in said.splitlines() if line.startswith("Error:")]


def after(step: int) -> str:
    """The name of a checkpoint."""
    return weights_path(Path(), step).name


def killed_while_writing(rank: int, run: Path, name: str) -> tuple[Config, Made, None]:
    """Rank 0 is killed after it wrote half of the file `name`."""
    if rank == 0:
        from mt3train.weights import checkpoint

        write = checkpoint.write_atomically

        def write_half(path: Path, data: Any) -> None:
            if path.name == name:
                temp_path(path).write_bytes(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            write(path, data)

        checkpoint.write_atomically = write_half
    return config(run, save_every=2), Made(), None


def _work(
    rank: int,
    size: int,
    port: int,
    is_kept: bool,
    folder: Path,
    prepare: Callable,
    arguments: tuple,
) -> None:
    file = os.open(folder / f"rank-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE=str(is_kept), GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1",
    )  # fmt: skip
    import mt3train.train as trainer

    config, shards, evaluation = prepare(rank, *arguments)
    trainer.load_config = lambda _: config  # type: ignore[attr-defined]
    if shards is not None:
        trainer.open_shards = lambda *_: shards  # type: ignore[attr-defined]
        trainer.open_evaluation = lambda *_: evaluation  # type: ignore[attr-defined]
    trainer.main()
