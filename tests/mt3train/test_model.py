"""The network's own rules; test_golden_network.py compares it with the original."""

import pytest
import torch

from mt3train.model import (
    MT3,
    ModelConfig,
    SharedDropout,
    is_faster_unfused,
    shift_right,
    unfused_attention,
)
from mt3train.training.loss import loss_sum

TINY = ModelConfig(
    vocab_size=40, emb_dim=16, num_heads=2, head_dim=8, num_encoder_layers=1,
    num_decoder_layers=2, mlp_dim=24, n_mels=12, dropout_rate=0.0,
)  # fmt: skip


def tiny_model(**changes: object) -> MT3:
    torch.manual_seed(0)
    return MT3(ModelConfig(**{**TINY.__dict__, **changes}))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(1, 40, (3, 10), generator=generator)
    targets[1, 6:] = 0
    return torch.randn(3, 9, 12, generator=generator), targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_gradient_equals_that_of_the_plain_formula(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, 2, 6, 3, 0], [4, 4, 0, 0, 0]])
    loss = loss_sum(logits, targets, z_loss=0.01, label_smoothing=smoothing)
    soft = torch.full((2, 5, 7), smoothing / 6, dtype=torch.float64)
    soft.scatter_(-1, targets[..., None], 1 - smoothing)
    plain = -(soft * logits.log_softmax(-1)).sum(-1) + 0.01 * logits.logsumexp(-1) ** 2
    ours, theirs = (
        torch.autograd.grad(x, logits)[0] for x in (loss, (plain * (targets > 0)).sum())
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_mlp_and_logits_start_from_a_normal_cut_at_two_deviations_attention_from_a_whole_one():
    model = tiny_model(emb_dim=128, mlp_dim=512, head_dim=64)
    deviation = 128**-0.5
    wide = model.decoder.layers[0].mlp.wi_0.weight
    assert wide.std().item() == pytest.approx(deviation, rel=0.02)
    assert wide.abs().max().item() == pytest.approx(2 * deviation / 0.8796, rel=0.01)
    attention = model.decoder.layers[0].self_attention
    assert attention.key.weight.abs().max() > 3 * deviation
    assert attention.query.weight.std().item() == pytest.approx(deviation / 8, rel=0.02)
    assert model.decoder.token_embedder.weight.std().item() == pytest.approx(1.0, rel=0.05)


def test_dropout_of_values_is_dropout_of_attention_probabilities_shared_by_queries():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    values = torch.randn(2, 3, 5, 6, generator=generator)
    keep = torch.tensor([0.0, 1.25, 1.25, 0.0, 1.25])
    probabilities = logits.softmax(-1)
    torch.testing.assert_close(
        (probabilities * keep) @ values, probabilities @ (values * keep[:, None])
    )


def test_dropout_masks_are_shared_along_the_length_and_scaled():
    torch.manual_seed(0)
    dropout = SharedDropout(0.2)
    shared = dropout(torch.ones(2, 50, 4000))
    assert (shared == shared[:, :1]).all() and not (shared[0] == shared[1]).all()
    assert set(shared.unique().tolist()) == {0.0, 1.25}
    assert float((shared[:, 0] > 0).float().mean()) == pytest.approx(0.8, abs=0.05)
    rows = dropout(torch.ones(2, 3, 50, 8), per_row=True)
    assert (rows == rows[..., :1]).all() and not (rows == rows[:, :, :1]).all()
    assert (dropout.eval()(torch.ones(1, 2, 3)) == 1).all()


def test_dropout_trains_with_noise_and_evaluates_without():
    model = tiny_model(dropout_rate=0.5)
    mel, targets = batch()
    assert not torch.equal(model(mel, targets), model(mel, targets))
    model.eval()
    assert torch.equal(model(mel, targets), model(mel, targets))


def test_logits_are_float32_and_norms_precise_under_autocast():
    model = tiny_model()
    mel, targets = batch()
    exact = model(mel, targets)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(mel, targets)
        normed = model.encoder.encoder_norm(mel.new_full((1, 1, 16), 1.001))
    assert logits.dtype == torch.float32 and normed.dtype == torch.float32
    assert 0 < (logits - exact).abs().max() < 0.1


def test_float64_runs_in_float64():
    model = tiny_model()
    mel, targets = batch()
    single = model(mel, targets)
    double = model.double()(mel.double(), targets)
    assert double.dtype == torch.float64
    assert 0 < (double - single).abs().max() < 1e-5


def test_decoder_inputs_are_the_targets_one_place_to_the_right():
    assert shift_right(torch.tensor([[5, 6, 1, 0]])).tolist() == [[0, 5, 6, 1]]


def test_future_targets_and_padding_do_not_change_earlier_logits():
    model = tiny_model().eval()
    mel, targets = batch()
    changed = targets.clone()
    changed[:, 5:] = 0
    torch.testing.assert_close(model(mel, targets)[:, :6], model(mel, changed)[:, :6])


@pytest.mark.parametrize("causal", [True, False])
def test_unfused_attention_and_its_gradients_equal_the_fused_kernel_s(causal):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 7, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    fused = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=causal, scale=1.0)
    plain = unfused_attention(*inputs, causal)
    torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)
    slopes = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(x, inputs, slopes) for x in (plain, fused))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_attention_is_unfused_only_in_bf16_training_on_a_cpu_at_small_sizes():
    def heads(length, dtype=torch.bfloat16):
        return torch.empty(1, 1, length, 1, dtype=dtype)

    assert is_faster_unfused(heads(512), heads(512))
    assert not is_faster_unfused(heads(513), heads(512))
    assert not is_faster_unfused(heads(8, torch.float32), heads(8, torch.float32))
    with torch.no_grad():
        assert not is_faster_unfused(heads(8), heads(8))
