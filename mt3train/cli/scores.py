"""The commands of `mt3train` that say how good a model is: evaluate, score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mt3data.errors import UserError
from mt3data.terminal import AT_LEAST_1, PATH, echo, plural, print_json, progress

if TYPE_CHECKING:
    from mt3data.music.notes import Notes
    from mt3train.evaluation.evaluate import TrackScores
    from mt3train.evaluation.metrics import TrackSpec
    from mt3train.model import MT3
    from mt3train.weights.checkpoint import CheckpointInfo

CHECKPOINT = click.option(
    "--checkpoint", type=PATH,
    help="A .safetensors file, or the folder of a run (its newest checkpoint); default: the demo "
    "weights of this package.",
)  # fmt: skip
BATCH = click.option("--batch", type=AT_LEAST_1, default=16, show_default=True, metavar="N",
                     help="Segments decoded at once.")  # fmt: skip
ROWS = {  # of `score`: what a line is called, and its score
    "onset": "onset", "onset + offset": "onset_offset", "onset + velocity": "onset_velocity",
    "onset + offset + velocity": "onset_offset_velocity", "frame": "frame", "drum onset": "drum",
    "with program": "program_full", "  of the class": "program_midi_class",
    "  any, drums told apart": "program_flat", "within 10 ms": "tolerance_0.01",
    "within 20 ms": "tolerance_0.02", "within 100 ms": "tolerance_0.1",
    "within 200 ms": "tolerance_0.2", "within 500 ms": "tolerance_0.5",
}  # fmt: skip
LONGER = 1.25  # an estimate that ends so much later, or earlier, may belong to another recording


@click.command()
@click.argument("folder", type=PATH)
@CHECKPOINT
@click.option("--split", default="test", show_default=True, help="Which tracks.")
@click.option("--tracks", type=AT_LEAST_1, metavar="N", help="At most so many tracks.")
@BATCH
@click.option("--workers", type=AT_LEAST_1, default=1, show_default=True, metavar="N",
              help="Processes, a track each.")  # fmt: skip
@click.option("-o", "--out", type=PATH, metavar="FILE", help="Keep each track's scores there; run "
              "again, it goes on.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Means, intervals and every track as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="A line for each track and score.")
def evaluate(
    folder: Path, checkpoint: Path | None, split: str, tracks: int | None, batch: int, workers: int,
    out: Path | None, as_json: bool, as_csv: bool,
) -> None:  # fmt: skip
    """Scores a model on the recordings in shards.

    FOLDER is a build, or a folder of builds. Tables use scoring `corrected`, the last one `mt3`
    (see `mt3train score --help`) beside the figures of MT3's paper.

    \b
    Example: mt3train evaluate shards/demo --checkpoint runs/demo --split test
    """
    from mt3data.shards.format import find_builds, read_build_manifest
    from mt3train.evaluation.tables import dataset_table, to_csv, to_json, track_table

    if as_json and as_csv:
        raise UserError("--json and --csv: expected one of them")
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise UserError(f"--out {out}: expected a file, in a folder that exists")
    builds = find_builds(folder)
    model, info = load_checkpoint(checkpoint)
    having = [build for build in builds if split in read_build_manifest(build)["splits"]]
    results = {}
    for build in having or builds:  # none has it: the first says so
        results[build.name] = _evaluate_build(
            model, info, build, split, tracks, batch, workers, out
        )
        if not (as_json or as_csv):
            echo(f"{build}, split {split}\n{track_table(results[build.name])}\n")
            _print_instruments(results[build.name])
    if as_json:
        print_json(to_json(results, split))
    elif as_csv:
        echo(to_csv(results), nl=False)
    else:
        echo(
            f"As MT3's paper has it [95 % of bootstraps over tracks]\n{dataset_table(results, split)}"
        )
    for build in builds:
        if build not in having:
            echo(f"{build} has no split {split!r} and was left out", err=True)


def _evaluate_build(
    model: MT3, info: CheckpointInfo, build: Path, split: str, tracks: int | None, batch: int,
    workers: int, out: Path | None,
) -> list[TrackScores]:  # fmt: skip
    from mt3data.shards.format import read_build_manifest
    from mt3train.evaluation.evaluate import evaluate as run
    from mt3train.evaluation.tables import ResultsFile, identity

    manifest = read_build_manifest(build)
    totals = manifest["splits"].get(split, {"tracks": 0})
    file = ResultsFile(out, identity(model, info, manifest, split), build.name) if out else None
    n_tracks = min(totals["tracks"], tracks or totals["tracks"])
    before = min(len(file.done), n_tracks) if file else 0
    with progress(n_tracks, f"evaluate {build.name}", "tracks", before) as bar:

        def on_track(result: TrackScores) -> None:
            if file:
                file.add(result)
            bar.update(1)

        return run(
            model, info, build, split, batch=batch, max_tracks=tracks, workers=workers,
            done=file.done if file else None, on_track=on_track,
        )  # fmt: skip


def _print_instruments(results: Sequence[TrackScores]) -> None:
    from mt3train.evaluation.leakage import instrument_table, pooled

    echo("\n".join(instrument_table(pooled([each.instruments for each in results]))) + "\n")


@click.command()
@click.argument("reference", type=PATH)
@click.argument("estimate", type=PATH)
@click.option("--part", "parts", multiple=True, metavar="NAME=PROGRAM",
              help="Score these notes on their own, too: Bass=33, Drums=drums; may be repeated.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="All scores of both scorings as JSON.")
def score(reference: Path, estimate: Path, parts: tuple[str, ...], as_json: bool) -> None:
    """Compares two MIDI files, of any transcriber.

    REFERENCE has the notes that should be there, ESTIMATE those that were found. The last column is
    in scoring `mt3`, which is what MT3's own code returns. The others are `corrected`, which leaves
    its mistakes out: there quiet notes count as frames, short notes keep their length, all drums are
    drums, and what neither file holds has no score.

    \b
    Example: mt3train score reference.mid song.mid
    """
    from dataclasses import asdict

    from mt3data.music.midi import read_midi
    from mt3train.evaluation.leakage import instrument_scores, instrument_table
    from mt3train.evaluation.metrics import transcription_scores

    notes = read_midi(reference)[0], read_midi(estimate)[0]
    specs = [_track_spec(part) for part in parts]
    corrected, mt3 = (
        transcription_scores(*notes, scoring=scoring, tracks=specs)
        for scoring in ("corrected", "mt3")
    )
    instruments = instrument_scores(*notes)
    if as_json:
        known = {name: None if math.isnan(value) else value for name, value in corrected.items()}
        table = [asdict(one) | {"name": one.name} for one in instruments]
        print_json({**known, "mt3": mt3, "instruments": table})
    else:
        echo(
            f"{reference}: {plural(len(notes[0]), 'note')}; {estimate}: {plural(len(notes[1]), 'note')}"
        )
        rows = ROWS | {
            f"{spec.name}, {what}": f"{spec.name}/{name}" for spec in specs
            for what, name in ROWS.items() if f"{spec.name}/{name}_f1" in corrected
        }  # fmt: skip
        _print_scores(corrected, mt3, rows)
        echo("\n" + "\n".join(instrument_table(instruments)))
    _remark_on_length(*notes)


def _print_scores(
    corrected: Mapping[str, float], mt3: Mapping[str, float], rows: Mapping[str, str]
) -> None:
    width = max(map(len, rows)) + 2
    echo(f"{'':{width}}{'precision':>10}{'recall':>10}{'F1':>10}{'F1, mt3':>12}")
    for what, name in rows.items():
        values = [corrected[f"{name}_{measure}"] for measure in ("precision", "recall", "f1")]
        cells = "".join(f"{'-':>10}" if math.isnan(v) else f"{v:10.3f}" for v in values)
        echo(f"{what:{width}}{cells}{mt3[f'{name}_f1']:12.3f}")
    if not math.isnan(corrected["leakage"]):
        echo(f"leakage: {100 * corrected['leakage']:.1f} % of the notes that are right in pitch and "
                   "onset stand under a wrong program")  # fmt: skip


def _track_spec(part: str) -> TrackSpec:
    """NAME=PROGRAM or NAME=drums as a part to score."""
    from mt3train.evaluation.metrics import TrackSpec

    name, _, program = part.partition("=")
    if name and program == "drums":
        return TrackSpec(name, 0, is_drum=True)
    if not name or not program.isascii() or not program.isdigit() or int(program) > 127:
        raise UserError(f"--part {part}: expected NAME=PROGRAM, such as Bass=33, or NAME=drums")
    return TrackSpec(name, int(program))


def _remark_on_length(reference: Notes, estimate: Notes) -> None:
    ends = [float(notes.offset.max(initial=0.0)) for notes in (reference, estimate)]
    if min(ends) > 0 and max(ends) > LONGER * min(ends):
        echo(f"the reference ends at {ends[0]:.1f} s, the estimate at {ends[1]:.1f} s: are they "
                   "of one recording?", err=True)  # fmt: skip


def load_checkpoint(checkpoint: Path | None) -> tuple[MT3, CheckpointInfo]:
    """The model of a checkpoint, on the GPU if there is one.

    None: the demo weights, of which one line on stderr says what they are.
    """
    import torch

    from mt3train.weights.checkpoint import load_model
    from mt3train.weights.pretrained import demo_weights

    if checkpoint is None:
        checkpoint, told = demo_weights()
        echo(told, err=True)
    model, info = load_model(checkpoint)
    return (model.cuda() if torch.cuda.is_available() else model), info
