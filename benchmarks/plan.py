"""How long a build takes to plan: a tree of Slakh's size, 2,100 tracks and 22,000 stems.

    python benchmarks/plan.py

The tree is made of hard links to one FLAC file of silence and one MIDI file, and of metadata.yaml
files with the fields of Slakh's; it takes a few megabytes in the temporary folder. Planning reads
the metadata, the header of every mix (with --profile paper of every stem in a subset, too), the
content of every label file and the size of every audio file. A disk that is slower than this one's cache costs its seeks on top.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

import mido
import numpy as np
import soundfile

from mt3data.build.plan import BuildConfig, make_plan

TRACKS, STEMS, SECONDS = 2100, 22_000, 250
SPLITS = (("train", 1500), ("validation", 375), ("test", 225))
STEM = """\
  S{number:02}:
    audio_rendered: true
    inst_class: {family}
    integrated_loudness: -{loudness}
    is_drum: {is_drum}
    midi_program_name: {family} 1
    midi_saved: true
    plugin_name: {family}.nkm
    program_num: {program}
"""
TRACK = """\
UUID: {uuid:032x}
audio_dir: stems
lmd_midi_dir: lmd_matched/A/A/A/TRAAAAA{uuid:011}/{uuid:032x}.mid
midi_dir: MIDI
normalization_factor: -13.0
normalized: true
overall_gain: 0.{uuid}
stems:
"""


def make_tree(root: Path) -> None:
    """Writes the tree; every stem has one of the classes that Slakh's labels know."""
    draw = random.Random(0)
    flac, midi = root / "silence.flac", root / "empty.mid"
    soundfile.write(flac, np.zeros(SECONDS * 44100, np.int16), 44100)
    mido.MidiFile().save(midi)
    counts = [STEMS // TRACKS + (n < STEMS % TRACKS) for n in range(TRACKS)]
    splits = [split for split, count in SPLITS for _ in range(count)]
    for number, (split, count) in enumerate(zip(splits, counts, strict=True), 1):
        folder = root / "slakh2100_flac_redux" / split / f"Track{number:05d}"
        for sub in ("stems", "MIDI"):
            (folder / sub).mkdir(parents=True)
        text = TRACK.format(uuid=number)
        for stem in range(count):
            drums = stem == 1
            text += STEM.format(
                number=stem, family="Drums" if drums else "Piano", is_drum=str(drums).lower(),
                loudness=draw.uniform(10, 30), program=128 if drums else draw.randrange(96),
            )  # fmt: skip
            os.link(flac, folder / "stems" / f"S{stem:02}.flac")
            os.link(midi, folder / "MIDI" / f"S{stem:02}.mid")
        os.link(flac, folder / "mix.flac")
        (folder / "metadata.yaml").write_text(text)


def main() -> None:
    """Prints a line per profile."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        started = time.perf_counter()
        make_tree(root)
        print(f"the tree took {time.perf_counter() - started:.0f} s to make")
        for profile in ("fixed", "paper"):
            started, cpu = time.perf_counter(), time.process_time()
            plan = make_plan(BuildConfig("slakh", root, root / "out", profile=profile))
            spent, cpu = time.perf_counter() - started, time.process_time() - cpu
            tracks = sum(len(shard.tracks) for shard in plan.shards)
            assert (tracks, len(plan.rejected)) == (TRACKS, 0)
            print(
                f"--profile {profile}: {tracks} tracks, {len(plan.shards)} shards, "
                f"{sum(shard.records for shard in plan.shards)} records: {spent:.1f} s, of them "
                f"{cpu:.1f} s of one core"
            )


if __name__ == "__main__":
    main()
