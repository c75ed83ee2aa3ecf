"""What there is to say of weights besides their scores: files, settings, machine, speed, memory.

Part of benchmarks/weights.py, which runs it.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import soundfile
import torch

from mt3data.audio.load import TARGET_RATE, read_blocks
from mt3data.datasets.track import Track
from mt3data.music.midi import read_midi
from mt3data.shards.format import read_build_manifest
from mt3train.config import Config, as_dict
from mt3train.training.logger import read_metrics
from mt3train.weights.checkpoint import checksum, load_model

PLACES = {"run": "runs", "init_checkpoint": "runs", "data.train": "shards", "data.eval": "shards"}
# Starts a command from a small process: Linux counts a child's memory from that of its parent on.
SMALL_PARENT = """
import json, os, subprocess, sys, time
started = time.monotonic()
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([status, time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""


def weights(file: Path) -> dict[str, Any]:
    """What the file says of itself."""
    model, info = load_model(file)
    tensors = model.state_dict()
    return {
        "sha256": checksum(tensors), "bytes": file.stat().st_size, "step": info.step,
        "n_parameters": sum(tensor.numel() for tensor in tensors.values()), "info": asdict(info),
    }  # fmt: skip


def training(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Settings, length and result of each run that led to the weights, in their order."""
    return [one_run(run) for run in runs]


def one_run(run: Path) -> dict[str, Any]:
    found, usual = (flat(c) for c in (json.loads((run / "config.json").read_text()), as_dict(Config())))  # fmt: skip
    settings = {key: value for key, value in found.items() if value != usual.get(key)}
    for key in ("model.vocab_size", "model.n_mels"):  # these come from the shards
        settings.pop(key, None)
    for key, folder in PLACES.items():  # in place of the folders of a machine
        if key in settings:
            *_, above, name = Path(folder, settings[key]).parts
            settings[key] = f"{folder}/{above}/{name}" if "." in name else f"{folder}/{name}"
    lines = read_metrics(run / "metrics.jsonl")
    steps = [line for line in lines if "seconds" in line]
    # Seconds begin anew in every process that continued the run.
    ends = [a["seconds"] for a, b in pairwise(steps) if b["seconds"] < a["seconds"]]
    losses = [line for line in lines if "eval_loss" in line]
    best = min(losses, key=lambda line: line["eval_loss"], default=None)
    return {
        "settings": settings,
        "steps": lines[-1]["step"],
        "segments": lines[-1]["step"] * found["batch"],
        "hours": round((sum(ends) + steps[-1]["seconds"]) / 3600, 2),
        "loss": rounded(steps[-1]["loss"]),
        "best_evaluation": rounded(best),
    }


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} as {"optim.lr": 1}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}  # fmt: skip
    return found


def data(pieces: Path, shards: Path) -> dict[str, Any]:
    """How the pieces and the shards were made."""
    manifest = read_build_manifest(shards)
    options = {"features": ",".join(sorted(set(manifest["features"]) & {"audio", "mel"})), **manifest["vocabulary"]}  # fmt: skip
    kept = ("window", "right_context", "align", "variants", "subsets", "seed")
    return {
        "synth": json.loads((pieces / "synth.json").read_text()),
        "build": {key: manifest.get(key) for key in kept} | options,
        "splits": manifest["splits"],
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    return {
        "processor": found[1] if found else platform.processor(), "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip


def long_recording(file: Path, pieces: Sequence[Track], hours: float) -> dict[str, Any]:
    """Speed and memory of `mt3train transcribe` on test pieces one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        song, out = Path(folder) / "long.wav", Path(folder) / "long.mid"
        written, number = 0, 0
        with soundfile.SoundFile(song, "w", TARGET_RATE, 1, "PCM_16") as wav:
            while written < 3600 * hours * TARGET_RATE:
                for block in read_blocks(pieces[number % len(pieces)].audio):
                    wav.write(block)
                    written += len(block)
                number += 1
        command = [sys.executable, "-m", "mt3train.cli.main", "transcribe", song, "-o", out]
        command += ["--checkpoint", file]
        done = subprocess.run(
            [sys.executable, "-c", SMALL_PARENT, *map(str, command)], check=True,
            stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"},
        )  # fmt: skip
        status, wall, cpu, kilobytes = json.loads(done.stdout.strip().splitlines()[-1])
        if status:
            raise SystemExit(f"the command ended with status {status}")
        n_notes = len(read_midi(out)[0])
    return {
        "seconds": round(written / TARGET_RATE, 1), "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1), "threads": 2, "max_rss_mb": round(kilobytes / 1024),
        "n_notes": n_notes,
    }  # fmt: skip


def rounded(value: Any) -> Any:
    """Numbers with 4 decimals, in dictionaries and lists too."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value
