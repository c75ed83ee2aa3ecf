"""A record as a picture: what the model hears, and over it what it is to write."""

from __future__ import annotations

import difflib
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.audio.load import from_int16
from mt3data.audio.spectrogram import SpectrogramConfig, log_mel, mel_bin
from mt3data.errors import UserError
from mt3data.music.midi import DRUMS, instrument_name
from mt3data.music.notes import Notes
from mt3data.music.tokenizer import FRAMES_PER_SECOND
from mt3data.music.vocabulary import VocabularyConfig, describe_tokens
from mt3data.shards.format import read_build_manifest, read_npy
from mt3data.shards.index import ShardSet

WORDS_IN_PICTURE = 260  # tokens under the picture; all of them are returned


def draw_record(folder: Path, key: str, out: Path) -> list[str]:
    """Draws one record of a build.

    Args:
        folder: the build.
        key: of the record.
        out: file to write; its ending chooses the format.
    Returns:
        Lines that describe the record, its tokens in words among them.
    Raises:
        UserError: no such record (the nearest keys are named).
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    source, row = _find(folder, key)
    spectrogram = SpectrogramConfig(**source.manifest["spectrogram"])
    mel, tokens = mel_of(source, row, spectrogram), read_npy(source.member(row, "tokens"))
    notes = Notes.from_array(read_npy(source.member(row, "notes")))
    words = describe_tokens(tokens, VocabularyConfig(**source.manifest["vocabulary"]))
    start = int(source.index["start_frame"][row]) / FRAMES_PER_SECOND
    end = start + len(mel) / FRAMES_PER_SECOND
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(12, 8.5), height_ratios=[3, 1], layout="constrained"
    )
    image = np.where(mel == 0, np.nan, mel).T
    shown = top.imshow(
        image, origin="lower", aspect="auto", cmap="magma", vmin=-8, vmax=6,
        extent=(start, end, 0, spectrogram.n_mels),
    )  # fmt: skip
    figure.colorbar(shown, ax=top, label="log-mel (nat)", pad=0.01)
    _draw_notes(top, notes, start, end, spectrogram)
    top.set(xlabel="time (s)", ylabel="mel bin", title=key, xlim=(start, end))
    bottom.axis("off")
    text = " · ".join(words[:WORDS_IN_PICTURE]) + (" …" if len(words) > WORDS_IN_PICTURE else "")
    bottom.text(0, 1, textwrap.fill(text, 175), va="top", family="monospace", fontsize=6.5)
    try:
        figure.savefig(out, dpi=110)
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: the picture cannot be written ({error})") from error
    finally:
        plt.close(figure)
    facts = f"{key}: {start:.3f} to {end:.3f} s, {len(notes)} notes, {len(words)} tokens"
    return [facts, *textwrap.wrap(" · ".join(words), 100), f"picture: {out}"]


def mel_of(source: ShardSet, row: int, config: SpectrogramConfig) -> np.ndarray:
    """The log-mel of the record in a row of the index: float32, 0.0 behind the end of the track.

    It is computed where the records have audio in its place.
    """
    if "mel" in source.manifest["features"]:
        return read_npy(source.member(row, "mel")).astype(np.float32)
    frames, start, track_frames = (
        int(source.index[name][row]) for name in ("frames", "start_frame", "track_frames")
    )
    mel = log_mel(from_int16(read_npy(source.member(row, "audio"))), config)[:frames]
    mel[track_frames - start :] = 0
    return mel


def _draw_notes(
    axes: Any, notes: Notes, start: float, end: float, config: SpectrogramConfig
) -> None:
    """A line per note at its fundamental, coloured by instrument; drums as ticks at the bottom."""
    import matplotlib.pyplot as plt

    colours = plt.get_cmap("tab10")
    voices = sorted({(bool(d), int(p)) for d, p in zip(notes.is_drum, notes.program, strict=True)})
    for number, (is_drum, program) in enumerate(voices):
        mine = notes[(notes.is_drum == is_drum) & (notes.program == program)]
        label = instrument_name(DRUMS if is_drum else program)
        if is_drum:
            height = 4 + 0.1 * (mine.pitch - 35)
            axes.plot(mine.onset, height, "|", color=colours(number % 10), ms=9, mew=2, label=label)
            continue
        height = mel_bin(440 * 2 ** ((mine.pitch - 69) / 12), config)
        axes.hlines(
            height, np.maximum(mine.onset, start), np.minimum(mine.offset, end),
            color=colours(number % 10), lw=2.5, label=label,
        )  # fmt: skip
        axes.plot(mine.onset, height, "o", color=colours(number % 10), ms=3)
    if voices:
        axes.legend(loc="upper right", fontsize=8, framealpha=0.8)


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
