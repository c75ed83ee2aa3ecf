"""The command `mt3train transcribe`: writes the notes of recordings as files and pages."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mt3data.errors import UserError
from mt3data.files import (
    MAX_NAME_BYTES,
    STDOUT,
    format_bytes,
    require_output,
    require_space,
    walk,
    write_output,
)
from mt3data.terminal import OUTPUT, PATH, echo, path_error_message, plural, progress
from mt3train.cli.scores import BATCH, CHECKPOINT, load_checkpoint

if TYPE_CHECKING:
    from mt3train.transcription.transcribe import Transcriber, Transcription

FORMATS = {"mid": (".mid", ".midi"), "json": (".json",), "csv": (".csv",)}
ENDINGS = sum(FORMATS.values(), ())
PAGES = (".html", ".htm")
FILE_ENDING = re.compile(r"\.(?=.*[a-z])[a-z0-9]{1,8}", re.IGNORECASE)  # unlike ". Vol. 2"
LONG_SECONDS = 1200  # of a recording whose page is so large that its size is announced
COMMAND = "mt3train transcribe"


@dataclass(frozen=True)
class TranscriptionJob:
    """Describes what is done with every recording.

    Attributes:
        transcriber: the model and how it decodes.
        about: a line on the model, for the pages.
        kind: format of the files of notes.
        force: replace files that this command did not write.
    """

    transcriber: Transcriber
    about: str
    kind: str
    force: bool

    @property
    def has_velocity(self) -> bool:
        """Whether the model transcribes velocities."""
        return self.transcriber.info.vocabulary.num_velocity_bins > 1


@click.command()
@click.argument("files", nargs=-1, required=True, type=PATH)
@CHECKPOINT
@click.option(
    "-o", "--out", type=OUTPUT,
    help="Notes: a file, - for standard output, or a folder for several. MIDI is in seconds, at a nominal 120 bpm: its "
    "bars mean nothing in notation software.",
)  # fmt: skip
@click.option("--html", type=PATH, help="Piano roll and recording as a page, or a folder of pages.")
@click.option(
    "--format", "kind", type=click.Choice(list(FORMATS)), help="Of --out. Default: as it ends; mid."
)
@BATCH
@click.option(
    "--programs",
    help='All that the model may say, such as "piano,bass,drums" or "0,33"; it filters no sound.',
)
@click.option("--plain", is_flag=True,
              help="Decode as the original does: loops are not ended, repeated notes not merged.")  # fmt: skip
@click.option("--compile", "compiled", is_flag=True, help="torch.compile: a minute, then faster.")
@click.option("--force", is_flag=True, help="Replace files that this command did not write.")
def transcribe(
    files: tuple[Path, ...], checkpoint: str | Path | None, out: Path | None, html: Path | None,
    kind: str | None, batch: int, programs: str | None, plain: bool, compiled: bool, force: bool,
) -> None:  # fmt: skip
    """Writes the notes of recordings: MIDI, JSON, CSV, or a page.

    FILES are recordings of any length in the formats that libsndfile reads, or folders of them.
    A missing file is reported before any work. A file that cannot be read is reported, and the
    others are transcribed.

    \b
    Example: mt3train transcribe song.wav -o song.mid --html song.html
    """
    # Threads that spin while they wait take 4 times as long where other programs run.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
    recordings = find_recordings(files)
    alone = files == (recordings[0][0],)
    kind, targets = _all_targets(recordings, alone, out, html, kind)
    if alone:
        _require_outputs(*targets[0], force)
    from mt3train.transcription.decode import DecodingConfig
    from mt3train.transcription.programs import ProgramFilter
    from mt3train.transcription.transcribe import Transcriber

    only = ProgramFilter.parse(programs) if programs is not None else None
    model, info = load_checkpoint(checkpoint)
    decoding = DecodingConfig(batch, constrained=not plain, programs=only, compile=compiled)
    if only:
        only.forbidden(info.vocabulary)  # raises before any work if the model has no programs
    transcriber = Transcriber(model, info, decoding)
    job = TranscriptionJob(transcriber, _about(checkpoint, transcriber, programs), kind, force)
    failed = 0
    for (file, _), (target, page) in zip(recordings, targets, strict=True):
        try:
            echo(_transcribe_file(job, file, target, page), err=target == STDOUT)
        except KeyboardInterrupt:
            echo("interrupted; files that are written stay, the same command starts over", err=True)
            sys.exit(130)
        except Exception as error:
            if alone:
                raise
            failed += 1
            if not isinstance(error, UserError):  # a bug; the other recordings are transcribed
                echo(traceback.format_exc(), err=True)
            echo(
                f"Error: {error if isinstance(error, UserError) else f'{file}: {error!r}'}",
                err=True,
            )
    if failed:
        tried = plural(len(recordings), "recording")
        echo(f"{failed} of {tried} could not be transcribed", err=True)
        sys.exit(1)


def find_recordings(files: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Returns every recording in files and folders, and its place below an output folder.

    Raises:
        UserError: a file that is not there, or a folder without recordings.
    """
    from mt3data.audio.load import AUDIO_SUFFIXES, UNREADABLE_SUFFIXES, conversion, require_file

    found: list[tuple[Path, Path]] = []
    for file in files:
        if not file.is_dir():
            require_file(file)
            found.append((file, Path(file.name)))
            continue
        below = walk(file, AUDIO_SUFFIXES | UNREADABLE_SUFFIXES)
        if below.skipped:
            echo(below.message, err=True)
        inside = [path for path in below.files if path.suffix.lower() in AUDIO_SUFFIXES]
        unread = [path for path in below.files if path.suffix.lower() in UNREADABLE_SUFFIXES]
        hint = "expected files such as song.wav in it"
        if unread:
            n, first = plural(len(unread), "file"), unread[0]
            hint = (
                f"{n} of formats that libsndfile does not read, the first is {first}; "
                f"try {conversion(first)}"
            )
        if not inside:
            raise UserError(f"{file} holds no recordings; {hint}")
        if unread:
            echo(f"{file}: passed over {hint}", err=True)
        found += [(path, path.relative_to(file)) for path in inside]
    return found


