"""How fast is a build, where does its time go, and how much memory does a worker need?

    OMP_NUM_THREADS=1 python benchmarks/build.py [--pieces 2] [--seconds 120] [--copies 4] [--rounds 3]

Composes and renders pieces, spreads their stems over two channels, adds a noise floor at -74 dB and
writes them as FLAC, 44.1 kHz and 16 bit, with the MIDI beside them. Prints three tables:

stages    a build of all tracks in this process, with a stopwatch at each stage (exclusive times of
          the thread), beside FLAC decoding alone and the log-mel alone in the same rounds.
builds    `mt3data build` with 1 and 2 workers. Starting Python and its libraries takes seconds, so
          all tracks and a third of them are built and the difference counts.
memory    the most that a process of `mt3data build` held at a time, for one track of --minutes. Linux
          counts a started process from the peak of its parent, so a small one in between starts it.

Speeds are seconds of audio per second of one core (process time), if they do not say "wall".
"""

import argparse
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from threadpoolctl import threadpool_limits

from mt3data.align import lag as align
from mt3data.audio import load as audio
from mt3data.audio.load import spectrogram
from mt3data.audio.spectrogram import log_mel
from mt3data.build import shard_job as worker
from mt3data.build import track_examples as examples
from mt3data.build.crash_guard import new_run
from mt3data.build.plan import BuildConfig, Plan, make_plan
from mt3data.music.midi import read_midi, write_midi
from mt3data.music.notes import Notes, shift_times
from mt3data.shards import windows
from mt3data.shards import writer as shard_writer
from mt3data.shards.windows import WindowConfig
from mt3data.synth.demo_dataset import synth

NOISE_FLOOR = 2e-4  # a rendered piece is silent between notes, as no recording is
STAGES: dict[str, list[tuple[Any, str]]] = {
    "labels: MIDI to notes": [(examples, "_notes_of_variants")],
    "FLAC decode": [(soundfile.SoundFile, "read")],
    "mono, check for NaN": [(audio, "_mono"), (audio, "require_finite")],
    "resample": [(soxr.ResampleStream, "resample_chunk")],
    "joining blocks, padding": [(examples, "read_audio"), (examples, "pad_to_frames")],
    "log-mel": [(windows, "window_mel"), (windows, "log_mel_float16")],
    "float16": [(spectrogram, "to_float16")],
    "tokens and notes": [
        (windows, "encode_many"),
        (windows, "window_notes"),
        (examples, "trim_overlapping"),
    ],
    "alignment": [(align, "semitone_magnitudes"), (examples, "_align")],
    "sha256 of sources": [(examples, "sha256_of")],
    "tar, crc32, sha256, write": [(shard_writer.ShardWriter, "add")],
    "fsync, rename": [(shard_writer, "sync_and_rename"), (worker, "write_atomically")],
}


class Stopwatch:
    """Seconds of this thread, and by the clock, in each stage; what one calls is not its own."""

    def __init__(self) -> None:
        self.cpu = dict.fromkeys(STAGES, 0.0)
        self.wall = dict.fromkeys(STAGES, 0.0)
        self._inner: list[list[float]] = [[0.0, 0.0]]

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            self._inner.append([0.0, 0.0])
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                took = time.thread_time() - cpu, time.perf_counter() - wall
                inner = self._inner.pop()
                self.cpu[stage] += took[0] - inner[0]
                self.wall[stage] += took[1] - inner[1]
                self._inner[-1] = [a + b for a, b in zip(self._inner[-1], took, strict=True)]

        return timed

    def __enter__(self) -> "Stopwatch":
        self._before = []
        for stage, places in STAGES.items():
            for owner, name in places:
                function = getattr(owner, name)
                self._before.append((owner, name, function))
                setattr(owner, name, self.around(stage, function))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, function in self._before:
            setattr(owner, name, function)


# --- what is built -------------------------------------------------------------------------------


