"""Train MT3 on shards; the same command continues a run that was stopped.

    torchrun --nproc_per_node=8 mt3train/train.py CONFIG.toml key=value ...
    python mt3train/train.py demo.toml data.train=shards/demo        (one process)

Without CONFIG.toml it trains the package's mt3.toml on every build under shards/. The run's folder
gets config.json, metrics.jsonl (one JSON object per line) and checkpoints.

What an update does not depend on: the number of processes and the size of micro-batches (up to
rounding, and up to the draws of dropout). Every process sums the loss over its tokens, and the sum
is divided by the number of target tokens of all processes. All that is random is drawn from
(seed, step, rank), so a run that continues needs no state of generators.
"""

import dataclasses
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mt3data.errors import UserError
from mt3data.terminal import UNUSABLE, unusable
from mt3data.vocabulary import num_embeddings
from mt3train import checkpoint
from mt3train.checkpoint import CheckpointInfo
from mt3train.config import Config, load_config
from mt3train.data import (
    Ahead,
    MicroBatch,
    Segments,
    open_evaluation,
    open_shards,
    read_step,
    to_device,
)
from mt3train.log import Log
from mt3train.loss import loss_sum
from mt3train.model import MT3
from mt3train.optim import learning_rate, make_optimizer

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float64": torch.float64}
SUMS = ("loss", "tokens", "correct", "skipped")  # of the steps since the last log line


