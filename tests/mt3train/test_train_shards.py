"""Training on real builds by the documented commands: data of all kinds, data that changed or broke."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from events import HANG_SECONDS, wait_until
from safetensors.torch import load_file
from worlds import CONTEXT, PLAIN, TINY, Made, World, after, config, ended, errors, metrics, plain

import mt3train.train
from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig
from mt3data.shards.reader import IndexedShards
from mt3data.shards.windows import WindowConfig
from mt3train.config import load_config
from mt3train.train import main, train
from mt3train.weights.checkpoint import checkpoints, load_model

SPLITS = {"Track00001": "train", "Track00002": "train", "Track00003": "validation"}


def built(folder: Path, windows: WindowConfig, splits=SPLITS, damaged: str = "none") -> Path:
    root = fakes.slakh_tree(folder / "data", "demo", splits, seconds=5.0)
    for path in root.glob(f"*/{damaged}/mix.flac"):
        path.write_bytes(b"no audio")
    out = folder / "shards"
    return build(make_plan(BuildConfig("demo", root, out, windows=windows))).folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of log-mel, 256 frames in a record."""
    return built(tmp_path_factory.mktemp("mel"), WindowConfig(256))


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of audio, 512 frames in a record, in two shards, one for each process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mt3data.build.plan.MIN_SHARD_BYTES", 1)
        return built(tmp_path_factory.mktemp("audio"), WindowConfig(512, features=("audio",)))


def mistake(monkeypatch, capsys, *arguments: str) -> str:
    """Runs train.py's main function, which exits with 2. Returns the one line of its errors."""
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = errors(capsys.readouterr().err)
    return line


# What is read


def test_torchrun_with_two_processes_trains_as_one_process_does(shards, tmp_path):
    arguments = [*TINY, f"data.train={shards.parent}/*", "eval_every=2", "steps=2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = Path(mt3train.train.__file__)
    subprocess.run(
        [*torchrun, script, *arguments, f"run={tmp_path}/two"], check=True, timeout=HANG_SECONDS
    )
    train(load_config([*arguments, f"run={tmp_path}/one"]))
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["step"] for line in one] == [1, 2, 2] and one[2]["eval_loss"] > 0
    for ours, expected in zip(two, one, strict=True):
        assert ours == pytest.approx(expected, rel=1e-9)
    info = load_model(tmp_path / "two")[1]
    assert (info.step, info.right_context, info.frames, info.model.n_mels) == (2, "zeros", 256, 512)


RUNS = {"crops": [], "mixes": ["data.mix_examples=4"], "streamed": ["data.reader=webdataset"]}


def on_audio(rank: int, name: str, folder: Path, run: Path) -> tuple[Any, None, None]:
    options = [*TINY, *RUNS[name], f"data.train={folder}", f"run={run / name}"]
    return load_config([*options, "eval_every=3", "eval_segments=4"]), None, None


def test_two_processes_train_on_crops_and_mixes_of_audio_as_one_does(audio, tmp_path):
    for name in ("crops", "mixes"):
        codes, said = ended(tmp_path, on_audio, name, audio, tmp_path / "two")
        assert codes == [0, 0], said
        train(on_audio(0, name, audio, tmp_path / "one")[0])
        one, two = metrics(tmp_path / "one" / name), metrics(tmp_path / "two" / name)
        assert [line["step"] for line in one] == [1, 2, 3, 3] and one[3]["eval_loss"] > 0
        for ours, expected in zip(two, one, strict=True):
            assert ours == pytest.approx(expected, rel=1e-6)
    n_tokens = [
        sum(line.get("tokens", 0) for line in metrics(tmp_path / "one" / name))
        for name in ("crops", "mixes")
    ]
    assert n_tokens[1] > 1.5 * n_tokens[0]


def test_two_processes_train_through_webdataset_on_every_record_of_an_epoch(audio, tmp_path):
    codes, said = ended(tmp_path, on_audio, "streamed", audio, tmp_path)
    assert codes == [0, 0], said
    assert "webdataset: steps per epoch: 1; records left out" in said[0]
    lines = metrics(tmp_path / "streamed")
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    assert all(0 < line.get("loss", line.get("eval_loss")) < 10 for line in lines)


def test_fewer_records_than_a_batch_and_uneven_parts_train_as_in_one_process(shards, tmp_path):
    """6 records, 9 segments: ranks get 5 and 4, and every record comes before any comes twice."""
    assert IndexedShards([shards]).n_records == 6
    parts = [IndexedShards([shards]).batch(0, 9, rank, 2).keys for rank in (0, 1)]
    assert [len(keys) for keys in parts] == [5, 4] and len({*parts[0], *parts[1]}) == 6
    changes = {"batch": 9, "steps": 3, "model": PLAIN, "precision": "float64", "log_every": 1}
    for size in (1, 2):
        codes, said = ended(tmp_path, on_shards, tmp_path / str(size), shards, changes, size=size)
        assert codes == [0] * size, said
    for line, expected in zip(metrics(tmp_path / "2"), metrics(tmp_path / "1"), strict=True):
        assert line == pytest.approx(expected, rel=1e-9)


