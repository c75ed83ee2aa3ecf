"""The commands of `mt3train` that score models and transcriptions: evaluate, score."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mt3data.errors import UserError
from mt3data.files import inputs_of, require_output
from mt3data.terminal import (
    AT_LEAST_1,
    PATH,
    WORKERS,
    UserPath,
    echo,
    plural,
    print_json,
    progress,
)
from mt3train.device import DEVICES, PRECISIONS, choose_device
from mt3train.weights.published import KNOWN

if TYPE_CHECKING:
    from mt3data.music.notes import Notes
    from mt3train.evaluation.evaluate import TrackScores
    from mt3train.evaluation.metrics import TrackSpec
    from mt3train.model import MT3
    from mt3train.weights.checkpoint import CheckpointInfo


class CheckpointPath(UserPath):
    """A path on the command line, or the name of published weights, which stays a str."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Returns the name or the path that the user typed. "./mt3" is a path."""
        return value if value in KNOWN else super().convert(value, param, ctx)


CHECKPOINT = click.option(
    "--checkpoint", type=CheckpointPath(),
    help="A .safetensors file, the folder of a run (its newest checkpoint), or published weights "
    "such as mt3 (see `mt3train weights`); default: the demo weights of this package.",
)  # fmt: skip
BATCH = click.option("--batch", type=AT_LEAST_1, default=16, show_default=True, metavar="N",
                     help="Segments decoded at once.")  # fmt: skip
DEVICE = click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True,
                      help="Processor of the model. auto: the GPU if CUDA finds one, else the CPU.")  # fmt: skip
PRECISION = click.option(
    "--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True,
    help="Of the model's products. auto: bf16 on a GPU that has it, else float32. fp16 needs a GPU.",
)  # fmt: skip
ROWS = {  # of `score`: title of a line -> score
    "onset": "onset", "onset + offset": "onset_offset", "onset + velocity": "onset_velocity",
    "onset + offset + velocity": "onset_offset_velocity", "frame": "frame", "drum onset": "drum",
    "with program": "program_full", "  of the class": "program_midi_class",
    "  any, drums separate": "program_flat", "within 10 ms": "tolerance_0.01",
    "within 20 ms": "tolerance_0.02", "within 100 ms": "tolerance_0.1",
    "within 200 ms": "tolerance_0.2", "within 500 ms": "tolerance_0.5",
}  # fmt: skip
LONGER = 1.25  # estimates that end this much later or earlier may be of another recording


@click.command()
@click.argument("folder", type=PATH)
@CHECKPOINT
@click.option("--split", default="test", show_default=True, help="Split of the builds to score.")
@click.option("--tracks", type=AT_LEAST_1, metavar="N", help="Score only the first N tracks.")
@BATCH
@DEVICE
@PRECISION
@click.option("--constrained", is_flag=True,
              help="Decode as `transcribe --passes 1` does; default: as `transcribe --plain`.")  # fmt: skip
@click.option("--workers", type=WORKERS, default=1, show_default=True, metavar="N",
              help="Processes; each scores one track at a time.")  # fmt: skip
@click.option("-o", "--out", type=PATH, metavar="FILE", help="Store the scores of each "
              "track; the same command resumes from there.")  # fmt: skip
