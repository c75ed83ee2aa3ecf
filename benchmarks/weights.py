"""Measures the demo weights and writes what is said of them: scores.json, and the model card from it.

    mt3train convert runs/weights -o mt3train/weights/demo.safetensors --half
    python benchmarks/weights.py --pieces data/demo --shards shards/demo --run runs/weights

Everything is measured on the test split of the rendered pieces, with the code of `mt3train
transcribe` and `mt3train evaluate`. Controls, which must score near 0: the same audio backwards, and
the notes found against those of the next piece. The last part, speed and memory, transcribes a
recording of --hours in a process of its own. A part that scores.json already has of the same weights
is kept, so that a run that was stopped goes on; --again PART measures it anew.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from weights_card import write_card
from weights_facts import data, long_recording, machine, rounded, training, weights

from mt3data.audio.load import audio_info, read_audio
from mt3data.datasets.adapters.slakh import tracks as read_pieces
from mt3data.datasets.manifest import load
from mt3data.datasets.track import Track
from mt3data.files import write_atomically
from mt3data.music.notes import Notes
from mt3data.terminal import progress
from mt3train.evaluation.evaluate import TrackScores, score_notes
from mt3train.evaluation.leakage import InstrumentScores, pooled
from mt3train.evaluation.tables import to_json
from mt3train.model import MT3
from mt3train.transcription.decode import DecodingConfig
from mt3train.transcription.transcribe import Transcription, transcribe
from mt3train.weights.checkpoint import CheckpointInfo, load_model
from mt3train.weights.pretrained import FOLDER, SCORES, WEIGHTS

CHOSEN = (
    "onset_f1", "onset_precision", "onset_recall", "onset_offset_f1", "program_f1", "frame_f1",
    "drum_f1", "leakage",
)  # fmt: skip


@dataclass(frozen=True)
class Listener:
    """A model and how it decodes; `batch` changes nothing but the speed."""

    model: MT3
    info: CheckpointInfo
    batch: int

    def hear(self, audio: Path | np.ndarray) -> Transcription:
        """What `mt3train transcribe` finds in a recording."""
        decoding = DecodingConfig(batch=self.batch)
        return transcribe(self.model, self.info, audio, decoding)

    def score(self, name: str, notes: Notes, found: Transcription) -> TrackScores:
        """What `mt3train evaluate` says of it."""
        return score_notes(name, notes, found, self.info.vocabulary)


# --- scores --------------------------------------------------------------------------------------


def decoded(
    listener: Listener,
    pieces: Sequence[Track],
    what: str,
    hear: Callable[[Track], Transcription] | None = None,
) -> tuple[list[TrackScores], dict[str, Any], list[Transcription]]:
    """All pieces, heard as they are or in another way.

    Returns:
        Their scores, what is written of these, and what was found.
    """
    hear = hear or (lambda piece: listener.hear(piece.audio))
    results, found, tracks = [], [], []
    with progress(len(pieces), what, "pieces") as bar:
        for piece in pieces:
            started = time.process_time()
            found.append(hear(piece))
            used = round(time.process_time() - started, 2)
            results.append(listener.score(piece.id, piece.load_notes(), found[-1]))
            tracks.append(told(results[-1]) | {"parts": len(piece.stems), "cpu_seconds": used})
            bar.update(1)
    written = {"n_tracks": len(results), "scores": summary(results), "tracks": tracks}
    return results, written, found


def whole_split(listener: Listener, pieces: Sequence[Track]) -> dict[str, Any]:
    """Every piece, as it is, and against the notes of the next one."""
    results, written, found = decoded(listener, pieces, "test")
    others = [
        listener.score(piece.id, following.load_notes(), one)
        for piece, following, one in zip(pieces, [*pieces[1:], pieces[0]], found, strict=True)
    ]
    return written | {
        "seconds": sum(audio_info(piece.audio).seconds for piece in pieces),
        "of_the_next_piece": summary(others),
        "instruments": by_instrument(results, listener.info.vocabulary.granularity),
    }


def soloists(listener: Listener, pieces: Sequence[Track]) -> dict[str, Any]:
    """Each part of a piece on its own, beside the same part in the mix."""
    alone, mixed = [], decoded(listener, pieces, "mixes of soloists")[0]
    with progress(len(pieces), "soloists", "pieces") as bar:
        for piece in pieces:
            notes = dict(piece.load_parts()[0])
            for stem in piece.stems:
                if stem.audio and len(notes.get(stem.id, ())):
                    found = listener.hear(stem.audio)
                    alone.append(listener.score(f"{piece.id}-{stem.id}", notes[stem.id], found))
            bar.update(1)
    granularity = listener.info.vocabulary.granularity
    return {
        "n_tracks": len(mixed),
        "n_parts": len(alone),
        "alone": by_instrument(alone, granularity),
        "mixed": by_instrument(mixed, granularity),
    }


def summary(results: Sequence[TrackScores]) -> dict[str, Any]:
    """Mean over tracks and its bootstrapped interval, of each chosen score."""
    scores = to_json({"": results}, "")[""]["corrected"]
    return {name: rounded(scores[name]) for name in CHOSEN}


def told(result: TrackScores) -> dict[str, Any]:
    """One track, in few numbers."""
    counts = ("n_reference", "n_estimate", "n_segments", "invalid", "dropped")
    scores = {name: result.scores["corrected"][name] for name in CHOSEN}
    known = {name: None if np.isnan(value) else value for name, value in scores.items()}
    return {"track": result.track, **{n: getattr(result, n) for n in counts}, **rounded(known)}


def by_instrument(results: Sequence[TrackScores], granularity: str) -> list[dict[str, Any]]:
    """A row for each instrument, all its notes taken together; most notes first."""
    rows = []
    for one in pooled([result.instruments for result in results]):
        if not one.onset.n_reference:
            continue
        having = sum(
            any(o.program == one.program and o.onset.n_reference for o in result.instruments)
            for result in results
        )
        precision, recall, f1 = one.onset.scores()
        others = sorted(one.heard_as.items(), key=lambda item: -item[1])
        rows.append(rounded({
            "name": name_of(one, granularity), "n_tracks": having,
            "n_reference": one.onset.n_reference, "n_estimate": one.onset.n_estimate,
            "onset_precision": precision, "onset_recall": recall, "onset_f1": f1,
            "onset_offset_f1": one.onset_offset.scores()[2] if one.onset_offset else None,
            "heard_as": {name_of(InstrumentScores(p, one.onset, None), granularity): n
                         for p, n in others[:2]},
        }))  # fmt: skip
    return rows


def name_of(one: InstrumentScores, granularity: str) -> str:
    """What General MIDI calls the program, or its class where the model knows no more."""
    import pretty_midi

    if granularity != "midi_class" or one.program < 0:
        return one.name
    return str(pretty_midi.program_to_instrument_class(one.program))


# --- all of it -----------------------------------------------------------------------------------


def measure(given: argparse.Namespace) -> None:
    """Measures what is not measured yet, writing after each part."""
    path = given.out / SCORES
    given.out.mkdir(parents=True, exist_ok=True)
    facts = weights(given.weights)
    known = json.loads(path.read_text()) if path.is_file() else {}
    if known.get("weights", {}).get("sha256") != facts["sha256"]:
        known = {}
    known["weights"] = facts
    listener = Listener(*on_device(given.weights), given.batch)
    tracks = read_pieces(given.pieces, load("demo"))
    pieces = [track for track in tracks if track.split == "test"][: given.tracks]
    some = pieces[: given.controls]

    def backwards(piece: Track) -> Transcription:
        return listener.hear(read_audio(piece.audio)[::-1].copy())

    def full_precision() -> dict[str, Any]:
        full = Listener(*on_device(given.full or given.run[-1]), given.batch)
        return decoded(full, some, "full precision")[1]

    parts = {
        "machine": machine,
        "data": lambda: data(given.pieces, given.shards),
        "training": lambda: training(given.run),
        "test": lambda: whole_split(listener, pieces),
        "backwards": lambda: decoded(listener, some, "backwards", backwards)[1],
        "full_precision": full_precision,
        "soloists": lambda: soloists(listener, pieces[: given.solo]),
        "long": lambda: long_recording(given.weights, pieces, given.hours),
    }
    if not given.hours:
        del parts["long"]
    for name, work in parts.items():
        if name not in known or name in given.again:
            started = time.monotonic()
            known[name] = work()
            write_atomically(path, (json.dumps(known, indent=1) + "\n").encode())
            print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    print(write_card(given.out))


def on_device(file: Path) -> tuple[MT3, CheckpointInfo]:
    """The model of a checkpoint, on the GPU if there is one."""
    model, info = load_model(file)
    return (model.cuda() if torch.cuda.is_available() else model), info


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=FOLDER / WEIGHTS)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of scores.json and card")
    parser.add_argument("--pieces", type=Path, required=True, help="what `mt3data synth` wrote")
    parser.add_argument("--shards", type=Path, required=True, help="the build that was trained on")
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="runs, in their order")
    parser.add_argument("--full", type=Path, help="the same weights in full precision; default: "
                        "the newest checkpoint of the last run")  # fmt: skip
    parser.add_argument("--tracks", type=int, default=100, help="of the test split")
    parser.add_argument("--controls", type=int, default=10, help="pieces backwards")
    parser.add_argument("--solo", type=int, default=5, help="pieces whose parts are heard alone")
    parser.add_argument("--hours", type=float, default=2.0, help="of the long recording; 0: none")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", nargs="*", default=[], metavar="PART")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    measure(given)


if __name__ == "__main__":
    main()
