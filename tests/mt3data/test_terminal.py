"""Lines about progress, where stderr is no terminal."""

import pytest

from mt3data import terminal


@pytest.mark.parametrize(
    ("done", "after", "line"),
    [
        (2, 41, "evaluate: 2/12 tracks, 20.5 s per track, 0:00:41 so far, 0:03:25 left"),
        (10, 4, "evaluate: 10/12 tracks, 2.50 tracks/s, 0:00:04 so far, 0:00:01 left"),
        (0, 9, "evaluate: 0/12 tracks, 0:00:09 so far"),
    ],
)
def test_a_progress_line_says_the_pace_in_words(
    done: int,
    after: float,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter([0.0, after])
    monkeypatch.setattr(terminal, "LINE_EVERY_SECONDS", after)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(times, after))
    with terminal.progress(12, "evaluate", "tracks") as bar:
        bar.update(done)
    assert capsys.readouterr().err == line + "\n"


def test_what_was_done_before_does_not_count_for_the_pace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 10.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(times, 10.0))
    with terminal.progress(5000.0, "archive", "MB", done=4000.0) as bar:
        bar.update(20.0)
    assert "4,020/5,000 MB, 2.00 MB/s" in capsys.readouterr().err


def test_short_work_needs_no_progress_line(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress(3, "verify", "files") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
