"""Configuration: files over defaults, overrides over files, and mistakes that are named."""

import dataclasses

import pytest
import torch

from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig, num_embeddings
from mt3train.config import CONFIGS, Config, load_config
from mt3train.model import MT3


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


OWN = {  # parameters, and velocity bins of the vocabulary
    "demo.toml": (1_246_720, 1),
    "ismir2021.toml": (46_027_776, 127),
    "ismir2022_finetune.toml": (45_896_704, 1),
    "ismir2022_pretrain.toml": (45_896_704, 1),
    "mt3.toml": (45_896_704, 1),
    "small.toml": (8_001_024, 1),
    "demo_weights.toml": (3_787_968, 1),
    "varied.toml": (3_787_968, 1),
    "piano.toml": (3_787_968, 1),
}


def test_the_table_names_every_file_of_the_package():
    assert sorted(OWN) == sorted(path.name for path in CONFIGS.glob("*.toml"))


@pytest.mark.parametrize("name", OWN)
def test_a_file_of_the_package_has_the_model_it_speaks_of_and_says_how_to_get_its_data(name):
    config, (n_parameters, velocity_bins) = load_config([name]), OWN[name]
    size = num_embeddings(VocabularyConfig(velocity_bins))
    with torch.device("meta"):
        model = MT3(dataclasses.replace(config.model, vocab_size=size))
    assert sum(p.numel() for p in model.parameters()) == n_parameters
    text = (CONFIGS / name).read_text()
    said = f"{n_parameters / 1e6:.1f} million parameters".replace("8.0 m", "8 m")
    assert said in text.replace("\n# ", " ")
    assert len(text.splitlines()) <= 40 and max(map(len, text.splitlines())) <= 100
    assert "mt3data build" in text and f"configs/{name}" in text
    assert config.run == f"runs/{name.removesuffix('.toml')}"


@pytest.mark.parametrize(
    "name, facts",
    [  # mt3/gin/ismir2021.gin, ismir2022/pretrain.gin, ismir2022/finetune.gin
        ("ismir2021.toml", (400_000, 256, 512, 0.1, 0.0, 0)),
        ("ismir2022_pretrain.toml", (500_000, 1024, 256, 0.0, 0.1, 8)),
        ("ismir2022_finetune.toml", (150_000, 256, 256, 0.1, 0.0, 0)),
    ],
)
def test_what_the_original_s_files_say_is_so(name, facts):
    c = load_config([name])
    settings = c.steps, c.batch, c.data.frames, c.model.dropout_rate, c.optim.label_smoothing
    assert (*settings, c.data.mix_examples) == facts
    assert (c.optim.name, c.optim.lr, c.optim.warmup_steps) == ("adafactor", 1e-3, 0)


def test_a_file_overrides_defaults_and_the_command_line_overrides_the_file(tmp_path):
    path = written(tmp_path, "steps = 7\nseed = 3\n[optim]\nlr = 2e-3\nclip_norm = 1\n")
    config = load_config(["optim.lr=5e-4", path, "data.train=shards/a*", "steps=1e3"])
    assert (config.steps, config.seed) == (1000, 3)
    assert (config.optim.lr, config.optim.clip_norm) == (5e-4, 1.0)
    assert config.data.train == "shards/a*"
    assert config.batch == 256


def test_text_needs_no_quotes_even_where_it_looks_like_a_number(tmp_path):
    config = load_config(["run=2024", "data.train='a b'", "data.split=true", 'freeze="x"'])
    assert (config.run, config.data.train, config.data.split) == ("2024", "a b", "true")
    assert config.freeze == "x"
    with pytest.raises(UserError, match="run must be text, not 2024"):
        load_config([written(tmp_path, "run = 2024")])


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    path = written(tmp_path, 'run = "~/runs/a"\n[data]\ntrain = "~/a,b~,~/c*"\n')
    config = load_config([path, "init_checkpoint=~/x", "data.cache=~", "data.eval=https://a.b/~c"])
    assert (config.run, config.data.train) == (
        "/home/someone/runs/a", "/home/someone/a,b~,/home/someone/c*",
    )  # fmt: skip
    assert (config.init_checkpoint, config.data.cache) == ("/home/someone/x", "/home/someone")
    assert config.data.eval == "https://a.b/~c"


