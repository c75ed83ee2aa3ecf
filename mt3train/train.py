"""Train MT3 on shards; the same command continues a run that was stopped.

    torchrun --nproc_per_node=8 mt3train/train.py CONFIG.toml key=value ...
    torchrun --nproc_per_node=8 -m mt3train.train CONFIG.toml ...    (installed, without a checkout)
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
import sys
import time
import traceback
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

if not __package__:  # run by path: import the packages of this checkout, not an installed copy
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from mt3data.errors import UserError
from mt3train.config import Config, load_config
from mt3train.data.builds import TrainingData, open_evaluation, open_shards
from mt3train.data.loader import Ahead, MicroBatch, read_step, to_device
from mt3train.model import MT3
from mt3train.training.device import autocast, choose_precision
from mt3train.training.distributed import Ranks, Stopped, connected
from mt3train.training.logger import Log
from mt3train.training.loss import count_correct, token_losses
from mt3train.training.optimizers import freeze, learning_rate, make_optimizer
from mt3train.training.resume import checkpoint_info, init_from_checkpoint, resume, set_aside
from mt3train.training.validation import evaluate, is_better
from mt3train.weights import checkpoint

SUMS = ("loss", "tokens", "correct", "skipped", "overflows")  # of the steps since the last line
ORDER = (  # what fixes every batch, in the order of progress["order"]
    "seed", "batch", "records", "builds", "data.reader", "data.mix_examples", "data.temperature",
    "data.weights",
)  # fmt: skip
SMALLEST_SCALE = 1.0  # of the loss in fp16; gradients that overflow below it are not a matter of it
MEET_SECONDS = 1.0  # how often ranks that wait for data meet, so that a signal is heard


def train(
    config: Config, shards: TrainingData | None = None, evaluation: TrainingData | None = None
) -> Path:
    """Train until config.steps updates are done, or until SIGTERM, SIGUSR1 or SIGINT.

    Args:
        config: see config.py.
        shards, evaluation: segments to use in place of those that config.data names.
    Returns:
        The newest checkpoint.
    Raises:
        UserError: no shards, or a run there that does not fit them; a loss that is not finite,
            with the step and the records; no room for a checkpoint.
        KeyboardInterrupt: SIGINT came; the run was saved.
    """
    with connected() as ranks:
        path = train_together(config, ranks, shards, evaluation)
    if ranks.interrupted:
        raise KeyboardInterrupt
    return path


def train_together(
    config: Config, ranks: Ranks, shards: TrainingData | None, evaluation: TrainingData | None
) -> Path:
    """`train` on processes that are connected. Raises UserError, on all of them alike."""
    rank, world_size, device, optim = ranks.rank, ranks.world_size, ranks.device, config.optim
    if config.batch < world_size:
        raise UserError(
            f"batch={config.batch} for {world_size} processes; expected at least one each"
        )
    precision = choose_precision(config.precision, device)
    dtype = torch.float64 if precision == "float64" else torch.float32  # of the weights
    products = autocast(precision, device)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)

    # What is trained, on what, and from where on.
    run = Path(config.run)
    with ranks.together():
        shards = shards or open_shards(config.data, config.seed, config.augment.is_on)
        if (config.eval_every or config.transcribe_every) and evaluation is None:
            evaluation = open_evaluation(config.data, shards)
        info = checkpoint_info(config, shards)
        torch.manual_seed(config.seed)
        model = MT3(info.model).to(device, dtype).train()
        freeze(model, config.freeze)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = make_optimizer(
            model, optim.name, optim.lr, optim.weight_decay, bf16=precision == "bf16"
        )
        settings = {"optim.name": optim.name, "freeze": config.freeze}
        restored = resume(run, info, settings, model, optimizer)
        if restored is None and config.init_checkpoint:
            init_from_checkpoint(model, config.init_checkpoint, info)
    builds = [path.name for path in shards.builds]
    data = config.data
    order = [config.seed, config.batch, shards.n_records, builds]
    order += [data.reader, data.mix_examples, data.temperature, data.weights]
    done, saved, outcome = 0, -1, "stopped, the same command goes on"
    progress: dict[str, Any] = {"sums": dict.fromkeys(SUMS, 0.0), "evaluated": 0, "best": None}
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    if restored:
        done = saved = restored.step
        progress = restored.progress
        if progress["scaler"]:  # none of a run that was not in fp16 then
            scaler.load_state_dict(progress["scaler"])
    if len(set(ranks.gather(done))) > 1:
        raise UserError(f"{run}: not all processes find the same checkpoints; share this folder")
    sums = progress["sums"]

    # Work together.
    if config.compile:
        model.compile(dynamic=True)  # in place: names stay as they are
    network: Any = model
    if world_size > 1:
        only = [device] if device.type == "cuda" else None
        network = DistributedDataParallel(model, device_ids=only, gradient_as_bucket_view=True)
    with ranks.together():
        log = Log(config, done, rank, device)
    log.say(
        f"{run}: {sum(p.numel() for p in parameters):,} parameters in {precision} on {world_size}"
        f" x {device.type}, steps {done} to {max(done, config.steps)} of {config.batch} segments from"
        f" {shards.n_records} records of {', '.join(builds) or 'memory'}"
    )
    for file, what in restored.damaged if restored and rank == 0 else []:
        log.say(f"{what}; set aside, going on from step {done}")
        set_aside(file)
    if restored and progress["order"] != order:
        then = zip(ORDER, progress["order"], order, strict=True)
        were = [f"{key}={was}" for key, was, now in then if was != now]
        log.say(
            f"the steps before had {', '.join(were)}, now other data come or in another order:"
            " until the next epoch begins, records may come twice or not at all"
        )
    if (config.eval_every or config.transcribe_every) and evaluation is None:
        log.say(f"no build has a split {config.data.eval_split!r}: no evaluation")
    progress |= {"order": order, "settings": settings}

    def load(step: int) -> list[MicroBatch]:
        return read_step(shards, step, config.batch, config, rank, world_size, True)

    def save() -> None:
        nonlocal saved
        with ranks.together():
            if rank == 0:
                now = dataclasses.replace(info, step=done)
                state = progress | {"sums": sums, "scaler": scaler.state_dict()}
                checkpoint.save(run, model, now, optimizer, state, config.keep_checkpoints)
        saved = done

    begun = done, progress["evaluated"]
    with closing(Ahead(load, last=config.steps - 1)) as batches, suppress(Stopped):
        while True:
            # What is due after `done` updates; a run that was stopped before it begins with it.
            if evaluation is not None and progress["evaluated"] < done:
                scores = evaluate(done, model, info, evaluation, config, ranks, products)
                if scores:
                    with ranks.together():
                        log.write_evaluation(done, scores)
                        if is_better(scores, progress["best"]) and rank == 0:
                            now = dataclasses.replace(info, step=done)
                            checkpoint.save_weights(run / checkpoint.BEST, model, now)
                    if is_better(scores, progress["best"]):
                        progress["best"] = scores
                progress["evaluated"] = done
            if done % config.save_every == 0 and done > max(saved, 0):
                save()
            if done >= config.steps:
                enough = f"the run already has {done} steps; give more than steps={done} to go on"
                outcome = enough if (done, progress["evaluated"]) == begun else "done"
                break

            batch, n_tokens, n_skipped = next_batch(batches, done, ranks, log)
            seed = np.random.SeedSequence([config.seed, done, rank]).generate_state(1)[0]
            torch.manual_seed(int(seed))
            lr = learning_rate(done, optim.lr, optim.warmup_steps, optim.decay, config.steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)

            row_losses, hits = [], []
            for i, micro in enumerate(batch):
                mel_BFM, targets_BL = to_device(micro, device, dtype)
                is_last = i == len(batch) - 1
                with network.no_sync() if world_size > 1 and not is_last else nullcontext():
                    with products:
                        logits_BLV = network(mel_BFM, targets_BL)
                    loss_BL = token_losses(
                        logits_BLV, targets_BL, optim.z_loss, optim.label_smoothing
                    )
                    # DDP averages gradients over ranks; times world_size makes it a sum.
                    scaler.scale(loss_BL.sum() * (world_size / max(1.0, n_tokens))).backward()
                row_losses.append(loss_BL.detach().sum(-1))
                hits.append(count_correct(logits_BLV, targets_BL))
            losses = torch.cat(row_losses).tolist()
            loss_total, correct = ranks.sum(sum(losses), torch.stack(hits).sum().item())
            keys = [key for micro in batch for key in micro.keys]
            if not math.isfinite(loss_total):
                bad = [k for k, loss in zip(keys, losses, strict=True) if not math.isfinite(loss)]
                raise_with_records(ranks, f"the loss is {loss_total} at step {done + 1}", bad)

            scaler.unscale_(optimizer)
            gradients = [p.grad for p in parameters if p.grad is not None]
            total_norm = torch.nn.utils.get_total_norm(gradients)
            norm = total_norm.item()  # equal on all ranks, as the gradients are
            overflow = not math.isfinite(norm)
            if overflow and (not scaler.is_enabled() or scaler.get_scale() < SMALLEST_SCALE):
                raise_with_records(ranks, f"the gradient's norm is {norm} at step {done + 1}", keys)
            if optim.clip_norm:
                torch.nn.utils.clip_grads_with_norm_(parameters, optim.clip_norm, total_norm)
            scaler.step(optimizer)  # not after an overflow, which fp16 has now and then
            scaler.update()
            done += 1

            step_sums = (loss_total, n_tokens, correct, n_skipped, overflow)
            for key, value in zip(SUMS, step_sums, strict=True):
                sums[key] += value
            log.progress(
                done, loss_total / max(1.0, n_tokens), correct / max(1.0, n_tokens), lr, norm
            )
            if done % config.log_every == 0:
                with ranks.together():
                    log.write(done, sums, lr, norm)
                sums = dict.fromkeys(SUMS, 0.0)
    if done > saved:  # the end, or a signal
        save()
    log.close()
    path = checkpoint.weights_path(run, saved)
    log.say(f"{path}: {outcome}")
    return path


def next_batch(
    batches: Ahead, step: int, ranks: Ranks, log: Log
) -> tuple[list[MicroBatch], float, float]:
    """This rank's part of a batch, and the target tokens and skipped segments of all ranks.

    Raises:
        Stopped: a signal came, to whichever rank.
        Exception: a rank could not read its part.
    """
    begin, batch = time.monotonic(), list[MicroBatch]()
    while True:
        error = None
        try:
            batch = batch or batches.wait(step, MEET_SECONDS) or []
        except Exception as failure:  # meet tells the others, and raises it
            error = failure
        waited = time.monotonic() - begin
        n_tokens, n_skipped = sum(m.n_tokens for m in batch), sum(m.n_skipped for m in batch)
        n_ready, all_tokens, all_skipped = ranks.meet(bool(batch), n_tokens, n_skipped, error=error)
        if n_ready == ranks.world_size:
            log.wait(waited)
            return batch, all_tokens, all_skipped


def raise_with_records(ranks: Ranks, what: str, keys: list[str]) -> NoReturn:
    """Raises UserError on every rank: `what` was seen, in the records with the keys of all."""
    named = [key for share in ranks.gather(keys) for key in share]
    more = f" and {len(named) - 16} more" if len(named) > 16 else ""
    raise UserError(f"{what}, nothing was updated; records: {', '.join(named[:16])}{more}")


def main() -> None:
    """Run by path. A mistake is one line and exit code 2; 130 after Ctrl-C, 0 after SIGTERM."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    try:
        train(load_config(sys.argv[1:]))
        return
    except UserError as error:
        code = 2
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # the others have the same to say
            print(f"Error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except Exception:
        code = 1
        traceback.print_exc()
    sys.stderr.flush()
    if "WORLD_SIZE" in os.environ:
        os._exit(code)  # the process group's threads may wait for others that are gone
    sys.exit(code)


if __name__ == "__main__":
    main()
