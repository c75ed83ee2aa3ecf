"""Runs everything that must work on all systems once: `python whole_path.py FOLDER [labels]`.

It composes and renders pieces, builds shards, checks and reads them, trains a tiny model for two
updates, transcribes a piece with it, and scores the result. "labels" ends before the model.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from mt3data import IndexedShards

TINY = [
    "demo.toml", "data.train=shards/demo", "run=run", "steps=2", "batch=2", "log_every=1", "threads=1",
    "precision=float32", "model.emb_dim=8", "model.num_heads=1", "model.mlp_dim=8", "eval_every=0",
    "transcribe_every=0", "model.num_encoder_layers=1", "model.num_decoder_layers=1",
]  # fmt: skip


def call(command, *words):
    """Runs a command line in this process and requires exit code 0."""
    try:
        command(list(words))
    except SystemExit as end:
        assert not end.code, (words, end.code)


def read():
    shards = IndexedShards(["shards/demo"], seed=3)
    return shards.batch(step=0, global_batch=4, frames=256)


def same_batch(shards, wanted):
    return (shards.batch(step=0, global_batch=4, frames=256).mel == wanted).all()


def main(folder, *parts):
    os.chdir(folder)
    from mt3data.cli.main import main as mt3data

    call(mt3data, "list")
    call(
        mt3data, "synth", "--out", "data/demo", "--tracks", "3", "--seconds", "4", "--workers", "2"
    )
    call(mt3data, "build", "demo", "--root", "data", "--out", "shards", "--workers", "2")
    call(mt3data, "check", "shards")
    batch = read()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        shards = IndexedShards(["shards/demo"], seed=3)
        assert pool.submit(same_batch, shards, batch.mel).result()
    if parts == ("labels",):
        return
    from mt3train.cli.main import main as mt3train

    call(mt3train, "train", *TINY)
    (song,) = Path("data/demo").glob("**/Track00001/mix.flac")
    call(
        mt3train,
        "transcribe",
        str(song),
        "--checkpoint",
        "run",
        "-o",
        "song.mid",
        "-o",
        "song.html",
    )
    call(mt3train, "score", "song.mid", "song.mid")


if __name__ == "__main__":
    main(*sys.argv[1:])
