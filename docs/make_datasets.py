"""Writes the table of docs/datasets.md from the dataset manifests.

    python docs/make_datasets.py

The text between `<!-- made: datasets -->` and `<!-- end -->` is replaced.
`tests/repository/test_readme.py` compares it with the manifests.
"""

from __future__ import annotations

import re
from pathlib import Path

from mt3data.datasets.listing import markdown
from mt3data.datasets.manifest import load, names

PAGE = Path(__file__).with_name("datasets.md")
TABLE = re.compile(r"(<!-- made: datasets -->\n).*?(<!-- end -->)", re.DOTALL)


def with_table(page: str) -> str:
    """Returns the page with its table replaced by one made from the manifests."""
    table = "\n".join(markdown(load(name) for name in names())) + "\n"
    return TABLE.sub(lambda match: f"{match[1]}{table}{match[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
