"""What the commands print, and what happens where nobody can read it."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import needs
import pytest
from click.testing import CliRunner
from events import HANG_SECONDS

from mt3data import terminal
from mt3data.cli.main import main
from mt3data.errors import UserError


@pytest.mark.parametrize(
    ("done", "after", "line"),
    [
        (2, 41, "evaluate: 2/12 tracks, 20.5 s per track, 0:00:41 so far, 0:03:25 left"),
        (10, 4, "evaluate: 10/12 tracks, 2.50 tracks/s, 0:00:04 so far, 0:00:01 left"),
        (0, 9, "evaluate: 0/12 tracks, 0:00:09 so far"),
    ],
)
def test_a_progress_line_has_the_pace_in_words(
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2J\x07\r", "a\\u001b[2J\\u0007\\u000d"),
        ("\x9b31m", "\\u009b31m"),
        ("one\u202eenog", "one\\u202eenog"),
        ("\udce9.wav", "\\udce9.wav"),
        ("café\tthree\nfour", "café\tthree\nfour"),
    ],
)
def test_characters_that_steer_a_terminal_are_printed_as_escapes(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.echo(text)
    assert capsys.readouterr().out == shown + "\n"


def test_an_error_of_the_python_interface_holds_no_characters_that_steer_a_terminal() -> None:
    error = UserError("a\x1b[2J\udce9.wav: no audio")
    assert str(error) == "a\\u001b[2J\\udce9.wav: no audio"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("value", ["v" * 100_000, "v " * 50_000, "v " * 500 + "v" * 1000])
def test_a_long_value_in_a_message_is_shortened_and_the_rest_of_it_stays(value: str) -> None:
    message = f"config.toml: run is {value}; expected a folder"
    text = terminal.one_line(message)
    assert len(text) <= 2000 and "..." in text
    assert text.startswith(f"config.toml: run is {value[:100]}")
    assert text.endswith("; expected a folder")


@pytest.mark.parametrize("length", [1, 399])
def test_messages_of_usual_length_stay_as_they_are(length: int) -> None:
    message = f"{'p' * length}  {'q' * 394}.wav: no such file"
    assert str(UserError(message)) == terminal.one_line(message) == message


def test_a_mistake_on_the_command_line_is_printed_shortened() -> None:
    for words in (["info", "n" * 9000], ["list", "--" + "n" * 9000], ["list", "n" * 9000]):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 2 and 20 < len(done.stderr) < 2100, done.stderr
        assert done.stderr.count("\n") == 1 and "nnn..." in done.stderr


def test_json_with_such_characters_stays_the_same_json(capsys: pytest.CaptureFixture[str]) -> None:
    name = "café\x1b\x9b\udce9"
    terminal.print_json({"name": name})
    printed = capsys.readouterr().out
    assert "café" in printed and "\x1b" not in printed and "\x9b" not in printed
    assert json.loads(printed) == {"name": name}


def test_commands_print_with_echo_alone() -> None:
    packages = Path(__file__).resolve().parents[2]
    for room in ("mt3data/cli", "mt3train/cli"):
        for path in (packages / room).glob("*.py"):
            assert not re.search(r"click\.s?echo\(|\bprint\(", path.read_text("utf-8")), path


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a line of sh, in which `mt3data` is ours."""
    line = f'mt3data() {{ "{sys.executable}" -m mt3data.cli.main "$@"; }}; {line}'
    return subprocess.run(
        ["sh", "-c", line], cwd=folder, capture_output=True, text=True, check=False, timeout=HANG_SECONDS,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip


@needs.posix
@pytest.mark.parametrize(
    ("line", "code", "complaint"),
    [
        ("mt3data list 2>&-", 0, ""),
        ("mt3data info nosuch 2>/dev/full", 2, ""),
        ("mt3data list slakh >&-", 0, ""),
        ("mt3data verify slakh --root . <&- >&- 2>&-", 2, ""),
        ("mt3data verify slakh --root . >&-", 2, "Error: "),
        ("mkdir gone; cd gone; rmdir ../gone; mt3data list", 2, "working directory"),
    ],
)
def test_closed_streams_and_a_deleted_folder_give_no_traceback(
    line: str, code: int, complaint: str, tmp_path: Path
) -> None:
    done = shell(line, tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert complaint in done.stderr
    assert done.stderr.count("\n") == bool(complaint)


def test_a_file_that_is_opened_never_becomes_stderr(tmp_path: Path) -> None:
    code = (
        "from mt3data import terminal; terminal.open_missing_streams(); file = open('data', 'w'); "
        "terminal.echo('message', err=True); assert file.fileno() > 2"
    )
    done = shell(f'"{sys.executable}" -c "{code}" 2>&-', tmp_path)
    assert (done.returncode, (tmp_path / "data").read_text()) == (0, "")


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert terminal.PATH.convert("~/shards", None, None) == Path("/home/me/shards")
    assert terminal.PATH.convert("~shards", None, None) == Path("~shards")


def test_a_pipe_whose_reader_is_gone_ends_the_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "mt3data.cli.main", "list"], stdout=writer, stderr=subprocess.PIPE,
        check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
