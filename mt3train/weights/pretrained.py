"""The weights that come with the package, for transcribing without a checkpoint of one's own.

They lie in mt3train/weights/, in half precision, beside scores.json, what was measured of them, and
README.md, the model card, which benchmarks/weights_card.py writes from it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mt3data.errors import UserError

FOLDER = Path(__file__).parent
WEIGHTS, SCORES, CARD = "demo.safetensors", "scores.json", "README.md"
MAX_BYTES = 8_000_000  # of the weights: what a wheel may grow by


def demo_weights() -> tuple[Path, str]:
    """The checkpoint of the package, and one line that says what it is and how well it does.

    Raises:
        UserError: this installation has none, or not what was measured of them.
    """
    weights, scores = FOLDER / WEIGHTS, FOLDER / SCORES
    for path in (weights, scores):
        if not path.is_file():
            raise UserError(
                f"this installation comes without demo weights ({path} is not there); name a "
                "checkpoint with --checkpoint"
            )
    return weights, about(json.loads(scores.read_text(encoding="utf-8")))


def about(measured: dict[str, Any]) -> str:
    """What a user of the demo weights must know, in one line.

    Args:
        measured: the content of scores.json.
    """
    size, test = measured["weights"]["n_parameters"] / 1e6, measured["test"]
    return (
        f"no --checkpoint: taking the demo weights, a small model ({size:.1f} million parameters) "
        f"trained on rendered pieces alone; onset F1 {test['scores']['onset_f1']['mean']:.2f} on "
        f"{test['n_tracks']} such pieces that it never heard, real recordings were not measured; see "
        f"{FOLDER / CARD}"
    )
