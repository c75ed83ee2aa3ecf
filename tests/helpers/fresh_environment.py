"""Makes the environment that README's first command makes, without a network.

Its packages are those that the command's requirements bring, and no others: they are links to the files
of the environment in which the tests run. mt3kit itself is built and unpacked, as pip does.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

from blocks import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Python runs lines of a .pth file that begin with "import". `mt3train demo`, which only counts GPUs, finds
# one. So does a trainer with several processes, which is refused then. All others use the CPU.
ONE_GPU = """
import importlib.machinery, os, sys

class OneGpu:
    @staticmethod
    def find_spec(name, path, target=None):
        if name != "torch.cuda":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def load_and_fake(module):
            load(module)
            module.device_count = lambda: 1
            module.is_available = lambda: (
                sys.argv[1:2] == ["demo"] or int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1
            )
        spec.loader.exec_module = load_and_fake
        return spec

sys.meta_path.insert(0, OneGpu)
"""
SCRIPT = """#!{python}
import sys
from {module} import {name}
sys.exit({name}())
"""


def extras_of(command: str) -> set[str]:
    """Returns the extras that a command installs from a clone: {"synth"} for `pip install '.[synth]'`."""
    words = shlex.split(command)
    found = [re.fullmatch(r"\.(?:\[([\w,-]+)\])?", word) for word in words]
    (of_clone,) = [match for match in found if match]
    return set(of_clone[1].split(",")) if of_clone[1] else set()


def required(extras: set[str]) -> list[str]:
    """Returns the requirements of mt3kit with extras, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    return [
        *project["dependencies"],
        *(line for extra in sorted(extras) for line in optional[extra]),
    ]


def closure(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """Returns the installed distributions that requirements bring, by name.

    Raises:
        metadata.PackageNotFoundError: one is not installed here.
    """
    found: dict[str, metadata.Distribution] = {}
    wanted, seen = [Requirement(line) for line in requirements], set[tuple[str, str]]()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen or not _applies(requirement, ""):
                continue
            seen.add((name, extra))
            found[name] = metadata.distribution(requirement.name)
            lines = map(Requirement, found[name].requires or [])
            wanted += [Requirement(_plain(line)) for line in lines if _applies(line, extra)]
    return found


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _plain(requirement: Requirement) -> str:
    """A requirement whose marker is settled."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}"


def make(folder: Path, extras: set[str]) -> Path:
    """Makes a virtual environment with mt3kit, what it requires, and one GPU that is not there.

    Args:
        folder: of the environment, which is to be made.
        extras: of mt3kit.
    Returns:
        Its Python.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    packages = (
        folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    )
    scripts: list[metadata.EntryPoint] = []
    for distribution in closure(required(extras)).values():
        for file in distribution.files or []:
            if ".." not in file.parts:
                _link(packages / file, Path(str(distribution.locate_file(file))))
        scripts += distribution.entry_points.select(group="console_scripts")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    (ours,) = metadata.distributions(name="mt3kit", path=[str(packages)])
    for script in [*scripts, *ours.entry_points.select(group="console_scripts")]:
        path = folder / "bin" / script.name
        path.write_text(SCRIPT.format(python=python, module=script.module, name=script.attr))
        path.chmod(0o755)
    (packages / "one_gpu.py").write_text(ONE_GPU)
    (packages / "one_gpu.pth").write_text("import one_gpu\n")
    return python


def _link(link: Path, file: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if file.is_file() and not link.exists():
        link.symlink_to(file)
