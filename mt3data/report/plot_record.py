"""Draws one record: its log-mel, its notes and its tokens."""

from __future__ import annotations

import difflib
import math
import textwrap
from pathlib import Path

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.errors import UserError
from mt3data.files import inputs_of, require_output
from mt3data.music.notes import Notes
from mt3data.music.tokenizer import FRAMES_PER_SECOND
from mt3data.music.vocabulary import VocabularyConfig, describe_tokens
from mt3data.report.plots import draw_window, save_figure
from mt3data.report.statistics import mel_of
from mt3data.shards.format import read_build_manifest, read_npy
from mt3data.shards.index import ShardSet

COMMAND = "mt3data show"
FRAME_NOTE = (
    "A frame covers the 128 ms that follow it, so sound appears about 60 ms before its note."
)
WORDS_IN_PICTURE = 200  # tokens below the picture; all tokens are returned


def draw_record(
    folder: Path, key: str, out: Path, force: bool = False, *, begin: float = 0.0,
    end: float | None = None,
) -> list[str]:  # fmt: skip
    """Draws one record of a build, or a part of it.

    Args:
        folder: the build.
        key: of the record.
        out: a .png, .svg or .pdf file, or `files.STDOUT`.
        force: replace a file of any origin.
        begin, end: of the part, in seconds from the beginning of the record; None is its end.
    Returns:
        Lines that describe the part, with its tokens in words. A shift is followed by its time in the
        track.
    Raises:
        UserError: no such record (the nearest keys are named), no such part, or an output that may
            not be written.
    """
    from matplotlib.figure import Figure

    require_output(out, COMMAND, force, inputs=inputs_of([folder]))
    source, row = _find(folder, key)
    spectrogram = SpectrogramConfig(**source.manifest["spectrogram"])
    mel, tokens = mel_of(source, row), read_npy(source.member(row, "tokens"))
    notes = Notes.from_array(read_npy(source.member(row, "notes")))
    seconds = len(mel) / FRAMES_PER_SECOND
    end = seconds if end is None else end
    if not 0 <= begin < end <= seconds:
        raise UserError(
            f"--from {begin:g} --to {end:g}: expected a part of the {seconds:g} s of the record, such as "
            f"--from 0 --to {min(1.0, seconds):g}"
        )
    first = int(source.index["start_frame"][row]) / FRAMES_PER_SECOND
    vocabulary = VocabularyConfig(**source.manifest["vocabulary"])
    timed = _with_times(describe_tokens(tokens, vocabulary), first, vocabulary.steps_per_second)
    low, high = int(begin * FRAMES_PER_SECOND), math.ceil(end * FRAMES_PER_SECOND)
    start, end = first + low / FRAMES_PER_SECOND, first + high / FRAMES_PER_SECOND
    if high - low < len(mel):
        mel, notes = mel[low:high], notes[(notes.offset > start) & (notes.onset < end)]
        timed = [(time, word) for time, word in timed if start <= time < end]
    words = [word for _, word in timed]
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[3, 1])
    legend = draw_window(top, mel, notes, start, end, spectrogram)
    figure.colorbar(top.images[0], ax=top, label="log-mel (nat)", pad=0.01)
    top.set(xlabel=f"time in the track (s). {FRAME_NOTE}", ylabel="pitch", title=key)
    if legend:
        names, colours = zip(*legend, strict=True)
        handles = [top.plot([], color=colour, lw=2.5)[0] for colour in colours]
        top.legend(
            handles, names, loc="upper right", fontsize=8, facecolor="0.2", labelcolor="white"
        )
    bottom.axis("off")
    text = " · ".join(words[:WORDS_IN_PICTURE]) + (" …" if len(words) > WORDS_IN_PICTURE else "")
    bottom.text(0, 1, textwrap.fill(text, 175), va="top", family="monospace", fontsize=6.5)
    save_figure(figure, out, COMMAND, force)
    facts = f"{key}: {start:.3f} to {end:.3f} s, {len(notes)} notes, {len(words)} tokens"
    return [facts, *textwrap.wrap(" · ".join(words), 100), f"picture: {out}"]


def _with_times(words: list[str], start: float, rate: int) -> list[tuple[float, str]]:
    """Returns words of tokens with their times. Words of shifts get the time behind them.

    Args:
        words: of a record.
        start: of the record, in seconds of the track.
        rate: time steps per second.
    """
    timed, time, steps = [], start, 0
    for word in words:
        kind, _, value = word.partition(" ")
        if kind == "shift":  # successive shifts add up, and count from the start of the record
            steps += int(value)
            time = start + steps / rate
            word = f"{word} ({time:.2f} s)"
        else:
            steps = 0
        timed.append((time, word))
    return timed


def _find(folder: Path, key: str) -> tuple[ShardSet, int]:
    keys: list[str] = []
    for split in read_build_manifest(folder)["splits"]:
        source = ShardSet(folder, split)
        if key in source.index["key"]:
            return source, source.index["key"].index(key)
        keys += source.index["key"]
    near = difflib.get_close_matches(key, keys, n=2, cutoff=0.3) or keys[:2]
    raise UserError(
        f"{folder} has no record {key!r}; it has {len(keys)}{', such as ' if near else ''}"
        f"{' and '.join(near)}"
    )
