"""The commands, as a user types them: results, exit codes, one line for a mistake."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path

import click
import fakes
import needs
import pytest
from click.testing import CliRunner, Result

import mt3train.cli.main
from mt3data import terminal
from mt3data.cli.main import BuildSettings, main, read_settings
from mt3data.report.plot_record import _with_times


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
    assert "slakh: Slakh2100, window 256, right_context zeros" in run("info", shards).stdout
    assert set(json.loads(run("info", shards, "--json").stdout)[str(shards / "slakh")]["splits"]) == {
        "train", "validation", "test",
    }  # fmt: skip
    drawn = run(
        "show", shards / "slakh", "slakh-Track00001-p0-0000000", "--out", tmp_path / "a.png"
    )
    assert "tie · shift 10 (0.10 s) · program 0 · velocity 1 · pitch" in drawn.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_info_prints_the_settings_and_the_lag_of_labels(shards: Path) -> None:
    printed = run("info", shards).stdout
    assert "align measure, profile fixed, seed 0, split scheme mt3" in printed
    assert re.search(r"median lag [+-]\d+ ms, \d of \d tracks? off by more than 20 ms", printed)


def test_a_part_of_a_record_is_drawn_with_its_notes_and_tokens(
    shards: Path, tmp_path: Path
) -> None:
    key = "slakh-Track00001-p0-0000000"
    whole, part = (
        run("show", shards / "slakh", key, "-o", tmp_path / f"{i}.png", *words).stdout
        for i, words in enumerate(((), ("--from", 0.2, "--to", 0.6)))
    )
    times = [float(time) for time in re.findall(r"shift \d+ \((\d\.\d\d) s\)", part)]
    assert times and 0.2 <= min(times) <= max(times) < 0.6
    assert len(part) < len(whole) and ": 0.200 to 0.600 s, " in part
    refused = run("show", shards / "slakh", key, "-o", tmp_path / "a.png", "--from", 2, "--to", 9)
    assert refused.exit_code == 2
    assert "--from 2 --to 9: expected a part of the 2.0" in refused.stderr


@needs.posix
def test_pictures_and_pages_of_a_build_go_into_devices_and_never_over_its_files(
    shards: Path, tmp_path: Path
) -> None:
    index = shards / "slakh/index/train.parquet"
    before = index.read_bytes()
    for words in (["show", shards / "slakh", "slakh-Track00001-p0-0000000"], ["report", shards]):
        assert run(*words, "-o", "/dev/null").exit_code == 0
        (tmp_path / "link.png").unlink(missing_ok=True)
        (tmp_path / "link.png").symlink_to(index)
        for out in (index, tmp_path / "link.png"):
            done = run(*words, "-o", out, "--force")
            assert done.exit_code == 2 and f"{out} is a file in the input" in done.stderr
    assert index.read_bytes() == before and Path("/dev/null").is_char_device()


def test_successive_shifts_add_up_to_the_time_of_the_next_event() -> None:
    words = ["tie", "shift 1000", "shift 409", "pitch 60", "shift 1500", "EOS"]
    assert [word for _, word in _with_times(words, 4.0, 100)] == [
        "tie", "shift 1000 (14.00 s)", "shift 409 (18.09 s)", "pitch 60", "shift 1500 (19.00 s)", "EOS",
    ]  # fmt: skip


def test_the_datasets_are_listed() -> None:
    assert "slakh" in run("list").stdout
    assert json.loads(run("list", "slakh", "--json").stdout)["licence"] == "CC-BY-4.0"


def test_a_quarantined_track_is_named_and_the_exit_code_is_1(tmp_path: Path) -> None:
    fakes.slakh_tree(tmp_path, "redux", missing_mix=["Track00001"])
    words = ("build", "slakh", "--root", tmp_path, "--out", tmp_path / "out", "--workers", 1)
    result = run(*words)
    assert result.exit_code == 1
    assert "quarantined Track00001 (plan): no mix" in result.stdout
    assert run(*words, "--max-failures", 1).exit_code == 0


def test_faults_of_a_build_are_listed_and_the_exit_code_is_1(shards: Path) -> None:
    stray = shards / "slakh" / "stray.tar"
    stray.write_bytes(b"")
    result = run("check", shards)
    stray.unlink()
    assert result.exit_code == 1
    assert "slakh: stray.tar: not part of this build" in result.stdout


def test_faults_are_counted_in_words_and_in_json(shards: Path) -> None:
    stray = shards / "slakh" / "stray.tar"
    stray.write_bytes(b"")
    as_text, as_json = run("check", shards), run("check", shards, "--json")
    stray.unlink()
    assert as_text.stdout.splitlines()[-1].endswith(", 1 fault")
    assert as_json.exit_code == 1
    (result,) = json.loads(as_json.stdout).values()
    assert result["faults"] == ["stray.tar: not part of this build; move it elsewhere"]
    assert json.loads(run("check", shards, "--json").stdout)[str(shards / "slakh")]["faults"] == []


@needs.proc
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("nonsense", "No such command 'nonsense'"),
        ("--nonsense", "No such option '--nonsense'"),
        ("build", "Missing argument 'DATASET'"),
        ("build slak", "no dataset 'slak' (did you mean 'slakh'?)"),
        ("build slakh --root nowhere", "the folder does not exist"),
        ("build slakh --split tset", "no split 'tset'; it has train, validation, test"),
        ("build slakh --split-scheme x", "slakh has no split scheme 'x'"),
        ("build slakh --window 0", "'--window': 0 is not in the range x>=1"),
        ("build slakh --tracks 0", "'--tracks': 0 is not in the range x>=1"),
        ("build slakh --workers 0", "'--workers': 0 is not in the range 1<=x<="),
        ("build slakh --seed -1", "'--seed': -1 is not in the range x>=0"),
        ("build slakh --align x", "'x' is not one of 'measure', 'off', 'shift', 'dtw'"),
        ("build slakh --engine nonsense", "--engine nonsense: expected local"),
        ("build slakh --config nowhere.toml", "nowhere.toml: cannot be read"),
        ("build slakh --config /dev/zero", "/dev/zero: a device; expected a file"),
        ("build slakh --exclude /dev/zero", "/dev/zero: a device; expected a file"),
        ("build folder --root /dev/null", "/dev/null: a device; expected a folder with audio"),
        ("check /dev/null", "/dev/null: a device; expected a build"),
        ("download slakh --from /dev/null", "--from /dev/null: a device; expected an archive"),
        ("synth -o out --soundfont /dev/zero", "SoundFont /dev/zero: a device; expected an .sf2"),
        ("build slakh --workers 1000000", "'--workers': 1000000 is not in the range 1<=x<="),
        ("build demo --no-download", "holds no demo pieces"),
        ("build slakh --exclude nowhere", "nowhere"),
        ("build slakh --nonsense", "No such option '--nonsense'"),
        ("build demo --root /proc/x", "/proc/x: No such file or directory; choose another path"),
        ("build slakh --out -", "expected the name of a file or folder, not '-'"),
        ("check -", "expected the name of a file or folder, not '-'"),
        ("check nowhere", "no such folder"),
        ("check . --workers x", "'x' is not a valid integer"),
        ("check .", "no manifest.json"),
        ("info nowhere", "no such folder"),
        ("show nowhere KEY --out a.png", "no such folder"),
        ("show nowhere KEY", "Missing option '-o' / '--out'"),
        ("report nowhere -o report.html", "no such folder"),
        ("list maestroo", "no dataset 'maestroo'"),
        ("list slakh urmp", "unexpected extra argument (urmp)"),
        ("verify slakh", "data/slakh does not exist"),
        ("download slak", "did you mean 'slakh'"),
        ("download slakh --from nowhere", "--from nowhere: there is no such file"),
        ("download slakh --cache x", "no address of a build"),
        ("download https://127.0.0.1:9/x", "name a folder for it with --cache"),
        ("synth -o x --midi nowhere", "not a folder"),
        ("synth -o x --tracks 0", "'--tracks': 0 is not in the range x>=1"),
        ("synth -o x --seconds 1", "seconds=1.0"),
        ("synth -o x --soundfont nowhere", "nowhere"),
        ("synth -o /proc/x --tracks 1", "/proc/x: No such file or directory; choose another"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if words.startswith("synth") or "/proc" in words:
        pytest.importorskip("midirenderer", reason="the renderer (extra `synth`) is not installed")
    monkeypatch.chdir(tmp_path)
    result = run(*words.split())
    assert result.exit_code == 2, result.output
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("subset = 3", "unknown key subset; did you mean subsets?"),
        ("rooms = true", "rooms are for the variants after the first; expected --variants 2"),
        ("window = 256", "unknown key window; expected subsets, min_stems, velocity_bins"),
        ("subsets = 1.5", "subsets is 1.5; expected int"),
        ("subsets = true", "subsets is True; expected int"),
        ("subsets = -1", "subsets is -1; expected 0 to"),
        ("min_stems = 0", "min_stems is 0; expected 1 to"),
        ("track_timeout = nan", "track_timeout is nan; expected 0 to"),
        ("track_timeout = 1e99", "track_timeout is 1e+99; expected 0 to"),
        ("velocity_bins = 500", "expected 1 to 127"),
        ('encoding = "tie"', "expected one of ties, noties, onsets"),
        ('granularity = ["full"]', "granularity is ['full']; expected str"),
        ("subsets = ", "cannot be read"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line(text: str, complaint: str, tmp_path: Path) -> None:
    config = tmp_path / "build.toml"
    config.write_text(text, encoding="utf-8")
    result = run("build", "slakh", "--root", tmp_path, "--config", config)
    assert result.exit_code == 2, result.output
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_docs_list_every_rare_setting_with_its_default() -> None:
    page = Path(__file__).parents[3] / "docs" / "building.md"
    rows = re.findall(
        r"^\| `(\w+)` \| `?([^ `]+)`? \|", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    listed = {name: tomllib.loads(f"x = {default}")["x"] for name, default in rows}
    assert listed == asdict(BuildSettings())


def test_a_config_file_holds_the_rare_settings(tmp_path: Path) -> None:
    config = tmp_path / "build.toml"
    config.write_text("subsets = 4\ntrack_timeout = 5\nencoding = 'noties'\n", encoding="utf-8")
    assert read_settings(config) == BuildSettings(subsets=4, track_timeout=5, encoding="noties")


@pytest.mark.parametrize("place", ["vocals.wav", "song/vocals.wav", "a/b/vocals.wav", "demo/x.wav"])
def test_the_demo_pieces_are_not_rendered_into_a_folder_of_recordings(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).touch()
    before = sorted(tmp_path.rglob("*"))
    result = run("build", "demo", "--root", tmp_path, "--tracks", 1)
    assert result.exit_code == 2
    assert f"mt3data build folder --root {tmp_path}" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("[]", "an object"), ("{}", "'midi' is missing"), ("?", "Expecting value"),
        ('{"midi": null, "tracks": "9", "seed": 0, "seconds": 4}', "tracks is '9'"),
        ('{"midi": null, "tracks": 9, "seed": 0, "seconds": 1e9}', "seconds is 1000000000.0"),
        ('{"midi": null, "tracks": 9, "seed": null, "seconds": 4}', "seed or seconds is null"),
    ],
)  # fmt: skip
def test_a_damaged_record_of_synth_is_one_line(tmp_path: Path, content: str, field: str) -> None:
    (tmp_path / "synth.json").write_text(content)
    result = run("build", "demo", "--root", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{tmp_path}/synth.json: " in result.stderr and field in result.stderr


@needs.posix
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("train nowhere.toml", "no configuration file nowhere.toml"),
        ("train /dev/zero", "/dev/zero: a device; give a path"),
        ("train run=/dev/null data.train=x", "/dev/null: a device, where a folder should be"),
        ("train stps=3", "unknown key stps; did you mean steps?"),
        ("train steps=many", "steps must be a whole number"),
        ("train data.train=nowhere", "nowhere"),
        ("transcribe nowhere.wav -o a.mid --checkpoint /dev/null", "nowhere.wav: no such file"),
        ("convert /dev/zero -o a.safetensors", "/dev/zero: a device; expected a T5X checkpoint"),
        ("demo --out /dev/null", "/dev/null: a device, where a folder should be"),
        ("transcribe", "Missing argument 'FILES...'"),
        ("transcribe nowhere.wav -o a.mid --batch 0", "'--batch': 0 is not in the range x>=1"),
        (
            "transcribe nowhere.wav -o a.mid --format xml",
            "--format xml: expected, between commas, mid, json",
        ),
        ("transcribe nowhere.wav -o a.mid --checkpoint nowhere", "nowhere"),
        ("evaluate nowhere", "nowhere: no such folder"),
        ("evaluate . --workers 0", "'--workers': 0 is not in the range 1<=x<="),
        ("evaluate . --tracks 0", "'--tracks': 0 is not in the range x>=1"),
        ("evaluate . --json --csv", "--json and --csv: expected one of them"),
        ("score a.mid", "expected two MIDI files"),
        ("score a.mid b.mid", "a.mid: cannot be read"),
        ("convert nowhere -o a.safetensors", "nowhere: no such file"),
        ("convert . -o a.safetensors", "is no T5X checkpoint"),
        ("convert . -o a.safetensors --heads 0", "'--heads': 0 is not in the range x>=1"),
        ("plot nowhere -o a.png", "nowhere holds no metrics.jsonl"),
        ("evaluate . --out -", "expected the name of a file or folder, not '-'"),
        ("plot", "Missing argument 'RUNS...'"),
        ("demo --workers 0", "'--workers': 0 is not in the range 1<=x<="),
    ],
)
def test_a_mistake_of_mt3train_is_one_line_and_exit_code_2(
    words: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(mt3train.cli.main.main, words.split())
    assert result.exit_code == 2, result.output
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_path_that_cannot_be_used_is_one_line_and_exit_code_2(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        (shards / "slakh" / "manifest.json" / "x").mkdir()

    monkeypatch.setattr("mt3data.shards.format.read_build_manifest", fail)
    result = run("info", shards)
    assert result.exit_code == 2
    assert "manifest.json/x: Not a directory; choose another path" in result.stderr


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mt3data.datasets.manifest.names", lambda: 1 / 0)
    assert isinstance(run("list").exception, ZeroDivisionError)


def test_an_interruption_is_one_line_and_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("mt3data.datasets.manifest.names", interrupt)
    result = run("list")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


COMMANDS = [
    pytest.param(program, command, id=f"{program} {name}")
    for program, group in (("mt3data", main), ("mt3train", mt3train.cli.main.main))
    for name, command in group.commands.items()
]


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_help_has_one_example_that_can_be_typed(program: str, command: click.Command) -> None:
    context = click.Context(command, info_name=f"{program} {command.name}")
    (example,) = [
        line.strip() for line in command.get_help(context).splitlines() if "Example:" in line
    ]
    heading, *words = shlex.split(example)
    assert [heading, *words[:2]] == ["Example:", program, command.name]
    assert command.make_context(command.name, words[2:])


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_every_option_has_a_help_text_and_the_first_sentence_fits(
    program: str, command: click.Command
) -> None:
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert [option.name for option in options if not option.help] == []
    assert not command.get_short_help_str(limit=64).endswith("...")


# The names of all options of all commands.
NAMES = """--align --batch --beats --bpm --cache --checkpoint --compile --constrained --config --context --csv --device --dry-run --engine
--effects --exclude --fast --first-beat --force --format --from --half --heads --json --kinds --max-failures
--meter --midi --name --no-download --out --part --passes --per-instrument --plain --plot --precision --profile --programs --quantize --references --root --seconds --seed --select --soundfont --source
--split --split-scheme --store --stream --systems --to --test --tracks --validation --variants --window --workers""".split()


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_options_have_the_names_and_letters_that_they_have_elsewhere(
    program: str, command: click.Command
) -> None:
    for option in (p for p in command.params if isinstance(p, click.Option)):
        assert [o for o in option.opts if o.startswith("--")][0] in NAMES
        assert ("-o" in option.opts) == ("--out" in option.opts)


@pytest.mark.parametrize("program", ["mt3data", "mt3train"])
def test_a_program_without_a_command_shows_its_help_and_exit_codes(program: str) -> None:
    result = CliRunner().invoke(importlib.import_module(f"{program}.cli.main").main, [])
    assert result.exit_code == 2
    printed = " ".join(result.stderr.split())
    assert (
        "0 done; 1 done, with faults that are listed; 2 a mistake, described in one line; 130"
        in printed
    )


@pytest.mark.parametrize("program", ["mt3data", "mt3train"])
def test_the_shell_completes_commands(program: str) -> None:
    words = {
        f"_{program.upper()}_COMPLETE": "bash_complete",
        "COMP_WORDS": program,
        "COMP_CWORD": "1",
    }
    code = f"from {program}.cli.main import main; main(prog_name={program!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | words, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    group = importlib.import_module(f"{program}.cli.main").main
    assert done.stdout.split() == [f"plain,{name}" for name in sorted(group.commands)]


def test_demo_pieces_are_rendered_first_when_they_are_not_there(tmp_path: Path) -> None:
    pytest.importorskip("midirenderer", reason="the renderer (extra `synth`) is not installed")
    words = [
        sys.executable,
        "-m",
        "mt3data.cli.main",
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


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_the_trainer_run_by_path_prints_its_usage(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mt3train import train

    monkeypatch.setattr(sys, "argv", ["train.py", word])
    train.main()
    assert "torchrun --nproc_per_node=8 mt3train/train.py CONFIG.toml" in capsys.readouterr().out


def test_without_a_terminal_progress_lines_show_a_total_that_came_later_or_was_too_low(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "LINE_EVERY_SECONDS", 0)
    with terminal.progress(123.456, "build", "h") as bar:
        bar.update(1)
        bar.total = 7.5
        bar.update(5)
        bar.update(5)
    lines = capsys.readouterr().err.split("\n")
    assert [line.split(" h, ")[0] for line in lines] == [
        "build: 1/123", "build: 6.00/7.50", "build: 11.00/?", "",
    ]  # fmt: skip
