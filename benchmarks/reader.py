"""Records per core-second: random crops with tokens, and whole records beside bare webdataset.

    OMP_NUM_THREADS=1 python benchmarks/reader.py [--minutes 12]

Builds composed pieces with noise for audio into shards in a temporary folder, with windows of 2,048
frames (mel, and audio) and of 256 frames, and reads them from the page cache. Figures are records
per second of process time, all threads together: the median of seven rounds, in which the readers
take turns. Then the speed of `mt3data check` beside sha256 alone, and the time and memory to open an
index of a million rows and to take a batch of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROUNDS, BATCH = 7, 64
RATE = 16000


def make_recordings(folder: Path, minutes: float) -> None:
    """Composed pieces of two minutes, with noise in place of their sound."""
    import soundfile

    from mt3data.synth.compose import compose

    folder.mkdir()
    for seed in range(max(1, round(minutes / 2))):
        compose(seed, 120.0).write(str(folder / f"piece{seed}.mid"))
        noise = np.random.default_rng(seed).normal(0, 0.1, 125 * RATE)
        soundfile.write(folder / f"piece{seed}.wav", noise.astype(np.float32), RATE)
    (folder / "splits.csv").write_text(
        "stem,split\n" + "".join(f"{path.stem},train\n" for path in sorted(folder.glob("*.wav")))
    )


def make_build(recordings: Path, out: Path, frames: int, features: tuple[str, ...]) -> Path:
    """Shards of the recordings."""
    from mt3data.build.plan import BuildConfig, make_plan
    from mt3data.build.run import build
    from mt3data.shards.windows import WindowConfig

    windows = WindowConfig(frames, align="off", features=features)
    name = f"{'-'.join(features)}-{frames}"
    return build(
        make_plan(BuildConfig("folder", recordings, out, windows=windows, name=name))
    ).folder


def indexed(folder: Path, reuse: bool = True, threads: int = 4) -> Callable[[], int]:
    """A round of our reader: about as many records or crops as a pass over the build has."""
    from mt3data.shards.reader import IndexedShards

    shards = IndexedShards([folder], threads=threads)
    first = shards.batch(0, BATCH)
    sound = first.mel if first.mel is not None else first.audio
    n_batches, state = max(4, shards.n_records // BATCH), [0]

    def read() -> int:
        for _ in range(n_batches):
            state[0] += 1
            shards.batch(state[0], BATCH, out=sound if reuse else None)
        return n_batches * BATCH

    return read


def bare_webdataset(folder: Path, decode: bool) -> Callable[[], int]:
    """A round of webdataset as it comes, with its default decoding or none."""
    import webdataset as wds

    urls = sorted(str(path) for path in folder.glob("*.tar"))

    def read() -> int:
        records = wds.WebDataset(urls, shardshuffle=False)
        return sum(1 for _ in (records.decode() if decode else records))

    return read


def streamed(folder: Path) -> Callable[[], int]:
    """A round of `stream`, with everything decoded."""
    from mt3data.shards.stream import stream

    return lambda: sum(1 for _ in stream([folder]))


def cold_speed(folder: Path, threads: int) -> float:
    """Crops per second of wall time after the shards were dropped from the page cache, best of three.

    A temporary folder in memory has no such cache: TMPDIR may name one on a disk.
    """
    from mt3data.shards.reader import IndexedShards

    shards, rates = IndexedShards([folder], threads=threads), []
    for step in range(4):
        for path in folder.glob("*.tar"):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        start = time.perf_counter()
        shards.batch(step, BATCH)
        rates.append(BATCH / (time.perf_counter() - start))
    return max(rates[1:])  # the first one opens files and reads the index


def check_speed(folder: Path) -> tuple[list[float], list[float]]:
    """MB per second of wall time, then of process time: sha256 alone, and `check` with 1 and 2
    threads; the best of five rounds each, in which they take turns."""
    from mt3data.shards.check import check

    shards = sorted(folder.glob("*.tar"))
    megabytes = sum(path.stat().st_size for path in shards) / 1e6

    def hash_alone() -> None:
        for path in shards:
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")

    jobs = (hash_alone, lambda: check(folder), lambda: check(folder, workers=2))
    wall, process = [0.0] * len(jobs), [0.0] * len(jobs)
    for _ in range(5):
        for i, job in enumerate(jobs):
            starts = time.perf_counter(), time.process_time()
            job()
            wall[i] = max(wall[i], megabytes / (time.perf_counter() - starts[0]))
            process[i] = max(process[i], megabytes / (time.process_time() - starts[1]))
    return wall, process


def measure(readers: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Records per second of process time of each reader, the median of its rounds."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for round_ in range(ROUNDS + 1):
        for name, read in readers.items():
            start = time.process_time()
            count = read()
            if round_:  # the first round fills caches
                rates[name].append(count / (time.process_time() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


OPENING = """
import json, sys, time
import pyarrow.parquet, numpy
from pathlib import Path
from mt3data.shards.reader import IndexedShards
megabytes = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
before = megabytes()
start = time.perf_counter()
shards = IndexedShards([sys.argv[1]])
opened = time.perf_counter()
shards.batch(0, 64)
first = time.perf_counter()
shards.batch(1, 64)
second = time.perf_counter()
print(json.dumps([opened - start, first - opened, second - first, megabytes() - before]))
"""


def open_a_million(folder: Path, out: Path, rows: int) -> tuple[list[float], float]:
    """Seconds to open an index of so many rows, for the first and the second batch, and MB; then
    the size of the index in MB. Its rows repeat those of a build, under other keys."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir()
    (out / "index").mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (out / path.name).symlink_to(path)
    table = pq.read_table(folder / "index" / "train.parquet")
    table = table.take(np.arange(rows) % len(table))
    keys = pa.array([f"{key}-{row}" for row, key in enumerate(table["key"].to_pylist())])
    sums = pa.array(np.random.default_rng(0).integers(0, 1 << 32, rows), pa.uint32())
    for name, column in (("key", keys), ("mel_crc32", sums)):  # those that differ in all rows
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, out / "index" / "train.parquet", compression="zstd")
    done = subprocess.run(
        [sys.executable, "-c", OPENING, out], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout), (out / "index" / "train.parquet").stat().st_size / 1e6


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=12.0, help="audio in each build")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large index")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_recordings(folder / "recordings", arguments.minutes)
        long, audio, short = (
            make_build(folder / "recordings", folder / "shards", frames, features)
            for frames, features in ((2048, ("mel",)), (2048, ("audio",)), (256, ("mel",)))
        )
        manifest = json.loads((long / "manifest.json").read_text())["splits"]["train"]
        print(
            f"{manifest['hours'] * 60:.0f} minutes, {manifest['notes']} notes, {manifest['records']} windows"
        )
        rates = measure({
            "random crops of 256 frames with tokens, buffer reused": indexed(long),
            "the same into new arrays": indexed(long, reuse=False),
            "the same with one thread, buffer reused": indexed(long, threads=1),
            "random crops of audio with tokens": indexed(audio),
            "whole records of 256 frames": indexed(short),
            "stream() of whole records, decoded": streamed(short),
            "webdataset, default decoding": bare_webdataset(short, decode=True),
            "webdataset, not decoded": bare_webdataset(short, decode=False),
        })  # fmt: skip
        for what, rate in rates.items():
            print(f"{what:54} {rate:9,.0f} per core-second")
        ratio = rates["whole records of 256 frames"] / rates["webdataset, default decoding"]
        print(f"whole records: {ratio:.1f} x bare webdataset with default decoding")
        cold = ", ".join(f"{cold_speed(long, n):,.0f} with {n}" for n in (1, 2, 4, 8))
        print(f"random crops from a cold disk, per second of wall time: {cold} threads")
        for build in (long, short):
            wall, process = check_speed(build)
            print(
                f"check of {build.name}: sha256 alone {wall[0]:,.0f} MB/s; check {wall[1]:,.0f} with one "
                f"thread, {wall[2]:,.0f} with two; per core-second {process[1] / process[0]:.2f} of sha256"
            )
        (opening, first, second, memory), size = open_a_million(
            long, folder / "large", arguments.rows
        )
        print(
            f"index of {arguments.rows:,} rows ({size:.0f} MB): opened in {opening:.3f} s, first batch "
            f"{first:.3f} s, second {second:.3f} s, {memory:.0f} MB more memory"
        )


if __name__ == "__main__":
    main()
