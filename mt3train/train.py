"""Trains MT3 on shards. The same command resumes a run that was stopped.

    torchrun --nproc_per_node=8 mt3train/train.py CONFIG.toml key=value ...
    torchrun --nproc_per_node=8 -m mt3train.train CONFIG.toml ...    (installed, without a checkout)
    python mt3train/train.py demo.toml data.train=shards/demo        (one process)

Without CONFIG.toml it trains the package's mt3.toml on every build under shards/. The run's folder gets
config.json, metrics.jsonl and checkpoints. The loss is summed over tokens and divided by the number of
target tokens of all processes. So the gradient of a batch does not depend on the number of processes or
the size of micro-batches, except for rounding. Dropout and augmentation are drawn from (seed, step,
rank), so these draws do depend on them. With data.reader=webdataset, the batches do as well.
"""

import dataclasses
import math
import os
import sys
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import the packages of this checkout, not an installed copy
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":  # torch cannot be loaded in a folder that was deleted
    from mt3data.errors import UserError
    from mt3data.terminal import require_working_directory

    try:
        require_working_directory()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from mt3data.errors import UserError
from mt3data.shards.cache import counted_traffic
from mt3train.config import Config, load_config
from mt3train.data.builds import TrainingData, open_evaluation, open_shards
from mt3train.data.loader import Prefetcher, read_step, to_device
from mt3train.device import choose_precision, compile_layers, keep_freed_memory
from mt3train.model import MT3
from mt3train.training.distributed import Ranks, connected, print_error
from mt3train.training.logger import Log, SafeStderr
from mt3train.training.loss import count_correct, token_losses
from mt3train.training.optimizers import freeze, make_average, make_optimizer
from mt3train.training.resume import SUMS, checkpoint_info, resume
from mt3train.training.run_folder import locked_run, save_checkpoint
from mt3train.training.schedule import learning_rate, reason_to_end
from mt3train.training.validation import evaluate_if_due
from mt3train.weights.checkpoint import weights_path

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of matrix products
MIN_LOSS_SCALE = 1.0  # of fp16; if gradients overflow at this scale too, it is not the cause


def train(
    config: Config, data: TrainingData | None = None, validation: TrainingData | None = None
) -> Path:
    """Trains until config.steps or config.hours are over, or until SIGTERM, SIGUSR1, SIGHUP or SIGINT.

    Args:
        config: see config.py.
        data, validation: segments to use in place of those that config.data names.
    Returns:
        The newest checkpoint.
    Raises:
        UserError: shards or a run's folder that do not fit, a loss that is not finite, a full disk.
        KeyboardInterrupt: SIGINT came. The run was saved.
    """
    with redirect_stderr(SafeStderr()), connected(config) as ranks, locked_run(config, ranks.rank):
        path = train_on(ranks, config, data, validation)
    if ranks.interrupted:
        raise KeyboardInterrupt
    return path