def stereo_set(root: Path, pieces: int, seconds: float, copies: int) -> float:
    """Renders pieces into root/train, as stereo; returns the size of the FLAC to that of PCM."""
    synth(root, tracks=pieces, seconds=seconds, seed=7, validation=0, test=0)
    packed, plain = 0, 0
    folders = sorted((root / "train").iterdir())
    for number, folder in enumerate(folders):
        stems = [soundfile.read(path)[0] for path in sorted((folder / "stems").iterdir())]
        random = np.random.default_rng(number)
        mix = random.normal(0, NOISE_FLOOR, (max(map(len, stems)), 2))
        for stem in stems:
            place = random.uniform(0.2, 0.8)
            mix[: len(stem)] += stem[:, None] * np.sqrt([place, 1 - place])
        mix /= max(1.0, 1.01 * float(np.abs(mix).max()))
        soundfile.write(folder / "mix.flac", mix, 44100, subtype="PCM_16")
        packed, plain = packed + (folder / "mix.flac").stat().st_size, plain + 2 * mix.size
    for copy in range(1, copies):
        for number, folder in enumerate(folders):
            twin = folder.with_name(f"Track{copy * pieces + number + 1:05d}")
            shutil.copytree(folder, twin, copy_function=os.link)
    return packed / plain


def long_track(source: Path, root: Path, minutes: float) -> None:
    """Makes one track of so many minutes of a piece, played again and again."""
    folder = root / "train" / "Track00001"
    shutil.copytree(source, folder)
    (root / "synth.json").write_text('{"midi": null, "tracks": 1}')  # so that none is rendered
    mix, rate = soundfile.read(source / "mix.flac", dtype="int16")
    times = int(minutes * 60 * rate / len(mix)) + 1
    left = round(minutes * 60 * rate)
    with soundfile.SoundFile(folder / "mix.flac", "w", rate, 2, "PCM_16") as file:
        for _ in range(times):
            file.write(mix[:left])
            left -= len(mix[:left])
    for path in (folder / "MIDI").iterdir():
        notes = read_midi(path)[0]
        length = len(mix) / rate
        write_midi(Notes.concat([shift_times(notes, k * length) for k in range(times)]), path)


# --- the tables ----------------------------------------------------------------------------------


def build_here(plan: Plan) -> None:
    """What the workers of a build do, in this process."""
    shutil.rmtree(plan.folder, ignore_errors=True)
    state = plan.folder / worker.STATE
    state.mkdir(parents=True)
    with new_run(state, plan.config.root, 0.0) as run:
        for shard in plan.shards:
            worker.write_shard(shard, plan.folder, plan.config.windows, run)


def decode_alone(plan: Plan) -> None:
    for path in files_of(plan):
        with soundfile.SoundFile(path) as file:
            while len(file.read(int(audio.BLOCK_SECONDS * file.samplerate), "float32")):
                pass


def files_of(plan: Plan) -> list[Path]:
    return [planned.track.audio for shard in plan.shards for planned in shard.tracks]


def stage_table(root: Path, out: Path, mode: str, rounds: int) -> None:
    """Medians over rounds; in each the build and the two ceilings in turn."""
    config = WindowConfig(align=mode)
    plan = make_plan(BuildConfig("demo", root, out, windows=config))
    seconds = sum(shard.seconds for shard in plan.shards)
    samples = [audio.read_audio(path) for path in files_of(plan)[:2]]
    stages: list[dict[str, float]] = []
    for number in range(rounds + 1):
        watch = Stopwatch()
        start = time.process_time()
        with watch:
            build_here(plan)
        total, start = time.process_time() - start, time.process_time()
        decode_alone(plan)
        decoding, start = time.process_time() - start, time.process_time()
        for one in samples:
            log_mel(one)
        transform = (time.process_time() - start) * seconds / (sum(map(len, samples)) / 16000)
        rest = {"everything else": total - sum(watch.cpu.values()), "a build in all": total}
        alone = {"FLAC decode alone": decoding, "log-mel alone": transform}
        waited = {"fsync, by the clock": watch.wall["fsync, rename"]}
        if number:  # the first round warms up
            stages.append(watch.cpu | rest | alone | waited)
    middle = {name: statistics.median(one[name] for one in stages) for name in stages[0]}
    print(f"\n--align {mode:24}{'us per s':>10}{'share':>8}{'x real time':>14}")
    for name, took in middle.items():
        share = f"{took / middle['a build in all']:8.1%}"
        speed = f"{seconds / took:14.0f}" if took > 0 else ""
        print(f"{name:32}{1e6 * took / seconds:10.0f}{share}{speed}")
    possible = middle["FLAC decode alone"] + middle["log-mel alone"]
    print(f"the two alone take {possible / middle['a build in all']:.0%} of what the build takes")


