"""Draws one record: its log-mel, its notes and its tokens."""

from __future__ import annotations

import difflib
import textwrap
from pathlib import Path

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.errors import UserError
from mt3data.files import require_output
from mt3data.music.notes import Notes
from mt3data.music.tokenizer import FRAMES_PER_SECOND
from mt3data.music.vocabulary import VocabularyConfig, describe_tokens
from mt3data.report.plots import draw_window, save_figure
from mt3data.report.statistics import mel_of
from mt3data.shards.format import read_build_manifest, read_npy
from mt3data.shards.index import ShardSet

COMMAND = "mt3data show"
WORDS_IN_PICTURE = 260  # tokens below the picture; all tokens are returned


def draw_record(folder: Path, key: str, out: Path, force: bool = False) -> list[str]:
    """Draws one record of a build.

    Args:
        folder: the build.
        key: of the record.
        out: a .png, .svg or .pdf file, or `files.STDOUT`.
        force: replace a file of any origin.
    Returns:
        Lines that describe the record, with its tokens in words.
    Raises:
        UserError: no such record (the nearest keys are named), or an output that may not be written.
    """
    from matplotlib.figure import Figure

    require_output(out, COMMAND, force)
    source, row = _find(folder, key)
    spectrogram = SpectrogramConfig(**source.manifest["spectrogram"])
    mel, tokens = mel_of(source, row), read_npy(source.member(row, "tokens"))
    notes = Notes.from_array(read_npy(source.member(row, "notes")))
    words = describe_tokens(tokens, VocabularyConfig(**source.manifest["vocabulary"]))
    start = int(source.index["start_frame"][row]) / FRAMES_PER_SECOND
    end = start + len(mel) / FRAMES_PER_SECOND
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[3, 1])
    legend = draw_window(top, mel, notes, start, end, spectrogram)
    figure.colorbar(top.images[0], ax=top, label="log-mel (nat)", pad=0.01)
    top.set(xlabel="time in the track (s)", ylabel="pitch", title=key)
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
