"""The command `mt3train transcribe`: recordings in, notes out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mt3data.errors import UserError
from mt3data.terminal import AT_LEAST_0, PATH, counted, progress, unusable
from mt3train.cli_scores import BATCH, CHECKPOINT, load_checkpoint

if TYPE_CHECKING:
    from mt3train.checkpoint import CheckpointInfo
    from mt3train.model import MT3
    from mt3train.transcribe import Decoding

# In a folder, files with these endings are taken for recordings.
AUDIO = set(".wav .flac .mp3 .ogg .oga .opus .aif .aiff .aifc .au .caf .w64 .rf64 .wv".split())
FORMATS = {"mid": (".mid", ".midi"), "json": (".json",), "csv": (".csv",)}


@click.command()
@click.argument("files", nargs=-1, required=True, type=PATH)
@CHECKPOINT
@click.option("-o", "--out", type=PATH, required=True, help="A file, or a folder for several.")
@click.option(
    "--format", "kind", type=click.Choice(list(FORMATS)), help="Default: as --out ends; mid."
)
@BATCH
@click.option("--beams", type=AT_LEAST_0, default=0, show_default=True, metavar="N",
              help="Of a beam search; 0: greedy.")  # fmt: skip
@click.option("--programs", help='Only these instruments, such as "piano,bass,drums" or "0,33".')
@click.option("--grammar", is_flag=True, help="Say only what can follow; see mt3train/grammar.py.")
@click.option("--compile", "compiled", is_flag=True, help="torch.compile: a minute, then faster.")
def transcribe(
    files: tuple[Path, ...], checkpoint: Path | None, out: Path, kind: str | None, batch: int,
    beams: int, programs: str | None, grammar: bool, compiled: bool,
) -> None:  # fmt: skip
    """Writes the notes of recordings as MIDI, JSON or CSV files.

    FILES may be of any format that libsndfile reads and of any length, or folders of them. A
    recording that cannot be read is reported and the others go on.

    \b
    Example: mt3train transcribe song.wav -o song.mid
    """
    # Threads that wait must not spin: where other programs run too, that takes 4 times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
    recordings = find_recordings(files)
    kind = kind or next((k for k, ends in FORMATS.items() if out.suffix.lower() in ends), "mid")
    alone = files == (recordings[0][0],)
    targets = _targets(recordings, out, kind, alone)
    model, info = load_checkpoint(checkpoint)
    from mt3train.ruled import Instruments
    from mt3train.transcribe import Decoding

    only = Instruments.parse(programs) if programs is not None else None
    decoding = Decoding(batch, beams, grammar, only, compile=compiled)
    if only:
        only.forbidden(info.vocabulary)  # says so before any work if it cannot be done
    failed = 0
    for (file, _), target in zip(recordings, targets, strict=True):
        try:
            click.echo(_transcribe_file(model, info, file, target, kind, decoding))
        except UserError as error:
            if alone:
                raise
            failed += 1
            click.echo(f"Error: {error}", err=True)
    if failed:
        click.echo(
            f"{failed} of {counted(len(recordings), 'recording')} could not be transcribed",
            err=True,
        )
        sys.exit(1)


def find_recordings(files: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Every recording that the files and folders mean, and where below the output its notes belong.

    Raises:
        UserError: a folder without recordings.
    """
    found: list[tuple[Path, Path]] = []
    for file in files:
        if not file.is_dir():
            found.append((file, Path(file.name)))
            continue
        inside = sorted(p for p in file.rglob("*") if p.suffix.lower() in AUDIO and p.is_file())
        if not inside:
            raise UserError(f"{file} holds no recordings; expected files such as song.wav in it")
        found += [(path, path.relative_to(file)) for path in inside]
    return found


def _targets(
    recordings: Sequence[tuple[Path, Path]], out: Path, kind: str, alone: bool
) -> list[Path]:
    """The files that recordings become."""
    ending = FORMATS[kind][0]
    if alone and out.suffix.lower() in FORMATS[kind]:
        targets = [out]
    elif out.suffix.lower() in sum(FORMATS.values(), ()):
        said = f"{len(recordings)} recordings" if not alone else f"--format {kind}"
        raise UserError(
            f"-o {out} is the name of one file; {said} need a folder, or another ending"
        )
    else:
        targets = [out / place.with_suffix(ending) for _, place in recordings]
    twice = sorted({str(target) for target in targets if targets.count(target) > 1})
    if twice:
        raise UserError(f"two recordings would become {twice[0]}; rename one, or use two folders")
    for folder in {target.parent for target in targets}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: the folder cannot be made ({error.strerror})") from error
    return targets


def _transcribe_file(
    model: MT3, info: CheckpointInfo, file: Path, target: Path, kind: str, decoding: Decoding
) -> str:
    """Transcribes one recording; says what came of it."""
    from mt3data.midi import write_midi
    from mt3train.note_files import write_csv, write_json
    from mt3train.transcribe import transcribe as run

    with progress(1, file.name, "segments") as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = run(model, info, file, decoding, on_progress=report)
    notes, has_velocity = result.notes, info.vocabulary.num_velocity_bins > 1
    try:
        if kind == "mid":
            write_midi(notes, target)
        else:
            (write_json if kind == "json" else write_csv)(notes, target, has_velocity)
    except OSError as error:
        raise UserError(
            unusable(error) if error.filename else f"{target}: {error.strerror}"
        ) from error
    instruments = len(set(notes.instrument.tolist()))
    heard = f"{counted(len(notes), 'note')} of {counted(instruments, 'instrument')}"
    odd = f", {result.invalid} invalid events skipped" if result.invalid else ""
    heard = heard if len(notes) else "no notes found"
    return f"{target}: {heard} in {counted(result.n_segments, 'segment')}{odd}"
