"""Loss and notes while training: every rank's share, one result, and which weights are the best."""

import math
import os
import shutil
import signal

import fakes
import pytest
from worlds import Made, World, config, metrics

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.errors import UserError
from mt3data.shards.windows import WindowConfig
from mt3train.config import DataConfig
from mt3train.evaluation.evaluate import TrackScores, evaluate, mean_scores
from mt3train.train import train
from mt3train.weights.checkpoint import load_model

F1 = ("onset_f1", "onset_offset_f1", "program_f1", "drum_f1")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    splits = {"Track00001": "train"} | {f"Track0000{n}": "validation" for n in (2, 3, 4)}
    root = fakes.slakh_tree(tmp_path_factory.mktemp("source"), "demo", splits, seconds=3.0)
    out = tmp_path_factory.mktemp("shards")
    build(make_plan(BuildConfig("demo", root, out, windows=WindowConfig(256))))
    return out / "demo"


def on_shards(run, shards, longest=1024, **changes):
    data = DataConfig(train=str(shards), max_target_length=longest)
    return config(run, data=data, batch=2, **changes)


def test_scores_in_training_are_those_of_the_evaluate_command(shards, tmp_path):
    run = on_shards(tmp_path, shards, longest=300, steps=1, transcribe_every=1, transcribe_tracks=2)
    checkpoint = train(run)
    model, info = load_model(checkpoint)
    expected = mean_scores(evaluate(model, info, shards, "validation", max_tracks=2))
    (line,) = [line for line in metrics(tmp_path) if "onset_f1" in line]
    assert line == {"step": 1} | {name: expected[name] for name in F1}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder with two recordings and their MIDI, and a build of it."""
    folder, out = tmp_path_factory.mktemp("recordings"), tmp_path_factory.mktemp("built")
    splits = {"Track00001": "validation", "Track00002": "validation"}
    root = fakes.slakh_tree(tmp_path_factory.mktemp("source"), "demo", splits, seconds=3.0)
    (folder / "validation").mkdir()
    for name in splits:
        shutil.copy(root / "validation" / name / "mix.flac", folder / "validation" / f"{name}.flac")
        midi = sorted((root / "validation" / name / "MIDI").glob("*.mid"))[0]
        shutil.copy(midi, folder / "validation" / f"{name}.mid")
    windows = WindowConfig(256, features=("audio",))
    build(make_plan(BuildConfig("folder", folder, out, name="mine", windows=windows)))
    return folder, out / "mine"


def test_a_folder_of_recordings_is_scored_as_a_build_of_it(shards, recordings, tmp_path):
    folder, built = recordings
    data = DataConfig(train=str(shards), max_target_length=300, validation_folder=str(folder))
    run = config(tmp_path, data=data, batch=2, steps=1, transcribe_every=1)
    model, info = load_model(train(run))
    expected = mean_scores(evaluate(model, info, built, "validation"))
    (line,) = [line for line in metrics(tmp_path) if "onset_f1" in line]
    assert line == pytest.approx({"step": 1} | {name: expected[name] for name in F1}, nan_ok=True)


def test_a_folder_without_pairs_is_refused_before_training(shards, tmp_path):
    (tmp_path / "song.wav").write_bytes(b"")
    data = DataConfig(train=str(shards), validation_folder=str(tmp_path))
    with pytest.raises(UserError, match=str(tmp_path)):
        train(config(tmp_path / "run", data=data, batch=2, steps=1, transcribe_every=1))
    assert not (tmp_path / "run").exists()


def pretended(track):
    """Track 2 scores 0.2 and has drums, track 3 scores 0.3, track 4 0.4."""
    number = int(track[-1])
    scores = {
        f"{what}_{measure}": math.nan if what == "drum" and number != 2 else number / 10
        for what in ("onset", "onset_offset", "program", "drum")
        for measure in ("precision", "recall", "f1")
    }
    return TrackScores(track, {"corrected": scores, "mt3": scores}, [], 1, 1, 1, 0, 0)


def pretending(rank, run, shards, stop_rank):
    """Scores are made up. Rank 0 decodes three batches for a track, rank 1 one batch."""
    import mt3train.evaluation.evaluate

    def score(model, info, records, batch, on_batch):
        if rank == stop_rank and records.track.endswith("4"):
            os.kill(os.getpid(), signal.SIGTERM)
        for done in range(1 if rank else 3):
            on_batch(done)
        return pretended(records.track)

    mt3train.evaluation.evaluate.score_track = score
    return on_shards(run, shards, steps=2, transcribe_every=2), None, None


@pytest.mark.parametrize("size", [1, 2])
def test_ranks_share_the_tracks_and_wait_for_each_other(shards, tmp_path, size):
    world = World(tmp_path, size, pretending, tmp_path / "run", shards, None)
    assert world.codes() == [0] * size, world.said(0)
    (line,) = [line for line in metrics(tmp_path / "run") if "onset_f1" in line]
    assert line["onset_f1"] == line["program_f1"] == pytest.approx(0.3)
    assert line["drum_f1"] == pytest.approx(0.2)  # of the one track with drums
    assert load_model(tmp_path / "run" / "best.safetensors")[1].step == 2


def test_a_run_stopped_while_tracks_are_transcribed_begins_with_them_again(shards, tmp_path):
    run = tmp_path / "run"
    for stop_rank, n_lines in ((0, 0), (None, 1)):
        world = World(tmp_path, 2, pretending, run, shards, stop_rank)
        assert world.codes() == [0, 0], world.said(0)
        assert load_model(run)[1].step == 2
        assert len([line for line in metrics(run) if "onset_f1" in line]) == n_lines
        outcome = "done" if n_lines else "stopped"
        assert f"checkpoint-00000002.safetensors: {outcome}" in world.said(0)


def with_one_segment(rank, run):
    return config(run, steps=1, eval_every=1, eval_segments=1), Made(), Made()


@pytest.mark.parametrize("size", [1, 2])
def test_a_rank_without_a_segment_to_evaluate_waits_for_those_that_have_one(tmp_path, size):
    world = World(tmp_path, size, with_one_segment, tmp_path / "run")
    assert world.codes() == [0] * size, world.said(0)
    (line,) = [line for line in metrics(tmp_path / "run") if "eval_loss" in line]
    assert 6.0 < line["eval_loss"] < 9.0


def failing(rank, run, shards, error):
    """The second rank cannot score its track."""
    prepared = pretending(rank, run, shards, None)
    if rank == 1:
        import mt3train.evaluation.evaluate

        def score(*_):
            raise error

        mt3train.evaluation.evaluate.score_track = score
    return prepared


@pytest.mark.parametrize("error", [UserError("3 notes end early"), ValueError("a bug")])
def test_a_track_that_cannot_be_scored_ends_all_ranks(shards, tmp_path, error):
    world = World(tmp_path, 2, failing, tmp_path / "run", shards, error)
    codes = world.codes()
    if isinstance(error, UserError):
        assert codes == [2, 2]
        assert world.said(0).endswith(f"Error: {error} (process 1 of 2)\n")
    else:
        assert codes[0] not in (0, None) and codes[1] == 1
        assert world.said(1).endswith("ValueError: a bug\n")
