"""Runs every command without what macOS and Windows lack; see tests/helpers/without/sitecustomize.py.

This shows that our code asks for nothing else. It does not show that the libraries work there.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import ROOT
from events import HANG_SECONDS

HELPERS = ROOT / "tests" / "helpers"
WINDOWS = "fcntl,resource,signals,preadv,o_directory,folder_sync,open_file_changes,fork,posix,case,descriptors"
WHOLE_PATH = ("signals", "resource", "open_file_changes", "descriptors", "case,many_files")

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="takes functions away from Linux; looks into /proc"
)


def run_without(absent: str, *words: object) -> str:
    """Returns the output of a Python program in a system that lacks something."""
    paths = [str(HELPERS / "without"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *map(str, words)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"MT3KIT_WITHOUT": absent, "OMP_NUM_THREADS": "1",
                          "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        timeout=HANG_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(
    "absent, parts",
    [
        pytest.param(WINDOWS, (), id="windows"),
        *(
            pytest.param(
                one, () if one in WHOLE_PATH else ("labels",), id=one, marks=pytest.mark.slow
            )
            for one in [*WINDOWS.split(",")[:-2], "descriptors", "case,many_files"]
        ),
    ],
)
def test_everything_works_without(absent: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    printed = run_without(absent, HELPERS / "whole_path.py", tmp_path, *parts)
    assert "3 records in 3 shards, whole" in printed
    assert not list((tmp_path / "shards/demo").glob(".state*"))
    assert (tmp_path / "song.html").is_file() == (not parts)


def test_what_is_absent_is_really_absent(tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    code = f"""
import os, signal, subprocess, sys
from pathlib import Path
import mt3data.system as system
folder = Path({str(tmp_path)!r})
file = (folder / "open").open("rb")
def refused(change, *arguments):
    try:
        change(*arguments)
    except (ImportError, OSError) as error:
        return type(error).__name__
print(hasattr(os, "preadv"), hasattr(signal, "SIGUSR1"), system.WINDOWS, system.ignores_case(folder))
print(refused(__import__, "fcntl"), refused(os.open, folder, os.O_RDONLY))
print(refused((folder / "open").unlink), refused(folder.rename, folder.with_name("moved")))
"""
    expected = "False False True True\nModuleNotFoundError PermissionError\nPermissionError PermissionError\n"
    assert run_without(WINDOWS, "-c", code) == expected
