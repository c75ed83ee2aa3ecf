"""The house: who may import whom, and what stays out of which process."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The reading order. A module imports only what stands before it.
MT3DATA = (
    "errors terminal disk vocabulary notes sequences midi events tokens merging detokenize audio spectrogram "
    "windows manifest catalogue track mix DATASETS players compose render "
    "synth align warp shards shard_writer ledger transport ranges unpack fetch "
    "download verify agreement records tables reader tar stream cache rows plan examples "
    "attempts worker engine card assemble claim build forecast check picture "
    "markup survey charts figures report cli_sources cli_builds cli"
).split()
MT3TRAIN = (
    "model loss optim config checkpoint features mixing streamed sources data resume device ranks log "
    "stepper search grammar decode ruled transcribe matching pianoroll instruments metrics segments "
    "evaluate results validation train t5x convert plot demo note_files page demo_weights "
    "cli_scores cli_transcribe cli"
).split()
# Adapters: two that others build on, then all in the order of their names; a new one needs no line here.
SHARED = ["slakh", "listed"]
FOUND = sorted(path.stem for path in (ROOT / "mt3data" / "datasets" / "adapters").glob("[a-z]*.py"))
PLACE = MT3DATA.index("DATASETS")
MT3DATA[PLACE : PLACE + 1] = [
    f"datasets.{name}" for name in [*SHARED, *(n for n in FOUND if n not in SHARED)]
]
ORDER = [f"mt3data.{name}" for name in MT3DATA] + [f"mt3train.{name}" for name in MT3TRAIN]


def modules(package: str) -> set[str]:
    paths = (ROOT / package).rglob("*.py")
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return {name for name in names if not name.endswith("__init__")}


def imports(module: str) -> set[str]:
    tree = ast.parse((ROOT / Path(*module.split("."))).with_suffix(".py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(ORDER)


def test_every_module_has_its_place_in_the_reading_order() -> None:
    assert modules("mt3data") | modules("mt3train") == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_what_stands_before_it(module: str) -> None:
    assert imports(module) <= set(ORDER[: ORDER.index(module)])


def test_the_list_of_modules_names_those_of_mt3train_in_this_order() -> None:
    text = (ROOT / "docs" / "modules.md").read_text()
    lines = text[text.index("\nmt3train/  ") : text.index("\ntests/  ")].splitlines()
    columns = [part.strip().split(", ") for line in lines for part in line.split("  ")]
    assert [name for names in columns if set(names) <= set(MT3TRAIN) for name in names] == MT3TRAIN


def test_no_module_that_lies_beside_train_py_hides_one_of_the_standard_library() -> None:
    assert not set(MT3TRAIN) & sys.stdlib_module_names


@pytest.mark.parametrize("module, most", [("train", 300), ("model", 350)])
def test_the_trainer_and_the_model_can_be_read_in_one_sitting(module: str, most: int) -> None:
    assert len((ROOT / "mt3train" / f"{module}.py").read_text().splitlines()) <= most


def loaded_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running code."""
    script = f"{code}\nimport sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_building_never_loads_torch() -> None:
    names = " ".join(f"import mt3data.{name};" for name in MT3DATA)
    loaded = loaded_after(names)
    assert not loaded & {
        "torch",
        "mt3train",
        "note_seq",
        "librosa",
        "pyarrow",
        "matplotlib",
        "pandas",
    }


def test_training_and_transcribing_stay_within_few_libraries(tmp_path: Path) -> None:
    code = f"""
import numpy, pyarrow.parquet, pretty_midi, tqdm
import mt3train.train, mt3train.transcription.transcribe, mt3train.weights.convert, mt3data.shards.reader
from mt3data.music.midi import write_midi
from mt3data.music.notes import Notes
write_midi(Notes.empty(), {str(tmp_path / "empty.mid")!r})
"""
    assert not loaded_after(code) & {
        "note_seq", "librosa", "pandas", "matplotlib", "joblib", "sklearn", "numba", "midirenderer",
        "mir_eval", "transformers", "jax", "flax", "t5x", "tensorstore", "zarr", "msgpack",
    }  # fmt: skip


@pytest.mark.parametrize("command", ["mt3data", "mt3train"])
def test_help_loads_nothing_heavy(command: str) -> None:
    loaded = loaded_after(f"import {command}.cli")
    assert not loaded & {"torch", "numpy", "scipy", "pyarrow", "note_seq", "tqdm"}