def _all_targets(
    recordings: Sequence[tuple[Path, Path]], alone: bool, out: Path | None, html: Path | None,
    kind: str | None,
) -> tuple[str, list[tuple[Path | None, Path | None]]]:  # fmt: skip
    """Returns the format of the notes, and for each recording the files of its notes and page."""
    if out is None and html is None:
        raise UserError("nowhere to write to; expected -o song.mid, --html song.html, or both")
    if out is None and kind is not None:
        raise UserError(f"--format {kind} is the format of -o, which is not there; name it, too")
    nowhere: list[Path | None] = [None] * len(recordings)
    pages: list[Path | None] = nowhere
    if html is not None:
        pages = [*_targets(recordings, alone, "--html", html, PAGES)]
    if out is None:
        return "", list(zip(nowhere, pages, strict=True))
    if out == STDOUT:
        if not alone:
            raise UserError("-o - is standard output, for one recording; several need a folder")
        return kind or "mid", [(STDOUT, pages[0])]
    notes = _targets(recordings, alone, "-o", out, FORMATS[kind] if kind else ENDINGS)
    kind = next(k for k, endings in FORMATS.items() if notes[0].suffix.lower() in endings)
    return kind, list(zip(notes, pages, strict=True))


def _targets(
    recordings: Sequence[tuple[Path, Path]], alone: bool, option: str, out: Path,
    endings: Sequence[str],
) -> list[Path]:  # fmt: skip
    """Returns the output file of every recording, and makes their folders.

    Args:
        recordings: of `find_recordings`.
        alone: whether there is one recording, named itself.
        option: the name of the option, for messages.
        out: its value: a file if its ending is one of a file and it is no folder.
        endings: allowed endings of files. Files in a folder get the first one.
    """
    if out.is_dir() or not FILE_ENDING.fullmatch(out.suffix):
        targets = [out / place.with_suffix(endings[0]) for _, place in recordings]
    elif out.suffix.lower() not in endings:
        raise UserError(
            f"{option} {out} does not end in {' or '.join(endings)}; for a folder of that name, make it first"
        )
    elif not alone:
        raise UserError(
            f"{option} {out} is the name of one file; several recordings, or a folder of them, need "
            "a folder"
        )
    else:
        targets = [out]
    first: dict[Path, Path] = {}
    for (file, _), target in zip(recordings, targets, strict=True):
        if target in first:
            raise UserError(
                f"{first[target]} and {file} would both become {target}; rename one, or use two "
                "folders"
            )
        first[target] = file
    becomes_folder = alone and targets != [out] and not out.exists()
    for folder in {target.parent for target in targets}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: the folder cannot be made ({error.strerror})") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{folder}: no permission to write there; choose another {option}")
    for target in targets:
        if os.path.isdir(target):  # noqa: PTH112  (False also for a name that is too long)
            raise UserError(f"{target} is a folder; choose another {option}")
    if becomes_folder:
        ending = f"does not end as a file does ({endings[0]})"
        echo(f"{option} {out} {ending}, so it is now a folder", err=True)
    return targets


