"""Prints the scores of a checkpoint on rendered pieces, two controls, and its speed and memory.

    mt3data synth --out data/demo --tracks 1000 --seconds 60 --seed 1000
    python benchmarks/weights.py --pieces data/demo --hours 2

The pieces are those of the test split. The controls must score near 0: the notes found in a piece
against the notes of the next piece, and the audio played backwards against the same notes. The
model card of the demo weights is mt3train/weights/README.md.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import soundfile
import torch

from mt3data.audio.load import TARGET_RATE, audio_info, read_audio, read_blocks
from mt3data.datasets.adapters.slakh import tracks as read_pieces
from mt3data.datasets.manifest import load
from mt3data.datasets.track import Track
from mt3data.terminal import progress
from mt3train.evaluation.evaluate import TrackScores, score_notes
from mt3train.evaluation.leakage import instrument_table, pooled
from mt3train.evaluation.tables import track_table
from mt3train.model import MT3
from mt3train.transcription.decode import DecodingConfig
from mt3train.transcription.transcribe import transcribe
from mt3train.weights.checkpoint import CheckpointInfo, checksum, load_model
from mt3train.weights.pretrained import FOLDER, WEIGHTS


def speed(
    model: MT3,
    info: CheckpointInfo,
    pieces: Sequence[Track],
    hours: float,
    decoding: DecodingConfig,
) -> str:
    """Times one recording of `hours` hours, made of the pieces one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        song, n_samples = Path(folder) / "long.wav", 0
        with soundfile.SoundFile(song, "w", TARGET_RATE, 1, "PCM_16") as wav:
            for piece in cycle(pieces):
                for block in read_blocks(piece.audio):
                    wav.write(block)
                    n_samples += len(block)
                if n_samples >= 3600 * hours * TARGET_RATE:
                    break
        started, cpu = time.monotonic(), time.process_time()
        n_notes = len(transcribe(model, info, song, decoding).notes)
    wall, cpu = time.monotonic() - started, time.process_time() - cpu
    seconds = n_samples / TARGET_RATE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"{seconds / 3600:.2f} hours, {n_notes:,} notes found: {wall:.0f} s, {seconds / wall:.1f} x real "
        f"time, {cpu:.0f} CPU-seconds on {torch.get_num_threads()} threads, peak memory {peak:,.0f} MB"
    )


def by_parts(results: Sequence[TrackScores], pieces: Sequence[Track]) -> str:
    """One table row for each number of stems that play together."""
    groups: dict[int, list[TrackScores]] = {}
    for result, piece in zip(results, pieces, strict=True):
        groups.setdefault(len(piece.stems), []).append(result)
    return "\n".join(
        f"{n} stems, {len(some)} pieces: {track_table(some).splitlines()[-1]}"
        for n, some in sorted(groups.items())
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pieces", type=Path, required=True, help="what `mt3data synth` wrote")
    parser.add_argument("--checkpoint", type=Path, default=FOLDER / WEIGHTS)
    parser.add_argument("--tracks", type=int, default=100, help="pieces of the test split")
    parser.add_argument("--controls", type=int, default=10, help="pieces played backwards")
    parser.add_argument(
        "--soloists", type=int, default=0, help="pieces whose stems are heard alone"
    )
    parser.add_argument("--hours", type=float, default=0.0, help="of the recording that is timed")
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    model, info = load_model(given.checkpoint)
    model = model.cuda() if torch.cuda.is_available() else model
    decoding = DecodingConfig(batch=given.batch)
    found_in = read_pieces(given.pieces, load("demo"))
    pieces = [track for track in found_in if track.split == "test"][: given.tracks]
    n_parameters = sum(tensor.numel() for tensor in model.state_dict().values())
    print(
        f"{given.checkpoint}: {given.checkpoint.stat().st_size:,} bytes, {n_parameters:,} parameters, "
        f"step {info.step:,}, sha256 of the arrays {checksum(model.state_dict())}"
    )
    if given.hours:
        print(speed(model, info, pieces, given.hours, decoding))
    notes = [piece.load_notes() for piece in pieces]
    found = []
    with progress(len(pieces), "transcribe", "pieces") as bar:
        for piece in pieces:
            found.append(transcribe(model, info, piece.audio, decoding))
            bar.update(1)
    others = [*notes[1:], notes[0]]
    backwards = [
        transcribe(model, info, read_audio(piece.audio)[::-1].copy(), decoding)
        for piece in pieces[: given.controls]
    ]
    tables = {"as they are": (notes, found), "against the notes of the next piece": (others, found),
              "played backwards": (notes, backwards)}  # fmt: skip
    for name, (references, estimates) in tables.items():
        results = [
            score_notes(piece.id, reference, estimate, info.vocabulary)
            for piece, reference, estimate in zip(pieces, references, estimates, strict=False)
        ]
        seconds = sum(audio_info(piece.audio).seconds for piece in pieces[: len(results)])
        print(f"\n{len(results)} pieces, {seconds / 60:.0f} minutes, {name}")
        print(track_table(results))
        if name == "as they are":
            print(*instrument_table(pooled([each.instruments for each in results])), sep="\n")
            print(by_parts(results, pieces))
    alone = [
        score_notes(f"{piece.id}-{stem.id}", parts[stem.id], transcribe(model, info, stem.audio, decoding),
                    info.vocabulary)
        for piece in pieces[: given.soloists]
        for parts in [dict(piece.load_parts()[0])]
        for stem in piece.stems if stem.audio and len(parts.get(stem.id, ()))
    ]  # fmt: skip
    if alone:
        print(f"\n{len(alone)} stems of {given.soloists} pieces, each alone")
        print(*instrument_table(pooled([each.instruments for each in alone])), sep="\n")


if __name__ == "__main__":
    main()
