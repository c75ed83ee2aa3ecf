"""The command `mt3train transcribe`: writes the notes of recordings as files and pages."""

from __future__ import annotations

import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from mt3data import system
from mt3data.errors import UserError, require_package
from mt3data.files import (
    MAX_NAME_BYTES,
    STDOUT,
    format_bytes,
    inputs_of,
    is_device,
    mark,
    require_output,
    require_space,
    walk,
    write_output,
)
from mt3data.terminal import (
    AT_LEAST_1,
    OUTPUT,
    echo,
    kind_of,
    one_line,
    path_error_message,
    plural,
    progress,
)
from mt3train.cli.scores import BATCH, CHECKPOINT, DEVICE, PRECISION, load_checkpoint

if TYPE_CHECKING:
    from mt3data.music.beats import Beats, Meter
    from mt3data.music.notes import Notes
    from mt3train.transcription.transcribe import Transcriber, Transcription

FORMATS = {  # format: endings of its files
    "mid": (".mid", ".midi"), "json": (".json",), "jsonl": (".jsonl",), "csv": (".csv",),
    "html": (".html", ".htm"), "musicxml": (".musicxml",),
}  # fmt: skip
ENDINGS = sum(FORMATS.values(), ())
FILE_ENDING = re.compile(r"\.(?=.*[a-z])[a-z0-9]{1,8}", re.IGNORECASE)  # unlike ". Vol. 2"
LONG_SECONDS = 1200  # of a recording whose page is so large that its size is announced
SCORE_STEP = "1/16"  # grid of MusicXML without --quantize
COMMAND = "mt3train transcribe"
STDIN = STDOUT  # "-" as a recording
INPUT = OUTPUT  # a path, or "-"

Target = tuple[str, Path]  # format and file


@dataclass(frozen=True)
class BarOptions:
    """Describes how bars are found, see `find_beats`.

    Attributes:
        source: "auto", a file of beats, or None: a constant tempo.
        bpm: of --bpm.
        first_beat: of --first-beat.
        meter: of --meter.
        step: of --quantize, in positions of the grid; None: notes are not moved.
    """

    source: str | Path | None
    bpm: float | None
    first_beat: float
    meter: Meter | None
    step: int | None

    def find(self, file: Path, notes: Notes, seconds: float) -> Beats:
        """Returns the beats of a recording."""
        from mt3train.transcription.beat_tracking import find_beats

        return find_beats(
            file, notes, seconds, self.source,
            bpm=self.bpm, first_beat=self.first_beat, meter=self.meter,
        )  # fmt: skip


@dataclass(frozen=True)
class TranscriptionJob:
    """Describes what is done with every recording.

    Attributes:
        transcriber: the model and how it decodes.
        about: a line on the model, for the pages.
        per_instrument: write a MIDI file for each instrument beside every MIDI file.
        force: replace files that this command did not write.
        inputs: the recordings and the checkpoint, see `files.inputs_of`.
        bars: how bars are found; None: MIDI has none.
    """

    transcriber: Transcriber
    about: str
    per_instrument: bool
    force: bool
    inputs: Mapping[tuple[int, int], Path]
    bars: BarOptions | None

    @property
    def has_velocity(self) -> bool:
        """Whether the model transcribes velocities."""
        return self.transcriber.info.vocabulary.num_velocity_bins > 1


def _bar_options(
    beats: str | None,
    bpm: float | None,
    first_beat: float | None,
    meter: str | None,
    step: str | None,
) -> BarOptions | None:
    """Returns the bars that the options ask for; None: no bars."""
    from mt3data.music.beats import MAX_BPM, MIN_BPM, parse_meter, parse_step

    if beats is None and bpm is None:
        for option, value in (
            ("--first-beat", first_beat),
            ("--meter", meter),
            ("--quantize", step),
        ):
            if value is not None:
                raise UserError(
                    f"{option} needs bars; expected --beats auto, --beats FILE or --bpm N"
                )
        return None
    if beats is not None and first_beat is not None:
        raise UserError(f"--first-beat is for --bpm alone, not for --beats {beats}; leave one out")
    if beats not in (None, "auto") and bpm is not None:
        raise UserError(f"--bpm and --beats {beats}: the file holds the tempo; leave one out")
    if bpm is not None and not MIN_BPM <= bpm <= MAX_BPM:
        raise UserError(f"--bpm {bpm:g}; expected {MIN_BPM} to {MAX_BPM:,}")
    source = Path(beats) if beats not in (None, "auto") else beats
    return BarOptions(
        source, bpm, first_beat or 0.0, parse_meter(meter) if meter else None,
        parse_step(step) if step else None,
    )  # fmt: skip