# Starts a command, and prints seconds by the clock, of all its processes, and KB of the largest. It
# is a process of its own because Linux counts a new one from the peak of the one that starts it.
SMALL_PARENT = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(status != 0)
"""


def run_build(root: Path, out: Path, *options: str) -> tuple[float, float, float]:
    """Runs the command; returns seconds by the clock, of all its processes, and MB of the largest."""
    shutil.rmtree(out, ignore_errors=True)
    main = "from mt3data.cli.main import main; main()"
    folders = "--root", str(root), "--out", str(out)
    command = [sys.executable, "-c", main, "build", "demo", *folders, *options]
    small = [sys.executable, "-S", "-c", SMALL_PARENT, *command]
    done = subprocess.run(small, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    wall, cpu, kilobytes = map(float, done.stdout.split())
    return wall, cpu, kilobytes / 1024


def build_table(root: Path, out: Path, n_tracks: int, seconds: float, rounds: int) -> None:
    few = max(1, n_tracks // 3)
    audio_seconds = seconds * (n_tracks - few)
    print(f"\n{'mt3data build':24}{'per core-second':>18}{'wall':>10}{'to 1 worker':>14}")
    for mode in ("off", "measure"):
        alone = 0.0
        for workers in (1, 2):
            walls, cores = [], []
            for _ in range(rounds):
                options = ("--align", mode, "--workers", str(workers), "--tracks")
                all_, some = (run_build(root, out, *options, str(n)) for n in (n_tracks, few))
                walls.append(all_[0] - some[0])
                cores.append(all_[1] - some[1])
            wall = audio_seconds / statistics.median(walls)
            alone = alone or wall
            name = f"--align {mode}, {workers} worker{'s' * (workers > 1)}"
            core = audio_seconds / statistics.median(cores)
            print(f"{name:24}{core:16.0f} x{wall:8.0f} x{wall / alone:12.2f} x")


def memory_table(root: Path, out: Path, minutes: float) -> None:
    print(f"\nlargest process, one track of {minutes:g} minutes")
    for options in (
        "--align off", "--align measure", "--align dtw", "--window 256", "--store audio",
    ):  # fmt: skip
        print(f"{options:24}{run_build(root, out, *options.split())[2]:10.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pieces", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120.0, help="length of each piece")
    parser.add_argument("--copies", type=int, default=4, help="tracks made of each piece")
    parser.add_argument("--rounds", type=int, default=3, help="medians are printed")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the long track; 0: none")
    options = parser.parse_args()
    threadpool_limits(1)
    with tempfile.TemporaryDirectory(prefix="mt3kit-build-") as folder:
        root, out = Path(folder, "set"), Path(folder, "out")
        ratio = stereo_set(root, options.pieces, options.seconds, options.copies)
        n_tracks = options.pieces * options.copies
        (length,) = {
            round(soundfile.info(path).duration) for path in root.glob("train/*/mix.flac")
        } or {0}
        print(f"{n_tracks} tracks of {length} s; FLAC at {ratio:.0%} of the size of PCM")
        for mode in ("off", "measure"):
            stage_table(root, out, mode, options.rounds)
        build_table(root, out, n_tracks, length, options.rounds)
        if options.minutes:
            long_track(root / "train" / "Track00001", Path(folder, "long"), options.minutes)
            memory_table(Path(folder, "long"), out, options.minutes)


if __name__ == "__main__":
    main()
