"""The commands, as a user types them: results, exit codes, one line for a mistake."""

import json
import subprocess
import sys
from pathlib import Path

import fakes
import pytest
from click.testing import CliRunner, Result

from mt3data.cli import main


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    fakes.slakh_tree(folder, "redux", seconds=2.5)
    result = run(
        "build",
        "slakh",
        "--root",
        folder,
        "--out",
        folder / "shards",
        "--window",
        256,
        "--workers",
        1,
    )
    assert result.exit_code == 0, result.output
    assert "train" in result.stdout
    return folder / "shards"


def test_a_build_can_be_checked_described_and_drawn(shards: Path, tmp_path: Path) -> None:
    checked = run("check", shards)
    assert (checked.exit_code, checked.stdout.split()[-1]) == (0, "whole")
    assert "slakh: Slakh2100, window 256, edge segment" in run("info", shards).stdout
    assert set(json.loads(run("info", shards, "--json").stdout)[str(shards / "slakh")]["splits"]) == {
        "train", "validation", "test",
    }  # fmt: skip
    drawn = run(
        "show", shards / "slakh", "slakh-Track00001-p0-0000000", "--out", tmp_path / "a.png"
    )
    assert "tie · shift 10 · program 0 · velocity 1 · pitch" in drawn.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_datasets_are_listed() -> None:
    assert "slakh" in run("list").stdout
    assert json.loads(run("list", "slakh", "--json").stdout)["licence"] == "CC-BY-4.0"


def test_a_quarantined_track_is_named_and_the_exit_code_tells(tmp_path: Path) -> None:
    fakes.slakh_tree(tmp_path, "redux", missing_mix=["Track00001"])
    words = ("build", "slakh", "--root", tmp_path, "--out", tmp_path / "out", "--workers", 1)
    result = run(*words)
    assert result.exit_code == 1
    assert "quarantined Track00001 (plan): no mix" in result.stdout
    assert run(*words, "--max-failures", 1).exit_code == 0


def test_faults_of_a_build_are_listed_and_the_exit_code_tells(shards: Path) -> None:
    stray = shards / "slakh" / "stray.tar"
    stray.write_bytes(b"")
    result = run("check", shards)
    stray.unlink()
    assert result.exit_code == 1
    assert "slakh: stray.tar: not part of this build" in result.stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["build", "slak"], "no dataset 'slak' (did you mean 'slakh'?)"),
        (["build", "slakh", "--root", "nowhere"], "the folder does not exist"),
        (["build", "slakh", "--window", "0"], "must be at least 1"),
        (["build", "slakh", "--workers", "0"], "--workers 0"),
        (["build", "slakh", "--engine", "nonsense"], "--engine nonsense: expected local"),
        (["build", "slakh", "--track-timeout", "nan"], "--track-timeout nan: expected 0 to"),
        (["build", "slakh", "--track-timeout", "1e99"], "--track-timeout 1e+99: expected 0 to"),
        (["build", "slakh", "--velocity-bins", "500"], "expected 1 to 127"),
        (["check", "nowhere"], "no such folder"),
        (["info", "nowhere"], "no such folder"),
        (["show", "nowhere", "KEY", "--out", "a.png"], "no such folder"),
        (["list", "maestroo"], "no dataset 'maestroo'"),
        (["synth", "--out", "x", "--midi", "nowhere"], "not a folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*words)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_path_that_cannot_be_used_is_one_line_and_exit_code_2(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        (shards / "slakh" / "manifest.json" / "x").mkdir()

    monkeypatch.setattr("mt3data.shards.read_manifest", fail)
    result = run("info", shards)
    assert result.exit_code == 2
    assert "manifest.json/x: Not a directory; choose another path" in result.stderr


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mt3data.manifest.names", lambda: 1 / 0)
    assert isinstance(run("list").exception, ZeroDivisionError)


def test_an_interruption_is_one_line_and_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("mt3data.manifest.names", interrupt)
    result = run("list")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


@pytest.mark.parametrize("module", ["mt3data.cli", "mt3train.cli"])
def test_help_of_every_command_has_an_example(module: str) -> None:
    import importlib

    commands = importlib.import_module(module).main.commands
    for name, command in commands.items():
        assert f"Example: {module.split('.')[0]} {name}" in command.help.replace(
            "Examples", "Example"
        )


def test_demo_pieces_are_rendered_first_when_they_are_not_there(tmp_path: Path) -> None:
    pytest.importorskip("midirenderer", reason="the renderer (extra `synth`) is not installed")
    words = [
        sys.executable,
        "-m",
        "mt3data.cli",
        "build",
        "demo",
        "--tracks",
        "1",
        "--window",
        "256",
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "demo" / "train" / "Track00001" / "mix.flac").is_file()
    assert (tmp_path / "shards" / "demo" / "manifest.json").is_file()
