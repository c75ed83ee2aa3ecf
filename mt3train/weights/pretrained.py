"""The weights that come with the package, used when no checkpoint is named.

They lie in mt3train/weights/ in half precision, beside README.md, their model card, which
is written by hand.
"""

from __future__ import annotations

from pathlib import Path

from mt3data.errors import UserError

FOLDER = Path(__file__).parent
WEIGHTS, CARD = "demo.safetensors", "README.md"
# The facts of the model card that a user of the weights must know.
ABOUT = (
    "a small model (3.8 million parameters) trained on rendered pieces alone; onset F1 0.86 on real "
    "close piano, 0.68 on ambient piano, 0.64 on quartets"
)
MAX_BYTES = 8_000_000  # of the weights: what a wheel may grow by


def demo_weights() -> tuple[Path, str]:
    """Returns the checkpoint of the package, and one line about its size, training and score.

    Raises:
        UserError: this installation has no demo weights.
    """
    if not (FOLDER / WEIGHTS).is_file():
        raise UserError(
            f"this installation comes without demo weights ({FOLDER / WEIGHTS} is not there); name a "
            "checkpoint with --checkpoint"
        )
    return (
        FOLDER / WEIGHTS,
        f"no --checkpoint: using the demo weights, {ABOUT}; see {FOLDER / CARD}; --checkpoint mt3 "
        "uses MT3's own",
    )
