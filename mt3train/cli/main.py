"""Defines the command `mt3train`. Slow libraries are imported inside the commands that need them."""

from __future__ import annotations

from pathlib import Path

import click

from mt3data import __version__
from mt3data.files import STDOUT
from mt3data.terminal import (
    AT_LEAST_1,
    EXIT_CODES,
    FORCE,
    OUTPUT,
    PATH,
    WORKERS,
    CommandGroup,
    echo,
)
from mt3train.cli.scores import DEVICE, evaluate, score
from mt3train.cli.transcribe import transcribe
from mt3train.cli.weights import weights


@click.group(
    cls=CommandGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, package_name="mt3kit")
def main() -> None:
    """Trains MT3 on shards and transcribes recordings."""


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, metavar="[CONFIG.toml] [KEY=VALUE]...")
def train(arguments: tuple[str, ...]) -> None:
    """Trains a model in this process; run again, it continues.

    Without arguments it trains the paper's model on every build under shards/. On several
    processes: torchrun --nproc_per_node=8 -m mt3train.train CONFIG.toml KEY=VALUE. The keys, with
    their defaults, stand in mt3train/config.py; those of model.* in mt3train/model.py.

    \b
    Example: mt3train train demo.toml data.train=shards/demo steps=100
    """
    from mt3train.config import load_config
    from mt3train.device import keep_freed_memory
    from mt3train.train import train as run

    keep_freed_memory()
    echo(run(load_config(arguments)))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("-o", "--out", type=OUTPUT, required=True,
              help="The picture: .png, .svg or .pdf; -: a PNG to standard output.")  # fmt: skip
@FORCE
def plot(runs: tuple[Path, ...], out: Path, force: bool) -> None:
    """Draws the curves of training runs.

    Of several runs in one picture: loss, accuracy, F1, gradient norm, learning rate, speed.

    \b
    Example: mt3train plot runs/mt3 runs/small -o curves.png
    """
    from mt3train.training.plots import plot as run

    for line in run(runs, out, force):
        echo(line, err=True)
    echo(out, err=out == STDOUT)


@main.command()
@click.argument("source", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="The .safetensors file to write.")
@click.option("--heads", type=AT_LEAST_1, metavar="N",
              help="Heads of its attention, unless it has MT3's sizes.")  # fmt: skip
@click.option(
    "--half", is_flag=True, help="Half precision: half the bytes, 3 digits of each weight."
)
@FORCE
def convert(source: Path, out: Path, heads: int | None, half: bool, force: bool) -> None:
    """Converts weights of MT3 or of a run to one .safetensors file.

    SOURCE is the folder of a T5X checkpoint, mt3-pytorch's mt3.pth, or a run. MT3 and the ISMIR 2021
    piano model are read without JAX, T5X or unpickling. Their licence is unstated, and this package
    contains none of them. From a run it converts the newest checkpoint, without optimizer state.

    \b
    Example: mt3train convert checkpoints/mt3 -o mt3.safetensors
    """
    from mt3train.weights.convert import convert as run

    done = run(source, out, heads, half, force)
    echo(
        f"{out}: {done.family}, {done.n_parameters:,} parameters, {out.stat().st_size:,} bytes, "
        f"step {done.info.step}, sha256 of the arrays {done.sha256}"
    )


@main.command()
@click.option("-o", "--out", type=PATH, default=Path("demo-run"), show_default=True,
              help="Folder for everything.")  # fmt: skip
@click.option("--workers", type=WORKERS, default=2, show_default=True, metavar="N",
              help="Processes; training starts at most one per GPU.")  # fmt: skip
@DEVICE
def demo(out: Path, workers: int, device: str) -> None:
    """Runs the whole pipeline once, in about ten minutes.

    It makes pieces and shards, trains a small model until it has memorised one piece, transcribes and
    scores it. This shows that everything works together. It does not measure how well MT3 transcribes.

    \b
    Example: mt3train demo --out demo-run
    """
    from mt3train.cli.demo import run

    for line in run(out, workers, device):
        echo(line)


for command in (transcribe, evaluate, score, weights):
    main.add_command(command)

if __name__ == "__main__":
    main()
