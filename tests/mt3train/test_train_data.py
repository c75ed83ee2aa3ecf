"""Training on two processes from shards of audio and through webdataset."""

from pathlib import Path

import fakes
import pytest
from worlds import World, metrics

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.shards.windows import WindowConfig
from mt3train.config import Config, load_config
from mt3train.train import train
from mt3train.weights.checkpoint import load_model

TINY = [
    "demo.toml", "steps=3", "batch=4", "micro_batch=1", "log_every=1", "eval_every=3",
    "eval_segments=4", "precision=float64", "threads=1", "model.emb_dim=8", "model.num_heads=1",
    "model.mlp_dim=8", "model.num_encoder_layers=1", "model.num_decoder_layers=1",
    "optim.warmup_steps=0",
]  # fmt: skip
RUNS = {
    "audio": ["data.train=AUDIO"],
    "mixed": ["data.train=AUDIO", "data.mix_examples=4"],
    "streamed": ["data.train=AUDIO", "data.reader=webdataset"],
}


def config(name: str, shards: Path, run: Path) -> Config:
    options = [option.replace("AUDIO", str(shards / "audio")) for option in RUNS[name]]
    return load_config([*TINY, *options, f"run={run / name}"])


def prepare(rank: int, name: str, shards: Path, run: Path) -> tuple[Config, None, None]:
    return config(name, shards, run), None, None


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"Track00001": "train", "Track00002": "train", "Track00003": "validation"}
    root = fakes.slakh_tree(tmp_path_factory.mktemp("source"), "demo", splits, seconds=5.0)
    out = tmp_path_factory.mktemp("shards")
    windows = WindowConfig(512, features=("audio",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mt3data.build.plan.MIN_SHARD_BYTES", 1)  # two shards, one for each process
        build(make_plan(BuildConfig("demo", root, out / "audio", windows=windows)))
    return out


@pytest.fixture(scope="module")
def two_processes(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("two")
    for name in RUNS:
        (run / f"{name}-said").mkdir()
        world = World(run / f"{name}-said", 2, prepare, name, shards, run)
        assert world.codes() == [0, 0], world.said(0) + world.said(1)
    return run


@pytest.mark.parametrize("name", ["audio", "mixed"])
def test_two_processes_train_on_audio_as_one_does(two_processes, shards, tmp_path, name):
    train(config(name, shards, tmp_path))
    one, two = metrics(tmp_path / name), metrics(two_processes / name)
    assert [line["step"] for line in one] == [1, 2, 3, 3] and one[3]["eval_loss"] > 0
    for ours, expected in zip(two, one, strict=True):
        assert ours == pytest.approx(expected, rel=1e-6)
    assert load_model(tmp_path / name)[1].right_context == "zeros"


def test_two_processes_train_through_webdataset_on_every_record_of_an_epoch(two_processes, shards):
    told = (two_processes / "streamed-said" / "rank-0.txt").read_text()
    assert "webdataset: steps per epoch: 1; records left out" in told
    lines = metrics(two_processes / "streamed")
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    assert all(0 < line.get("loss", line.get("eval_loss")) < 10 for line in lines)


def test_mixes_have_more_tokens_than_their_crops_and_evaluation_has_none(two_processes):
    audio, mixed = metrics(two_processes / "audio"), metrics(two_processes / "mixed")
    assert sum(line.get("tokens", 0) for line in mixed) > 1.5 * sum(
        line.get("tokens", 0) for line in audio
    )


def test_augmented_training_continues_to_the_bit_and_evaluates_plain_crops(shards, tmp_path):
    changes = ["transpose", "detune", "equalize", "reverb", "gain", "noise"]
    plain = [*TINY, f"data.train={shards}/audio", "optim.lr=0", "eval_every=2"]
    options = [*plain, *(f"augment.{name}=1" for name in changes)]
    train(load_config([*plain, "steps=2", f"run={tmp_path}/plain"]))
    for run, steps in (("whole", 2), ("parts", 1), ("parts", 2)):
        train(load_config([*options, f"steps={steps}", f"run={tmp_path}/{run}"]))
    whole, parts, without = (metrics(tmp_path / run) for run in ("whole", "parts", "plain"))
    losses = [
        [line["loss"] for line in lines if "loss" in line] for lines in (whole, parts, without)
    ]
    assert losses[0] == losses[1]
    assert all(ours != theirs for ours, theirs in zip(losses[0], losses[2], strict=True))
    assert whole[-1]["eval_loss"] == without[-1]["eval_loss"]


def test_a_run_that_goes_on_with_other_shares_says_that_the_order_is_another(
    shards, tmp_path, capsys
):
    for steps, temperature in ((1, 1.0), (2, 1.0), (3, 2.0)):
        options = [*TINY, f"data.train={shards}/audio", f"run={tmp_path}", "eval_every=0"]
        train(load_config([*options, f"steps={steps}", f"data.temperature={temperature}"]))
        told = "the steps before had data.temperature=1.0, now" in capsys.readouterr().err
        assert told == (steps == 3)
