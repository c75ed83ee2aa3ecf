"""The output of download, verify and build, with a publisher of Slakh on 127.0.0.1."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from publishers import published, run
from server import Publisher, publisher

from mt3data.datasets import manifest
from mt3data.download.state import STATE


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    """A publisher of Slakh, and a folder of manifests that sends us to it."""
    monkeypatch.chdir(tmp_path)
    with publisher() as served:
        ours = published("slakh", served, tmp_path / "publisher")
        monkeypatch.setattr(manifest, "_folder", lambda: ours)
        yield served


def test_a_folder_of_other_things_is_not_downloaded_into(web: Publisher, tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "letters").mkdir()
    result = run("build", "slakh", "--root", "music", "--out", "shards")
    assert result.exit_code == 2
    assert "music holds no Slakh2100 tracks" in result.stderr
    assert web.requests == []


def test_verify_lists_faults_and_exits_with_1(web: Publisher, tmp_path: Path) -> None:
    assert run("download", "slakh", "--stream").exit_code == 0
    tracks = tmp_path / "data" / "slakh" / "slakh2100_flac_redux" / "train" / "Track00001"
    (tracks / "mix.flac").unlink()
    (tracks / "notes.txt").write_text("mine")
    result = run("verify", "slakh")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].endswith(", 2 faults")
    below = "slakh2100_flac_redux/train/Track00001"
    assert result.stdout.splitlines()[:2] == [
        f"missing: {below}/mix.flac (no such file)",
        f"extra: {below}/notes.txt (not part of the dataset)",
    ]
    result = json.loads(run("verify", "slakh", "--json").stdout)
    assert [fault["kind"] for fault in result["faults"]] == ["missing", "extra"]


def test_downloaded_files_are_printed(web: Publisher, tmp_path: Path) -> None:
    first, kept = run("download", "slakh").stdout.splitlines()
    assert first == (
        "data/slakh: 1 of 2 sources are complete and verified; nothing else is needed (optional, "
        "with --source: babyslakh_16k)"
    )
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
