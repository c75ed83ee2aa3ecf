"""The decoder, one token of many rows at a time: what decoding spends its time in.

It computes what `MT3.forward` computes for the last position. What makes it fast: keys and values
of the frames are computed once per segment and those of the tokens are kept, in buffers that are
allocated once; weights that read the same vector are one matrix, stored as the product wants them;
and rows are independent of each other, each at a position of its own, so that a row which is done
makes room for the next segment at once.

A *slot* holds one segment, and `width` rows that decode it: 1, or the beams of a beam search,
which share the segment's keys and values.

Sizes in tensor names are those of model.py, and  S slots · R rows (S * width) · T positions kept
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mt3train.model import MAX_POSITIONS, MT3, NORM_EPSILON

SMALLEST_EXTENT = 64  # positions that compiled code attends to at least; then 128, 256, ...


class Stepper:
    """A batch that is being decoded: the decoder's weights, and keys and values of every slot.

    Attributes:
        slots: segments that it can hold at once.
        width: rows per slot.
        max_length: most tokens of a row.
    """

    def __init__(
        self,
        model: MT3,
        slots: int,
        width: int,
        max_length: int,
        n_frames: int,
        dtype: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        """Copies the decoder's weights, in `dtype` (None: as they are); compiled: by torch.

        Raises:
            ValueError: max_length is not in 1..2048.
        """
        if not 1 <= max_length <= MAX_POSITIONS:
            raise ValueError(f"max_length={max_length} is not in 1..{MAX_POSITIONS}")
        config, decoder = model.config, model.decoder
        self.slots, self.width, self.max_length = slots, width, max_length
        self.heads, self.head_dim, self.emb_dim = config.num_heads, config.head_dim, config.emb_dim
        weight = decoder.logits_dense.weight
        self.dtype, self.device = dtype or weight.dtype, weight.device
        self.layers = [_fused(layer, self.dtype) for layer in decoder.layers]
        self.embedding = decoder.token_embedder.weight.detach().to(self.dtype)
        self.table = decoder.get_buffer("positions").to(self.dtype)
        self.norm = decoder.decoder_norm.scale.detach().to(self.dtype)
        self.logits = weight.detach().T.contiguous()  # in full precision, as T5X has it
        rows = slots * width
        # On a CPU fresh zeros take no memory until they are written to.
        self.own = [self._pair(rows, max_length) for _ in self.layers]
        self.cross = [self._pair(slots, n_frames) for _ in self.layers]
        self.position_R = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.row_R = torch.arange(rows, device=self.device)
        self.time_T = torch.arange(max_length, device=self.device)
        self.positions = [0] * slots  # the same as position_R, known without asking the device
        self.compiled = compiled
        self._run = self._compile() if compiled else self._logits

    def _compile(self) -> Callable[..., Tensor]:
        for buffer in (buffer for pair in (*self.own, *self.cross) for buffer in pair):
            torch._dynamo.mark_static_address(buffer)  # lets a CUDA graph write to it
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        return torch.compile(self._logits, mode=mode, dynamic=False)

    def fill(self, slot: int, encoded_FD: Tensor) -> None:
        """Put a segment, given as its encoded frames, into a slot, at position 0."""
        encoded_FD = encoded_FD.to(self.dtype)
        for layer, buffers in zip(self.layers, self.cross, strict=True):
            both = (encoded_FD @ layer["cross_kv"]).view(len(encoded_FD), 2, self.heads, -1)
            for buffer, new_FHK in zip(buffers, both.unbind(1), strict=True):
                buffer[slot].copy_(new_FHK.transpose(0, 1))
        self.clear(slot)

    def clear(self, slot: int) -> None:
        """Put a slot's rows at position 0."""
        self.positions[slot] = 0
        self.position_R[slot * self.width : (slot + 1) * self.width] = 0

    def move(self, source: int, target: int) -> None:
        """Make slot `target` what slot `source` is."""
        length = self.positions[source]
        a, b = (slice(s * self.width, (s + 1) * self.width) for s in (source, target))
        for own, cross in zip(self.own, self.cross, strict=True):
            for buffer in own:
                buffer[b, :, :length] = buffer[a, :, :length]
            for buffer in cross:
                buffer[target] = buffer[source]
        self.positions[target] = length
        self.position_R[b] = self.position_R[a]

    def reorder(self, parent_R: Tensor) -> None:
        """Let each of the first len(parent_R) rows go on from what another row has decoded."""
        rows = len(parent_R)
        length = max(self.positions[: rows // self.width])
        for buffers in self.own:
            for buffer in buffers:
                buffer[:rows, :, :length] = buffer[parent_R, :, :length]

    def step(self, token_R: Tensor) -> Tensor:
        """Logits [R, V] that follow the given token of the first len(token_R) rows.

        Each row moves on by one position. Rows at max_length stay there, their logits mean nothing.
        """
        rows = len(token_R)
        held = self.positions[: rows // self.width]
        extent = min(max(held) + 1, self.max_length)
        even = held.count(held[0]) == len(held)  # then no row has to be kept from another's keys
        if self.compiled:
            extent = min(max(SMALLEST_EXTENT, 1 << (extent - 1).bit_length()), self.max_length)
            even = False
        logits_RV = self._run(token_R, rows, extent, even)
        last = self.max_length - 1
        for slot in range(len(held)):
            self.positions[slot] = min(held[slot] + 1, last)
        self.position_R[:rows].add_(1).clamp_(max=last)
        return logits_RV

    def _logits(self, token_R: Tensor, rows: int, extent: int, even: bool) -> Tensor:
        position_R, row_R = self.position_R[:rows], self.row_R[:rows]
        slots, inner = rows // self.width, self.heads * self.head_dim
        mask = None if even else (self.time_T[:extent] <= position_R[:, None])[:, None, None]
        x_RD = self.embedding[token_R] + self.table[position_R]
        for layer, own, cross in zip(self.layers, self.own, self.cross, strict=True):
            projected = self._norm(x_RD, layer["own_norm"]) @ layer["qkv"]
            q_RHK, k_RHK, v_RHK = projected.view(rows, 3, self.heads, self.head_dim).unbind(1)
            own[0][row_R, :, position_R], own[1][row_R, :, position_R] = k_RHK, v_RHK
            keys, values = (buffer[:rows, :, :extent] for buffer in own)
            mixed = F.scaled_dot_product_attention(
                q_RHK[:, :, None], keys, values, attn_mask=mask, scale=1.0
            )
            x_RD = torch.addmm(x_RD, mixed.reshape(rows, inner), layer["own_out"])
            queries = self._norm(x_RD, layer["cross_norm"]) @ layer["cross_q"]
            q_SHWK = queries.view(slots, self.width, self.heads, self.head_dim).transpose(1, 2)
            keys, values = (buffer[:slots] for buffer in cross)
            mixed = F.scaled_dot_product_attention(q_SHWK, keys, values, scale=1.0)
            mixed = mixed.transpose(1, 2).reshape(rows, inner)
            x_RD = torch.addmm(x_RD, mixed, layer["cross_out"])
            gate, hidden = (self._norm(x_RD, layer["mlp_norm"]) @ layer["wi"]).chunk(2, -1)
            hidden = F.gelu(gate, approximate="tanh") * hidden
            x_RD = torch.addmm(x_RD, hidden, layer["wo"])
        normed = self._norm(x_RD, self.norm).to(self.logits.dtype)
        return normed @ self.logits

    def _pair(self, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Room for keys and for values."""
        shape = (count, self.heads, length, self.head_dim)
        keys = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return keys, torch.zeros_like(keys)

    def _norm(self, x_RD: Tensor, scale: Tensor) -> Tensor:
        return F.rms_norm(x_RD, (self.emb_dim,), scale, NORM_EPSILON)


def _fused(layer: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a decoder layer as [in, out], those side by side that read the same."""

    def joined(*parts: Any) -> Tensor:
        return torch.cat([part.weight.detach() for part in parts]).T.to(dtype).contiguous()

    own, cross, mlp = layer.self_attention, layer.encoder_decoder_attention, layer.mlp
    return {
        "own_norm": layer.pre_self_attention_layer_norm.scale.detach().to(dtype),
        "qkv": joined(own.query, own.key, own.value),
        "own_out": joined(own.out),
        "cross_norm": layer.pre_cross_attention_layer_norm.scale.detach().to(dtype),
        "cross_q": joined(cross.query),
        "cross_kv": joined(cross.key, cross.value),
        "cross_out": joined(cross.out),
        "mlp_norm": layer.pre_mlp_layer_norm.scale.detach().to(dtype),
        "wi": joined(mlp.wi_0, mlp.wi_1),
        "wo": joined(mlp.wo),
    }
