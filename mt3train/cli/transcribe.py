"""The command `mt3train transcribe`: recordings in; files of notes, and pages to play, out."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mt3data.errors import UserError
from mt3data.files import format_bytes, require_space, walk
from mt3data.terminal import PATH, echo, path_error_message, plural, progress
from mt3train.cli.scores import BATCH, CHECKPOINT, load_checkpoint

if TYPE_CHECKING:
    from mt3data.music.notes import Notes
    from mt3train.model import MT3
    from mt3train.transcription.decode import DecodingConfig
    from mt3train.transcription.transcribe import Transcription
    from mt3train.weights.checkpoint import CheckpointInfo

FORMATS = {"mid": (".mid", ".midi"), "json": (".json",), "csv": (".csv",)}
ENDINGS = sum(FORMATS.values(), ())
PAGES = (".html", ".htm")
FILE_ENDING = re.compile(r"\.(?=.*[a-z])[a-z0-9]{1,8}", re.IGNORECASE)  # unlike ". Vol. 2"
LONG_SECONDS = 1200  # of a recording whose page is so large that it is said before


@dataclass(frozen=True)
class Work:
    """What is done with every recording.

    Attributes:
        model: on the device that runs it.
        info: what its checkpoint says.
        about: a line on the model, for the pages.
        kind: format of the files of notes.
        decoding: how tokens are found.
    """

    model: MT3
    info: CheckpointInfo
    about: str
    kind: str
    decoding: DecodingConfig

    @property
    def has_velocity(self) -> bool:
        """Whether the model hears velocities."""
        return self.info.vocabulary.num_velocity_bins > 1


@click.command()
@click.argument("files", nargs=-1, required=True, type=PATH)
@CHECKPOINT
@click.option(
    "-o", "--out", type=PATH,
    help="Notes: a file, or a folder for several. MIDI is in seconds, at a nominal 120 bpm: its "
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
@click.option("--compile", "compiled", is_flag=True, help="torch.compile: a minute, then faster.")
def transcribe(
    files: tuple[Path, ...], checkpoint: Path | None, out: Path | None, html: Path | None,
    kind: str | None, batch: int, programs: str | None, compiled: bool,
) -> None:  # fmt: skip
    """Writes the notes of recordings: MIDI, JSON, CSV, or a page.

    FILES may be of any format that libsndfile reads and of any length, or folders of them. One
    that is not there is told before any work; one that cannot be read is reported, and the others
    go on.

    \b
    Example: mt3train transcribe song.wav -o song.mid --html song.html
    """
    # Threads that wait must not spin: where other programs run too, that takes 4 times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
    recordings = find_recordings(files)
    alone = files == (recordings[0][0],)
    kind, targets = _all_targets(recordings, alone, out, html, kind)
    from mt3train.transcription.decode import DecodingConfig
    from mt3train.transcription.programs import ProgramFilter

    only = ProgramFilter.parse(programs) if programs is not None else None
    model, info = load_checkpoint(checkpoint)
    decoding = DecodingConfig(batch, programs=only, compile=compiled)
    if only:
        only.forbidden(info.vocabulary)  # says so before any work if it cannot be done
    work = Work(model, info, _about(checkpoint, model, info, programs), kind, decoding)
    failed = 0
    for (file, _), (target, page) in zip(recordings, targets, strict=True):
        try:
            echo(_transcribe_file(work, file, target, page))
        except UserError as error:
            if alone:
                raise
            failed += 1
            echo(f"Error: {error}", err=True)
        except KeyboardInterrupt:
            echo("interrupted; files that are written stay, the same command starts over", err=True)
            sys.exit(130)
    if failed:
        tried = plural(len(recordings), "recording")
        echo(f"{failed} of {tried} could not be transcribed", err=True)
        sys.exit(1)


def find_recordings(files: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Every recording that the files and folders mean, and where below the output its notes belong.

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
    """The format of the notes, and of each recording the file of its notes and its page."""
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
    notes = _targets(recordings, alone, "-o", out, FORMATS[kind] if kind else ENDINGS)
    kind = next(k for k, endings in FORMATS.items() if notes[0].suffix.lower() in endings)
    return kind, list(zip(notes, pages, strict=True))


def _targets(
    recordings: Sequence[tuple[Path, Path]], alone: bool, option: str, out: Path,
    endings: Sequence[str],
) -> list[Path]:  # fmt: skip
    """The files that recordings become, in folders that are there then.

    Args:
        recordings: of `find_recordings`.
        alone: there is one, which was named itself.
        option: that said where they belong, for messages.
        out: what it said: a file if it ends as one and is no folder.
        endings: of such files; the first is the one that files in a folder get.
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
        if target.is_dir():
            raise UserError(f"{target} is a folder; choose another {option}")
    if becomes_folder:
        ending = f"does not end as a file does ({endings[0]})"
        echo(f"{option} {out} {ending}, so it is now a folder", err=True)
    return targets


