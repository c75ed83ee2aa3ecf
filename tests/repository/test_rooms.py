"""Holds the order of the rooms, and which libraries each use of the packages may load."""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest

import mt3data
import mt3train

ROOT = Path(__file__).resolve().parents[2]

# A module imports only its own room and rooms before it. `errors`, `files` and others that are
# modules of the package itself count as rooms.
ROOMS = [
    *(f"mt3data.{room}" for room in "system errors terminal files schema".split()),
    *(f"mt3data.{room}" for room in "music audio datasets synth align download shards".split()),
    *(f"mt3data.{room}" for room in "build report cli".split()),
    *(f"mt3train.{room}" for room in "device model weights config data transcription".split()),
    *(f"mt3train.{room}" for room in "evaluation training page train cli".split()),
]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("mt3data", "mt3train")
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
)


def room(module: str) -> str:
    """Returns the room of a module: "mt3data.music" for "mt3data.music.notes"."""
    return ".".join(module.split(".")[:2])


def imported_rooms(module: str) -> set[str]:
    tree = ast.parse((ROOT / Path(*module.split("."))).with_suffix(".py").read_text("utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {room(name) for name in names} & set(ROOMS)


def test_every_module_is_in_a_room() -> None:
    assert {room(module) for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_its_room_and_rooms_before_it(module: str) -> None:
    allowed = ROOMS[: ROOMS.index(room(module)) + 1]
    assert imported_rooms(module) - set(allowed) == set()


def test_no_module_beside_train_py_has_a_name_of_the_standard_library() -> None:
    names = {path.stem for path in (ROOT / "mt3train").iterdir() if path.suffix in ("", ".py")}
    assert not names & sys.stdlib_module_names


@pytest.mark.parametrize("module, most", [("train", 230), ("model", 350)])
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
    loaded = loaded_after(" ".join(f"import {m};" for m in MODULES if m.startswith("mt3data.")))
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


# The files of the original that a `Source:` line may name.
ORIGINALS = set(
    "datasets event_codec inference layers metrics metrics_utils mixing models network note_sequences "
    "preprocessors run_length_encoding spectral_ops spectrograms summaries tasks vocabularies".split()
)


def test_cited_files_exist_in_the_original() -> None:
    cited = {
        name
        for module in MODULES
        for name in re.findall(
            r"\bmt3/(\w+)\.py",
            (ROOT / Path(*module.split("."))).with_suffix(".py").read_text("utf-8"),
        )
    }
    assert "note_sequences" in cited
    assert cited <= ORIGINALS


@pytest.mark.parametrize("package", [mt3data, mt3train])
def test_public_names_are_listed_once_for_people_and_tools(package: ModuleType) -> None:
    tree = ast.parse(Path(str(package.__file__)).read_text("utf-8"))
    seen_by_tools = {
        alias.name: node.module
        for block in tree.body if isinstance(block, ast.If)
        for node in block.body if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    at_run_time = {
        name: f"{package.__name__}.{module}"
        for module, names in package._MODULES.items()
        for name in names.split()
    }
    assert seen_by_tools == at_run_time
    assert sorted(seen_by_tools) == sorted(package.__all__)
    for name, module in at_run_time.items():
        assert getattr(package, name).__module__ == module


def test_importing_the_packages_loads_no_library() -> None:
    assert not loaded_after("import mt3data, mt3train") & {"torch", "numpy", "pyarrow", "click"}
    assert "numpy" in loaded_after("from mt3data import Notes")  # the control


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'mt3data' has no attribute 'Note'"):
        mt3data.Note  # noqa: B018


@pytest.mark.parametrize("command", ["mt3data", "mt3train"])
def test_help_loads_nothing_heavy(command: str) -> None:
    loaded = loaded_after(f"import {command}.cli.main")
    assert not loaded & {"torch", "numpy", "scipy", "pyarrow", "note_seq", "tqdm"}


def test_pytest_skips_no_folder_of_tests(pytestconfig: pytest.Config) -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    folders = {part for path in files for part in path.relative_to(ROOT).parent.parts}
    assert {"tests", "build", "training"} <= folders
    skipped = pytestconfig.getini("norecursedirs")
    assert [(one, by) for one in folders for by in skipped if fnmatch(one, by)] == []
