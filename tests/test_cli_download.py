"""The commands download, verify and build against a publisher on 127.0.0.1, from manifest to shards."""

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fakes
import pytest
from click.testing import CliRunner, Result
from server import Fault, Publisher, publisher

from mt3data import manifest
from mt3data.cli import main
from mt3data.ledger import STATE

ARCHIVE = "/records/4599666/files/slakh2100_flac_redux.tar.gz"
BUILD = ("--window", 256, "--workers", 1, "--out")


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Three tracks of Slakh as their publisher packs them."""
    root = tmp_path_factory.mktemp("slakh")
    fakes.slakh_tree(root, "redux", {**fakes.SLAKH_TRACKS, "Track00003": "omitted"}, seconds=2.5)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.add(root / "slakh2100_flac_redux", "slakh2100_flac_redux")
    return content.getvalue()


@pytest.fixture
def web(packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    """A publisher of Slakh, and a folder of manifests that sends us to it."""
    monkeypatch.chdir(tmp_path)
    with publisher({ARCHIVE: packed}) as served:
        real, ours = manifest._folder(), tmp_path / "manifests"
        ours.mkdir()
        text = (real / "slakh.toml").read_text().replace("https://zenodo.org", served.url)
        text = re.sub(r"bytes = 104[_\d]+", f"bytes = {len(packed)}", text)
        text = text.replace("f4b71b6c45ac9b506f59788456b3f0c4", hashlib.md5(packed).hexdigest())
        (ours / "slakh.toml").write_text(text)
        (ours / "slakh.csv").write_bytes((real / "slakh.csv").read_bytes())
        monkeypatch.setattr(manifest, "_folder", lambda: ours)
        yield served


def shards(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*.tar"))}


def test_one_command_goes_from_the_publisher_to_shards(web: Publisher, tmp_path: Path) -> None:
    result = run("build", "slakh", *BUILD, "shards")
    assert result.exit_code == 0, result.output
    assert "data/slakh is absent or unfinished: downloading" in result.stderr
    assert len(shards(tmp_path / "shards")) == 3
    assert run("verify", "slakh").stdout.endswith("files, whole\n")
    again = run("build", "slakh", *BUILD, "shards")
    assert "already complete" in again.stderr
    assert len(web.requests) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from mt3data import manifest
from mt3data.ledger import MemberLog
manifest._folder = lambda: Path("manifests").resolve()
add, left = MemberLog.add, int(sys.argv[1])
def dying(self, entry):
    if left and len(self.entries) == left:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, entry)
MemberLog.add = dying
from mt3data.cli import main
main(["build", "slakh", "--window", "256", "--workers", "1", "--out", "shards"])
"""


def test_a_build_killed_in_download_and_in_unpacking_ends_with_the_same_shards(
    web: Publisher, tmp_path: Path
) -> None:
    assert run("download", "slakh", "--root", "other").exit_code == 0
    assert run("build", "slakh", "--root", "other", *BUILD, "undisturbed").exit_code == 0
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    words = {"env": os.environ | {"PYTHONPATH": path}, "stderr": subprocess.DEVNULL}

    web.faults[ARCHIVE] = [Fault(hang_after=len(web.files[ARCHIVE]) // 2)]
    process = subprocess.Popen([sys.executable, "-c", KILLED, "0"], **words)  # type: ignore[call-overload]
    assert web.hanging.wait(30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.run([sys.executable, "-c", KILLED, "7"], **words)  # type: ignore[call-overload]
    assert again.returncode == -signal.SIGKILL
    assert run("verify", "slakh").exit_code == 1

    assert run("build", "slakh", *BUILD, "shards").exit_code == 0
    assert run("verify", "slakh").exit_code == 0
    assert shards(tmp_path / "shards") == shards(tmp_path / "undisturbed")


def test_a_folder_of_other_things_is_not_downloaded_into(web: Publisher, tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "letters").mkdir()
    result = run("build", "slakh", "--root", "music", *BUILD, "shards")
    assert result.exit_code == 2
    assert "music holds no Slakh2100 tracks" in result.stderr
    assert web.requests == []


def test_verify_lists_faults_and_its_exit_code_tells(web: Publisher, tmp_path: Path) -> None:
    assert run("download", "slakh", "--stream").exit_code == 0
    tracks = tmp_path / "data" / "slakh" / "slakh2100_flac_redux" / "train" / "Track00001"
    (tracks / "mix.flac").unlink()
    (tracks / "notes.txt").write_text("mine")
    result = run("verify", "slakh")
    assert result.exit_code == 1
    below = "slakh2100_flac_redux/train/Track00001"
    assert result.stdout.splitlines()[:2] == [
        f"missing: {below}/mix.flac (no such file)",
        f"extra: {below}/notes.txt (not part of the dataset)",
    ]


def test_what_was_downloaded_is_said(web: Publisher, tmp_path: Path) -> None:
    first, kept = run("download", "slakh").stdout.splitlines()
    assert first == "data/slakh: 1 of 2 sources are there and were checked"
    assert kept.startswith(f"  archives in data/slakh/{STATE} (")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["download", "slak"], "did you mean 'slakh'"),
        (["download", "slakh", "--from", "no.tar.gz"], "--from no.tar.gz: there is no such file"),
        (["download", "slakh", "--source", "x"], "slakh has no source 'x'; it has babyslakh_16k"),
        (["verify", "slakh"], "data/slakh does not exist"),
        (["build", "slakh", "--no-download"], "the folder does not exist"),
        (["build", "slakh", "--root", "nowhere"], "the folder does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    web: Publisher, words: list[str], complaint: str
) -> None:
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1
    assert web.requests == []
