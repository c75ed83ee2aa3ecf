"""The optimiser against golden steps of T5X's Adafactor, and the schedule."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mt3train.convert import load_t5x, t5x_parameters
from mt3train.loss import loss_sum
from mt3train.model import MT3, ModelConfig
from mt3train.optim import Adafactor, learning_rate, make_optimizer

GOLDEN = Path(__file__).parent / "golden"
NAMES = ["a_tall", "b_wide", "c_square", "d_small2d", "e_vec", "f_tiny_scale", "h_zero_param"]


def three_steps(name: str) -> tuple[Mapping[str, np.ndarray], list[np.ndarray], dict]:
    golden = np.load(GOLDEN / "adafactor.npz")
    parameter = nn.Parameter(torch.from_numpy(golden[f"param0/{name}"].copy()))
    optimizer = Adafactor([parameter])
    after = []
    for i, lr in enumerate(golden["learning_rates"], start=1):
        optimizer.param_groups[0]["lr"] = float(lr)
        parameter.grad = torch.from_numpy(golden[f"grad{i}/{name}"].copy())
        optimizer.step()
        after.append(parameter.detach().numpy().copy())
    return golden, after, optimizer.state[parameter]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_follow_the_original(name):
    golden, after, _ = three_steps(name)
    assert np.abs(after[0] - golden[f"param1/{name}"]).max() < 5e-7
    assert np.abs(after[2] - golden[f"param3/{name}"]).max() < 5e-7
    assert np.abs(after[2] - golden[f"param0/{name}"]).max() > 5e-7  # control: they moved


@pytest.mark.parametrize("name", NAMES)
def test_second_moments_are_those_of_the_original_factored_from_128_on(name):
    golden, _, state = three_steps(name)
    ours = {k: v.numpy().ravel() for k, v in state.items() if k != "step"}
    # The original calls the mean over its larger side "row", whichever side that is.
    if name == "a_tall":
        ours = {"v_row": ours["v_col"], "v_col": ours["v_row"]}
    for key in ("v_row", "v_col", "v"):
        want = golden[f"state3/{name}/{key}"].ravel()
        if key in ours:
            np.testing.assert_allclose(ours[key], want, rtol=2e-6)
        else:
            assert want.shape == (1,)


def test_zero_gradients_leave_parameters_alone():
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.zeros(3)
    Adafactor([parameter]).step()
    assert parameter.tolist() == [1.0, 1.0, 1.0]


def test_three_training_steps_follow_the_original_trainer():
    io, golden = np.load(GOLDEN / "net_io.npz"), np.load(GOLDEN / "net_train.npz")
    config = json.loads(str(io["config"]))
    model = MT3(
        ModelConfig(
            **{k: config[k] for k in config.keys() & ModelConfig.__dataclass_fields__.keys()}
        )
    )
    load_t5x(model, dict(np.load(GOLDEN / "net_params.npz")))
    optimizer = Adafactor(model.parameters(), lr=1e-3)
    mel = torch.from_numpy(io["encoder_input_tokens"])
    targets = torch.from_numpy(io["decoder_target_tokens"]).long()
    losses = []
    for step in (1, 2, 3):
        optimizer.zero_grad()
        loss = loss_sum(model(mel, targets), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for name, (parameter, transposed) in t5x_parameters(model).items():
            if f"after{step}/{name}" in golden:
                ours = (parameter.T if transposed else parameter).detach().numpy()
                error = np.abs(ours - golden[f"after{step}/{name}"])
                # Where a gradient is a rounding-noise zero, the first steps are sign-like.
                outliers = int((error > 2e-6 * step).sum())
                assert outliers <= max(2, 1e-3 * error.size), (name, step, outliers)
                assert error.max() <= 1e-3 * step * max(1e-3, np.sqrt((ours**2).mean())) * 1.1
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-5)


def test_the_second_optimiser_is_torch_s_adamw():
    optimizer = make_optimizer([nn.Parameter(torch.ones(1))], "adamw", 1e-3, weight_decay=0.1)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["weight_decay"] == 0.1


@pytest.mark.parametrize(
    "name, decay, message", [("adam", 0.0, "adam"), ("adafactor", 0.1, "none")]
)
def test_an_optimiser_that_does_not_exist_is_refused(name, decay, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer([nn.Parameter(torch.ones(1))], name, 1e-3, decay)


def test_rate_rises_linearly_and_stays_or_falls_to_a_tenth():
    assert learning_rate(0, 1e-3) == learning_rate(10**6, 1e-3) == 1e-3
    assert [learning_rate(s, 1.0, warmup_steps=4) for s in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1, 1, 1]
    cosine = [learning_rate(s, 1.0, 2, "cosine", 12) for s in (0, 2, 7, 12, 20)]
    assert cosine == pytest.approx([0.5, 1.0, 0.55, 0.1, 0.1])
    with pytest.raises(ValueError, match="linear"):
        learning_rate(0, 1.0, decay="linear")