def train_on(
    ranks: Ranks, config: Config, data: TrainingData | None, validation: TrainingData | None
) -> Path:
    """Trains on connected processes. Arguments and errors are those of `train`."""
    # Set-up
    run, optim, device, world_size = Path(config.run), config.optim, ranks.device, ranks.world_size
    precision = choose_precision(config.precision, device, training=True)
    dtype = torch.float64 if precision == "float64" else torch.float32  # of the weights
    autocast_type = AUTOCAST_TYPES.get(precision)
    autocast = torch.autocast(device.type, autocast_type, enabled=autocast_type is not None)

    # Data
    data = data or open_shards(config.data, config.seed, config.augment.is_on)
    validation = validation or open_evaluation(config, data)
    traffic = counted_traffic([*data.builds, *(validation.builds if validation else [])])

    # Model
    model_info = checkpoint_info(config, data)
    torch.manual_seed(config.seed)
    model = MT3(model_info.model).to(device, dtype).train()
    freeze(model, config.freeze)
    parameters = [p for p in model.parameters() if p.requires_grad]

    # Optimizer
    optimizer = make_optimizer(model, optim.name, optim.lr, optim.weight_decay, precision == "bf16")
    average = make_average(model, optim.ema)
    averaged: Any = average and average.module  # what is evaluated and saved in place of the model
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    # Resume
    progress, messages = resume(
        config, model_info, data, model, optimizer, scaler, ranks.rank, average
    )
    ranks.require_same(progress.step, f"checkpoints in {run}; share this folder")
    if config.compile:
        messages += compile_layers([*model.encoder.layers, *model.decoder.layers], device)
    network: Any = model
    if world_size > 1:
        network = DistributedDataParallel(model, gradient_as_bucket_view=True)
    log = Log(config, progress.step, device, is_writer=ranks.rank == 0)
    log.start(data, validation, sum(map(torch.numel, parameters)), precision, world_size, messages)

    # Loop
    batches = Prefetcher(
        lambda step: read_step(data, step, config.batch, config, ranks.rank, world_size, True),
        steps=range(progress.step, config.steps),
    )
    first = progress.step
    saved = progress.step or -1  # the step of the newest checkpoint; -1: there is none yet
    while True:
        # Evaluate and save. A run that was stopped before an evaluation was complete repeats it.
        model_info = dataclasses.replace(model_info, step=progress.step)
        evaluate_if_due(
            progress, averaged or model, model_info, validation, config, ranks, autocast, log
        )
        end = reason_to_end(config, progress, ranks.stop)
        is_due = progress.step > 0 and progress.step % config.save_every == 0
        if progress.step > saved and (end or is_due):
            saved = progress.step
            if ranks.rank == 0:
                save_checkpoint(config, model, model_info, optimizer, scaler, progress, averaged)
        if end:
            break

        batch, n_tokens, n_skipped, waited, seconds = ranks.next_batch(batches)
        progress.seconds += seconds if config.hours else 0.0  # else a checkpoint's bytes would vary
        if ranks.stop:
            continue  # to save
        if not n_tokens and progress.step == first:
            raise UserError(
                f"every segment of step {first + 1} has more tokens than data.max_target_length="
                f"{config.data.max_target_length}, so nothing can be learned; raise it"
            )

        # Forward and backward
        seed = np.random.SeedSequence([config.seed, progress.step, ranks.rank]).generate_state(1)[0]
        torch.manual_seed(int(seed))  # for dropout and augmentation
        lr = learning_rate(config, progress)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        segment_losses, hits = [], []
        for i, micro in enumerate(batch):
            mel_BFM, targets_BL = to_device(micro, device, dtype)
            is_last = i == len(batch) - 1
            with network.no_sync() if world_size > 1 and not is_last else nullcontext():
                with autocast:
                    logits_BLV = network(mel_BFM, targets_BL)
                loss_BL = token_losses(logits_BLV, targets_BL, optim.z_loss, optim.label_smoothing)
                # DDP averages gradients over ranks; times world_size makes it a sum.
                scaler.scale(loss_BL.sum() * (world_size / max(1.0, n_tokens))).backward()
            segment_losses.append(loss_BL.detach().sum(-1))
            hits.append(count_correct(logits_BLV, targets_BL))
        losses = torch.cat(segment_losses).tolist()
        loss, n_correct = ranks.all_reduce(sum(losses), torch.stack(hits).sum().item())
        keys = [key for micro in batch for key in micro.keys]
        if not math.isfinite(loss):
            bad = [k for k, value in zip(keys, losses, strict=True) if not math.isfinite(value)]
            ranks.raise_with_records(f"the loss is {loss} at step {progress.step + 1}", bad)

        # Update
        scaler.unscale_(optimizer)
        gradients = [p.grad for p in parameters if p.grad is not None]
        total_norm = torch.nn.utils.get_total_norm(gradients)
        norm = total_norm.item()  # equal on all ranks, as the gradients are
        overflow = not math.isfinite(norm)
        if overflow and (not scaler.is_enabled() or scaler.get_scale() < MIN_LOSS_SCALE):
            ranks.raise_with_records(
                f"the gradient norm is {norm} at step {progress.step + 1}", keys
            )
        if optim.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, optim.clip_norm, total_norm)
        scaler.step(optimizer)  # not after an overflow, which fp16 has now and then
        scaler.update()
        if average:
            average.update_parameters(model)
        progress.step += 1

        # Log
        for key, value in zip(SUMS, (loss, n_tokens, n_correct, n_skipped, overflow), strict=True):
            progress.sums[key] += value
        log.step(loss / max(1.0, n_tokens), n_correct / max(1.0, n_tokens), waited)
        if progress.step % config.log_every == 0:
            log.write(progress.step, progress.sums, lr, norm)
            progress.sums = dict.fromkeys(SUMS, 0.0)
    batches.close()
    log.close(end, weights_path(run, saved), ranks.all_reduce(*traffic()))
    return weights_path(run, saved)


def main() -> None:
    """Runs a command line. Exits with 2 and one line after a mistake, with 130 after Ctrl-C."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    code = 0
    keep_freed_memory()
    try:
        train(load_config(sys.argv[1:]))
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        code = print_error(error)
    if code and "WORLD_SIZE" in os.environ:
        os._exit(code)  # threads of the process group may wait for others that are gone
    sys.exit(code)


if __name__ == "__main__":
    main()
