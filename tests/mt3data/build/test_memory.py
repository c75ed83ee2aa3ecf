"""How much memory a build's processes hold, measured by the system."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fakes
import numpy as np
import pytest
import soundfile

RATE, MINUTES = 44100, 30
LIMIT_MB = 1000


@pytest.fixture(scope="module")
def long_track(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One track of 30 minutes in stereo: noise and tones, with 24 notes a second."""
    root = fakes.slakh_tree(tmp_path_factory.mktemp("long"), "demo", {"Track00001": "train"})
    settings = {"midi": None, "tracks": 1, "seed": 0, "seconds": 4.0}
    (root / "synth.json").write_text(json.dumps(settings))  # so that none is rendered
    folder = root / "train" / "Track00001"
    rng = np.random.default_rng(0)
    minute = 0.05 * rng.standard_normal((60 * RATE, 2))
    with soundfile.SoundFile(folder / "mix.flac", "w", RATE, 2, "PCM_16") as file:
        for _ in range(MINUTES):
            file.write(minute)
    for stem, program in (("S00", 30), ("S01", 128), ("S02", 1), ("S03", 33)):
        onsets = np.sort(rng.uniform(0, 60 * MINUTES - 1, 360 * MINUTES)).tolist()
        notes = [(t, t + 0.2, int(p), 80) for t, p in zip(onsets, rng.integers(40, 80, len(onsets)), strict=True)]  # fmt: skip
        fakes.write_midi(folder / "MIDI" / f"{stem}.mid", [(program, notes)])
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    ["--align off", "--align measure", "--align dtw", "--window 256", "--window 256 --align off",
     "--store audio", "--store mel,audio --variants 2"],
)  # fmt: skip
def test_a_worker_needs_less_than_a_gigabyte_for_thirty_minutes(
    long_track: Path, tmp_path: Path, options: str
) -> None:
    main = "from mt3data.cli.main import main; main()"
    command = [sys.executable, "-c", main, "build", "demo", "--root", str(long_track),
               "--out", str(tmp_path), "--workers", "1", *options.split()]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # of the largest process, workers included
    assert status == 0
    assert usage.ru_maxrss / 1024 < LIMIT_MB
    # The control: it cannot be less than the samples and the libraries take.
    assert usage.ru_maxrss / 1024 > 60 * MINUTES * 16000 * 4 / 1e6
