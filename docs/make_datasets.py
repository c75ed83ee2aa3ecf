"""Writes the table of docs/datasets.md from the dataset manifests.

    python docs/make_datasets.py

The text between `<!-- made: datasets -->` and `<!-- end -->` is replaced.
`tests/repository/test_readme.py` compares it with the manifests.
"""

from __future__ import annotations

import re
from pathlib import Path

from mt3data.datasets.listing import download_size, summary
from mt3data.datasets.manifest import load, names

PAGE = Path(__file__).with_name("datasets.md")
TABLE = re.compile(r"(<!-- made: datasets -->\n).*?(<!-- end -->)", re.DOTALL)


def with_table(page: str) -> str:
    """Returns the page with its table replaced by one made from the manifests."""
    return TABLE.sub(lambda match: f"{match[1]}{table()}{match[2]}", page)


def table() -> str:
    """Returns the datasets as a table in Markdown, with links to their licences."""
    lines = [
        "| `mt3data build` | dataset | licence | tracks | hours | download | passing shards on |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for manifest in map(load, names()):
        row = summary(manifest)
        name = f"[{manifest.title}]({manifest.homepage})" if manifest.homepage else manifest.title
        url = manifest.licence_url
        cells = (
            f"`{manifest.name}`", name, f"[{manifest.licence}]({url})" if url else manifest.licence,
            f"{row['tracks']:,}" if row["tracks"] else "-",
            f"{row['hours']:.1f}" if row["hours"] else "-", download_size(row), manifest.redistribution,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