def train(
    config: Config, shards: Segments | None = None, evaluation: Segments | None = None
) -> Path:
    """Train until config.steps updates are done, or until SIGINT or SIGTERM.

    Args:
        config: see config.py.
        shards, evaluation: segments to use in place of those that config.data names.
    Returns:
        The newest checkpoint.
    Raises:
        UserError: no shards, or a run there that does not fit them.
        FloatingPointError: the loss is not finite; names the step and the records.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if config.batch < world:
        raise UserError(f"batch={config.batch} for {world} processes; expected at least one each")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    precision = choose_precision(config.precision, device)
    dtype = torch.float64 if precision == "float64" else torch.float32
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)

    # What is trained, on what.
    run = Path(config.run)
    shards = shards or open_shards(config.data, config.seed)
    if config.eval_every and evaluation is None:
        evaluation = open_evaluation(config.data, shards)
    info = CheckpointInfo(
        model=dataclasses.replace(
            config.model,
            vocab_size=num_embeddings(shards.vocabulary),
            n_mels=shards.spectrogram.n_mels,
        ),
        spectrogram=shards.spectrogram,
        vocabulary=shards.vocabulary,
        edge=shards.edge,
        frames=config.data.frames,
        max_target_length=config.data.max_target_length,
    )
    torch.manual_seed(config.seed)
    model = MT3(info.model).to(device, dtype).train()
    optim, parameters = config.optim, list(model.parameters())
    optimizer = make_optimizer(parameters, optim.name, optim.lr, optim.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    # Continue where the newest checkpoint was taken.
    done, saved = 0, checkpoint.checkpoints(run)[-1:]
    sums = dict.fromkeys(SUMS, 0.0)
    if saved:
        found = checkpoint.read_info(saved[0])
        progress = checkpoint.read_progress(saved[0])
        differ = found.difference(info)
        if progress["optimizer"] != optim.name:
            differ = "optim.name", progress["optimizer"], optim.name
        if differ:
            raise UserError(
                f"{run} was trained with {differ[0]} {differ[1]!r}, now asked for is {differ[2]!r};"
                " choose another folder with run=DIR"
            )
        checkpoint.load_weights(saved[0], model)
        checkpoint.load_optimizer(saved[0], model, optimizer)
        scaler.load_state_dict(progress["scaler"])
        done, sums = found.step, progress["sums"]
    saved_step = done if saved else -1

    # Work together.
    network: Any = model
    if world > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        only = [device] if device.type == "cuda" else None
        network = DistributedDataParallel(model, device_ids=only, gradient_as_bucket_view=True)
    autocast = torch.autocast(
        device.type, DTYPES.get(precision), enabled=precision in ("bf16", "fp16")
    )
    log = Log(config, done, rank)
    builds = [path.name for path in getattr(shards, "builds", [])]
    log.say(
        f"{run}: {sum(p.numel() for p in parameters):,} parameters in {precision} on {world}"
        f" x {device.type}, steps {done} to {config.steps} of {config.batch} segments from"
        f" {shards.n_records} records of {', '.join(builds) or 'memory'}"
    )
    order = [config.seed, config.batch, shards.n_records, builds]  # what fixes every batch
    if saved and progress["order"] != order:
        log.say(
            f"seed, batch or data are no longer those of the steps before ({progress['order']}):"
            " until the next epoch begins, records may come twice or not at all"
        )
    if config.eval_every and evaluation is None:
        log.say(f"no build has a split {config.data.eval_split!r}: no evaluation loss")

    def load(step: int) -> list[MicroBatch]:
        return read_step(shards, step, config.batch, config, rank, world)

    def save() -> None:
        nonlocal saved_step
        saved_step = done
        if rank == 0:
            state = {"optimizer": optim.name, "order": order, "sums": sums}
            state["scaler"] = scaler.state_dict()
            now = dataclasses.replace(info, step=done)
            checkpoint.save(run, model, now, optimizer, state, config.keep)

    with closing(Ahead(load, last=config.steps - 1)) as batches, signals_caught() as caught:
        while done < config.steps:
            batch = batches.wait(done) or []
            # The ranks agree on the step at which a signal stops them.
            n_tokens, n_skipped, stop = all_sum(
                [sum(m.n_tokens for m in batch), sum(m.n_skipped for m in batch), len(caught)],
                world,
            )
            if stop:
                break
            seed = np.random.SeedSequence([config.seed, done, rank]).generate_state(1)[0]
            torch.manual_seed(int(seed))
            lr = learning_rate(done, optim.lr, optim.warmup_steps, optim.decay, config.steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)

            results = []
            for i, micro in enumerate(batch):
                mel, targets = to_device(micro, device, dtype)
                is_last = i == len(batch) - 1
                with network.no_sync() if world > 1 and not is_last else nullcontext():
                    with autocast:
                        logits = network(mel, targets)
                    loss = loss_sum(
                        logits, targets, z_loss=optim.z_loss, label_smoothing=optim.label_smoothing
                    )
                    # DDP averages gradients over ranks; times world makes it a sum.
                    scaler.scale(loss * (world / max(1.0, n_tokens))).backward()
                results.append(torch.stack([loss.detach(), count_correct(logits, targets)]))
            per_micro = torch.stack(results).tolist()
            loss_total, correct = all_sum(np.sum(per_micro, axis=0).tolist(), world)
            if not math.isfinite(loss_total):
                keys = [k for m, (x, _) in zip(batch, per_micro, strict=True)
                        if not math.isfinite(x) for k in m.keys]  # fmt: skip
                raise FloatingPointError(
                    f"the loss is {loss_total} at step {done + 1}, nothing was updated; records of"
                    f" rank {rank}: {', '.join(keys) or 'none'}"
                )
            scaler.unscale_(optimizer)
            gradients = [p.grad for p in parameters if p.grad is not None]
            total = torch.nn.utils.get_total_norm(gradients)
            norm = total.item()
            if not math.isfinite(norm) and not scaler.is_enabled():  # the scaler skips such steps
                keys = [key for micro in batch for key in micro.keys]
                raise FloatingPointError(
                    f"the gradient's norm is {norm} at step {done + 1}, nothing was updated; records"
                    f" of rank {rank}: {', '.join(keys)}"
                )
            if optim.clip_norm:
                torch.nn.utils.clip_grads_with_norm_(parameters, optim.clip_norm, total)
            scaler.step(optimizer)
            scaler.update()
            done += 1

            step_sums = (loss_total, n_tokens, correct, n_skipped)
            for key, value in zip(SUMS, step_sums, strict=True):
                sums[key] += value
            log.progress(
                done, loss_total / max(1.0, n_tokens), correct / max(1.0, n_tokens), lr, norm
            )
            if done % config.log_every == 0:
                log.write(done, sums, lr, norm)
                sums = dict.fromkeys(SUMS, 0.0)
            if evaluation is not None and done % config.eval_every == 0:
                with autocast:
                    log.write_evaluation(done, evaluate(model, evaluation, config, rank, world))
            if done % config.save_every == 0:
                save()
    if done > saved_step:  # the end, or a signal
        save()
    log.close()
    if world > 1:
        # Wait for rank 0 to write. A barrier has no tensor, and DDP lets go first: gloo's threads
        # need the interpreter to drop tensors, and their destructor waits for them holding it.
        dist.barrier()
        network = None
        dist.destroy_process_group()
    path = checkpoint.checkpoints(run)[-1]
    stopped = "done" if done >= config.steps else "stopped, the same command goes on"
    log.say(f"{path}: {stopped}")
    return path


@contextmanager
def signals_caught() -> Iterator[list[int]]:
    """SIGINT and SIGTERM end up in the list that is given, so that a step can be finished."""
    caught: list[int] = []
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda n, _frame: caught.append(n))
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def all_sum(values: Sequence[float], world: int) -> list[float]:
    """The values summed over all processes, on the host."""
    if world == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def choose_precision(wanted: str, device: torch.device) -> str:
    """What "auto" stands for; on a CPU without bf16 instructions bf16 is many times slower."""
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("precision='fp16' needs a GPU; use auto, bf16 or float32 on a CPU")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def count_correct(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """How many targets (padding excepted) have the largest logit."""
    hit_BL = logits_BLV.detach().gather(-1, targets_BL[..., None])[..., 0]
    return ((hit_BL >= logits_BLV.detach().amax(-1)) & (targets_BL > 0)).sum().to(logits_BLV.dtype)


@torch.no_grad()
def evaluate(
    model: MT3, segments: Segments, config: Config, rank: int, world: int
) -> dict[str, float]:
    """Cross entropy (without z-loss) and accuracy per token on a fixed set of segments."""
    parameter = next(model.parameters())
    size = min(config.batch, config.eval_segments, segments.n_records)
    sums = np.zeros(3)
    model.eval()
    for step in range(min(config.eval_segments, segments.n_records) // size):
        for micro in read_step(segments, step, size, config, rank, world):
            mel, targets = to_device(micro, parameter.device, parameter.dtype)
            logits = model(mel, targets)
            loss, correct = loss_sum(logits, targets, z_loss=0.0), count_correct(logits, targets)
            sums += (loss.item(), correct.item(), micro.n_tokens)
    model.train()
    loss_total, n_correct, n_tokens = all_sum(sums.tolist(), world)
    n_tokens = max(1.0, n_tokens)
    return {"eval_loss": loss_total / n_tokens, "eval_accuracy": n_correct / n_tokens}


def main() -> None:
    """Run by path: a user's mistake is one line and exit code 2; 130 if a signal ended the run."""
    try:
        config = load_config(sys.argv[1:])
        path = train(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        print(f"error: {unusable(error)}", file=sys.stderr)
        sys.exit(2)
    if checkpoint.read_info(path).step < config.steps:
        sys.exit(130)


if __name__ == "__main__":
    main()
