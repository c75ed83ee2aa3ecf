"""One run at a time in a folder: a second one is told, or waits and says so."""

import threading
from pathlib import Path

import pytest

from mt3data import files as disk
from mt3data.errors import UserError


def test_a_second_run_is_refused_in_one_line(tmp_path: Path) -> None:
    with (
        disk.file_lock(tmp_path / "lock"),
        pytest.raises(UserError, match="^at work there; wait for it or stop it$"),
        disk.file_lock(tmp_path / "lock", "at work there"),
    ):
        pass


@pytest.mark.parametrize("silently", [0.0, 600.0])
def test_a_run_that_waits_says_so_unless_the_other_is_soon_done(
    silently: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(disk, "WAIT_SILENTLY_SECONDS", silently)
    trying, got = threading.Event(), threading.Event()
    flock = disk._lock

    def tried(*arguments: object) -> None:
        try:
            flock(*arguments)  # type: ignore[arg-type]
        finally:
            trying.set()

    def second() -> None:
        with disk.file_lock(tmp_path / "lock"):
            got.set()

    thread = threading.Thread(target=second)
    with disk.file_lock(tmp_path / "lock"):
        monkeypatch.setattr(disk, "_lock", tried)
        thread.start()
        if not silently:
            assert trying.wait(10)
        assert not got.is_set()
    thread.join(10)
    assert got.is_set()
    said = f"{tmp_path}: another run is at work there; waiting for it\n"
    assert capsys.readouterr().err == ("" if silently else said)
