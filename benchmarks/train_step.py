"""Time of a training step: against Hugging Face's T5, with and without padding, and waiting for data.

    python benchmarks/train_step.py                                    # CPU, three minutes
    python benchmarks/train_step.py --device cuda --data shards/demo   # one GPU, batch 256, bf16

Models have MT3's size, dropout included; Hugging Face's is T5ForConditionalGeneration, fed with the
log-mel frames as inputs_embeds (`pip install '.[bench]'`). On a CPU a step is forward and backward, and
all that is compared takes turns in one run; on a GPU it is a whole update with Adafactor. Without
--data, demo pieces are rendered and built in a temporary folder (`pip install '.[synth]'`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.shards.windows import WindowConfig
from mt3data.synth.demo_dataset import synth
from mt3train.config import Config, DataConfig, load_config
from mt3train.data.builds import open_shards
from mt3train.data.loader import MicroBatch, read_step, to_device
from mt3train.data.log_mel import log_mel_of_crops
from mt3train.device import compile_layers
from mt3train.model import MT3, ModelConfig
from mt3train.train import train
from mt3train.training.loss import loss_sum
from mt3train.training.optimizers import make_optimizer

Micro = tuple[Tensor, Tensor]  # log-mel frames [B, F, M] and targets [B, L]
MODEL = ModelConfig()


def median_seconds(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of each step, taking turns.

    It is wall time; with one thread CPU time, which other users of the machine disturb less.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begin = clock()
            step()
            times[name].append(clock() - begin)
    return {name: statistics.median(taken) for name, taken in times.items()}


def hugging_face() -> torch.nn.Module:
    """T5 1.1 of MT3's size."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes: dict[str, Any] = {
        "vocab_size": MODEL.vocab_size, "d_model": MODEL.emb_dim, "d_kv": MODEL.head_dim,
        "d_ff": MODEL.mlp_dim, "num_layers": MODEL.num_encoder_layers,
        "num_decoder_layers": MODEL.num_decoder_layers, "num_heads": MODEL.num_heads,
        "dropout_rate": MODEL.dropout_rate, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False, "use_cache": False, "decoder_start_token_id": 0,
        "pad_token_id": 0,
    }  # fmt: skip
    return T5ForConditionalGeneration(T5Config(**sizes)).train()


def step_of_ours(model: torch.nn.Module, micros: Sequence[Micro]) -> None:
    """Forward and backward of some micro-batches."""
    for mel, targets in micros:
        loss_sum(model(mel, targets), targets).backward()


def step_of_theirs(model: torch.nn.Module, micros: Sequence[Micro]) -> None:
    """The same with a model of Hugging Face's, which leaves out targets of -100."""
    for mel, targets in micros:
        model(inputs_embeds=mel, labels=targets.masked_fill(targets == 0, -100)).loss.backward()


def padded(micros: Sequence[MicroBatch], size: int, length: int = 1024) -> list[Micro]:
    """The segments of a step as the original pads them, so many at once."""
    mel = torch.cat([micro.sound for micro in micros]).float()
    targets = torch.zeros(len(mel), length, dtype=torch.int64)
    row = 0
    for micro in micros:
        targets[row : row + len(micro.keys), : micro.targets.shape[1]] = micro.targets
        row += len(micro.keys)
    return list(zip(mel.split(size), targets.split(size), strict=True))


def padding_of(micros: Sequence[Micro]) -> float:
    """Share of target positions that are padding."""
    counted = sum(int((targets > 0).sum()) for _, targets in micros)
    return 1 - counted / sum(targets.numel() for _, targets in micros)


def demo_shards(folder: Path) -> Path:
    """A build of eight demo pieces."""
    synth(folder / "demo", tracks=8, seconds=30.0)
    windows = WindowConfig(align="off")
    return build(
        make_plan(BuildConfig("demo", folder / "demo", folder / "shards", windows=windows))
    ).folder


def compare_same_shapes(rounds: int, threads: int) -> None:
    """Forward and backward of both, on 4 segments with 256 targets each."""
    ours, theirs = MT3(MODEL).train(), hugging_face()
    micro = torch.randn(4, 256, MODEL.n_mels), torch.randint(3, 1400, (4, 256))
    taken = median_seconds(
        {
            "ours": lambda: step_of_ours(ours, [micro]),
            "hf": lambda: step_of_theirs(theirs, [micro]),
        },
        rounds,
    )
    print(f"same shapes: 4 segments, 256 frames, 256 targets, float32, {threads} threads")
    print(f"  mt3train          {taken['ours']:7.2f} s    {4 / taken['ours']:6.2f} segments/s")
    print(f"  Hugging Face T5   {taken['hf']:7.2f} s    {4 / taken['hf']:6.2f} segments/s")
    print(f"  theirs / ours     {taken['hf'] / taken['ours']:7.2f}\n")


