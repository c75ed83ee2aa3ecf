"""The README's code does what it says, on a build made here."""

import contextlib
import io
import re
from pathlib import Path

import fakes
import numpy as np
import pytest
import soundfile
import torch

from mt3data.build import build
from mt3data.plan import BuildConfig, make_plan
from mt3train.checkpoint import CheckpointInfo, save_weights, weights_path
from mt3train.model import MT3, ModelConfig

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    root = fakes.slakh_tree(folder / "demo", "demo", {"Track00001": "train"}, seconds=3.0)
    build(make_plan(BuildConfig("demo", root, folder / "shards")))
    soundfile.write(folder / "song.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 40000), 16000)
    torch.manual_seed(0)
    config = ModelConfig(1536, 8, 1, 8, 1, 1, 8)
    (folder / "runs" / "mine").mkdir(parents=True)
    save_weights(
        weights_path(folder / "runs" / "mine", 1), MT3(config), CheckpointInfo(model=config)
    )
    return folder


EXPECTED = {
    "webdataset": "demo-Track00001-p0-0000000 (2048, 512)",
    "tarfile": "demo-Track00001-p0-0000000 mel.npy float16 (2048, 512)",
    "IndexedShards": "(8, 256, 512)",
    "transcribe": "notes in 2 segments",
}


@pytest.mark.parametrize("library", EXPECTED)
def test_a_snippet_of_the_readme_prints_what_it_should(
    folder: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (snippet,) = [
        text for text in SNIPPETS if f"import {library}" in text or f", {library}" in text
    ]
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, "README.md", "exec"), {})
    assert EXPECTED[library] in printed.getvalue()


def test_there_is_no_snippet_that_is_not_run() -> None:
    assert len(SNIPPETS) == len(EXPECTED)


def test_the_readme_has_exactly_two_commands_that_set_up() -> None:
    assert len(re.findall(r"^python3\.11 -m venv", README, re.MULTILINE)) == 2