def _require_use_of_bars(
    bars: BarOptions, recordings: Sequence[tuple[Path, Path]], kinds: set[str]
) -> None:
    """Checks that bars can be found for the recordings, and that an output has them."""
    if not bars.step and not kinds & {"mid", "html", "musicxml"}:
        raise UserError(
            "--beats and --bpm are for MIDI, pages and MusicXML, or with --quantize; expected an output such as -o song.mid"
        )
    if isinstance(bars.source, Path) and len(recordings) > 1:
        raise UserError(
            f"--beats {bars.source} holds the beats of one recording, not of {len(recordings)}; "
            "transcribe them one by one, or use --beats auto"
        )
    if bars.source == "auto":
        require_package("librosa", "analysis", "--beats auto")


def _parse_formats(ctx: click.Context, param: click.Parameter, text: str | None) -> list[str]:
    """Parses a list such as "mid,csv"."""
    kinds = list(dict.fromkeys(word.strip() for word in text.split(","))) if text else []
    if unknown := [kind for kind in kinds if kind not in FORMATS]:
        raise UserError(f"--format {unknown[0]}: expected, between commas, {', '.join(FORMATS)}")
    return kinds


@click.command()
@click.argument("files", nargs=-1, required=True, type=INPUT)
@CHECKPOINT
@click.option(
    "-o", "--out", "outs", type=OUTPUT, multiple=True,
    help="A file, whose ending gives its format (.mid, .json, .jsonl, .csv, .html, .musicxml); a folder; or - for standard "
    "output. May be repeated. Without --beats or --bpm, MIDI is in seconds, at a nominal 120 bpm: its bars mean nothing in "
    "notation software.",
)  # fmt: skip
@click.option(
    "--format", "kinds", callback=_parse_formats, metavar="LIST",
    help="In folders and on standard output: mid (default), json, jsonl (a note per line), csv, html (a piano roll "
    "that plays the recording), musicxml (a score; needs --beats or --bpm); several with commas.",
)  # fmt: skip
@click.option("--per-instrument", is_flag=True,
              help="Beside each MIDI file, also one for each instrument: song-drums.mid, song-church-organ.mid.")  # fmt: skip
@click.option("--beats", metavar="auto|FILE",
              help="Bars for MIDI: auto estimates beats (librosa); FILE lists them: a time in seconds per line and, after "
              "a tab, the number of the beat in its bar.")  # fmt: skip
@click.option("--bpm", type=float, help="Bars for MIDI at a constant tempo; with --beats auto: about this tempo.")  # fmt: skip
@click.option("--first-beat", type=float, metavar="SECONDS", help="With --bpm: time of a downbeat (default 0).")  # fmt: skip
@click.option("--meter", metavar="N/D", help="Time signature of bars (default 4/4). Beats of 6/8 are dotted quarters.")  # fmt: skip
@click.option("--quantize", metavar="1/N", help="Move notes to a grid: 1/8, 1/16, or 1/8T for triplets.")  # fmt: skip
@BATCH
@DEVICE
@PRECISION
@click.option(
    "--programs",
    help='All that the model may predict, such as "piano,bass,drums" or "0,33"; it filters no sound.',
)
@click.option("--plain", is_flag=True,
              help="Decode as the original does: loops are not ended, repeated notes not merged.")  # fmt: skip
@click.option("--passes", type=AT_LEAST_1, metavar="N",
              help="Transcribe N times with other segments, and keep the notes that most find. Default: 5 for "
              "models of fewer than 10 million parameters that know any segments, else 1; with --plain 1.")  # fmt: skip