def compare_real_data(shards: Path) -> None:
    """32 segments of demo data: sorted here, padded to 1,024 there."""
    config = Config(micro_batch=3, data=DataConfig(train=str(shards)))
    step = read_step(open_shards(config.data, 0), 0, 32, config, 0, 1)
    cpu = torch.device("cpu")
    in_order = [to_device(micro, cpu, torch.float32) for micro in step]
    at_1024 = padded(step, 4)
    ours, theirs = MT3(MODEL).train(), hugging_face()
    step_of_ours(ours, in_order[-1:])  # the first pass of a model takes longer
    step_of_theirs(theirs, in_order[-1:])
    # Padded micro-batches all cost the same: one of them stands for the rest.
    taken = median_seconds(
        {
            "sorted": lambda: step_of_ours(ours, in_order),
            "padded": lambda: step_of_ours(ours, at_1024[:1]),
            "hf": lambda: step_of_theirs(theirs, at_1024[:1]),
        },
        rounds=1,
    )
    pace = {"sorted": 32 / taken["sorted"], "padded": 4 / taken["padded"], "hf": 4 / taken["hf"]}
    n_tokens = sum(micro.n_tokens for micro in step) / 32
    print(f"demo data: 32 segments of {n_tokens:.0f} targets on average, float32")
    print("                                padding   segments/s   speed-up")
    for key, name, micros in (
        ("hf", "Hugging Face T5, 1,024 targets", at_1024),
        ("padded", "mt3train, 1,024 targets", at_1024),
        ("sorted", "mt3train, sorted", in_order),
    ):
        ratio = pace[key] / pace["hf"]
        print(f"  {name:30}{padding_of(micros):7.1%}{pace[key]:13.2f}{ratio:11.2f}")
    print()


def measure_wait(shards: Path, folder: Path) -> None:
    """Share of the time in which training with demo.toml waits for its one loader thread."""
    run = folder / "run"
    train(load_config(["demo.toml", f"data.train={shards}", f"run={run}", "steps=20"]))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "data_wait" in line]
    print(f"demo.toml, steps 11 to 20: {steps[-1]['segments_per_second']:.1f} segments/s, "
          f"{steps[-1]['data_wait']:.2%} of the time waiting for data")  # fmt: skip


def flops_of(micros: Sequence[Micro]) -> float:
    """Multiplications and additions of forward and backward, padding included."""
    c, total = MODEL, 0.0
    inner = c.num_heads * c.head_dim
    projection, mlp = c.emb_dim * inner, 3 * c.emb_dim * c.mlp_dim
    for mel, targets in micros:
        (b, f), n = mel.shape[:2], targets.shape[1]
        encoder = f * (4 * projection + mlp) + 2 * f * f * inner
        decoder = n * (6 * projection + mlp) + f * 2 * projection + (n * n + 2 * n * f) * inner
        ends = f * c.n_mels * c.emb_dim + n * c.emb_dim * c.vocab_size
        layers = c.num_encoder_layers * encoder + c.num_decoder_layers * decoder
        total += 3 * 2 * b * (layers + ends)
    return total


def measure_gpu(shards: Path, micro_batch: int, peak_tflops: float, steps: int = 10) -> None:
    """Updates of batch 256 in bf16: padded or sorted, compiled or not."""
    device = torch.device("cuda")
    config = Config(micro_batch=micro_batch, data=DataConfig(train=str(shards)))
    data = open_shards(config.data, 0)
    batches = [read_step(data, step, 256, config, 0, 1) for step in range(steps)]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch 256, bf16")
    print("                     padding  segments/s     MFU   peak memory")
    for compiled in (False, True):
        for name in ("padded", "sorted"):
            work = [
                [(mel.to(device), targets.to(device)) for mel, targets in padded(b, micro_batch)]
                if name == "padded"
                else [to_device(micro, device, torch.float32) for micro in b]
                for b in batches
            ]
            torch.cuda.reset_peak_memory_stats()
            taken = seconds_of_updates(work, compiled)
            mfu = sum(map(flops_of, work)) / taken / (peak_tflops * 1e12)
            share = statistics.mean(padding_of(micros) for micros in work)
            memory = torch.cuda.max_memory_allocated() / 2**30
            label = name + (", compiled" if compiled else "")
            print(
                f"  {label:18}{share:8.1%}{256 * steps / taken:12.0f}{mfu:8.1%}{memory:11.1f} GiB"
            )
    audio = torch.randint(-9000, 9000, (256, 256 * 128), dtype=torch.int16, device=device)
    whole = torch.full((256,), 256, device=device)
    taken = seconds_on_gpu(lambda: log_mel_of_crops(audio, whole, 256, data.spectrogram), 10)
    print(f"  log-mel of 256 crops of audio: {1000 * taken:.1f} ms")


def seconds_of_updates(work: Sequence[Sequence[Micro]], compiled: bool) -> float:
    """Time of an update for each batch, after all have run once to warm up."""
    torch.manual_seed(0)
    model = MT3(MODEL).to(work[0][0][0].device).train()
    if compiled:
        compile_layers([*model.encoder.layers, *model.decoder.layers], work[0][0][0].device)
    optimizer = make_optimizer(model, "adafactor", 1e-3, 0.0)

    def all_updates() -> None:
        for micros in work:
            optimizer.zero_grad(set_to_none=True)
            for mel, targets in micros:
                with torch.autocast(mel.device.type, torch.bfloat16):
                    logits = model(mel, targets)
                (loss_sum(logits, targets) / 50_000).backward()
            optimizer.step()

    all_updates()
    return seconds_on_gpu(all_updates, 1)


def seconds_on_gpu(function: Callable[[], object], repeats: int) -> float:
    """Mean time of a call, after one that does not count."""
    function()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        function()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repeats


def main() -> None:
    """Prints the tables of one device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--data", type=Path, help="a build with windows of 256 frames or more")
    parser.add_argument(
        "--rounds", type=int, default=3, help="CPU: how often steps of the same shapes run"
    )
    parser.add_argument("--micro-batch", type=int, default=64, help="GPU: see Config.micro_batch")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="GPU: bf16; H100 SXM: 989")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        shards = options.data or demo_shards(Path(name))
        if options.device == "cuda":
            measure_gpu(shards, options.micro_batch, options.peak_tflops)
            return
        compare_same_shapes(options.rounds, torch.get_num_threads())
        compare_real_data(shards)
        measure_wait(shards, Path(name))


if __name__ == "__main__":
    main()
