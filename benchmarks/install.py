"""What an installation brings: packages, and megabytes on the disk, over torch alone.

    python benchmarks/install.py [EXTRA ...]

It follows what the distributions of this environment require, without or with extras such as `synth dask`,
and adds up their files as pip recorded them. `--by-package` prints the largest ones.
"""

import argparse
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(names: list[str]) -> set[str]:
    """The distributions that are needed for requirements such as "mt3kit[dask]", themselves included."""
    wanted, seen = [Requirement(name) for name in names], set[tuple[str, str]]()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in metadata.requires(name) or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    wanted.append(needed)
    return {name for name, _ in seen}


def megabytes(name: str) -> float:
    """Size of the files of a distribution, in units of 10^6 bytes."""
    paths = [Path(str(file.locate())) for file in metadata.files(name) or []]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help="such as synth, analysis, dask")
    parser.add_argument("--by-package", action="store_true")
    chosen = parser.parse_args()
    torch = closure(["torch"])
    ours = closure([f"mt3kit[{','.join(chosen.extras)}]"])
    for what, names in (
        ("torch alone", torch),
        ("mt3kit", ours),
        ("over torch alone", ours - torch),
    ):
        print(f"{what:17}{len(names):4} packages {sum(map(megabytes, names)):8,.0f} MB")
    if chosen.by_package:
        for name in sorted(ours, key=megabytes, reverse=True)[:25]:
            print(f"  {name:32}{megabytes(name):8,.1f} MB{'' if name not in torch else '  torch'}")


if __name__ == "__main__":
    main()
