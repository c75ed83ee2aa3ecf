"""Greedy decoding: the most probable token at every position, a batch of segments at a time.

The original decodes by beam search with one beam; on the golden data the tokens are the same.
Sizes in tensor names are those of model.py.
"""

import torch
from torch import Tensor

from mt3data.vocabulary import EOS_ID, PAD_ID
from mt3train.model import MAX_POSITIONS, MT3


@torch.inference_mode()
def greedy(model: MT3, mel_BFM: Tensor, max_length: int = 1024) -> Tensor:
    """Decode a batch of segments.

    Args:
        model: the network; put into evaluation mode for the call.
        mel_BFM: log-mel frames on the model's device.
        max_length: most tokens per segment, EOS included; at most 2048.
    Returns:
        Token ids int64 [B, n], n <= max_length the longest row's length: each row ends with
        EOS and is padded with 0. A row without EOS was cut at max_length.
    Raises:
        ValueError: max_length is not in 1..2048.

    Source: t5x/models.py predict_batch_with_aux with decoding.temperature_sample(temperature=0).
    """
    if not 1 <= max_length <= MAX_POSITIONS:
        raise ValueError(f"max_length={max_length} is not in 1..{MAX_POSITIONS}")
    was_training = model.training
    model.eval()
    cache = model.new_cache(model.encode(mel_BFM), max_length)
    batch, device = mel_BFM.shape[0], mel_BFM.device
    tokens_BL = torch.full((batch, max_length), PAD_ID, dtype=torch.int64, device=device)
    token_B = torch.full((batch,), PAD_ID, dtype=torch.int64, device=device)  # the start token
    finished_B = torch.zeros(batch, dtype=torch.bool, device=device)
    # Asking whether all rows are finished waits for a GPU, so it is asked now and then there.
    ask_every = 1 if device.type == "cpu" else 16
    for position in range(max_length):
        token_B = model.decode_step(token_B, cache, position).argmax(-1)
        token_B = token_B.masked_fill(finished_B, PAD_ID)
        tokens_BL[:, position] = token_B
        finished_B |= token_B == EOS_ID
        if (position + 1) % ask_every == 0 and bool(finished_B.all()):
            break
    model.train(was_training)
    used = (tokens_BL != PAD_ID).any(0).nonzero()
    return tokens_BL[:, : int(used.max()) + 1 if len(used) else 0]