@click.option("--compile", "compiled", is_flag=True, help="torch.compile: a minute, then faster.")
@click.option("--force", is_flag=True, help="Replace files that this command did not write.")
def transcribe(
    files: tuple[Path, ...], checkpoint: str | Path | None, outs: tuple[Path, ...], kinds: list[str],
    per_instrument: bool, beats: str | None, bpm: float | None, first_beat: float | None,
    meter: str | None, quantize: str | None, batch: int, device: str, precision: str, programs: str | None, plain: bool,
    passes: int | None, compiled: bool, force: bool,
) -> None:  # fmt: skip
    """Writes the notes of recordings: MIDI, JSON, CSV, or a page.

    FILES are recordings of any length, folders of them, or - for a recording on standard input. They
    may be in the formats of libsndfile, and with PyAV or ffmpeg M4A, AAC and videos. A missing file is reported before any work. A file that cannot
    be read is reported, and the others are transcribed.

    \b
    Example: mt3train transcribe song.wav -o song.mid -o song.html
    """
    # Threads that spin while they wait take 4 times as long where other programs run.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
    recordings = find_recordings(files)
    alone = len(files) == 1 and not files[0].is_dir()
    all_targets = _all_targets(recordings, alone, outs, kinds)
    if per_instrument and not any(_is_midi_file(target) for target in all_targets[0]):
        raise UserError("--per-instrument is for MIDI files; expected -o song.mid or a folder")
    bars = _bar_options(beats, bpm, first_beat, meter, quantize)
    written = {kind for kind, _ in all_targets[0]}
    if bars:
        _require_use_of_bars(bars, recordings, written)
    if "musicxml" in written:
        if not bars:
            raise UserError("MusicXML needs bars; expected --beats auto, --beats FILE or --bpm N")
        require_package("music21", "notation", "MusicXML")
    lists = [bars.source] if bars and isinstance(bars.source, Path) else []
    inputs = inputs_of([*(file for file, _ in recordings), *lists, *_files_of(checkpoint)])
    if alone:
        _require_outputs(all_targets[0], per_instrument, force, inputs)
    from mt3train.transcription.decode import DecodingConfig
    from mt3train.transcription.programs import ProgramFilter
    from mt3train.transcription.transcribe import Transcriber

    only = ProgramFilter.parse(programs) if programs is not None else None
    model, info = load_checkpoint(checkpoint, device)
    decoding = DecodingConfig(batch, not plain, only, precision, compiled, passes)
    if only:
        only.forbidden(info.vocabulary)  # raises before any work if the model has no programs
    transcriber = Transcriber(model, info, decoding)
    about = _about(checkpoint, transcriber, programs)
    job = TranscriptionJob(transcriber, about, per_instrument, force, inputs, bars)
    failed = 0
    for (file, _), targets in zip(recordings, all_targets, strict=True):
        try:
            echo(_transcribe_file(job, file, targets), err=STDOUT in [path for _, path in targets])
        except KeyboardInterrupt:
            echo("interrupted; files that are written stay, the same command starts over", err=True)
            sys.exit(130)
        except Exception as error:
            if alone:
                raise
            failed += 1
            text = str(error)
            if not isinstance(error, UserError):  # a bug; the other recordings are transcribed
                echo(traceback.format_exc(), err=True)
                text = f"{file}: {error!r}"
            echo(f"Error: {one_line(text)}", err=True)
    if failed:
        tried = plural(len(recordings), "recording")
        echo(f"{failed} of {tried} could not be transcribed", err=True)
        sys.exit(1)


