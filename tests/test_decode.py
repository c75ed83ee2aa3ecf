"""Decoding token by token equals the full forward pass; rows end with EOS."""

import pytest
import torch

from mt3train.decode import greedy
from mt3train.model import MT3, ModelConfig


def random_model() -> tuple[MT3, torch.Tensor]:
    torch.manual_seed(3)
    config = ModelConfig(
        vocab_size=30, emb_dim=16, num_heads=3, head_dim=8, num_encoder_layers=1,
        num_decoder_layers=2, mlp_dim=24, n_mels=12,
    )  # fmt: skip
    return MT3(config).eval(), torch.randn(4, 7, 12)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_cached_decoding_equals_the_full_forward_pass_at_every_position(dtype, tolerance):
    model, mel = random_model()
    model, mel = model.to(dtype), mel.to(dtype)
    targets = torch.randint(1, 30, (4, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = model(mel, targets)
        cache = model.new_cache(model.encode(mel), 20)
        inputs = torch.nn.functional.pad(targets, (1, 0))
        steps = torch.stack([model.decode_step(inputs[:, i], cache, i) for i in range(20)], 1)
    assert (steps - full).abs().max() < tolerance * full.abs().max()


def test_a_row_does_not_depend_on_its_batch_and_ends_with_eos_then_padding():
    model, mel = random_model()
    model.decoder.logits_dense.weight.data[1] *= 3  # so that EOS comes early in some rows
    together = greedy(model, mel, max_length=40)
    lengths = []
    for row, alone in zip(together, (greedy(model, m[None], 40)[0] for m in mel), strict=True):
        lengths.append(len(alone))
        assert row[: len(alone)].tolist() == alone.tolist()
        assert not row[len(alone) :].any() and not (alone == 0).any()
        assert 1 not in alone[:-1].tolist()
    assert len(set(lengths)) > 1 and max(lengths) == together.shape[1]


def test_the_model_s_mode_is_left_as_it_was():
    model, mel = random_model()
    greedy(model.train(), mel, max_length=2)
    assert model.training


def test_a_length_beyond_the_position_table_is_refused():
    model, mel = random_model()
    with pytest.raises(ValueError, match="max_length=2049"):
        greedy(model, mel, max_length=2049)
