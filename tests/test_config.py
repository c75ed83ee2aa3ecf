"""Configuration: files over defaults, overrides over files, and mistakes that are named."""

import pytest

from mt3data.errors import UserError
from mt3train.config import Config, as_dict, load_config


def written(tmp_path, text):
    path = tmp_path / "some.toml"
    path.write_text(text)
    return str(path)


def test_no_arguments_mean_the_paper_s_configuration():
    config = load_config()
    assert config == Config()
    assert (config.batch, config.steps, config.data.frames) == (256, 1_000_000, 256)
    assert (config.optim.name, config.optim.lr, config.optim.warmup_steps) == ("adafactor", 1e-3, 0)
    assert (config.model.num_encoder_layers, config.model.dropout_rate) == (8, 0.1)


def test_the_package_s_files_are_found_by_name_and_are_short():
    assert load_config(["demo.toml"]).run == "runs/demo"
    from mt3train.config import CONFIGS

    assert all(len(p.read_text().splitlines()) <= 40 for p in CONFIGS.glob("*.toml"))


def test_a_file_overrides_defaults_and_the_command_line_overrides_the_file(tmp_path):
    path = written(tmp_path, "steps = 7\nseed = 3\n[optim]\nlr = 2e-3\nclip_norm = 1\n")
    config = load_config(["optim.lr=5e-4", path, "data.train=shards/a*", "steps=1e3"])
    assert (config.steps, config.seed) == (1000, 3)
    assert (config.optim.lr, config.optim.clip_norm) == (5e-4, 1.0)
    assert config.data.train == "shards/a*"
    assert config.batch == 256


def test_a_key_that_python_reserves_reads_and_prints_as_it_is_written():
    config = load_config(["init.from=runs/other"])
    assert config.init.from_ == "runs/other"
    assert as_dict(config)["init"] == {"from": "runs/other"}


def test_weights_of_builds_are_a_table(tmp_path):
    path = written(tmp_path, "[data.weights]\nslakh = 3\nurmp = 0.5\n")
    assert load_config([path]).data.weights == {"slakh": 3, "urmp": 0.5}
    assert load_config([path, "data.weights={slakh=1}"]).data.weights == {"slakh": 1}


@pytest.mark.parametrize(
    "argument, message",
    [
        ("optim.lrr=1", "command line: unknown key optim.lrr; did you mean optim.lr?"),
        ("lr=1", "command line: unknown key lr; did you mean optim.lr?"),
        ("optim=3", "unknown key optim"),
        ("steps=many", "command line: steps must be a whole number, not 'many'"),
        ("steps=1.5", "steps must be a whole number, not 1.5"),
        ("deterministic=1", "deterministic must be true or false, not 1"),
        ("optim.lr=true", "optim.lr must be a number, not True"),
        ("run=3", "run must be text, not 3"),
        ("precision=fp8", "precision='fp8'; expected one of auto, bf16"),
        ("batch=0", "batch=0; expected at least 1"),
        ("optim.weight_decay=0.1", "optim.weight_decay is for optim.name='adamw'"),
        ("model.dropout_rate=1.0", "model.dropout_rate=1.0; expected 0 to below 1"),
        ("optim.label_smoothing=1.0", "optim.label_smoothing=1.0; expected 0 to below 1"),
        ("seed=-1", "seed=-1; expected at least 0"),
        ("eval_segments=0", "eval_segments=0; expected at least 1"),
        ("model.num_heads=0", "model.num_heads=0; expected at least 1"),
        ("model.emb_dim=33", "model.emb_dim=33; expected an even number"),
        ("data.frames=0", "data.frames=0; expected 1 to 2048"),
        ("data.max_target_length=3000", "data.max_target_length=3000; expected 1 to 2048"),
        ("data.temperature=0", "data.temperature=0.0; expected at least 0.001"),
        ("optim.lr=nan", "optim.lr=nan; expected at least 0"),
        ("data.weights=3", "data.weights must be a table such as {slakh = 3, urmp = 1}, not 3"),
        ("data.weights={a=0}", "data.weights: a = 0; expected a number above 0"),
        ("data.weights={a=true}", "data.weights: a = True; expected a number above 0"),
        ("data.weights.a=1", "unknown key data.weights.a; did you mean data.weights"),
        ("model.vocab_size=99", "model.vocab_size is no setting; it comes from the shards"),
        ("init.from_=a", "unknown key init.from_; did you mean init.from?"),
        ("missing.toml", "no configuration file missing.toml; .* demo.toml, mt3.toml"),
    ],
)
def test_a_mistake_is_named_with_what_was_expected(argument, message):
    with pytest.raises(UserError, match=message):
        load_config([argument])


def test_a_mistake_in_a_file_names_the_file(tmp_path):
    with pytest.raises(UserError, match="some.toml: unknown key optim.warmup; did you mean"):
        load_config([written(tmp_path, "[optim]\nwarmup = 3\n")])
    with pytest.raises(UserError, match="some.toml is not a TOML file"):
        load_config([written(tmp_path, "steps 3")])
    with pytest.raises(UserError, match="expected one configuration file"):
        load_config(["a.toml", "b.toml"])