def _about(checkpoint: Path | None, model: MT3, info: CheckpointInfo, programs: str | None) -> str:
    """A line that says which model heard the notes."""
    from mt3train.weights.checkpoint import weights_file

    name = "the demo weights of mt3kit" if checkpoint is None else weights_file(checkpoint).name
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    only = f"; asked for {programs} alone" if programs else ""
    limits = (
        "" if checkpoint else ". A small model that heard rendered pieces alone: expect mistakes"
    )
    return f"Model: {name}, {millions:.3g} million parameters, {info.step:,} updates{only}{limits}"


def _transcribe_file(work: Work, file: Path, target: Path | None, page: Path | None) -> str:
    """Transcribes one recording; says what came of it."""
    from mt3train.transcription.transcribe import transcribe as run

    if page:
        _announce(file, page)
    with progress(1, file.name, "segments") as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = run(work.model, work.info, file, work.decoding, on_progress=report)
    written = []
    if target:
        _write_notes(work, result.notes, target)
        written.append(str(target))
    if page:
        _write_page(work, file, result.notes, page)
        written.append(f"{page} ({format_bytes(page.stat().st_size)})")
    return f"{' and '.join(written)}: {_heard(result)}"


def _heard(result: Transcription) -> str:
    """What a transcription holds, in words."""
    notes = result.notes
    instruments = plural(len(set(notes.instrument.tolist())), "instrument")
    heard = f"{plural(len(notes), 'note')} of {instruments}" if len(notes) else "no notes found"
    left_out = f"{plural(result.invalid, 'thing')} that the model said and that made no sense"
    odd = f"; left out: {left_out}" if result.invalid else ""
    return f"{heard} in {plural(result.n_segments, 'segment')}{odd}"


def _announce(file: Path, page: Path) -> None:
    """Says how large a page becomes that is large, before hours of work, and that it has room."""
    from mt3data.audio.load import audio_info
    from mt3train.page.page import clock, page_bytes

    seconds = audio_info(file).seconds
    n_bytes = page_bytes(seconds)
    if seconds > LONG_SECONDS:
        echo(f"{file} lasts {clock(seconds)}: its page takes {format_bytes(n_bytes)}", err=True)
    # The recording as MP3 stands beside the page, which holds it in letters, until that is whole.
    require_space(page.parent, round(1.75 * n_bytes), f"for the page about {file}", "--html")


def _write_notes(work: Work, notes: Notes, target: Path) -> None:
    from mt3data.music.midi import write_midi
    from mt3train.transcription.note_files import write_csv, write_json

    with _told(target):
        if work.kind == "mid":
            write_midi(notes, target)
        else:
            (write_json if work.kind == "json" else write_csv)(notes, target, work.has_velocity)


def _write_page(work: Work, file: Path, notes: Notes, page: Path) -> None:
    from mt3data.audio.load import audio_info
    from mt3train.page.page import write_page

    with _told(page), progress(audio_info(file).seconds, page.name, "s") as bar:
        write_page(page, file, notes, work.about, work.has_velocity, bar.update)


@contextmanager
def _told(target: Path) -> Iterator[None]:
    """Makes a UserError of what the system says where a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            path_error_message(error) if error.filename else f"{target}: {error.strerror}"
        ) from error
