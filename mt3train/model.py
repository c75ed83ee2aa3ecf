"""Defines the MT3 network: a T5 encoder-decoder from log-mel frames to note tokens.

The encoder projects every frame of 512 mel bins to the width of the model. The decoder predicts one
token after the other. Both add sinusoidal positions and are otherwise T5 1.1: pre-norm residual
layers, RMS layer norm without mean or bias, gated GELU, no biases, separate output weights.

Differences from the original (magenta/mt3 network.py and layers.py):

- Decoder self-attention is only causal, without the original's padding mask. Padding follows the
  target and has no loss. So positions with a loss attend to the same keys as in the original, and
  only logits at padded positions differ. `original_mask=True` adds the original's masks (golden tests).
- Dropout of attention probabilities is shared by all queries, so it equals dropping whole rows of the
  values: P * mask_S @ V = P @ (mask_S * V). The fused attention kernels need this form.
- Random numbers are torch's: the same distributions, other draws.

Sizes in tensor names:  B batch · F frames · M mel bins · L target length · S source length (keys)
D width of the model (emb_dim) · H heads · K width of a head (head_dim) · V vocabulary
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_POSITIONS = 2048  # mt3/layers.py FixedEmbed: rows of the position table
NORM_EPSILON = 1e-6  # mt3/layers.py LayerNorm
MASKED = -1e10  # mt3/layers.py: added to the scores of masked keys; a row of them is uniform
# Largest number of queries times keys for which plain matrix products may beat the fused kernel.
MAX_UNFUSED_SCORES = 512 * 512
TRUNCATED_STD = 0.87962566103423978  # std of a standard normal cut at +-2, as in jax


@dataclass(frozen=True)
class ModelConfig:
    """Sets the sizes of the network. The defaults are MT3's (45.9 million parameters).

    Source: mt3/gin/model.gin, mt3/network.py T5Config.
    """

    vocab_size: int = 1536  # 1 velocity bin; 1664 with 127
    emb_dim: int = 512
    num_heads: int = 6
    head_dim: int = 64
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    mlp_dim: int = 1024
    n_mels: int = 512
    dropout_rate: float = 0.1


def sinusoids(n_positions: int, width: int) -> Tensor:
    """Computes the position table [n_positions, width]: sines, then cosines, float32.

    Source: mt3/layers.py sinusoidal (computed in float64, kept in float32).
    """
    half = width // 2
    rates = np.exp(np.arange(half) * (-math.log(1e4) / (half - 1)))
    angles = np.arange(n_positions)[:, None] * rates
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32))


def shift_right(targets_BL: Tensor) -> Tensor:
    """Shifts targets by one place to the right, 0 first: the inputs of the decoder."""
    return F.pad(targets_BL[:, :-1], (1, 0))


class Dense(nn.Linear):
    """Maps n_in to n_out linearly, without bias. Initial std: scale / sqrt(n_in), normal, truncated."""

    def __init__(self, n_in: int, n_out: int, truncated: bool = True, scale: float = 1.0) -> None:
        self.truncated, self.scale = truncated, scale
        super().__init__(n_in, n_out, bias=False)

    def reset_parameters(self) -> None:
        """Draws the initial weights."""
        std = self.scale / math.sqrt(self.in_features)
        if self.truncated:
            std /= TRUNCATED_STD
            nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        else:
            nn.init.normal_(self.weight, std=std)


class RMSNorm(nn.Module):
    """Computes T5's layer norm, x / sqrt(mean(x^2) + 1e-6) * scale, in float32 also under autocast."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Returns x, normalised."""
        return F.rms_norm(x_BLD, (x_BLD.shape[-1],), self.scale, NORM_EPSILON)


