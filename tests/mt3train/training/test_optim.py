"""Adafactor's rules by hand, and the schedule; test_golden_network.py compares with the original."""

import pytest
import torch
from torch import nn

from mt3train.model import MT3, ModelConfig
from mt3train.training.optimizers import (
    Adafactor,
    Muon,
    make_optimizer,
    newton_schulz,
)

TINY = ModelConfig(
    vocab_size=40, emb_dim=8, num_heads=2, head_dim=4, num_encoder_layers=1,
    num_decoder_layers=1, mlp_dim=8, n_mels=16, dropout_rate=0.0,
)  # fmt: skip


def test_the_first_update_moves_every_value_by_the_rate_times_the_parameter_s_rms():
    parameter = nn.Parameter(torch.tensor([2.0, -2.0, 2.0]))
    parameter.grad = torch.tensor([5.0, -0.1, 1e-6])
    Adafactor([parameter], lr=0.1).step()
    assert parameter.tolist() == pytest.approx([1.8, -1.8, 1.8])


def test_later_updates_divide_by_the_root_of_the_mean_of_squares_and_are_clipped_to_rms_one():
    parameter = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = Adafactor([parameter], lr=0.1)
    for gradient in (1.0, 3.0):
        parameter.grad = torch.tensor([gradient, 1.0])
        optimizer.step()
    # After step 1: 0.9, 0.9. Weight of the new square at step 2: 2 ** -0.8 = 0.574349.
    first = 3 / (0.425651 * 1 + 0.574349 * 9) ** 0.5  # 1.268353; the second is 1
    rms = ((first**2 + 1) / 2) ** 0.5
    expected = [0.9 - 0.1 * 0.9 * first / rms, 0.9 - 0.1 * 0.9 / rms]
    assert parameter.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape, kept", [
    ((128, 130), {"v_row": (128, 1), "v_col": (1, 130)}),
    ((127, 300), {"v": (127, 300)}),
    ((400,), {"v": (400,)}),
])  # fmt: skip
def test_only_matrices_with_both_sides_of_128_or_more_are_factored(shape, kept):
    parameter = nn.Parameter(torch.ones(shape))
    parameter.grad = torch.ones(shape)
    optimizer = Adafactor([parameter])
    optimizer.step()
    state = optimizer.state[parameter]
    assert {key: tuple(value.shape) for key, value in state.items() if key != "step"} == kept


def test_zero_gradients_leave_parameters_alone():
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.zeros(3)
    Adafactor([parameter]).step()
    assert parameter.tolist() == [1.0, 1.0, 1.0]


def test_the_second_optimiser_is_torch_s_adamw():
    optimizer = make_optimizer(MT3(TINY), "adamw", 1e-3, weight_decay=0.1)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["weight_decay"] == 0.1


@pytest.mark.parametrize("shape", [(6, 6), (4, 9)])
def test_newton_schulz_brings_singular_values_near_one_and_keeps_directions(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(2, *shape), full_matrices=False)
    values = torch.linspace(0.1, 3.0, min(shape)) * torch.tensor([[1.0], [50.0]])
    done = newton_schulz(u @ torch.diag_embed(values) @ v)
    assert done.shape == (2, *shape)
    assert 0.6 < torch.linalg.svdvals(done).min() <= torch.linalg.svdvals(done).max() < 1.25
    turned = u.mT @ done @ v.mT  # diagonal, where singular vectors are the same
    assert (turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))).abs().max() < 1e-5
    rounded = newton_schulz((u @ torch.diag_embed(values) @ v).bfloat16()).float()
    assert (rounded - done).norm() < 0.05 * done.norm()


def test_muon_orthogonalizes_tall_matrices_too():
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(9, 4))
    parameter.grad = torch.randn(9, 4)
    Muon([parameter], lr=0.1).step()
    scale = 0.1 * 0.2 * 9**0.5
    values = torch.linalg.svdvals(parameter.detach() / scale)
    assert 0.6 < values.min() <= values.max() < 1.25
    turned = torch.linalg.svd(parameter.grad, full_matrices=False)
    along = turned.U.mT @ parameter @ turned.Vh.mT / -scale
    assert (along.diagonal() > 0.6).all()


def update_of_one_process(rank, world_size, rendezvous, found):
    """Leaves the weights of a process after one update by Muon in `found`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
    )
    torch.save(weights_after_one_update(), f"{found}{rank}")
    torch.distributed.destroy_process_group()


def weights_after_one_update():
    torch.manual_seed(0)
    model = MT3(TINY)
    optimizer = make_optimizer(model, "muon", 1e-2, weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model.state_dict()


def test_processes_that_share_the_matrices_of_muon_make_the_update_of_one_process(tmp_path):
    torch.multiprocessing.spawn(
        update_of_one_process, (2, tmp_path / "rendezvous", tmp_path / "weights"), nprocs=2
    )
    alone = weights_after_one_update()
    for rank in range(2):
        shared = torch.load(f"{tmp_path}/weights{rank}")
        for name, weight in alone.items():
            torch.testing.assert_close(shared[name], weight, rtol=1e-5, atol=1e-6)


def test_muon_moves_matrices_by_its_own_rule_and_the_rest_by_adam_s():
    """After one update Adam has moved every value by the rate; a matrix has an RMS of 0.2 of it."""
    torch.manual_seed(0)
    model = MT3(TINY)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, "muon", 1e-2)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    moved = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    for name in ("decoder.token_embedder.weight", "decoder.logits_dense.weight",
                 "encoder.encoder_norm.scale"):  # fmt: skip
        expected = 1e-2 * model.get_parameter(name).grad.sign()
        torch.testing.assert_close(moved.pop(name), expected, rtol=1e-3, atol=0)
    hidden = moved["encoder.layers.0.mlp.wi_0.weight"]
    assert 0.7 * 2e-3 < hidden.square().mean().sqrt() < 1.3 * 2e-3
    assert (hidden.abs() - hidden.abs().mean()).abs().max() > 1e-3  # signs would all be as large


def test_muon_takes_weight_decay_before_an_update():
    parameter = nn.Parameter(torch.tensor([4.0]))
    parameter.grad = torch.tensor([-1.0])
    Muon([parameter], lr=0.1, weight_decay=0.5).step()
    assert parameter.item() == pytest.approx(4.0 * 0.95 + 0.1)
