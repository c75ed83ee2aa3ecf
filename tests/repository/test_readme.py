"""README.md and docs/*.md do what they say: their code is run, in the folder of a new user.

Blocks are run in the order of the pages: what one of them makes, later ones may use. The publishers of datasets are those of tests/helpers/publishers.py, and the model is a tiny one.
"""

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import blocks
import numpy as np
import pytest
import soundfile
import torch
from blocks import Block, commands, run_command, run_python
from publishers import REAL, published
from server import publisher

import mt3data.datasets.manifest
from mt3data.music.midi import write_midi
from mt3data.music.notes import Notes
from mt3train.model import MT3, ModelConfig
from mt3train.weights.checkpoint import CheckpointInfo, save_weights, weights_path

ALL = [block for page in blocks.PAGES for block in blocks.blocks(page)]
TO_RUN = [b for b in ALL if not b.mark and b.page.name not in blocks.RUN_ELSEWHERE]
README = blocks.PAGES[0].read_text(encoding="utf-8")
PUBLISHED = ("maestro_v3", "slakh", "guitarset")
PRINTED = {  # by the blocks of Python in README.md
    "mt3train": " notes: [",
    "webdataset": "demo-Track00001-p0-0000000 (2048, 512)",
    "load_dataset": "demo-Track00001-p0-0000000 ",
    "tarfile": "demo-Track00001-p0-0000000 mel.npy float16 (2048, 512)",
    "IndexedShards": "(8, 256, 512)",
    "hashlib": "shards are whole",
    "pyarrow": "Track00001 ",
    "find_beats": "2 bars of 4/4 at about ",
}


def first_round() -> Block:
    """The block that makes what all others use."""
    (block,) = [b for b in TO_RUN if "mt3data synth --out data/demo" in b.text]
    return block


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a user who has a recording and a model, and has gone the first round."""
    pytest.importorskip("midirenderer", reason="the renderer (extra `synth`) is not installed")
    from joblib.externals.loky import get_reusable_executor

    folder, elsewhere = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("publishers")
    with publisher() as web, pytest.MonkeyPatch.context() as patch:
        for name in PUBLISHED:
            served = published(name, web, elsewhere / name)
            if name != PUBLISHED[0]:
                for file in served.glob(f"{name}.*"):
                    shutil.copy(file, elsewhere / PUBLISHED[0] / "manifests")
        patch.setattr(
            mt3data.datasets.manifest, "_folder", lambda: elsewhere / PUBLISHED[0] / "manifests"
        )
        get_reusable_executor().shutdown(wait=True)  # its workers stay where they were started
        patch.chdir(folder)
        own_files(folder)
        for line in commands(first_round()):
            run_command(line)
        yield folder
        get_reusable_executor().shutdown(wait=True)


def own_files(folder: Path) -> None:
    """Writes a recording with a reference and beats, two more with MIDI files, three folders of MIDI
    files, and a model in runs/mine."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 40000)
    notes = Notes([0.1, 0.8], [0.5, 1.5], [60, 40], [80, 80], [0, 33], [False, False], [0, 1])
    soundfile.write(folder / "song.wav", noise, 16000)
    beats = "0.31\t3\n0.80\t4\n1.29\t1\n1.80\t2\n2.28\t3\n"
    (folder / "song.beats").write_text(beats)
    write_midi(notes, folder / "reference.mid")
    (folder / "recordings").mkdir()
    for name in ("one", "two"):
        soundfile.write(folder / "recordings" / f"{name}.flac", noise, 16000)
        write_midi(notes, folder / "recordings" / f"{name}.mid")
    for name in ("refs", "ours", "theirs"):
        (folder / name).mkdir()
        write_midi(notes, folder / name / "song.mid")
    torch.manual_seed(0)
    model = ModelConfig(1536, 8, 1, 8, 1, 1, 8)
    info = CheckpointInfo(
        step=1, model=model, right_context="audio", frames=256, max_target_length=8
    )
    (folder / "runs" / "mine").mkdir(parents=True)
    save_weights(weights_path(folder / "runs" / "mine", 1), MT3(model), info)


def test_the_first_round_makes_what_it_says(home: Path) -> None:
    made = "record.png report.html data/demo/synth.json shards/demo/manifest.json".split()
    assert [name for name in made if not (home / name).is_file()] == []


LATER = [block for block in TO_RUN if block.language == "bash" and block != first_round()]


@pytest.mark.parametrize("block", LATER, ids=str)
def test_the_commands_of_a_block_do_what_they_say(home: Path, block: Block) -> None:
    for line in commands(block):
        run_command(line)


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "python"], ids=str)
def test_python_of_a_block_prints_what_it_should(
    home: Path, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block.mark == "needs datasets":
        pytest.importorskip("datasets", reason="Hugging Face's datasets (extra `bench`) is missing")
    elif block not in TO_RUN:
        pytest.skip(block.mark or f"run by {blocks.RUN_ELSEWHERE[block.page.name]}")
    if block.page.name == "shards.md":
        monkeypatch.chdir(home / "shards" / "demo")
    (expected,) = {
        PRINTED[name] for name in PRINTED if re.search(rf"import .*\b{name}\b", block.text)
    }
    assert expected in run_python(block)


def test_every_block_is_run_or_says_why_not() -> None:
    assert {block.mark for block in ALL} <= {"", *blocks.MARKS}
    assert {block.language for block in TO_RUN} == {"bash", "python", "pycon"}
    for name, test in blocks.RUN_ELSEWHERE.items():
        assert name in (blocks.ROOT / "tests" / "repository" / test).read_text(encoding="utf-8")


def test_all_files_that_the_pages_link_to_are_there() -> None:
    for page in blocks.PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).is_file(), f"{page.name}: {target}"


def test_the_readme_has_exactly_two_commands_that_set_up() -> None:
    assert len(re.findall(r"^python3\.11 -m venv", README, re.MULTILINE)) == 2


def test_the_table_of_datasets_is_made_from_the_manifests() -> None:
    page = (blocks.ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    spec = importlib.util.spec_from_file_location(
        "make_datasets", blocks.ROOT / "docs" / "make_datasets.py"
    )
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mt3data.datasets.manifest, "_folder", lambda: REAL)
        spec.loader.exec_module(made)
        assert made.with_table(page) == page, "run: python docs/make_datasets.py"
        changed = page.replace("| `slakh` |", "| `slack` |")  # the control
        assert changed != page and made.with_table(changed) == page


def test_the_readme_says_the_exit_codes_of_the_commands() -> None:
    from mt3data.terminal import EXIT_CODES

    assert EXIT_CODES in " ".join(README.split())
