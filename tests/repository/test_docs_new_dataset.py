"""Follows docs/new-dataset.md in a copy of the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mt3data.datasets.manifest import names
from mt3data.shards.index import read_tracks

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "new-dataset.md").read_text(encoding="utf-8")
# A file that is written ("`PATH`:"), one that is added to ("At the end of `PATH`:"), or commands.
STEPS = re.findall(
    r"(?:^(At the end of )?`([^`\n]+)`:\n\n)?^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
)
NEEDED = (
    "mt3data",
    "mt3train",
    "manifests",
    "tests",
    "docs",
    "benchmarks",
    "pyproject.toml",
    "README.md",
)


def run(command: str, folder: Path) -> str:
    """Runs a command of the page and returns its output."""
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
             "PYTHONPATH": str(folder)}  # fmt: skip
    done = subprocess.run(
        ["bash", "-e", "-c", command], cwd=folder, env=os.environ | paths, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Follows the page in a copy of the repository. Returns the copy and what the commands printed."""
    folder, printed = tmp_path_factory.mktemp("new-dataset"), []
    skip = shutil.ignore_patterns("__pycache__", "golden", "*.safetensors", ".*")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=skip)
        else:
            shutil.copy(ROOT / name, folder)
    for at_end, path, language, text in STEPS:
        if language == "bash":
            printed.append(run(text, folder))
        elif at_end:
            (folder / path).write_text((folder / path).read_text() + "\n\n" + text)
        else:
            assert not (folder / path).exists()
            (folder / path).write_text(text)
    return folder, printed


def test_the_page_writes_one_manifest_and_one_module_and_adds_one_fake() -> None:
    assert [(bool(at_end), path) for at_end, path, *_ in STEPS if path] == [
        (False, "manifests/kalimba.toml"),
        (False, "manifests/kalimba.csv"),
        (False, "mt3data/datasets/adapters/kalimba.py"),
        (True, "tests/helpers/fakes_listed.py"),
    ]


def test_the_dataset_of_the_page_is_not_here() -> None:
    assert "kalimba" not in names()  # the control: what follows is the page's doing


def test_the_tests_of_all_datasets_run_over_it_and_pass(followed: tuple[Path, list[str]]) -> None:
    counted = re.search(r"(\d+) passed", followed[1][0])
    assert counted and int(counted[1]) >= 15
    assert "failed" not in followed[1][0] and "skipped" not in followed[1][0]


def test_it_is_listed_built_and_whole(followed: tuple[Path, list[str]]) -> None:
    folder, (_, printed, _) = followed
    assert "| `kalimba` |" in (folder / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert "title: Kalimba Garden" in printed
    assert re.search(r"3 records in 2 shards, whole", printed)
    manifest = json.loads((folder / "shards" / "kalimba" / "manifest.json").read_text())
    assert {name: split["tracks"] for name, split in manifest["splits"].items()} == {
        "test": 1,
        "train": 2,
    }


def test_its_notes_are_those_of_the_tables_and_a_known_issue_is_repaired(
    followed: tuple[Path, list[str]],
) -> None:
    found = {t.track: t.notes for t in read_tracks(followed[0] / "shards" / "kalimba", "train")}
    assert found["KG01"].onset.tolist() == [0.1, 0.3, 0.5, 0.7]
    assert found["KG02"].onset.round(3).tolist() == [0.05, 0.25, 0.45, 0.65]
    assert found["KG01"].pitch.tolist() == [61, 62, 63, 61]
    assert set(found["KG01"].program.tolist()) == {108}
