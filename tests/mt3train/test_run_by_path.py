"""The trainer that is run by path uses the checkout it lies in, though another copy is installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from events import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1")
# What a user might add to model.py. The trainer prints where modules of both packages lie, and so
# does a process that multiprocessing spawns.
EDIT = """
import json, multiprocessing, mt3data.errors, mt3train
name = "child" if "--multiprocessing-fork" in sys.orig_argv else "trainer"
print("PLACES", json.dumps([name, __file__, mt3data.errors.__file__, mt3train.__file__]))
sys.stdout.flush()
if name == "trainer":
    child = multiprocessing.get_context("spawn").Process(target=print)
    child.start()
    child.join()
"""


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed copy of both packages, and a checkout with another model.py."""
    folder = tmp_path_factory.mktemp("copies")
    for copy in ("installed", "checkout"):
        for package in ("mt3data", "mt3train"):
            shutil.copytree(ROOT / package, folder / copy / package)
    with (folder / "checkout" / "mt3train" / "model.py").open("a") as file:
        file.write("\nimport sys\n" + EDIT)
    return folder


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["python", "torchrun"])
def test_a_changed_model_of_the_checkout_is_used(
    copies: Path, tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    checkout = copies / "checkout"
    done = subprocess.run(
        [sys.executable, *launcher, checkout / "mt3train" / "train.py", "data.train=none/*"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(copies / "installed")},
        capture_output=True, text=True, timeout=HANG_SECONDS,
    )  # fmt: skip
    assert "no such" in done.stderr or "make one with" in done.stderr, done.stderr
    printed = [line for line in done.stdout.splitlines() if line.startswith("PLACES")]
    places = [checkout / name for name in (
        "mt3train/model.py", "mt3data/errors.py", "mt3train/__init__.py",
    )]  # fmt: skip
    assert [json.loads(line.removeprefix("PLACES")) for line in printed] == [
        ["trainer", *map(str, places)], ["child", *map(str, places)],
    ]  # fmt: skip


def test_without_a_path_the_installed_copy_is_used(copies: Path, tmp_path: Path) -> None:
    """The control: the changed model is found by its path alone."""
    done = subprocess.run(
        [sys.executable, "-m", "mt3train.train", "data.train=none/*"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(copies / "installed")},
        capture_output=True, text=True, timeout=HANG_SECONDS,
    )  # fmt: skip
    assert "make one with" in done.stderr
    assert "PLACES" not in done.stdout


@pytest.mark.parametrize("words", [[ROOT / "mt3train" / "train.py"], ["-m", "mt3train.train"]])
def test_in_a_deleted_folder_one_line_is_printed(words: list[object], tmp_path: Path) -> None:
    line = 'mkdir gone; cd gone; rmdir ../gone; exec "$0" "$@"'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable, *words],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "working directory does not exist" in done.stderr and done.stderr.count("\n") == 1
