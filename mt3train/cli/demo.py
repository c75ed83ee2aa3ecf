"""Runs the whole pipeline once, from an empty folder to a MIDI file: `mt3train demo`.

Every step is an ordinary command, which is printed before it runs. The model memorises one piece. The
control is the score of the same model on a piece that was not in its training. A high score there
would mean that the scores are wrong.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mt3data.datasets.adapters.slakh import tracks
from mt3data.datasets.manifest import load
from mt3data.errors import UserError
from mt3data.files import mark, require_output, write_output
from mt3data.music.midi import midi_bytes
from mt3train.device import choose_device

COMMAND = "mt3train demo"
PIECES, SECONDS, SEED = 3, 32, 9  # one piece each to learn, to validate on, and as the control
LEARNED_AT_LEAST, CONTROL_BELOW = 0.9, 0.3  # onset F1


def run(out: Path, workers: int, device: str = "auto") -> Iterator[str]:
    """Runs the demo in a folder, or continues it there.

    Args:
        out: folder for everything.
        workers: processes for rendering and building. Training uses as many, but never more than
            there are GPUs where there are some.
        device: what trains and transcribes, one of mt3train.device.DEVICES.
    Yields:
        Lines for the reader, scores last.
    Raises:
        UserError: a command failed, the scores are not what they should be, or the folder holds files
            of another origin under the names of ours.
    """
    out.mkdir(parents=True, exist_ok=True)
    for role in ("learned", "control"):
        require_output(out / f"{role}-reference.mid", COMMAND)
        require_output(out / f"{role}.mid", "mt3train transcribe")
    started = time.time()
    pieces, shards, model = out / "pieces", out / "shards", out / "run"
    yield from _command(
        "mt3data", "synth", "--out", pieces, "--tracks", PIECES, "--seconds", SECONDS,
        "--seed", SEED, "--workers", workers,
    )  # fmt: skip
    yield from _command(
        "mt3data", "build", "demo", "--root", pieces, "--out", shards, "--window", 256,
        "--workers", workers,
    )  # fmt: skip
    yield from _command("mt3data", "check", shards)
    yield from _command(
        "torchrun", "--standalone", f"--nproc_per_node={training_processes(workers, device)}", Path(__file__).parents[1] / "train.py",
        "demo.toml", f"data.train={shards / 'demo'}", f"run={model}",
        f"device={device}",
    )  # fmt: skip
    scores = {}
    for track in tracks(pieces, load("demo")):
        if track.split == "validation":
            continue
        role = "learned" if track.split == "train" else "control"
        reference, estimate = out / f"{role}-reference.mid", out / f"{role}.mid"
        notes = track.load_notes()
        write_output(reference, midi_bytes(notes, mark(COMMAND)), COMMAND)
        yield from _command(
            "mt3train",
            "transcribe",
            track.audio,
            "--checkpoint",
            model,
            "-o",
            estimate,
            "--device",
            device,
        )
        yield from _command("mt3train", "score", reference, estimate)
        printed = _output("mt3train", "score", reference, estimate, "--json")
        scores[role] = json.loads(printed)["onset_f1"]
        instruments = len(set(notes.program[~notes.is_drum].tolist()))
        yield (f"{role}: {notes.offset.max():.0f} s, {len(notes)} notes, {instruments} instruments and "
               f"{'drums' if notes.is_drum.any() else 'no drums'}")  # fmt: skip
    yield (
        f"\nOnset F1 {scores['learned']:.3f} on the piece that the model was trained on, "
        f"{scores['control']:.3f} on a piece that was not in training (the control).\n"
        "This shows that the path works from end to end. It shows memorising, not quality.\n"
        f"Listen to {out / 'learned.mid'}; {(time.time() - started) / 60:.1f} minutes."
    )
    if scores["learned"] < LEARNED_AT_LEAST or scores["control"] >= CONTROL_BELOW:
        raise UserError(
            f"onset F1 {scores['learned']:.3f} learned, {scores['control']:.3f} control; expected at "
            f"least {LEARNED_AT_LEAST} and below {CONTROL_BELOW}: something is broken, please report it"
        )


def training_processes(workers: int, device: str) -> int:
    """Returns how many processes train: one for each GPU, but at most `workers`; `workers` on CPUs."""
    import torch

    kind = choose_device(device).type
    return min(workers, {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, workers))


PROGRAMS = {
    "mt3data": ("-m", "mt3data.cli.main"),
    "mt3train": ("-m", "mt3train.cli.main"),
    "torchrun": ("-m", "torch.distributed.run"),
}


def _arguments(words: Sequence[object]) -> list[str]:
    program, *rest = map(str, words)
    return [sys.executable, *PROGRAMS[program], *rest]


def _command(*words: object) -> Iterator[str]:
    """Prints a command as a user would type it, then runs it with its own output."""
    yield f"\n$ {' '.join(map(str, words))}"
    sys.stdout.flush()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    code = subprocess.run(_arguments(words), check=False, env=environment).returncode
    if code:
        raise UserError(
            f"the command above ended with exit code {code}; the same demo continues there"
        )


def _output(*words: object) -> str:
    return subprocess.run(_arguments(words), check=True, capture_output=True, text=True).stdout
