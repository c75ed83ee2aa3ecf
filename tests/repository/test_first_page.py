"""README's first page as a newcomer meets it: in the environment that its first command makes.

All else is tested in an environment with every extra, which cannot show that a package is missing there.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import blocks
import fresh_environment
import pytest
from packages import MODULE_OF, PROJECT, imported
from packaging.requirements import Requirement
from publishers import published
from server import publisher
from test_readme import PRINTED, PUBLISHED, own_files

from mt3data.music.midi import read_midi

pytest.importorskip("hatchling", reason="hatchling, which builds wheels, is not installed")
pytest.importorskip("midirenderer", reason="the renderer (extra `synth`) is not installed")
ALL = blocks.blocks(blocks.PAGES[0])
FIRST = next(block for block in ALL if "pip install" in block.text)
EXTRAS = fresh_environment.extras_of(FIRST.text)
LATER = [block for block in ALL if not block.mark]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A newcomer's folder: an environment in .venv, and a recording."""
    folder = tmp_path_factory.mktemp("newcomer")
    fresh_environment.make(folder / ".venv", EXTRAS)
    return folder


@pytest.fixture(scope="module")
def served(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The newcomer's folder while small publishers on this machine serve the datasets."""
    elsewhere = tmp_path_factory.mktemp("publishers")
    (manifests,) = home.glob(".venv/lib/*/site-packages/mt3data/manifests")
    with publisher() as web:
        for name in PUBLISHED:
            ours = "*" if name == PUBLISHED[0] else f"{name}.*"
            for file in published(name, web, elsewhere / name).glob(ours):
                shutil.copy(file, manifests)
        own_files(home)
        yield home


def run(home: Path, *words: str) -> str:
    """Runs a program of the environment, as if it was activated. Returns what it prints to stdout."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    path = f"{home / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words, cwd=home, env=known | {"PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# Imports all modules of both packages, and says which of further modules are there.
IMPORT = """
import importlib, importlib.util, json, pkgutil, sys
for name in ("mt3data", "mt3train"):
    package = importlib.import_module(name)
    assert "site-packages" in package.__file__
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name)]))
"""


def test_what_the_first_command_installs_is_all_that_the_packages_import(home: Path) -> None:
    every = fresh_environment.required(set(PROJECT["optional-dependencies"]))
    others = set(every) - set(fresh_environment.required(EXTRAS))
    names = {Requirement(line).name for line in others}
    optional = {MODULE_OF.get(name, name) for name in names}
    needed = imported() - optional
    there = json.loads(run(home, "python", "-c", IMPORT, *sorted(needed), *sorted(optional)))
    assert needed - set(there) == set()
    assert "pytest" in optional and "pytest" not in there  # the control: nothing else is there
    assert set(there) & (imported() & optional) == set()


def test_the_environment_has_one_gpu_that_only_the_trainer_counts(home: Path) -> None:
    code = "import torch; print(torch.cuda.device_count(), torch.cuda.is_available())"
    assert run(home, "python", "-c", code) == "1 False\n"


@pytest.mark.slow
def test_the_first_command_goes_the_whole_path_on_one_gpu(home: Path) -> None:
    (command,) = re.findall(r"\S*mt3train demo\b[^&#\n]*", "\n".join(block.text for block in ALL))
    printed = run(home, *command.split())
    assert "--nproc_per_node=1" in printed
    assert "It shows memorising, not quality." in printed
    assert len(read_midi(home / "demo-run" / "learned.mid")[0]) >= 150


@pytest.mark.slow
def test_every_later_block_runs_in_that_environment(served: Path) -> None:
    assert {block.language for block in LATER} == {"bash", "python"}
    for block in LATER:
        if block.language == "bash":
            run(served, "bash", "-euc", block.text)
        else:
            (expected,) = {
                PRINTED[name] for name in PRINTED if re.search(rf"import .*\b{name}", block.text)
            }
            assert expected in run(served, "python", "-c", block.text), str(block)


def test_the_command_that_installs_comes_before_all_blocks_that_need_it() -> None:
    assert all(FIRST.line < block.line for block in LATER)