def test_another_number_of_processes_goes_on_with_the_same_batches(tmp_path):
    exact = {"model": PLAIN, "precision": "float64", "log_every": 1}
    changing, whole = tmp_path / "changing", tmp_path / "whole"
    for size, steps in ((2, 2), (1, 3), (4, 6)):
        codes, said = ended(tmp_path, plain, changing, {**exact, "steps": steps}, size=size)
        assert codes == [0] * size, said
    assert ended(tmp_path, plain, whole, exact, size=1)[0] == [0]
    weights = [load_file(checkpoints(run)[-1]) for run in (changing, whole)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-9, atol=1e-12)
    for line, expected in zip(metrics(changing), metrics(whole), strict=True):
        assert line == pytest.approx(expected, rel=1e-9)


# What is said or refused


@pytest.mark.parametrize("argument, message", [
    ("optim.lrr=1", "command line: unknown key optim.lrr; did you mean optim.lr?"),
    ("data.split=late", "has no split 'late'; it has train, validation"),
    ("data.frames=128", "records of 256 frames with right_context 'zeros' cannot be cut to 128"),
    ("data.max_target_length=1", "every segment of step 1 has more tokens than data.max_target_length=1"),
    ("micro_batch=1e18", "micro_batch=1000000000000000000; expected 1 to 1000000"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(
    shards, tmp_path, monkeypatch, capsys, argument, message
):
    run = tmp_path / "run"
    line = mistake(monkeypatch, capsys, f"data.train={shards}", f"run={run}", argument)
    assert message in line
    assert not list(run.glob("checkpoint*"))


def test_a_run_in_a_place_of_a_file_is_one_line(shards, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").write_text("precious")
    line = mistake(monkeypatch, capsys, f"data.train={shards}", f"run={tmp_path}/run")
    assert "a file, where a folder should be" in line


def test_without_a_build_the_command_that_makes_one_is_named(tmp_path):
    with pytest.raises(UserError, match="`mt3data build demo --out shards/`"):
        train(load_config([*TINY, f"data.train={tmp_path}/*", f"run={tmp_path}/run"]))


def test_a_run_that_is_further_than_it_was_asked_for_says_so(shards, tmp_path, capsys):
    options = [*TINY, f"data.train={shards}", f"run={tmp_path}"]
    train(load_config(options))
    before = {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint*")}
    capsys.readouterr()
    train(load_config([*options, "steps=1"]))
    said = capsys.readouterr().err
    assert "steps 3 to 3 of" in said and "already has 3 steps" in said
    assert {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint*")} == before


@pytest.mark.parametrize("windows, message", [
    (WindowConfig(256, vocabulary=VocabularyConfig(127)), "num_velocity_bins: 127 in .*, 1 in the"),
    (WindowConfig(256, "audio"), "right_context: audio in .*, zeros in the training shards"),
    (WindowConfig(512), "records of 512 frames with right_context 'zeros' cannot be cut to 256"),
])  # fmt: skip
def test_evaluation_shards_of_other_settings_are_refused_at_once(
    shards, tmp_path, windows, message
):
    other = built(tmp_path, windows, {"Track00003": "validation"})
    options = [f"data.train={shards}", f"data.eval={other}", f"run={tmp_path}/run", "eval_every=2"]
    with pytest.raises(UserError, match=message):
        train(load_config([*TINY, *options]))
    assert not (tmp_path / "run").exists()


def test_a_validation_split_without_tracks_is_said_and_training_goes_on(tmp_path, capsys, shards):
    """Its only track was quarantined. Beside a build that has one, that one is used."""
    empty = built(tmp_path, WindowConfig(256), damaged="Track00003")
    options = [*TINY, "eval_every=3", "eval_segments=1", "transcribe_every=3"]
    train(load_config([*options, f"data.train={empty}", f"run={tmp_path}/a"]))
    assert "no build has tracks in split 'validation'" in capsys.readouterr().err
    assert [line["step"] for line in metrics(tmp_path / "a")] == [1, 2, 3]  # no scores of nothing
    assert not (tmp_path / "a" / "best.safetensors").exists()
    train(load_config([*options, f"data.train={empty},{shards}", f"run={tmp_path}/b"]))
    assert "no build has tracks" not in capsys.readouterr().err
    assert "eval_loss" in metrics(tmp_path / "b")[-1]


def test_a_run_that_resumes_on_other_data_says_what_changed(shards, tmp_path, capsys):
    again = built(tmp_path, WindowConfig(256))  # of the same name and size
    renamed = {"Track00001": "train", "Track00004": "train", "Track00003": "validation"}
    other = built(tmp_path / "other", WindowConfig(256), renamed)
    said = []
    for steps, changes in enumerate(
        (
            [f"data.train={shards}"], [f"data.train={again}"], [f"data.train={other}"],
            [f"data.train={other}", "data.split=validation"],
            [f"data.train={other}", "data.split=validation", "data.temperature=2"],
        ),
        start=1,
    ):  # fmt: skip
        train(load_config([*TINY, f"run={tmp_path}/run", f"steps={steps}", *changes]))
        said.append(
            [line for line in capsys.readouterr().err.splitlines() if "steps before" in line]
        )
    assert [len(lines) for lines in said] == [0, 0, 1, 1, 1]
    for (line,), fact in zip(said[2:], ("builds={'demo'", "data.split='train', now 'validation'",
                                        "data.temperature=3.33"), strict=True):  # fmt: skip
        assert fact in line and line.count("now") == 1 + ("records" in line.split("now")[0])


# What breaks on the way


def on_shards(rank: int, run: Path, folder: Path, changes: dict[str, Any], broken_from: int = -1):
    """Trains on a build. From a step on, its shard has lost its end."""
    import mt3train.train as trainer

    read = trainer.read_step

    def read_broken(segments, step, *rest):
        if step == broken_from and rank == 1:
            os.truncate(next(folder.glob("train-*.tar")), 20_000)
        return read(segments, step, *rest)

    trainer.read_step = read_broken
    data = replace(load_config(TINY).data, train=str(folder))
    return config(run, **{"data": data, "batch": 4, "steps": 4, **changes}), None, None


@pytest.mark.parametrize("broken_from, message", [
    (2, "train-00000-of-00001.tar: ends inside record"),
    (-1, "train-00000-of-00001.tar has 20,000 bytes; the manifest states"),
])  # fmt: skip
def test_a_shard_that_is_cut_short_is_one_line_and_ends_both_ranks(
    shards, tmp_path, broken_from, message
):
    folder = Path(shutil.copytree(shards, tmp_path / "demo"))
    if broken_from < 0:
        os.truncate(next(folder.glob("train-*.tar")), 20_000)
    codes, said = ended(tmp_path, on_shards, tmp_path / "run", folder, {}, broken_from)
    assert codes == [2, 2], said
    (line,) = errors(said[0]) + errors(said[1])
    assert message in line


def poisoned(rank: int, run: Path):
    return config(run, save_every=1), Made(break_at=2), None


def test_a_nan_in_one_record_stops_both_ranks_before_the_update_and_names_it(tmp_path):
    codes, said = ended(tmp_path, poisoned, tmp_path / "run")
    assert codes == [2, 2]
    (line,) = errors(said[0]) + errors(said[1])  # the record was rank 1's, the line is rank 0's
    assert "the loss is nan at step 3" in line and line.endswith("records: made-2-1")
    newest = checkpoints(tmp_path / "run")[-1]
    assert newest.name == after(2)
    assert all(value.isfinite().all() for value in load_file(newest).values())


def other(rank: int, run: Path):
    return config(run, steps=4), Made(right_context="audio"), None


def test_two_ranks_refuse_to_continue_with_other_data_in_one_line(tmp_path):
    run = tmp_path / "run"
    assert ended(tmp_path, plain, run, {"steps": 2})[0] == [0, 0]
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    codes, said = ended(tmp_path, other, run)
    assert codes == [2, 2]
    (line,) = errors(said[0]) + errors(said[1])
    assert "right_context 'zeros', now asked for is 'audio'" in line and "run=DIR" in line
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def elsewhere(rank: int, run: Path):
    """Two machines that do not share the folder."""
    return config(run / str(rank), steps=3), Made(), None


def test_ranks_that_find_different_checkpoints_do_not_go_on(tmp_path):
    assert ended(tmp_path, plain, tmp_path / "0", {"steps": 2}, size=1)[0] == [0]
    codes, said = ended(tmp_path, elsewhere, tmp_path)
    assert codes == [2, 2]
    assert "not all processes find the same checkpoints" in said[0]


def test_a_batch_smaller_than_the_number_of_processes_is_refused(tmp_path):
    codes, said = ended(tmp_path, plain, tmp_path / "run", {"batch": 1})
    assert codes == [2, 2]
    assert "batch=1 for 2 processes" in errors(said[0])[0]


def locked(rank: int, run: Path, other_is_there):
    """Trains until a second trainer has been refused."""

    def wait(step: int) -> None:
        if step == 1:
            other_is_there.wait(HANG_SECONDS)

    return config(run), Made(at_step=wait), None


def test_of_two_trainers_in_one_folder_the_second_is_refused(tmp_path):
    run, event = tmp_path / "run", CONTEXT.Manager().Event()
    world = World(tmp_path, 2, locked, run, event)
    wait_until(lambda: (run / "metrics.jsonl").exists())
    with pytest.raises(UserError, match="another process trains there"):
        train(config(run), Made())
    event.set()
    assert world.codes() == [0, 0]
    assert [line["step"] for line in metrics(run)] == [2, 4, 6]
    assert json.loads((run / "config.json").read_text())["batch"] == 6
