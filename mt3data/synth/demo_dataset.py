"""Composes or collects pieces, renders them and writes Slakh's own on-disk layout: the demo dataset.

mt3data synth --out ROOT               composes seeded pieces and renders them
mt3data synth --out ROOT --midi DIR    renders the user's own MIDI files

ROOT/synth.json                                     the settings; other settings are refused
ROOT/{train,validation,test}/TrackNNNNN/mix.flac    mono, 44.1 kHz, 16 bit: the sum of the stems
                                        stems/SNN.flac   MIDI/SNN.mid   all_src.mid   metadata.yaml
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mt3data import system
from mt3data.errors import UserError, require_package
from mt3data.files import file_lock, walk, write_atomically
from mt3data.music.midi import MIDI_SUFFIXES, read_midi
from mt3data.schema import Limits, parse_document
from mt3data.synth.compose import compose
from mt3data.synth.ensembles import ENSEMBLES
from mt3data.synth.render import (
    MAX_SECONDS,
    Rendered,
    default_soundfont,
    open_soundfont,
    write_track,
)
from mt3data.terminal import echo, progress

if TYPE_CHECKING:
    import pretty_midi

VERSION = 2  # raise it when the same settings would give other bytes
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class SynthSummary:
    """Result of one run: tracks that existed before, tracks rendered now, files that failed."""

    root: Path
    kept: int
    rendered: tuple[Rendered, ...]
    failed: tuple[Rendered, ...]


@dataclass(frozen=True)
class _Settings:
    """The fields of synth.json that are used; the others are only compared."""

    midi: str | None
    tracks: Annotated[int, Limits(1, 99_999)]
    seed: Annotated[int, Limits(0, math.inf)] | None
    seconds: Annotated[float, Limits(0, MAX_SECONDS)] | None


@dataclass(frozen=True)
class _Job:
    track: str
    folder: Path
    source: Path | int  # a MIDI file or a seed
    kind: str  # of a composed piece
    seconds: float
    soundfonts: tuple[Path, ...]
    effects: bool
    seed: int  # of the run


def synth(
    root: Path, *, tracks: int = 20, seed: int = 0, seconds: float = 40.0,
    soundfonts: Sequence[Path] = (), kinds: Mapping[str, float] | None = None, effects: bool = False,
    midi_dir: Path | None = None, workers: int = 1, validation: int | None = None,
    test: int | None = None,
) -> SynthSummary:  # fmt: skip
    """Renders pieces into root; an interrupted run is continued by calling it again.

    Args:
        root: folder to write; created when missing.
        tracks: number of pieces to compose; piece number n has seed `seed * 100000 + n`.
        seed: any integer of at least 0.
        seconds: length of each composed piece, without the 2 s of tail; at least 4.
        soundfonts: .sf2 files, of which one is drawn for each stem; none: TimGM6mb.sf2, which
            pretty_midi ships. synth.json records what they state about their licences.
        kinds: share of each kind of pieces, see compose; None: bands alone.
        effects: detune, equalize and place in rooms, see effects.py.
        midi_dir: render every MIDI file below this folder, in the order of their relative
            paths, instead of composing; tracks, kinds and seconds are then not used. A file that
            cannot be used is reported and skipped; its track number stays free.
        workers: processes.
        validation, test: how many pieces each of these splits gets. The last pieces are test,
            those before validation, as in Slakh. None: a tenth each, at least one from three
            pieces on.
    Raises:
        UserError: midirenderer is not installed, no MIDI files, a file that is no SoundFont, an
            unknown kind, or root holds something else.
    """
    require_package("midirenderer", "synth", "rendering")
    if workers < 1:
        raise UserError(f"workers={workers}; expected at least 1")
    root, fonts = Path(root), tuple(map(Path, soundfonts)) or (default_soundfont(),)
    shares = _shares(kinds or {"band": 1.0})
    sources: Sequence[Path | int] = (
        _seeds(tracks, seed, seconds) if midi_dir is None else _midi_files(Path(midi_dir))
    )
    if len(sources) > 99_999:
        raise UserError(f"{len(sources)} pieces; Slakh's track numbers end at 99999")
    splits = _splits(len(sources), validation, test)
    settings: dict[str, Any] = {
        "version": VERSION,
        "tracks": len(sources),
        "seed": None if midi_dir else seed,
        "seconds": None if midi_dir else float(seconds),
        "midi": _digest(sources, Path(midi_dir)) if midi_dir else None,
        "renderer": f"midirenderer {importlib.metadata.version('midirenderer')}",
        "soundfont": open_soundfont(fonts[0]).sha256,
        "splits": {split: splits.count(split) for split in SPLITS},
    }
    if len(fonts) > 1 or kinds or effects:  # the settings of a varied set
        settings |= {
            "seed": seed,
            "soundfonts": [open_soundfont(font).facts() for font in fonts],
            "kinds": None if midi_dir else shares,
            "effects": effects,
        }
        del settings["soundfont"]
    _write_or_compare_settings(root, settings)
    folders = [root / split / f"Track{n:05d}" for n, split in enumerate(splits, 1)]
    with file_lock(root / ".lock"):  # each run removes half-rendered tracks
        jobs = [
            _Job(folder.name, folder, source, _kind(source, shares), seconds, fonts, effects, seed)
            for folder, source in zip(folders, sources, strict=True)
            if not folder.is_dir()
        ]
        done = _render(jobs, workers)
    return SynthSummary(
        root=root,
        kept=len(folders) - len(jobs),
        rendered=tuple(result for result in done if not result.error),
        failed=tuple(result for result in done if result.error),
    )


def read_settings(root: Path) -> dict[str, Any] | None:
    """Returns the settings of a folder that `synth` wrote; None for any other folder.

    Raises:
        UserError: the file is damaged; the message names the field.
    """
    path = root / "synth.json"
    if not path.is_file():
        return None
    found = parse_document(path.read_bytes(), _Settings, str(path), "record of mt3data synth")
    if found["midi"] is None and None in (found["seed"], found["seconds"]):
        raise UserError(f"{path}: seed or seconds is null; expected numbers for composed pieces")
    return found


def _shares(kinds: Mapping[str, float]) -> dict[str, float]:
    """Returns the shares of kinds so that they add up to 1."""
    for kind, share in kinds.items():
        if kind not in ENSEMBLES or not share > 0:
            raise UserError(
                f"kinds: {kind}={share:g}; expected shares above 0 of {', '.join(ENSEMBLES)}"
            )
    total = sum(kinds.values())
    return {kind: kinds[kind] / total for kind in ENSEMBLES if kind in kinds}


def _kind(source: Path | int, shares: dict[str, float]) -> str:
    """Draws the kind of a piece by its seed."""
    return random.Random(f"kind {source}").choices(list(shares), list(shares.values()))[0]


def _render(jobs: list[_Job], workers: int) -> list[Rendered]:
    """Renders pieces in parallel and returns the results in the order of their numbers."""
    from joblib import Parallel, delayed

    # loky starts processes anew; one worker stays in this one, where errors are easiest to read.
    parallel = Parallel(n_jobs=min(workers, len(jobs)) or 1, return_as="generator_unordered")
    done = []
    with progress(len(jobs), "render", "pieces") as bar:
        for result in parallel(delayed(_render_piece)(job) for job in jobs):
            done.append(result)
            bar.update(1)
    return sorted(done, key=lambda result: result.track)


def _seeds(tracks: int, seed: int, seconds: float) -> Sequence[int]:
    """Returns the seeds of the pieces to compose."""
    if tracks < 1 or seed < 0 or not 4 <= seconds <= MAX_SECONDS:
        raise UserError(
            f"tracks={tracks}, seed={seed}, seconds={seconds}: expected at least 1 piece, a seed of "
            f"at least 0 and 4 to {MAX_SECONDS:.0f} s"
        )
    return range(seed * 100_000 + 1, seed * 100_000 + tracks + 1)


def _midi_files(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; point --midi at a folder of MIDI files")
    found = walk(folder, MIDI_SUFFIXES)
    if found.skipped:
        echo(found.message, err=True)
    if not found.files:
        raise UserError(f"{folder} holds no MIDI file; expected files such as song.mid in it")
    return found.files


def _digest(files: Iterable[Any], folder: Path) -> str:
    total = hashlib.sha256()
    for path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()


def _splits(n: int, validation: int | None, test: int | None) -> list[str]:
    share = max(1, n // 10) if n >= 3 else 0
    validation, test = share if validation is None else validation, share if test is None else test
    if min(validation, test) < 0 or validation + test > n:
        raise UserError(
            f"{validation} validation and {test} test pieces do not fit into {n} pieces"
        )
    return ["train"] * (n - validation - test) + ["validation"] * validation + ["test"] * test


def _write_or_compare_settings(root: Path, settings: dict[str, Any]) -> None:
    """Writes synth.json, or checks that an existing one holds the same settings."""
    found = read_settings(root)
    if found is not None:
        other = [f"{key} {found.get(key)!r} there, {settings.get(key)!r} asked for"
                 for key in settings | found if found.get(key) != settings.get(key)]  # fmt: skip
        if other:
            raise UserError(
                f"{root} holds pieces of other settings ({'; '.join(other)}); choose another folder"
            )
    elif any(root.glob("Track*")) or any(root.glob("*/Track*")):
        raise UserError(
            f"{root} holds tracks that synth did not write (no synth.json); choose another folder"
        )
    else:
        root.mkdir(parents=True, exist_ok=True)
        write_atomically(root / "synth.json", (json.dumps(settings, indent=1) + "\n").encode())


def _render_piece(job: _Job) -> Rendered:
    """Renders one piece under a temporary name, then renames its folder."""
    part = job.folder.with_name(f".{job.track}.part")
    if part.exists():
        shutil.rmtree(part)  # an interrupted run left it
    options: dict[str, Any] = {"track": job.track, "effects": job.effects, "seed": job.seed}
    if isinstance(job.source, int):
        midi = compose(job.source, job.seconds, job.kind)
        source = f"seed {job.source}" if job.kind == "band" else f"{job.kind}, seed {job.source}"
        result = write_track(midi, part, job.soundfonts, source=source, **options)
    else:
        try:
            midi, name = _read(job.source), job.source.name
            result = write_track(midi, part, job.soundfonts, source=name, **options)
        except Exception as error:  # whatever a broken file makes parsers and renderer raise
            shutil.rmtree(part, ignore_errors=True)
            return Rendered(job.track, str(job.source), error=_reason(job.source, error))
    system.replace(part, job.folder)
    return result


def _reason(source: Path, error: Exception) -> str:
    text = " ".join(str(error).split()).removeprefix(f"{source}: ")
    if not isinstance(error, UserError):
        text = f"not a MIDI file that can be read ({type(error).__name__}: {text})"
    return f"{source}: {text}"


def _read(path: Path) -> pretty_midi.PrettyMIDI:
    import warnings

    import pretty_midi

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # type 0 and 2 files with tempo changes, which are fine
        midi = pretty_midi.PrettyMIDI(str(path))
    notes, _ = read_midi(path, sustain=False)  # refuses files of several pieces and far events
    if [note.end for part in midi.instruments for note in part.notes] != notes.offset.tolist():
        raise UserError(
            "its tempo changes are not in its first track, so that pretty_midi reads wrong times; "
            "save it as a type 0 file"
        )
    return midi