class SharedDropout(nn.Module):
    """Applies dropout with the same mask at every position (T5's broadcast_dims=(-2,)).

    With `per_row=True`, values [B, H, S, K] lose whole rows: dropout of attention probabilities.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, per_row: bool = False) -> Tensor:
        """Returns x with a share set to 0 and the rest scaled up, in training; x itself otherwise."""
        if not self.training or self.rate == 0.0:
            return x
        shape = (*x.shape[:-1], 1) if per_row else (*x.shape[:-2], 1, x.shape[-1])
        keep = 1.0 - self.rate
        # Not in bfloat16, where 1 / 0.9 is 0.2 % too small.
        dtype = torch.promote_types(x.dtype, torch.float32)
        mask = torch.empty(shape, dtype=dtype, device=x.device).bernoulli_(keep).div_(keep)
        return (x * mask).to(x.dtype)


class Attention(nn.Module):
    """Computes multi-head attention. The initial query weights contain the factor 1/sqrt(head_dim).

    Queries, keys and values have separate weights. Adafactor scales an update by the RMS of its
    parameter. The query's initial RMS is smaller by sqrt(head_dim), which is 8 in MT3, so one joined
    parameter would train differently.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        width, inner = config.emb_dim, config.num_heads * config.head_dim
        self.query = Dense(width, inner, truncated=False, scale=config.head_dim**-0.5)
        self.key = Dense(width, inner, truncated=False)
        self.value = Dense(width, inner, truncated=False)
        self.out = Dense(inner, width, truncated=False)
        self.dropout = SharedDropout(config.dropout_rate)

    def _split(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def keys_values(self, source_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values of the source, each [B, H, S, K]."""
        return self._split(self.key(source_BSD)), self._split(self.value(source_BSD))

    def forward(
        self, x_BLD: Tensor, keys_BHSK: Tensor, values_BHSK: Tensor,
        causal: bool = False, mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Attends from x to keys and values. causal: to earlier ones. mask [B, 1, L, S] is added."""
        queries_BHLK = self._split(self.query(x_BLD))
        values_BHSK = self.dropout(values_BHSK, per_row=True)
        if mask is None and is_faster_unfused(queries_BHLK, keys_BHSK):
            mixed_BHLK = unfused_attention(queries_BHLK, keys_BHSK, values_BHSK, causal)
        else:
            mixed_BHLK = F.scaled_dot_product_attention(
                queries_BHLK, keys_BHSK, values_BHSK, attn_mask=mask, is_causal=causal, scale=1.0
            )
        return self.out(mixed_BHLK.transpose(1, 2).flatten(2))


def is_faster_unfused(queries_BHLK: Tensor, keys_BHSK: Tensor) -> bool:
    """Decides whether plain matrix products train faster than the fused kernel, by shape and type.

    Measured on a CPU in bf16: plain products take 0.4 of the fused kernel's time for 128 queries and
    128 keys, and 0.8 for 512 and 512. In float32 they are never faster.
    """
    q_BHLK, small = queries_BHLK, queries_BHLK.shape[2] * keys_BHSK.shape[2] <= MAX_UNFUSED_SCORES
    return torch.is_grad_enabled() and small and q_BHLK.is_cpu and q_BHLK.dtype == torch.bfloat16


def unfused_attention(
    queries_BHLK: Tensor, keys_BHSK: Tensor, values_BHSK: Tensor, causal: bool
) -> Tensor:
    """Computes softmax(queries keys^T) values by two products. Returns [B, H, L, K]."""
    scores_BHLS = queries_BHLK @ keys_BHSK.mT
    if causal:
        scores_BHLS += torch.full_like(scores_BHLS[0, 0], float("-inf")).triu(1)
    return scores_BHLS.softmax(-1) @ values_BHSK  # in bfloat16 too, torch sums it in float32


class GatedMLP(nn.Module):
    """Computes wo(gelu(wi_0 x) * wi_1 x), with the tanh form of GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wi_0 = Dense(config.emb_dim, config.mlp_dim)
        self.wi_1 = Dense(config.emb_dim, config.mlp_dim)
        self.wo = Dense(config.mlp_dim, config.emb_dim)
        self.dropout = SharedDropout(config.dropout_rate)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Maps x, each position separately."""
        hidden = F.gelu(self.wi_0(x_BLD), approximate="tanh") * self.wi_1(x_BLD)
        return self.wo(self.dropout(hidden))


class EncoderLayer(nn.Module):
    """Applies self-attention over all frames, then the MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre_attention_layer_norm = RMSNorm(config.emb_dim)
        self.attention = Attention(config)
        self.pre_mlp_layer_norm = RMSNorm(config.emb_dim)
        self.mlp = GatedMLP(config)
        self.dropout = SharedDropout(config.dropout_rate)

    def forward(self, x_BFD: Tensor) -> Tensor:
        """Returns x after one layer."""
        normed = self.pre_attention_layer_norm(x_BFD)
        x_BFD = x_BFD + self.dropout(self.attention(normed, *self.attention.keys_values(normed)))
        return x_BFD + self.dropout(self.mlp(self.pre_mlp_layer_norm(x_BFD)))


class DecoderLayer(nn.Module):
    """Applies causal self-attention, attention to the encoded frames, then the MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre_self_attention_layer_norm = RMSNorm(config.emb_dim)
        self.self_attention = Attention(config)
        self.pre_cross_attention_layer_norm = RMSNorm(config.emb_dim)
        self.encoder_decoder_attention = Attention(config)
        self.pre_mlp_layer_norm = RMSNorm(config.emb_dim)
        self.mlp = GatedMLP(config)
        self.dropout = SharedDropout(config.dropout_rate)

    def forward(
        self,
        x_BLD: Tensor,
        frame_keys_values: tuple[Tensor, Tensor],
        masks: tuple[Tensor, Tensor] | tuple[None, None],
    ) -> Tensor:
        """Returns x after one layer. frame_keys_values: each [B, H, F, K]. masks: `attention_masks`."""
        normed = self.pre_self_attention_layer_norm(x_BLD)
        own = self.self_attention.keys_values(normed)
        attended = self.self_attention(normed, *own, causal=masks[0] is None, mask=masks[0])
        x_BLD = x_BLD + self.dropout(attended)
        normed = self.pre_cross_attention_layer_norm(x_BLD)
        attended = self.encoder_decoder_attention(normed, *frame_keys_values, mask=masks[1])
        x_BLD = x_BLD + self.dropout(attended)
        return x_BLD + self.dropout(self.mlp(self.pre_mlp_layer_norm(x_BLD)))


class Encoder(nn.Module):
    """Encodes log-mel frames [B, F, M] as [B, F, D]. No frame is masked, padding included."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.continuous_inputs_projection = Dense(config.n_mels, config.emb_dim)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.encoder_norm = RMSNorm(config.emb_dim)
        self.dropout = SharedDropout(config.dropout_rate)
        # The only dropout with a mask of its own for every position (mt3/network.py:193).
        self.final_dropout = nn.Dropout(config.dropout_rate)
        table = sinusoids(MAX_POSITIONS, config.emb_dim)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, mel_BFM: Tensor) -> Tensor:
        """Returns the encoded frames."""
        positions_FD = self.get_buffer("positions")[: mel_BFM.shape[1]]
        x_BFD = self.dropout(self.continuous_inputs_projection(mel_BFM) + positions_FD)
        for layer in self.layers:
            x_BFD = layer(x_BFD)
        return self.final_dropout(self.encoder_norm(x_BFD))


class Decoder(nn.Module):
    """Computes logits [B, L, V] from input tokens [B, L] and encoded frames."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.token_embedder = nn.Embedding(config.vocab_size, config.emb_dim)  # drawn from N(0, 1)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.decoder_norm = RMSNorm(config.emb_dim)
        self.logits_dense = Dense(config.emb_dim, config.vocab_size)
        self.dropout = SharedDropout(config.dropout_rate)
        table = sinusoids(MAX_POSITIONS, config.emb_dim)
        self.register_buffer("positions", table, persistent=False)

    def cross_keys_values(self, encoded_BFD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns the keys and values of the encoded frames, for every layer."""
        attentions: list[Any] = [layer.encoder_decoder_attention for layer in self.layers]
        return [attention.keys_values(encoded_BFD) for attention in attentions]

    def forward(
        self,
        inputs_BL: Tensor,
        frame_keys_values: list[tuple[Tensor, Tensor]],
        masks: tuple[Tensor, Tensor] | tuple[None, None] = (None, None),
    ) -> Tensor:
        """Returns logits. The other arguments: from `cross_keys_values` and `attention_masks`."""
        positions_LD = self.get_buffer("positions")[: inputs_BL.shape[1]]
        x_BLD = self.dropout(self.token_embedder(inputs_BL) + positions_LD)
        for i, layer in enumerate(self.layers):
            x_BLD = layer(x_BLD, frame_keys_values[i], masks)
        x_BLD = self.dropout(self.decoder_norm(x_BLD))
        with torch.autocast(x_BLD.device.type, enabled=False):  # logits are float32, as in T5X
            return self.logits_dense(x_BLD.to(self.logits_dense.weight.dtype))


class MT3(nn.Module):
    """Holds encoder and decoder. Training calls `forward`, decoding calls `encode`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, mel_BFM: Tensor) -> Tensor:
        """Returns the encoded frames [B, F, D] of a log-mel; F is at most 2048."""
        return self.encoder(mel_BFM)

    def forward(self, mel_BFM: Tensor, targets_BL: Tensor, original_mask: bool = False) -> Tensor:
        """Returns logits [B, L, V] that predict each target from the frames and the targets before it.

        Args:
            mel_BFM: log-mel frames, float32.
            targets_BL: token ids, padded with 0; L at most 2048.
            original_mask: mask padding as the original does, at the cost of the fast kernels.
        """
        masks = attention_masks(targets_BL, mel_BFM.shape[1]) if original_mask else (None, None)
        frame_keys_values = self.decoder.cross_keys_values(self.encoder(mel_BFM))
        return self.decoder(shift_right(targets_BL), frame_keys_values, masks=masks)


def attention_masks(targets_BL: Tensor, n_frames: int) -> tuple[Tensor, Tensor]:
    """Computes the original's additive masks: decoder [B, 1, L, L] and cross [B, 1, L, F].

    An entry is 0 or -1e10. A query attends to a key if both are real targets (> 0) and the key is
    not later. Real targets attend to all frames, padding to none.

    Source: mt3/layers.py make_decoder_mask, mt3/network.py Transformer.decode.
    """
    real_BL = targets_BL > 0
    length = targets_BL.shape[1]
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=targets_BL.device).tril()
    allowed_BLL = real_BL[:, :, None] & real_BL[:, None, :] & causal_LL
    allowed_BLF = real_BL[:, :, None].expand(-1, -1, n_frames)
    decoder, cross = (
        torch.where(allowed, 0.0, MASKED)[:, None] for allowed in (allowed_BLL, allowed_BLF)
    )
    return decoder, cross
