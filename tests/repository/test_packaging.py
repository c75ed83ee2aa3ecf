"""What is handed out: the wheel and the sdist, their metadata, and what they depend on."""

import email
import importlib.util
import json
import re
import subprocess
import sys
import tarfile
import warnings
import zipfile
from email.message import Message
from pathlib import Path, PurePosixPath

import needs
import pytest
from packages import MODULE_OF, PACKAGES, PROJECT, ROOT, calls, imported

import mt3data
import mt3train
from mt3data.errors import UserError, install_hint, require_package

# What no line of ours imports, and why it is declared all the same.
NOT_IMPORTED: dict[str, str] = {}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this tree, made by hatchling alone."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds wheels, is not installed (extra `dev`)")
    folder = tmp_path_factory.mktemp("built")
    build(ROOT, folder, "wheel", "sdist")
    return folder


def build(tree: Path, out: Path, *targets: str) -> None:
    words = [word for target in targets for word in ("-t", target)]
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", *words, "-d", out],
        cwd=tree, check=True, capture_output=True,
    )  # fmt: skip


def wheel_names(folder: Path) -> set[str]:
    """The files of the packages in a wheel, without its own records."""
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        return {name for name in wheel.namelist() if ".dist-info/" not in name}


def sdist_names(folder: Path) -> set[str]:
    """The files of an sdist, below its one folder."""
    (path,) = folder.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        return {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in sdist.getnames()}


def metadata(folder: Path) -> Message:
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(wheel.read(name))


def in_repository() -> list[str]:
    """The files of the repository, those that wait to be committed included."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout, so the list of its files is unknown")
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_the_wheel_holds_both_packages_and_the_manifests_and_nothing_else(built: Path) -> None:
    ours = {name for name in in_repository() if name.startswith(("mt3data/", "mt3train/"))}
    manifests = {f"mt3data/{name}" for name in in_repository() if name.startswith("manifests/")}
    assert wheel_names(built) == ours | manifests


def test_the_sdist_holds_the_repository_but_for_what_git_alone_needs(built: Path) -> None:
    assert set(in_repository()) - sdist_names(built) <= {".gitattributes"}


def test_the_sdist_makes_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    build(tree, tmp_path / "again", "wheel")
    assert wheel_names(tmp_path / "again") == wheel_names(built)


def test_the_metadata_are_those_of_pyproject(built: Path) -> None:
    found = metadata(built)
    assert (found["Name"], found["Version"]) == ("mt3kit", mt3data.__version__)
    assert found["Requires-Python"] == ">=3.11"
    assert (found["License-Expression"], found.get_all("License-File")) == (
        "Apache-2.0",
        ["LICENSE"],
    )
    assert set(found.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert found["Description-Content-Type"] == "text/markdown"


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert mt3train.__version__ == mt3data.__version__
    cited = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == [mt3data.__version__]
    (latest, *_) = re.findall(
        r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert latest == mt3data.__version__


@pytest.mark.parametrize("command", ["mt3data", "mt3train"])
def test_each_command_is_a_function_that_is_there(command: str) -> None:
    module, _, function = PROJECT["scripts"][command].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


COMMANDS = [
    (program, command)
    for program in PACKAGES
    for command in ("", *importlib.import_module(f"{program}.cli.main").main.commands)
]


def cpu_seconds(*words: str) -> float:
    """Runs Python with these arguments. Returns the processor time that it took."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@needs.posix
@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_help_takes_little_more_time_than_python_and_click(program: str, command: str) -> None:
    # The limit is 0.25 s where Python starts in 0.05 s. To import torch takes 30 times as long.
    limit = 5 * cpu_seconds("-c", "import click")
    assert cpu_seconds("-m", f"{program}.cli.main", *command.split(), "--help") < limit


@pytest.mark.parametrize("kind", [DeprecationWarning, FutureWarning, UserWarning])
@pytest.mark.parametrize("module", ["mt3data.anything", "mt3train.anything"])
def test_a_warning_that_points_at_our_code_is_an_error(kind: type[Warning], module: str) -> None:
    with pytest.raises(kind):
        exec("import warnings\nwarnings.warn('old', kind)", {"__name__": module, "kind": kind})


def test_a_warning_that_points_at_other_code_is_none() -> None:
    with warnings.catch_warnings(record=True) as caught:
        exec("import warnings\nwarnings.warn('old', UserWarning)", {"__name__": "elsewhere"})
    assert [str(warning.message) for warning in caught] == ["old"]


def test_classifiers_name_the_python_versions_that_are_supported() -> None:
    versions = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert versions == ["3.11", "3.12", "3.13"]


def declared() -> dict[str, str]:
    """The module that each runtime dependency is imported as, by the dependency's name."""
    extras = PROJECT["optional-dependencies"]
    optional = [line for name in extras if name not in ("dev", "bench") for line in extras[name]]
    names = [re.match(r"[\w.-]+", line)[0] for line in PROJECT["dependencies"] + optional]  # type: ignore[index]
    return {name: MODULE_OF.get(name, name) for name in names}


def test_every_dependency_is_imported_and_every_import_is_declared() -> None:
    needed = {module for name, module in declared().items() if name not in NOT_IMPORTED}
    assert needed <= imported() <= set(declared().values())


def test_a_dependency_that_is_not_imported_is_still_declared() -> None:
    assert set(NOT_IMPORTED) <= set(declared())


def test_constraints_pin_every_dependency_that_set_up_installs() -> None:
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + [
        line for name in extras if name not in ("bench", "wandb") for line in extras[name]
    ]
    names = {re.match(r"[\w.-]+", line)[0] for line in wanted}  # type: ignore[index]
    assert {plain(name) for name in names} <= {plain(name) for name in pinned}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_one_function_advises_what_to_install_and_its_extras_are_declared() -> None:
    texts = {
        path: path.read_text("utf-8") for name in PACKAGES for path in (ROOT / name).rglob("*.py")
    }
    assert [path.name for path, text in texts.items() if "pip install" in text] == ["errors.py"]
    extras = PROJECT["optional-dependencies"]
    hints = [words for words in calls("install_hint") if words]
    hints.remove([None])  # of `require_package`, whose own calls are checked below
    assert hints and all(extra in extras for (extra,) in hints)
    assert "pip install '.[dask]'" in install_hint("dask")
    assert "pip install '.'" in install_hint()


def test_every_optional_package_is_asked_for_by_the_extra_that_brings_it() -> None:
    asked = {(module, extra) for module, extra, *_ in calls("require_package")}
    declared_in = {
        (MODULE_OF.get(name, name), extra)
        for extra, lines in PROJECT["optional-dependencies"].items()
        for name in (re.match(r"[\w.-]+", line)[0] for line in lines)  # type: ignore[index]
    }
    assert asked <= declared_in
    assert {extra for _, extra in asked} == {"analysis", "dask", "notation", "synth", "wandb"}


def test_a_missing_package_is_one_line_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require_package("numpy", "analysis", "this test")
    monkeypatch.setitem(sys.modules, "librosa", None)
    with pytest.raises(UserError) as caught:
        require_package("librosa", "analysis", "--align dtw")
    assert str(caught.value) == (
        "--align dtw needs librosa, which is not installed; " + install_hint("analysis")
    )


def test_the_citation_names_the_paper() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for fact in ("Gardner", "Simon", "Manilow", "Hawthorne", "Engel", "2111.03017", "year: 2022"):
        assert json.dumps(fact)[1:-1] in text