def _about(checkpoint: str | Path | None, transcriber: Transcriber, programs: str | None) -> str:
    """Describes the model in one line."""
    from mt3train.weights.checkpoint import weights_file

    name = "the demo weights of mt3kit" if checkpoint is None else weights_file(checkpoint).name
    millions = sum(parameter.numel() for parameter in transcriber.model.parameters()) / 1e6
    only = f"; asked for {programs} alone" if programs else ""
    limits = (
        "" if checkpoint else ". A small model trained on rendered pieces alone: expect mistakes"
    )
    return f"Model: {name}, {millions:.3g} million parameters, {transcriber.info.step:,} updates{only}{limits}"


def _transcribe_file(
    job: TranscriptionJob, file: Path, target: Path | None, page: Path | None
) -> str:
    """Transcribes one recording and returns a line about the result."""
    _require_outputs(target, page, job.force)
    if page:
        _announce(file, page)
    with progress(1, file.name, "segments") as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = job.transcriber.transcribe(file, report)
    written = []
    try:
        if target:
            _write_notes(job, result, target)
            written.append(str(target))
        if page:
            _write_page(job, file, result, page)
            written.append(f"{page} ({format_bytes(page.stat().st_size)})")
    except OSError as error:
        where = path_error_message(error) if error.filename else f"{target}: {error.strerror}"
        raise UserError(where) from error
    return f"{' and '.join(written)}: {_summary(result)}"


def _require_outputs(target: Path | None, page: Path | None, force: bool) -> None:
    """Checks before any work that the files of one recording can be written."""
    from mt3train.transcription.note_files import HEADINGS

    for path in (target, page):
        if path is None:
            continue
        if (n_bytes := len(os.fsencode(path.name))) > MAX_NAME_BYTES:
            raise UserError(
                f"{path}: a name of {n_bytes} bytes; file systems allow {MAX_NAME_BYTES}, so rename "
                "the recording"
            )
        require_output(path, COMMAND, force, HEADINGS if path.suffix.lower() == ".csv" else ())


def _summary(result: Transcription) -> str:
    """Counts notes, instruments, segments and ignored outputs."""
    notes = result.notes
    instruments = plural(len(set(notes.instrument.tolist())), "instrument")
    found = f"{plural(len(notes), 'note')} of {instruments}" if len(notes) else "no notes found"
    ignored = (
        f"; ignored {plural(result.invalid, 'invalid model output')}" if result.invalid else ""
    )
    return f"{found} in {plural(result.n_segments, 'segment')}{ignored}"


def _announce(file: Path, page: Path) -> None:
    """Prints the size of a large page and checks that the disk has room for it."""
    from mt3data.audio.load import audio_info
    from mt3train.page.page import clock, page_bytes

    seconds = audio_info(file).seconds
    n_bytes = page_bytes(seconds)
    if seconds > LONG_SECONDS:
        echo(f"{file} lasts {clock(seconds)}: its page takes {format_bytes(n_bytes)}", err=True)
    # While the page is written, the recording lies beside it as MP3 (the page holds it as base64).
    require_space(page.parent, round(1.75 * n_bytes), f"for the page about {file}", "--html")


def _write_notes(job: TranscriptionJob, result: Transcription, target: Path) -> None:
    from mt3train.transcription.note_files import HEADINGS, encode_notes_as

    data = encode_notes_as(job.kind, result.notes, job.has_velocity)
    write_output(target, data, COMMAND, job.force, HEADINGS if job.kind == "csv" else ())


def _write_page(job: TranscriptionJob, file: Path, result: Transcription, page: Path) -> None:
    from mt3data.audio.load import audio_info
    from mt3train.page.page import write_page

    with progress(audio_info(file).seconds, page.name, "s") as bar:
        write_page(
            page, file, result.notes, job.about, job.has_velocity, bar.update, force=job.force
        )
