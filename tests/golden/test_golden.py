"""Our functions against the numbers that the original MT3 returned (tests/golden/README.md)."""

from pathlib import Path

import golden_check
import pytest

GOLDEN = Path(__file__).parent


@pytest.mark.parametrize("name", golden_check.CHECKS)
def test_the_original_returned_the_same(name: str) -> None:
    cases, worst = golden_check.CHECKS[name](GOLDEN)
    assert cases > 0
    assert worst <= 1