def test_weights_of_builds_are_a_table(tmp_path):
    path = written(tmp_path, "[data.weights]\nslakh = 3\nurmp = 0.5\n")
    assert load_config([path]).data.weights == {"slakh": 3, "urmp": 0.5}
    assert load_config([path, "data.weights={slakh=1}"]).data.weights == {"slakh": 1}


@pytest.mark.parametrize(
    "argument, message",
    [
        ("optim.lrr=1", "command line: unknown key optim.lrr; did you mean optim.lr?"),
        ("lr=1", "command line: unknown key lr; did you mean optim.lr?"),
        (
            "model.d_model=8",
            "unknown key model.d_model; model has emb_dim, num_heads, .*dropout_rate",
        ),
        ("model.lr=1", "unknown key model.lr; did you mean optim.lr?"),
        ("optim=3", "unknown key optim"),
        ("steps=many", "command line: steps must be a whole number, not 'many'"),
        ("steps=1.5", "steps must be a whole number, not 1.5"),
        ("deterministic=1", "deterministic must be true or false, not 1"),
        ("optim.lr=true", "optim.lr must be a number, not True"),
        ("micro_batch=1e18", "micro_batch=1000000000000000000; expected 1 to 1000000"),
        ("threads=100000", "threads=100000; expected 0 to"),
        ("precision=fp8", "precision='fp8'; expected one of auto, float32"),
        ("batch=0", "batch=0; expected 1 to 1000000"),
        ("optim.weight_decay=0.1", "optim.weight_decay is for optim.name='adamw'"),
        ("model.dropout_rate=1.0", "model.dropout_rate=1.0; expected 0 to below 1"),
        ("optim.label_smoothing=1.0", "optim.label_smoothing=1.0; expected 0 to below 1"),
        ("seed=-1", "seed=-1; expected 0 to 4294967295"),
        ("seed=1e30", "seed=1000000000000000019884624838656; expected 0 to 4294967295"),
        ("eval_segments=0", "eval_segments=0; expected 1 to 1000000000"),
        ("model.num_heads=0", "model.num_heads=0; expected 1 to 1024"),
        ("model.emb_dim=33", "model.emb_dim=33; expected an even number"),
        ("run=", "run must be the name of a folder or file, not ''"),
        (
            'data.train="a\\u0000b"',
            r"data.train must be the name of a folder or file, not 'a\\x00b'",
        ),
        ("data.frames=0", "data.frames=0; expected 1 to 2048"),
        ("data.max_target_length=3000", "data.max_target_length=3000; expected 1 to 2048"),
        ("data.temperature=0", "data.temperature=0.0; expected at least 0.001"),
        ("optim.lr=nan", "optim.lr=nan; expected at least 0"),
        ("data.reader=tar", "data.reader='tar'; expected one of indexed, webdataset"),
        ("data.weights=3", "data.weights must be a table such as {slakh = 3, urmp = 1}, not 3"),
        ("data.weights={a=0}", "data.weights: a = 0; expected a number above 0"),
        ("data.weights={a=true}", "data.weights: a = True; expected a number above 0"),
        ("data.weights.a=1", "unknown key data.weights.a; did you mean data.weights"),
        ("model.vocab_size=99", "model.vocab_size is not a setting; it comes from the shards"),
        (
            "missing.toml",
            "no configuration file missing.toml; .* demo_weights.toml, ismir2021.toml",
        ),
    ],
)
def test_a_mistake_is_named_with_what_was_expected(argument, message):
    with pytest.raises(UserError, match=message):
        load_config([argument])


def test_what_webdataset_cannot_do_is_refused():
    for other in ("data.mix_examples=4", "data.weights={slakh=1}"):
        with pytest.raises(UserError, match="are for data.reader='indexed'"):
            load_config(["data.reader=webdataset", other])


def test_a_mistake_in_a_file_names_the_file(tmp_path):
    with pytest.raises(UserError, match="some.toml: unknown key optim.warmup; did you mean"):
        load_config([written(tmp_path, "[optim]\nwarmup = 3\n")])
    with pytest.raises(UserError, match="some.toml is not a TOML file"):
        load_config([written(tmp_path, "steps 3")])
    with pytest.raises(UserError, match="expected one configuration file"):
        load_config(["a.toml", "b.toml"])