def find_recordings(files: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Returns every recording in files and folders, and its place below an output folder.

    Raises:
        UserError: a file that is not there, or a folder without recordings.
    """
    from mt3data.audio.ffmpeg import find_decoder, missing_decoder_hint
    from mt3data.audio.load import AUDIO_SUFFIXES, SNDFILE_SUFFIXES, require_file

    found: list[tuple[Path, Path]] = []
    for file in files:
        if file == STDIN:
            if files.count(STDIN) > 1:
                raise UserError("- is standard input, which holds one recording; name it once")
            file = _read_standard_input()
        if not file.is_dir():
            require_file(file)
            found.append((file, Path(file.name)))
            continue
        below = walk(file, AUDIO_SUFFIXES)
        if below.skipped:
            echo(below.message, err=True)
        plain = [path for path in below.files if path.suffix.lower() in SNDFILE_SUFFIXES]
        stems = {path.with_suffix("") for path in plain}
        rest = [path for path in below.files if path.suffix.lower() not in SNDFILE_SUFFIXES]
        beside = [path for path in rest if path.with_suffix("") in stems]
        others = [path for path in rest if path.with_suffix("") not in stems]
        if beside:  # an .mp4 beside the .wav that was made from it
            n = plural(len(beside), "file")
            echo(f"{file}: passed over {n} beside audio files of their names, the first is {beside[0]}",
                 err=True)  # fmt: skip
        hint = "expected files such as song.wav in it"
        if others and find_decoder() is None:
            n = plural(len(others), "file")
            hint = f"{n} of other formats, the first is {others[0]}; {missing_decoder_hint()}"
            others = []
            if plain:
                echo(f"{file}: passed over {hint}", err=True)
        if not plain + others:
            raise UserError(f"{file} holds no recordings; {hint}")
        found += [(path, path.relative_to(file)) for path in sorted(plain + others)]
    return found


def _read_standard_input() -> Path:
    """Copies standard input into a temporary file, which is removed when the command ends."""
    if sys.stdin.isatty():
        raise UserError("- is standard input, which is a terminal; expected < song.mp3 or a pipe")
    folder = click.get_current_context().with_resource(TemporaryDirectory(prefix="mt3train-"))
    path = Path(folder) / "standard-input"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    return path


def _all_targets(
    recordings: Sequence[tuple[Path, Path]], alone: bool, outs: Sequence[Path], kinds: Sequence[str]
) -> list[list[Target]]:
    """Returns the formats and files that are written for each recording, and makes their folders.

    Args:
        recordings: of `find_recordings`.
        alone: whether there is one recording, named itself.
        outs: values of -o.
        kinds: formats in folders and on standard output; empty: MIDI.
    """
    if not outs:
        raise UserError("nowhere to write to; expected -o song.mid")
    targets: list[list[Target]] = [[] for _ in recordings]
    of_names = {out: _format_of_name(out) for out in outs}
    if kinds and None not in of_names.values():
        raise UserError(
            f"--format {','.join(kinds)} is for folders and -o -; the ending of {outs[0]} gives its format"
        )
    for out, kind in of_names.items():
        for each in [kind] if kind else kinds or ["mid"]:
            for of_recording, target in zip(
                targets, _targets(recordings, alone, out, kind, each), strict=True
            ):
                of_recording.append((each, target))
    written_into = [path for _, path in targets[0] if path == STDOUT or is_device(path)]
    if len(written_into) > len(set(written_into)):
        where = "standard output" if written_into[0] == STDOUT else kind_of(written_into[0])
        raise UserError(f"-o {written_into[0]} is {where}, for one format; name one in --format")
    first: dict[str, Path] = {}
    for (file, _), of_recording in zip(recordings, targets, strict=True):
        for _, target in of_recording:
            name = str(target)
            if system.ignores_case(target.parent):
                name = name.casefold()
            if name in first:
                raise UserError(
                    f"{first[name]} and {file} would both become {target}; rename one, or use two "
                    "folders"
                )
            first[name] = file
    return targets


def _format_of_name(out: Path) -> str | None:
    """Returns the format of a file by its ending; None for a folder, a device or standard output."""
    if out == STDOUT or is_device(out) or out.is_dir():
        return None
    if not FILE_ENDING.fullmatch(out.suffix) and not out.is_file():
        return None
    for kind, endings in FORMATS.items():
        if out.suffix.lower() in endings:
            return kind
    raise UserError(
        f"-o {out} does not end in {' or '.join(ENDINGS)}; for a folder of that name, make it first"
    )


def _targets(
    recordings: Sequence[tuple[Path, Path]], alone: bool, out: Path, kind: str | None, each: str
) -> list[Path]:
    """Returns the output file of every recording in one format, and makes their folders.

    Args:
        recordings: of `find_recordings`.
        alone: whether there is one recording, named itself.
        out: a value of -o.
        kind: the format of its ending; None: it is a folder, a device or standard output.
        each: the format to write.
    """
    if out == STDOUT or is_device(out):
        if not alone:
            what = "standard output" if out == STDOUT else kind_of(out)
            raise UserError(f"-o {out} is {what}, for one recording; several need a folder")
        return [out]
    if kind and not alone:
        raise UserError(
            f"-o {out} is the name of one file; several recordings, or a folder of them, need a folder"
        )
    ending = FORMATS[each][0]
    targets = [out] if kind else [out / place.with_suffix(ending) for _, place in recordings]
    becomes_folder = alone and not kind and not out.exists()
    for folder in {target.parent for target in targets}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            there = f"there is {kind_of(folder)}" if folder.exists() else error.strerror
            raise UserError(f"{folder}: the folder cannot be made ({there})") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{folder}: no permission to write there; choose another -o")
    for target in targets:
        if os.path.isdir(target):  # noqa: PTH112  (False also for a name that is too long)
            raise UserError(f"{target} is a folder; choose another -o")
    if becomes_folder:
        echo(f"-o {out} does not end as a file does ({ending}), so it is now a folder", err=True)
    return targets


def _about(checkpoint: str | Path | None, transcriber: Transcriber, programs: str | None) -> str:
    """Describes the model in one line."""
    from mt3train.weights.checkpoint import weights_file

    name = "the demo weights of mt3kit" if checkpoint is None else weights_file(checkpoint).name
    millions = sum(parameter.numel() for parameter in transcriber.model.parameters()) / 1e6
    n_passes = transcriber.decoding.passes_of(transcriber.model, transcriber.info.right_context)
    passes = f", {n_passes} passes" if n_passes > 1 else ""
    only = f"; asked for {programs} alone" if programs else ""
    limits = (
        "" if checkpoint else ". A small model trained on rendered pieces alone: expect mistakes"
    )
    return f"Model: {name}, {millions:.3g} million parameters, {transcriber.info.step:,} updates{passes}{only}{limits}"


def _transcribe_file(job: TranscriptionJob, file: Path, targets: Sequence[Target]) -> str:
    """Transcribes one recording and returns a line about the result."""
    _require_outputs(targets, job.per_instrument, job.force, job.inputs)
    from mt3data.music.beats import quantize

    _check_length(job.bars, file, targets)
    bars, beats, found = job.bars, None, ""
    if [kind for kind, _ in targets] == ["jsonl"] and not bars:
        return _stream_lines(job, file, targets[0][1])
    with _segments_bar(file) as report:
        result = job.transcriber.transcribe(file, report)
    if bars:
        beats = bars.find(file, result.notes, result.seconds)
        found = f"; {beats.describe()}" + (", estimated" if bars.source == "auto" else "")
        if bars.step:
            result = replace(result, notes=quantize(result.notes, beats, bars.step))
    written = []
    for kind, target in targets:
        with _writing(target):
            written += _write_notes(job, file, result, beats, kind, target)
    n_instruments = len(set(result.notes.instrument.tolist()))
    return f"{' and '.join(written)}: {_summary(len(result.notes), n_instruments, result)}{found}"


def _stream_lines(job: TranscriptionJob, file: Path, target: Path) -> str:
    """Writes notes as JSON lines when they are known, so that memory does not grow with the length."""
    from mt3train.transcription.note_files import HEADINGS, encode_notes_as
    from mt3train.transcription.transcribe import stream

    transcriber, counts = job.transcriber, dict[str, Any](n_notes=0, instruments=set())

    def lines() -> Iterator[bytes]:
        with _segments_bar(file) as report:
            for notes, counts["result"] in stream(
                transcriber.model, transcriber.info, file, transcriber.decoding, on_progress=report
            ):
                counts["n_notes"] += len(notes)
                counts["instruments"].update(notes.instrument.tolist())
                yield encode_notes_as("jsonl", notes, job.has_velocity, 0.0)

    with _writing(target):
        write_output(target, lines(), COMMAND, job.force, HEADINGS["jsonl"])
    return f"{target}: {_summary(counts['n_notes'], len(counts['instruments']), counts['result'])}"


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Converts the errors of writing a file to a UserError."""
    try:
        yield
    except BrokenPipeError:  # `... -o - | head -1`
        raise
    except OSError as error:
        where = path_error_message(error) if error.filename else f"{target}: {error.strerror}"
        raise UserError(where) from error


@contextmanager
def _segments_bar(file: Path) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that shows (segments done, total) on stderr."""
    with progress(1, file.name, "segments") as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


def _files_of(checkpoint: str | Path | None) -> list[Path]:
    """Returns the files of weights at a path that the user named."""
    if not isinstance(checkpoint, Path):
        return []
    return [*checkpoint.glob("*.safetensors")] if checkpoint.is_dir() else [checkpoint]


def _require_outputs(
    targets: Sequence[Target], per_instrument: bool, force: bool,
    inputs: Mapping[tuple[int, int], Path],
) -> None:  # fmt: skip
    """Checks before any work that the files of one recording can be written."""
    from mt3train.transcription.note_files import HEADINGS, INSTRUMENT_NAMES

    for target in targets:
        kind, path = target
        paths = [path]
        if per_instrument and _is_midi_file(target):
            paths += [_instrument_file(path, name) for name in INSTRUMENT_NAMES]
        for each in paths:
            if (n_bytes := len(os.fsencode(each.name))) > MAX_NAME_BYTES:
                raise UserError(
                    f"{each}: a name of {n_bytes} bytes; file systems allow {MAX_NAME_BYTES}, so rename "
                    "the recording"
                )
            require_output(each, COMMAND, force, HEADINGS.get(kind), inputs)


def _is_midi_file(target: Target) -> bool:
    return target[0] == "mid" and target[1] != STDOUT and not is_device(target[1])


def _instrument_file(path: Path, name: str) -> Path:
    """Returns the file of one instrument beside the file of all: song-drums.mid beside song.mid."""
    return path.with_name(f"{path.stem}-{name}{path.suffix}")


def _summary(n_notes: int, n_instruments: int, result: Transcription) -> str:
    """Counts notes, instruments, segments and ignored outputs."""
    found = f"{plural(n_notes, 'note')} of {plural(n_instruments, 'instrument')}"
    found = found if n_notes else "no notes found"
    ignored = (
        f"; ignored {plural(result.invalid, 'invalid model output')}" if result.invalid else ""
    )
    return f"{found} in {plural(result.n_segments, 'segment')}{ignored}"


def _check_length(bars: BarOptions | None, file: Path, targets: Sequence[Target]) -> None:
    """Checks before the work that beats and pages fit the length of a recording."""
    from mt3data.audio.load import audio_info, stated_seconds
    from mt3data.music.notes import Notes

    pages = [target for kind, target in targets if kind == "html"]
    known = bars if bars and bars.source != "auto" else None
    if not pages and not known:
        return
    seconds = stated_seconds(file, exact=True) or audio_info(file).seconds
    for page in pages:
        _announce(file, page, seconds)
    if known:
        known.find(file, Notes.empty(), seconds)


def _announce(file: Path, page: Path, seconds: float) -> None:
    """Prints the size of a large page and checks that the disk has room for it."""
    from mt3train.page.page import clock, page_bytes

    n_bytes = page_bytes(seconds)
    if seconds > LONG_SECONDS:
        echo(f"{file} lasts {clock(seconds)}: its page takes {format_bytes(n_bytes)}", err=True)
    # While the page is written, the recording lies beside it as MP3 (the page holds it as base64).
    if not is_device(page):
        require_space(page.parent, round(1.75 * n_bytes), f"for the page about {file}", "-o")


def _write_notes(
    job: TranscriptionJob, file: Path, result: Transcription, beats: Beats | None, kind: str, target: Path,
) -> list[str]:  # fmt: skip
    """Writes the notes of a recording in one format. Returns what was written, for a message."""
    from mt3data.music.beats import parse_step, quantize
    from mt3train.page.page import write_page
    from mt3train.transcription.notation import musicxml_bytes
    from mt3train.transcription.note_files import HEADINGS, encode_notes_as, split_by_instrument

    if kind == "html":
        with progress(result.seconds, target.name, "s") as bar:
            write_page(
                target, file, result.notes, result.seconds, job.about, job.has_velocity, bar.update,
                force=job.force, beats=beats,
            )  # fmt: skip
        size = f" ({format_bytes(target.stat().st_size)})" if target.is_file() else ""
        return [f"{target}{size}"]
    if kind == "musicxml" and beats and job.bars:
        notes = quantize(result.notes, beats, job.bars.step or parse_step(SCORE_STEP))
        name = os.fsencode(file.stem).decode(errors="replace")  # names need not be UTF-8
        write_output(target, musicxml_bytes(notes, beats, name, mark(COMMAND)), COMMAND, job.force)
        return [str(target)]
    parts = {target: result.notes}
    if job.per_instrument and _is_midi_file((kind, target)):
        by_name = split_by_instrument(result.notes)
        parts |= {_instrument_file(target, name): notes for name, notes in by_name.items()}
    for path, notes in parts.items():
        data = encode_notes_as(kind, notes, job.has_velocity, result.seconds, beats)
        write_output(path, data, COMMAND, job.force, HEADINGS.get(kind))
    more = f" and {plural(len(parts) - 1, 'file')} of single instruments" if len(parts) > 1 else ""
    return [f"{target}{more}"]
