"""Computes the decoder one token at a time, with cached keys and values.

The logits equal those of `MT3.forward` at the last position. Three things make it fast. Keys and
values of the encoded frames are computed once per segment, those of the tokens once per token, in
buffers that are allocated once. Weights that multiply the same vector are joined into one matrix,
stored as [in, out]. Slots are independent and each has its own position, so a slot whose segment has
ended can load the next segment while the others continue.

Sizes in tensor names are those of model.py, and  S slots (segments decoded together) · T cached positions
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mt3data.errors import UserError
from mt3train.model import MAX_POSITIONS, MT3, NORM_EPSILON

MIN_COMPILED_EXTENT = 64  # positions that compiled code attends to: this, or twice, four times, ...


class CachedDecoder:
    """Decodes a batch of segments step by step.

    Attributes:
        n_slots: number of segments that it holds.
        max_length: largest number of tokens per segment.
        lengths: number of tokens decoded in each slot, on the host.
        position_S: the same on the device, at most max_length - 1.
        compiled: whether it was compiled, so that every step computes all slots.
    """

    def __init__(
        self,
        model: MT3,
        n_slots: int,
        max_length: int,
        n_frames: int,
        dtype: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        """Copies the decoder's weights and allocates the buffers.

        Args:
            model: the network, on the device that runs it.
            n_slots: number of segments that are decoded together.
            max_length: largest number of tokens per segment, 1 to 2048.
            n_frames: number of encoded frames of every segment.
            dtype: precision of weights and buffers; None: that of the model. Logits are always
                computed in the precision of the model, as in T5X.
            compiled: compiles a step with torch.compile.
        Raises:
            ValueError: max_length is out of range.
            UserError: the buffers do not fit into memory.
        """
        if not 1 <= max_length <= MAX_POSITIONS:
            raise ValueError(f"max_length={max_length} is not in 1..{MAX_POSITIONS}")
        config, decoder = model.config, model.decoder
        self.n_slots, self.max_length, self.compiled = n_slots, max_length, compiled
        self.heads, self.head_dim, self.emb_dim = config.num_heads, config.head_dim, config.emb_dim
        weight = decoder.logits_dense.weight
        self.dtype, self.device = dtype or weight.dtype, weight.device
        self.layers = [_joined_weights(layer, self.dtype) for layer in decoder.layers]
        self.embedding = decoder.token_embedder.weight.detach().to(self.dtype)
        self.table = decoder.get_buffer("positions").to(self.dtype)
        self.norm = decoder.decoder_norm.scale.detach().to(self.dtype)
        self.logits = weight.detach().T.contiguous()
        # On a CPU, pages of fresh zeros take no memory until they are written.
        try:
            self.own = [self._allocate(max_length) for _ in self.layers]
            self.cross = [self._allocate(n_frames) for _ in self.layers]
        except RuntimeError as error:  # of the CPU; torch.OutOfMemoryError is one as well
            raise UserError(
                f"not enough memory to decode {n_slots:,} segments at once; choose a smaller batch"
            ) from error
        self.lengths = [0] * n_slots
        self.position_S = torch.zeros(n_slots, dtype=torch.int64, device=self.device)
        self.slot_S = torch.arange(n_slots, device=self.device)
        self.time_T = torch.arange(max_length, device=self.device)
        self._run = self._compile() if compiled else self._logits

    def _compile(self) -> Callable[..., Tensor]:
        for buffer in (buffer for pair in (*self.own, *self.cross) for buffer in pair):
            torch._dynamo.mark_static_address(buffer)  # lets a CUDA graph write to it
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        return torch.compile(self._logits, mode=mode, dynamic=False)

    def load_segment(self, slot: int, encoded_FD: Tensor) -> None:
        """Loads the encoded frames of a segment into a slot and sets it to position 0."""
        encoded_FD = encoded_FD.to(self.dtype)
        for layer, buffers in zip(self.layers, self.cross, strict=True):
            both = (encoded_FD @ layer["cross_kv"]).view(len(encoded_FD), 2, self.heads, -1)
            for buffer, new_FHK in zip(buffers, both.unbind(1), strict=True):
                buffer[slot].copy_(new_FHK.transpose(0, 1))
        self.reset(slot)

    def reset(self, slot: int) -> None:
        """Sets a slot to position 0."""
        self.lengths[slot] = 0
        self.position_S[slot] = 0

    def copy_slot(self, source: int, target: int) -> None:
        """Copies the state of one slot to another."""
        length = self.lengths[source]
        for own, cross in zip(self.own, self.cross, strict=True):
            for buffer in own:
                buffer[target, :, :length] = buffer[source, :, :length]
            for buffer in cross:
                buffer[target] = buffer[source]
        self.lengths[target] = length
        self.position_S[target] = self.position_S[source]

    def decode_step(self, token_S: Tensor) -> Tensor:
        """Computes the logits [S, V] that follow the given tokens of the first len(token_S) slots.

        Each of these slots advances by one position. A slot that holds max_length tokens already
        stays at the last position, and its logits are meaningless.
        """
        n_slots = len(token_S)
        lengths = self.lengths[:n_slots]
        extent = min(max(lengths) + 1, self.max_length)
        # Slots at equal positions need no mask.
        equal = lengths.count(lengths[0]) == n_slots
        if self.compiled:
            extent = max(MIN_COMPILED_EXTENT, 1 << (extent - 1).bit_length())
            extent, equal = min(extent, self.max_length), False
        logits_SV = self._run(token_S, extent, equal)
        self.lengths[:n_slots] = [min(length + 1, self.max_length) for length in lengths]
        self.position_S[:n_slots].add_(1).clamp_(max=self.max_length - 1)
        return logits_SV

    def _logits(self, token_S: Tensor, extent: int, equal: bool) -> Tensor:
        n_slots, inner = len(token_S), self.heads * self.head_dim
        position_S, slot_S = self.position_S[:n_slots], self.slot_S[:n_slots]
        mask = None if equal else (self.time_T[:extent] <= position_S[:, None])[:, None, None]
        x_SD = self.embedding[token_S] + self.table[position_S]
        for layer, own, cross in zip(self.layers, self.own, self.cross, strict=True):
            projected = self._norm(x_SD, layer["own_norm"]) @ layer["qkv"]
            q_SHK, k_SHK, v_SHK = projected.view(n_slots, 3, self.heads, self.head_dim).unbind(1)
            own[0][slot_S, :, position_S], own[1][slot_S, :, position_S] = k_SHK, v_SHK
            keys, values = (buffer[:n_slots, :, :extent] for buffer in own)
            mixed = F.scaled_dot_product_attention(
                q_SHK[:, :, None], keys, values, attn_mask=mask, scale=1.0
            )
            x_SD = torch.addmm(x_SD, mixed.reshape(n_slots, inner), layer["own_out"])
            queries = self._norm(x_SD, layer["cross_norm"]) @ layer["cross_q"]
            q_SHK = queries.view(n_slots, self.heads, self.head_dim)
            keys, values = (buffer[:n_slots] for buffer in cross)
            mixed = F.scaled_dot_product_attention(q_SHK[:, :, None], keys, values, scale=1.0)
            x_SD = torch.addmm(x_SD, mixed.reshape(n_slots, inner), layer["cross_out"])
            gate, hidden = (self._norm(x_SD, layer["mlp_norm"]) @ layer["wi"]).chunk(2, -1)
            hidden = F.gelu(gate, approximate="tanh") * hidden
            x_SD = torch.addmm(x_SD, hidden, layer["wo"])
        normed = self._norm(x_SD, self.norm).to(self.logits.dtype)
        return normed @ self.logits

    def _allocate(self, length: int) -> tuple[Tensor, Tensor]:
        """Allocates keys and values [S, H, length, K]."""
        shape = (self.n_slots, self.heads, length, self.head_dim)
        keys = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return keys, torch.zeros_like(keys)

    def _norm(self, x_SD: Tensor, scale: Tensor) -> Tensor:
        return F.rms_norm(x_SD, (self.emb_dim,), scale, NORM_EPSILON)


def _joined_weights(layer: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns the weights of a decoder layer as [in, out]. Those with the same input are joined."""

    def join(*parts: Any) -> Tensor:
        return torch.cat([part.weight.detach() for part in parts]).T.to(dtype).contiguous()

    own, cross, mlp = layer.self_attention, layer.encoder_decoder_attention, layer.mlp
    return {
        "own_norm": layer.pre_self_attention_layer_norm.scale.detach().to(dtype),
        "qkv": join(own.query, own.key, own.value),
        "own_out": join(own.out),
        "cross_norm": layer.pre_cross_attention_layer_norm.scale.detach().to(dtype),
        "cross_q": join(cross.query),
        "cross_kv": join(cross.key, cross.value),
        "cross_out": join(cross.out),
        "mlp_norm": layer.pre_mlp_layer_norm.scale.detach().to(dtype),
        "wi": join(mlp.wi_0, mlp.wi_1),
        "wo": join(mlp.wo),
    }
