"""Draws the pictures of docs/mt3.md. make_mt3.py calls this."""

from __future__ import annotations

from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from make_mt3 import CONFIG, Walk, instrument
from PIL import Image
from toy_mt3 import Toy

from mt3data.audio.spectrogram import mel_bin
from mt3data.music.tokenizer import segment_start
from mt3data.music.vocabulary import describe_tokens, get_codec

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SECONDS = 3.4  # of the piece are shown
COLOURS = {48: "#0072b2", 33: "#d55e00", -1: "#444444"}  # strings, bass, drums
KINDS = {"shift": "#0072b2", "pitch": "#d55e00", "velocity": "#009e73", "tie": "#000000",
         "program": "#cc79a7", "drum": "#b8860b"}  # fmt: skip
PALETTE = 48  # colours of a picture's file
PLACE = 4  # of the first target, whose logits are shown


def draw(piece: Walk, toy: Toy, folder: Path) -> None:
    """Writes mt3-sound.png, mt3-tokens.png and mt3-logits.png into a folder."""
    for name, figure in (
        ("sound", _sound(piece)), ("tokens", _tokens(piece)), ("logits", _logits(toy)),
    ):  # fmt: skip
        buffer = BytesIO()
        figure.savefig(buffer, dpi=100, format="png")
        plt.close(figure)
        image = Image.open(buffer).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
        image.save(folder / f"mt3-{name}.png", optimize=True)


def _borders(axes: Any, piece: Walk, label: bool) -> None:
    for number, window in enumerate(piece.windows[:2], 1):
        start = window.start_frame / 125
        axes.axvline(start, color="black", lw=1.2, ls="--")
        if label:
            axes.text(start + 0.02, 0.97, f"segment {number}", transform=axes.get_xaxis_transform(), va="top", fontsize=9)  # fmt: skip


def _sound(piece: Walk) -> Any:
    """Draws the wave, and the log-mel of the segments as the encoder reads them."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 5.6), height_ratios=[1, 2.6], sharex=True, layout="constrained"
    )
    samples = piece.samples[: int(SECONDS * 16000)]
    top.plot(np.arange(len(samples)) / 16000, samples, lw=0.4, color="black")
    top.set(ylabel="sample", ylim=(-1, 1))
    _borders(top, piece, label=True)
    mel = np.concatenate([window.sound["mel"] for window in piece.windows]).astype(np.float32)
    mel, config = mel[: int(SECONDS * 125)], CONFIG.spectrogram
    extent = (0, len(mel) / 125, 0, config.n_mels)
    shown = bottom.imshow(
        mel.T, origin="lower", aspect="auto", cmap="magma_r", vmin=-6, vmax=5, extent=extent
    )
    figure.colorbar(shown, ax=bottom, label="log-mel (nat)", pad=0.01)
    _borders(bottom, piece, label=False)
    # A frame begins up to 2,048 samples before the sound that it contains.
    hits = piece.notes.onset[piece.notes.is_drum]
    for time, label in (*((hit, "drum hit") for hit in hits), (2.048, "the audio ends")):
        bottom.text(time - 0.064, 0.97, label, transform=bottom.get_xaxis_transform(),
                    rotation=90, ha="center", va="top", color="white", fontsize=9)  # fmt: skip
    ticks = np.array([110, 220, 440, 880, 1760, 3520])
    bottom.set_yticks(mel_bin(ticks, config), [f"{hertz} Hz" for hertz in ticks])
    bottom.set(xlabel="time (s)", xlim=(0, SECONDS))
    return figure


def _tokens(piece: Walk) -> Any:
    """Draws the notes as bars, and below them the tokens at their times."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(11, 4.6), height_ratios=[1.7, 0.8], sharex=True, layout="constrained"
    )
    for note in piece.notes.to_array():
        onset, offset, pitch, _, program, is_drum, _ = note
        colour = COLOURS[-1 if is_drum else int(program)]
        if is_drum:
            top.plot(onset, pitch, "|", color=colour, ms=16, mew=3)
        else:
            top.barh(pitch, offset - onset, left=onset, height=1.6, color=colour)
    for program, colour in COLOURS.items():
        top.plot([], [], lw=5, color=colour, label=instrument(program, program < 0))
    top.set(ylabel="pitch", ylim=(28, 76), xlim=(-0.05, SECONDS))
    top.legend(loc="center right", fontsize=9)
    _borders(top, piece, label=True)
    _borders(bottom, piece, label=False)
    for window in piece.windows[:2]:
        for time, words in _moments(window):
            bottom.text(time + 0.02, 0.93, "\n".join(words), va="top", fontsize=8, family="monospace")  # fmt: skip
    bottom.set(ylim=(0, 1), yticks=[], xlabel="time (s); tokens are at the time that they mean")
    return figure


def _moments(window: Any) -> list[tuple[float, list[str]]]:
    """Groups the tokens of a target by their time, without EOS."""
    words = describe_tokens(window.tokens, CONFIG.vocabulary)[:-1]
    is_shift = np.array([word.startswith("shift") for word in words])
    start = segment_start(window.start_frame, CONFIG.vocabulary)
    groups = groupby(
        zip(np.cumsum(is_shift).tolist(), words, strict=True), key=lambda pair: pair[0]
    )
    moments = []
    for number, pairs in groups:
        tokens = [word for _, word in pairs]
        steps = int(tokens[0].split()[1]) if number else 0
        moments.append((start + steps / 100, tokens))
    return moments


def _logits(toy: Toy) -> Any:
    """Draws all logits at one place of the target, before and after training."""
    figure, both = plt.subplots(2, 1, figsize=(9, 4.6), sharex=True, layout="constrained")
    codec, target = get_codec(CONFIG.vocabulary), int(toy.targets[PLACE])
    (word,) = describe_tokens(np.array([target]), CONFIG.vocabulary)
    for axes, logits, when in zip(both, toy.logits[:, PLACE], ("before", "after"), strict=True):
        for kind, colour in KINDS.items():
            first, last = (i + 3 for i in codec.type_range(kind))
            axes.vlines(
                np.arange(first, last + 1),
                0,
                logits[first : last + 1],
                color=colour,
                lw=0.8,
                label=kind,
            )
        axes.axhline(0, color="black", lw=0.5)
        axes.plot(target, logits[target], "v", color="black", ms=8, mfc="none")
        axes.set(ylabel=f"logit, {when}", xlim=(0, len(logits)))
    figure.legend(
        *both[0].get_legend_handles_labels(), loc="outside upper center", fontsize=9, ncols=6
    )
    both[1].set(xlabel=f"token; the triangle marks the target, {word}")
    return figure
