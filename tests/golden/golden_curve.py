"""The first 20 steps of demo.toml on three rendered pieces: what trains today trains tomorrow.

    python tests/golden/golden_curve.py        # writes tests/golden/demo_curve.json

A change of the trainer that should not change results shows the same digits. float64 in place of
float32 moves the losses by 1e-7 of their value, other micro-batches by 4e-8, bf16 by 2e-4.
"""

import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner

from mt3data.cli.main import main as mt3data
from mt3train.config import load_config
from mt3train.train import train
from mt3train.training.logger import read_metrics

FILE = Path(__file__).parent / "demo_curve.json"
STEPS = 20
SYNTH = ["synth", "--tracks", "3", "--seconds", "16", "--seed", "9", "--workers", "1"]
BUILD = ["build", "demo", "--workers", "1"]
CONFIG = ["demo.toml", f"steps={STEPS}", "log_every=1", "precision=float32", "threads=1"]
KEYS = ("tokens", "loss", "accuracy", "gradient_norm")


def curve(folder: Path, *changes: str) -> list[dict[str, Any]]:
    """Render, build and train in a folder; what every step logged."""
    data, shards = folder / "data", folder / "shards"
    if not shards.exists():
        for command in ([*SYNTH, "--out", data], [*BUILD, "--root", data, "--out", shards]):
            done = CliRunner().invoke(mt3data, [str(word) for word in command])
            assert done.exit_code == 0, done.output
    run = folder / "-".join(["run", *changes])
    train(load_config([*CONFIG, f"data.train={shards / 'demo'}", f"run={run}", *changes]))
    return [{key: line[key] for key in KEYS} for line in read_metrics(run / "metrics.jsonl")]


def main() -> None:
    """Write the golden file."""
    with tempfile.TemporaryDirectory() as folder:
        steps = curve(Path(folder))
    made = {
        "made_by": "tests/golden/golden_curve.py",
        "commands": [" ".join(words) for words in (SYNTH, BUILD, CONFIG)],
        "with": f"torch {torch.__version__}, {platform.machine()}",
        "steps": steps,
    }
    FILE.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