@click.option(
    "--json", "as_json", is_flag=True, help="Print means, intervals and every track as JSON."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print one line for each track and score.")
def evaluate(
    folder: Path, checkpoint: str | Path | None, split: str, tracks: int | None, batch: int,
    device: str, precision: str, constrained: bool, workers: int, out: Path | None, as_json: bool, as_csv: bool,
) -> None:  # fmt: skip
    """Scores a model on the recordings in shards.

    FOLDER is a build or a folder of builds. Decoding is that of the original, unlike that of
    `transcribe`, so that scores can be compared with published ones. The last table uses scoring `mt3` and shows the figures
    of MT3's paper. The others use scoring `corrected` (see `mt3train score --help`).

    \b
    Example: mt3train evaluate shards/demo --checkpoint runs/demo --split test
    """
    from mt3data.shards.format import find_builds, read_build_manifest
    from mt3train.evaluation.evaluate import evaluate as evaluate_build
    from mt3train.evaluation.tables import (
        ResultsFile,
        dataset_table,
        identity,
        to_csv,
        to_json,
        track_table,
    )
    from mt3train.transcription.decode import DecodingConfig

    if as_json and as_csv:
        raise UserError("--json and --csv: expected one of them")
    if out is not None:  # `ResultsFile` refuses what other commands wrote
        require_output(out, "mt3train evaluate", force=True, inputs=inputs_of([folder]))
    manifests = {build: read_build_manifest(build) for build in find_builds(folder)}
    model, info = load_checkpoint(checkpoint, device)
    decoding = DecodingConfig(batch, constrained, precision=precision)
    chosen = [build for build in manifests if split in manifests[build]["splits"]]
    chosen = chosen or [*manifests]  # the first then reports that it has no such split
    file = None
    if out:
        file = ResultsFile(
            out, {b.name: identity(model, info, manifests[b], split, decoding) for b in chosen}
        )
    results = {}
    for build in chosen:
        n_tracks = manifests[build]["splits"].get(split, {"tracks": 0})["tracks"]
        n_tracks = min(n_tracks, tracks or n_tracks)
        done = file.done[build.name] if file else {}
        with progress(
            n_tracks, f"evaluate {build.name}", "tracks", min(len(done), n_tracks)
        ) as bar:

            def on_track(result: TrackScores, build: Path = build, bar: Any = bar) -> None:
                if file:
                    file.add(build.name, result)
                bar.update(1)

            results[build.name] = evaluate_build(
                model, info, build, split, decoding=decoding, max_tracks=tracks, workers=workers,
                done=done, on_track=on_track,
            )  # fmt: skip
        if not (as_json or as_csv):
            echo(f"{build}, split {split}\n{track_table(results[build.name])}\n")
            _print_instruments(results[build.name])
    if as_json:
        print_json(to_json(results, split))
    elif as_csv:
        echo(to_csv(results), nl=False)
    else:
        echo(
            f"Scoring `mt3` [95 % bootstrap interval over tracks]\n{dataset_table(results, split)}"
        )
    for build in manifests:
        if build not in chosen:
            echo(f"{build} has no split {split!r} and was ignored", err=True)


def _print_instruments(results: Sequence[TrackScores]) -> None:
    from mt3train.evaluation.leakage import instrument_table, pooled

    echo("\n".join(instrument_table(pooled([each.instruments for each in results]))) + "\n")


@click.command()
@click.argument("files", type=PATH, nargs=-1, metavar="[REFERENCE ESTIMATE]")
@click.option("--references", type=PATH, metavar="DIR", help="MIDI files with the right notes.")
@click.option("--systems", type=PATH, multiple=True, metavar="DIR...",
              help="MIDI files of each transcriber: one folder, or several.")  # fmt: skip
@click.option("--part", "parts", multiple=True, metavar="NAME=PROGRAM",
              help="Also score this part alone: Bass=33, Drums=drums; may be repeated.")  # fmt: skip
@click.option("--plot", type=PATH, metavar="FILE",
              help="Draw the means of the systems into a .png, .svg or .pdf file.")  # fmt: skip
@click.option("--force", is_flag=True, help="Let --plot replace a file of another program.")
@click.option("--json", "as_json", is_flag=True, help="Print all scores of both scorings as JSON.")
def score(
    files: tuple[Path, ...], references: Path | None, systems: tuple[Path, ...],
    parts: tuple[str, ...], plot: Path | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compares MIDI files, of any transcriber.

    REFERENCE has the right notes, ESTIMATE the notes of a transcriber. The last column is in scoring
    `mt3`, which is what MT3's own code returns. The others are in scoring `corrected`, which avoids
    mistakes of that code: quiet notes count as frames, short notes keep their length, all drums are
    one instrument, and what neither file has gets no score.

    With --references and --systems, folders of several transcribers are compared on the same
    recordings, matched by the names of the files. The result is Markdown: means with bootstrap
    intervals, p-values of differences, and instruments. A missing file scores as if nothing was
    found.

    \b
    Example: mt3train score reference.mid song.mid
    Systems: mt3train score --references refs/ --systems mt3/ basic-pitch/
    """
    if references is not None or systems:
        if references is None or not (systems or files) or parts:
            raise UserError("expected --references DIR --systems DIR..., without --part")
        _score_systems(references, [*systems, *files], plot, force, as_json)
        return
    if len(files) != 2 or plot or force:
        raise UserError(
            "expected two MIDI files, or --references DIR --systems DIR... [--plot FILE [--force]]"
        )
    if folders := [file for file in files if file.is_dir()]:
        raise UserError(
            f"{folders[0]} is a folder; expected two MIDI files, or --references DIR --systems DIR..."
        )
    _score_pair(*files, parts, as_json)


def _score_systems(
    references: Path, systems: Sequence[Path], plot: Path | None, force: bool, as_json: bool
) -> None:
    from mt3train.evaluation.systems import (
        COMMAND,
        compare_systems,
        markdown,
        plot_systems,
        to_json,
    )

    if plot is not None:
        require_output(plot, COMMAND, force, inputs=inputs_of([references, *systems]))
    comparison = compare_systems(references, systems)
    print_json(to_json(comparison)) if as_json else echo(markdown(comparison))
    if plot is not None:
        plot_systems(comparison, plot, force)
    for text in comparison.skipped:
        echo(f"skipped {text}", err=True)
    for system, n_extra in comparison.extra.items():
        if n_extra:
            echo(f"{system}: ignored {plural(n_extra, 'file')} without a reference", err=True)
    for system, names in comparison.missing.items():
        if names:
            echo(f"{system}: {plural(len(names), 'file')} missing, first {names[0]}", err=True)
    for fault in comparison.faults:
        echo(f"Error: {fault}", err=True)
    if comparison.faults or any(comparison.missing.values()):
        sys.exit(1)


def _score_pair(reference: Path, estimate: Path, parts: tuple[str, ...], as_json: bool) -> None:
    from dataclasses import asdict

    from mt3data.music.midi import read_midi
    from mt3train.evaluation.leakage import instrument_scores, instrument_table
    from mt3train.evaluation.metrics import none_if_nan, transcription_scores

    (true, unended), (found, unended_found) = read_midi(reference), read_midi(estimate)
    notes = true, found
    specs = [_track_spec(part) for part in parts]
    corrected, mt3 = (
        transcription_scores(*notes, scoring=scoring, tracks=specs)
        for scoring in ("corrected", "mt3")
    )
    instruments = instrument_scores(*notes)
    if as_json:
        known = {name: none_if_nan(value) for name, value in corrected.items()}
        table = [asdict(one) | {"name": one.name} for one in instruments]
        ignored = {"reference": unended, "estimate": unended_found}
        print_json({**known, "mt3": mt3, "instruments": table, "note_ons_without_end": ignored})
    else:
        echo(f"{reference}: {plural(len(true), 'note')}; {estimate}: {plural(len(found), 'note')}")
        rows = ROWS | {
            f"{spec.name}, {what}": f"{spec.name}/{name}" for spec in specs
            for what, name in ROWS.items() if f"{spec.name}/{name}_f1" in corrected
        }  # fmt: skip
        _print_scores(corrected, mt3, rows)
        echo("\n" + "\n".join(instrument_table(instruments)))
    for path, n_ignored in ((reference, unended), (estimate, unended_found)):
        if n_ignored:
            echo(f"{path}: ignored {plural(n_ignored, 'note-on')} without an end", err=True)
    _warn_of_lengths(*notes)


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
        echo(f"leakage: {100 * corrected['leakage']:.1f} % of the notes right in pitch and onset "
                   "have a wrong program")  # fmt: skip


def _track_spec(part: str) -> TrackSpec:
    """Parses NAME=PROGRAM or NAME=drums."""
    from mt3train.evaluation.metrics import TrackSpec

    name, _, program = part.partition("=")
    if name and program == "drums":
        return TrackSpec(name, 0, is_drum=True)
    if not name or not program.isascii() or not program.isdigit() or int(program) > 127:
        raise UserError(f"--part {part}: expected NAME=PROGRAM, such as Bass=33, or NAME=drums")
    return TrackSpec(name, int(program))


def _warn_of_lengths(reference: Notes, estimate: Notes) -> None:
    ends = [float(notes.offset.max(initial=0.0)) for notes in (reference, estimate)]
    if min(ends) > 0 and max(ends) > LONGER * min(ends):
        echo(f"the reference ends at {ends[0]:.1f} s, the estimate at {ends[1]:.1f} s: are they "
                   "of one recording?", err=True)  # fmt: skip


def load_checkpoint(
    checkpoint: str | Path | None, device: str = "auto"
) -> tuple[MT3, CheckpointInfo]:
    """Loads the model of a checkpoint to a device.

    None loads the demo weights, and one line on stderr describes them.
    """
    from mt3train.weights.checkpoint import load_model
    from mt3train.weights.pretrained import demo_weights

    chosen = choose_device(device)  # raises before anything is loaded or downloaded
    if checkpoint is None:
        checkpoint, description = demo_weights()
        echo(description, err=True)
    model, info = load_model(checkpoint)
    return model.to(chosen), info
