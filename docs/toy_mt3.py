"""Makes the models of docs/mt3.md: one of MT3's size, and a toy that overfits the piece."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mt3data.music.vocabulary import VocabularyConfig, describe_tokens
from mt3data.shards.reader import pad_tokens
from mt3data.shards.windows import Window
from mt3train.model import MT3, ModelConfig
from mt3train.training.loss import count_correct, loss_sum
from mt3train.training.optimizers import make_optimizer
from mt3train.transcription.decode import DecodingConfig
from mt3train.transcription.transcribe import Transcription, transcribe
from mt3train.weights.checkpoint import CheckpointInfo

TOY = ModelConfig(
    emb_dim=64, num_heads=2, head_dim=32, num_encoder_layers=1, num_decoder_layers=1, mlp_dim=128,
    dropout_rate=0.0,
)  # fmt: skip
UPDATES = 40
LEARNING_RATE = 1e-2  # ten times MT3's, so that it takes seconds
SHOWN = (1, 2, 3, 4, 5)  # places in the first segment's target whose probabilities are shown
LONGEST = 64  # largest number of tokens of a segment


@dataclass(frozen=True)
class Toy:
    """A small model after it has learned the piece.

    Attributes:
        model: the trained model.
        learning: rows of (updates, loss per token, tokens right), before and after.
        says: rows of (target, probability before, after) for the places SHOWN.
        logits: of the first segment's target, [2, L, V]: before and after.
        targets: of the first segment, EOS last.
    """

    model: MT3
    learning: list[list[object]]
    says: list[list[object]]
    logits: np.ndarray
    targets: np.ndarray

    def transcribe(self, path: Path) -> Transcription:
        """Transcribes an audio file."""
        return transcribe(
            self.model, CheckpointInfo(model=TOY), path, DecodingConfig(batch=1), max_length=LONGEST
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch use one thread, so that sums are the same for any number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def learn(windows: list[Window]) -> Toy:
    """Trains the toy on all segments of a piece at once, with MT3's loss and optimiser."""
    torch.manual_seed(0)
    model = MT3(TOY)
    mel_BFM = torch.from_numpy(np.stack([w.sound["mel"] for w in windows])).float()
    targets_BL = torch.from_numpy(pad_tokens([w.tokens for w in windows])[0]).long()
    optimizer = make_optimizer(model, "adafactor", LEARNING_RATE)
    n_tokens, learning, seen = int((targets_BL > 0).sum()), [], []
    for update in range(UPDATES + 1):
        logits_BLV = model(mel_BFM, targets_BL)
        loss = loss_sum(logits_BLV, targets_BL) / n_tokens
        if update in (0, UPDATES):
            right = int(count_correct(logits_BLV, targets_BL))
            learning.append([update, f"{loss.item():.2f}", f"{right} of {n_tokens}"])
            seen.append(logits_BLV[0, : len(windows[0].tokens)].detach())
        if update < UPDATES:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    targets = windows[0].tokens
    return Toy(model, learning, list(_says(seen, targets)), torch.stack(seen).numpy(), targets)


def _says(seen: list[Tensor], targets: np.ndarray) -> Iterator[list[object]]:
    words = describe_tokens(targets, VocabularyConfig())
    for place in SHOWN:
        before, after = (x[place].softmax(-1)[int(targets[place])].item() for x in seen)
        yield [f"{place}: `{words[place]}`", f"{before:.4f}", f"{after:.2f}"]


def network() -> MT3:
    """Makes a model of MT3's size with arbitrary weights, without computing them."""
    with torch.device("meta"):
        model = MT3(ModelConfig())
    return model.to_empty(device="cpu").eval()


def shapes(window: Window) -> list[list[object]]:
    """Returns the arrays of a forward pass of one segment: name, shape and number of elements."""
    model, found = network(), dict[str, Tensor]()
    mel_BFM = torch.from_numpy(window.sound["mel"]).float()[None]
    targets_BL = torch.from_numpy(window.tokens).long()[None]

    def keep(name: str) -> object:
        return lambda _, __, out: found.update({name: out})

    encoder, decoder = model.encoder, model.decoder
    for name, part in (
        ("every frame, projected", encoder.continuous_inputs_projection),
        ("every frame, encoded", encoder),
        ("the tokens before each token, embedded", decoder.token_embedder),
        ("the decoder's output for each place", decoder.decoder_norm),
        ("logits: a number for each token, at each place", decoder),
    ):
        part.register_forward_hook(keep(name))  # type: ignore[arg-type]
    with torch.inference_mode():
        keys, _ = decoder.cross_keys_values(encoder(mel_BFM))[0]
        model(mel_BFM, targets_BL)
    rows = {
        "audio of the segment": torch.zeros(1, 256 * 128), "log-mel: the input of the encoder": mel_BFM,
        **found, "keys of the frames in one decoder layer, for its 6 heads": keys,
        "targets": targets_BL,
    }  # fmt: skip
    return [[name, list(x.shape), f"{x.numel():,}"] for name, x in rows.items()]


def sizes() -> Iterator[list[object]]:
    """Yields the numbers of parameters of a model of MT3's size, part by part."""
    with torch.device("meta"):
        model = MT3(ModelConfig())
    encoder, decoder = model.encoder, model.decoder

    def count(*parts: torch.nn.Module) -> str:
        return f"{sum(p.numel() for part in parts for p in part.parameters()):,}"

    yield ["projection of a frame, 512 to 512", count(encoder.continuous_inputs_projection)]
    yield [f"{len(encoder.layers)} encoder layers, and the norm", count(encoder.layers, encoder.encoder_norm)]  # fmt: skip
    yield ["embedding of the tokens", count(decoder.token_embedder)]
    yield [f"{len(decoder.layers)} decoder layers, and the norm", count(decoder.layers, decoder.decoder_norm)]  # fmt: skip
    yield ["logits", count(decoder.logits_dense)]
    yield ["all", count(model)]
    yield ["the toy model of this page", count(MT3(TOY))]
