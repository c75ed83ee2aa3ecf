"""demo.toml still trains as it did: 20 steps against the file that golden_curve.py wrote."""

import json

import golden_curve
import pytest

pytest.importorskip("midirenderer", reason="the demo pieces need the [synth] extra")

TOLERANCE = 3e-5  # of a loss; see golden_curve.py for what rounding does


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("curve")


@pytest.fixture(scope="module")
def golden():
    return json.loads(golden_curve.FILE.read_text())["steps"]


def test_the_first_20_steps_of_the_demo_are_what_they_were(folder, golden):
    ours = golden_curve.curve(folder)
    # Other tokens are other data: then look at synth, build and reader, not at the trainer.
    assert [step["tokens"] for step in ours] == [step["tokens"] for step in golden]
    for key, digits in (("loss", TOLERANCE), ("gradient_norm", 1e-3)):
        values = [step[key] for step in golden]
        assert [step[key] for step in ours] == pytest.approx(values, rel=digits)


@pytest.mark.slow
def test_a_learning_rate_that_is_a_thousandth_larger_is_seen(folder, golden):
    """Control: a small change exceeds the tolerance."""
    faster = golden_curve.curve(folder, "optim.lr=2.002e-3")
    errors = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(faster, golden, strict=True)]
    assert 3 * TOLERANCE < max(errors) < 0.01
