"""Compares mt3kit with numbers that the original MT3 returned.

    python tests/golden_check.py tests/golden

The checks are in `tests/golden/golden_check.py`, which explains the output.
"""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    # A checkout is compared with the golden numbers even where mt3kit is installed as a copy.
    sys.path[0:0] = [str(HERE / "golden"), str(HERE / "helpers"), str(HERE.parent)]
    runpy.run_module("golden_check", run_name="__main__")
