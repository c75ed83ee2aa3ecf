"""The wheel, built from this checkout and installed beside it: what a user gets, far from the source.

Nothing is downloaded: hatchling must be installed, and the other packages are those of the running
interpreter, which the new environment sees through a .pth file.
"""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from recordings import record, save_model

from mt3data.music.midi import read_midi
from mt3data.music.vocabulary import VocabularyConfig

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = {"mt3data": "mt3data", "mt3train": "mt3train", "manifests": "mt3data/manifests"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("hatchling") is None,
        reason="hatchling, which builds the wheel, is not installed",
    ),
]


@dataclass(frozen=True)
class Installed:
    """A wheel and an environment that holds it.

    Attributes:
        names: the files in the wheel.
        bin: folder of the environment's commands.
        empty: a folder to run them in.
    """

    names: frozenset[str]
    bin: Path
    empty: Path

    def run(self, command: str, *words: object) -> subprocess.CompletedProcess[str]:
        """A command of the environment, as if typed in the empty folder."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return subprocess.run(
            [self.bin / command, *map(str, words)],
            cwd=self.empty, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip


def pip(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("mt3kit-*.whl")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    packages = [path for path in sys.path if path.endswith("-packages")]
    (site / "others.pth").write_text("\n".join(packages))
    (folder / "empty").mkdir()
    names = frozenset(zipfile.ZipFile(wheel).namelist())
    return Installed(names, python.parent, folder / "empty")


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(installed: Installed) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    wanted = {PACKAGED[name.split("/")[0]] + name[name.index("/") :] for name in tracked}
    found = {name for name in installed.names if ".dist-info/" not in name}
    assert found == wanted
    for name in ("mt3data/report/templates/report.html", "mt3data/manifests/slakh.toml", "mt3data/py.typed",
                 "mt3train/configs/small.toml", "mt3train/py.typed"):  # fmt: skip
        assert name in found


def test_it_is_the_wheel_that_runs(installed: Installed) -> None:
    """The control of the tests below: they do not see the checkout."""
    done = installed.run("python", "-c", "import mt3train, mt3data; print(mt3train.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(installed.bin.parent)


def test_the_datasets_are_listed_from_an_empty_folder(installed: Installed) -> None:
    done = installed.run("mt3data", "list")
    assert done.returncode == 0, done.stderr
    for name in ("slakh", "maestro_v3", "urmp"):
        assert name in done.stdout


def test_one_command_turns_a_recording_into_midi_and_a_page(installed: Installed) -> None:
    song = record(installed.empty / "song.wav", 3.0)
    model = save_model(installed.bin.parent / "tiny.safetensors", VocabularyConfig())
    done = installed.run(
        "mt3train",
        "transcribe",
        song,
        "--checkpoint",
        model,
        "-o",
        "song.mid",
        "-o",
        "song.html",
    )
    assert done.returncode == 0, done.stderr
    n_notes = len(read_midi(installed.empty / "song.mid")[0])
    assert (f"{n_notes:,} note" if n_notes else "no notes") in done.stdout  # random weights
    page = (installed.empty / "song.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "song.wav" in page


def test_without_a_checkpoint_it_takes_the_demo_weights_or_is_refused(
    installed: Installed,
) -> None:
    song = record(installed.empty / "noise.wav")
    done = installed.run("mt3train", "transcribe", song, "-o", "noise.mid")
    if "mt3train/weights/demo.safetensors" in installed.names:
        assert done.returncode == 0, done.stderr
        assert "the demo weights" in done.stderr
        assert (installed.empty / "noise.mid").is_file()
    else:
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1 and "without demo weights" in done.stderr


def test_training_without_shards_names_the_command_that_makes_some(installed: Installed) -> None:
    done = installed.run("mt3train", "train", "small.toml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "mt3data build" in done.stderr
