"""The network against golden data of the original, and its own rules."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mt3train.convert import load_t5x, t5x_parameters
from mt3train.loss import loss_sum
from mt3train.model import (
    MT3,
    ModelConfig,
    SharedDropout,
    attention_masks,
    shift_right,
    sinusoids,
)

GOLDEN = Path(__file__).parent / "golden"
TINY = ModelConfig(
    vocab_size=40, emb_dim=16, num_heads=2, head_dim=8, num_encoder_layers=1,
    num_decoder_layers=2, mlp_dim=24, n_mels=12, dropout_rate=0.0,
)  # fmt: skip


def golden_model() -> tuple[MT3, dict[str, np.ndarray]]:
    io = dict(np.load(GOLDEN / "net_io.npz"))
    config = json.loads(str(io["config"]))
    known = {k: v for k, v in config.items() if k in ModelConfig.__dataclass_fields__}
    model = MT3(ModelConfig(**known)).eval()
    load_t5x(model, dict(np.load(GOLDEN / "net_params.npz")))
    return model, io


def tiny_model(**changes: object) -> MT3:
    torch.manual_seed(0)
    return MT3(ModelConfig(**{**TINY.__dict__, **changes}))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(1, 40, (3, 10), generator=generator)
    targets[1, 6:] = 0
    return torch.randn(3, 9, 12, generator=generator), targets


def test_encoded_frames_logits_and_every_submodule_equal_the_original():
    model, io = golden_model()
    seen = {}
    for name, module in model.named_modules():
        key = "act/" + name.replace("layers.", "layers_").replace(".", "/")
        if key in io:
            module.register_forward_hook(lambda _m, _i, out, key=key: seen.update({key: out}))
    targets = torch.from_numpy(io["decoder_target_tokens"]).long()
    mel = torch.from_numpy(io["encoder_input_tokens"])
    with torch.no_grad():
        seen["encoded"] = model.encode(mel)
        seen["logits"] = model(mel, targets, original_mask=True)
    assert len(seen) == 13
    # Padded rows attend uniformly in both, so all rows can be compared.
    errors = {key: np.abs(out.numpy() - io[key]).max() for key, out in seen.items()}
    assert max(errors.values()) < 1e-4, errors
    assert errors["encoded"] < 1e-5 and errors["logits"] < 2e-5, errors


def test_causal_attention_alone_gives_the_original_s_logits_wherever_a_target_counts():
    model, io = golden_model()
    targets = torch.from_numpy(io["decoder_target_tokens"]).long()
    with torch.no_grad():
        logits = model(torch.from_numpy(io["encoder_input_tokens"]), targets).numpy()
    real = io["decoder_target_tokens"] > 0
    assert np.abs(logits - io["logits"])[real].max() < 2e-5
    assert np.abs(logits - io["logits"])[~real].max() > 1e-2  # control: the masks do matter there


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_original_s_sum_over_tokens(smoothing):
    io = np.load(GOLDEN / "net_io.npz")
    logits, targets = (torch.from_numpy(io[k]) for k in ("logits", "decoder_target_tokens"))
    loss = loss_sum(logits, targets.long(), label_smoothing=smoothing).item()
    assert loss == pytest.approx(float(io[f"loss_ls{smoothing}/sum_loss"]), rel=1e-6)


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


def test_gradients_equal_those_of_the_original():
    model, io = golden_model()
    train = np.load(GOLDEN / "net_train.npz")
    targets = torch.from_numpy(io["decoder_target_tokens"]).long()
    loss = loss_sum(model(torch.from_numpy(io["encoder_input_tokens"]), targets), targets)
    loss.backward()
    assert loss.item() == pytest.approx(float(train["loss1"]), rel=1e-6)
    for name, (parameter, transposed) in t5x_parameters(model).items():
        gradient = parameter.grad.T if transposed else parameter.grad
        want = train[f"grad1/{name}"]
        assert np.abs(gradient.numpy() - want).max() <= 1e-4 * np.abs(want).max(), name


def test_position_table_masks_and_shift_equal_the_original():
    pieces = np.load(GOLDEN / "net_pieces.npz")
    for width in (64, 512):
        ours = sinusoids(2048, width).numpy()[pieces["sinusoid_rows"]]
        np.testing.assert_allclose(ours, pieces[f"sinusoid_{width}"], atol=1e-6)
    targets = torch.from_numpy(pieces["mask_targets"])
    decoder, cross = attention_masks(targets, pieces["mask_cross"].shape[-1])
    np.testing.assert_array_equal(decoder == 0, pieces["mask_decoder"] > 0)
    np.testing.assert_array_equal(cross == 0, pieces["mask_cross"] > 0)
    assert shift_right(torch.tensor([[5, 6, 1, 0]])).tolist() == [[0, 5, 6, 1]]


def test_norm_and_gelu_equal_the_original():
    pieces = np.load(GOLDEN / "net_pieces.npz")
    model = tiny_model(emb_dim=64)
    norm = model.encoder.encoder_norm
    norm.scale.data = torch.from_numpy(pieces["ln_scale"])
    ours = norm(torch.from_numpy(pieces["ln_x"])).detach().numpy()
    np.testing.assert_allclose(ours, pieces["ln_y"], rtol=1e-6, atol=1e-6)
    gelu = torch.nn.functional.gelu(torch.from_numpy(pieces["gelu_x"]), approximate="tanh")
    np.testing.assert_allclose(gelu.numpy(), pieces["gelu_y"], atol=1e-6)


@pytest.mark.parametrize("name, vocab_size", [("mt3", 1536), ("ismir2021", 1664)])
def test_full_size_has_the_original_s_names_and_shapes(name, vocab_size):
    golden = json.loads((GOLDEN / "full_size_params.json").read_text())[name]
    with torch.device("meta"):
        model = MT3(ModelConfig(vocab_size=vocab_size))
    ours = {
        "target/" + key: list(p.T.shape if transposed else p.shape)
        for key, (p, transposed) in t5x_parameters(model).items()
    }
    assert ours == {key: info["shape"] for key, info in golden["params"].items()}
    assert sum(p.numel() for p in model.parameters()) == golden["num_params"]


def test_initial_values_have_the_original_s_spread_and_bounds():
    golden = json.loads((GOLDEN / "full_size_params.json").read_text())["mt3"]["params"]
    torch.manual_seed(0)
    model = MT3(ModelConfig(num_encoder_layers=1, num_decoder_layers=1))
    for name, (parameter, _) in t5x_parameters(model).items():
        want = golden["target/" + name]["init"]
        assert float(parameter.detach().std(correction=0)) == pytest.approx(want["std"], rel=0.02)
        if "mlp" in name or "logits" in name or "projection" in name:  # cut at two deviations
            assert float(parameter.detach().abs().max()) == pytest.approx(want["max"], rel=0.001)


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


def test_future_targets_and_padding_do_not_change_earlier_logits():
    model = tiny_model().eval()
    mel, targets = batch()
    changed = targets.clone()
    changed[:, 5:] = 0
    torch.testing.assert_close(model(mel, targets)[:, :6], model(mel, changed)[:, :6])


def test_a_parameter_of_the_wrong_shape_or_name_is_named():
    model = tiny_model()
    arrays = {k: (p.T if t else p).detach().numpy() for k, (p, t) in t5x_parameters(model).items()}
    broken = {**arrays, "decoder/logits_dense/kernel": np.zeros((16, 41), np.float32)}
    with pytest.raises(
        ValueError, match=r"logits_dense/kernel: shape \(16, 41\), expected \(16, 40\)"
    ):
        load_t5x(model, broken)
    arrays.pop("encoder/encoder_norm/scale")
    with pytest.raises(ValueError, match="encoder/encoder_norm/scale"):
        load_t5x(model, arrays)
