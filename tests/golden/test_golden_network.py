"""The network, loss, decoding and optimiser against the numbers that the original returned."""

from pathlib import Path

import golden_network
import pytest
import torch

GOLDEN = Path(__file__).parent


@pytest.mark.parametrize("name", golden_network.CHECKS)
def test_the_original_computed_the_same(name):
    cases, worst = golden_network.CHECKS[name](GOLDEN)
    assert cases > 0 and worst <= 1


@pytest.mark.parametrize("name", ["net_io.npz", "net_train.npz"])
def test_the_checks_notice_a_network_that_is_slightly_different(name, monkeypatch):
    """Control: attention with the usual scaling instead of the original's none."""
    usual = torch.nn.functional.scaled_dot_product_attention

    def scaled(*args, scale, **options):
        return usual(*args, scale=0.99, **options)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", scaled)
    with pytest.raises(AssertionError):
        golden_network.CHECKS[name](GOLDEN)
