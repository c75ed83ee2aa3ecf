"""Defines every setting of a training run.

Defaults are in frozen dataclasses. A TOML file overrides them, and key=value overrides the file. A key
is `steps` or `section.key`, such as `optim.lr`. The sections are `model`, `data`, `augment`, `optim` and `log`.
An unknown key or a value of another type is an error that names what was expected.
"""

import dataclasses
import difflib
import math
import os
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mt3data.errors import UserError, require_package
from mt3data.files import read_limited
from mt3data.terminal import kind_of
from mt3train.device import DEVICES, PRECISIONS
from mt3train.model import MAX_POSITIONS, ModelConfig

COMMAND_LINE = "command line"
CONFIGS = Path(__file__).parent / "configs"
INFINITY = math.inf
COUNT = 10**9  # more than any run needs of anything that is counted
RANGES: dict[str, tuple[float, float]] = {  # smallest and largest value, both allowed
    "seed": (0, 2**32 - 1), "steps": (1, COUNT), "hours": (0, INFINITY), "batch": (1, 10**6), "micro_batch": (1, 10**6),
    "threads": (0, os.cpu_count() or 1), "log_every": (1, COUNT), "save_every": (1, COUNT),
    "keep_checkpoints": (1, COUNT), "eval_every": (0, COUNT), "eval_segments": (1, COUNT),
    "transcribe_every": (0, COUNT), "transcribe_tracks": (1, COUNT), "patience": (0, COUNT),
    "model.emb_dim": (4, 2**15), "model.num_heads": (1, 2**10), "model.head_dim": (1, 2**12),
    "model.num_encoder_layers": (1, 2**10), "model.num_decoder_layers": (1, 2**10),
    "model.mlp_dim": (1, 2**17), "data.frames": (1, MAX_POSITIONS),
    "data.max_target_length": (1, MAX_POSITIONS), "data.temperature": (1e-3, INFINITY),
    "data.mix_examples": (0, 1000), "data.cache_gb": (0, 10**6),
    "data.shuffle_shards": (0, COUNT), "optim.lr": (0, INFINITY), "optim.warmup_steps": (0, COUNT),
    "optim.weight_decay": (0, INFINITY), "optim.clip_norm": (0, INFINITY),
    "optim.z_loss": (0, INFINITY),
}  # fmt: skip
PATHS = (
    "run",
    "init_checkpoint",
    "data.train",
    "data.eval",
    "data.cache",
    "data.validation_folder",
)  # where ~ is the home
FROM_SHARDS = ("model.vocab_size", "model.n_mels")  # facts of the shards, not settings
TABLES = ("data.weights",)  # keys with a table as value


@dataclass(frozen=True)
class DataConfig:
    """Which segments are read. `train` and `eval` name builds: one, a pattern, several with commas.

    Addresses of builds need `cache` or reader="webdataset".
    """

    train: str = "shards/*"
    split: str = "train"
    eval: str = ""  # empty: the builds of `train`
    eval_split: str = "validation"
    validation_folder: str = (
        ""  # recordings beside MIDI files, to transcribe in place of eval_split
    )
    frames: int = 256  # length of a segment
    max_target_length: int = 1024  # segments with more tokens, EOS included, are skipped
    mixture: str = ""  # of manifests/mixtures: only its datasets, at its temperature; empty: all
    temperature: float = 10 / 3  # of the mixture of datasets, where `mixture` names none
    # Share of each build by the name of its folder, in place of a temperature: {slakh = 3, urmp = 1}
    weights: dict[str, float] = field(default_factory=dict)
    reader: str = "indexed"  # or "webdataset", which reads shards front to back; see streaming.py
    cache: str = ""  # folder for copies of builds that are named by address
    # Largest size of the shards there, which are fetched when they are read; 0: whole builds first
    cache_gb: float = 0.0
    shuffle_shards: int = 0  # of so many shards at a time, the records are shuffled; 0: of all
    mix_examples: int = 0  # largest number of segments summed into one, see mixing.py; 0: none


Range = tuple[float, float]  # smallest and largest value of what is drawn evenly between them


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training audio, see data/augment.py: each has a probability and a range.

    A probability of 0 switches a change off. All need shards that store audio.
    """

    transpose: float = 0.0
    transpose_semitones: Range = (-2.0, 2.0)  # whole semitones; labels move with the pitch
    detune: float = 0.0
    detune_cents: Range = (-20.0, 20.0)
    equalize: float = 0.0
    equalize_db: Range = (0.0, 6.0)  # standard deviation of a smooth random curve
    reverb: float = 0.0
    reverb_seconds: Range = (0.1, 1.0)  # time in which the sound decays by 60 dB
    gain: float = 0.0
    gain_db: Range = (-24.0, 3.0)
    noise: float = 0.0
    noise_dbfs: Range = (-85.0, -40.0)  # root mean square, relative to full scale

    @property
    def is_on(self) -> bool:
        """Whether any change has a probability above 0."""
        return any(getattr(self, name) > 0 for name in AUGMENTATIONS)


AUGMENTATIONS = ("transpose", "detune", "equalize", "reverb", "gain", "noise")
AUGMENT_LIMITS: dict[str, Range] = {
    "transpose_semitones": (-12, 12), "detune_cents": (-100, 100), "equalize_db": (0, 24),
    "reverb_seconds": (0.01, 10), "gain_db": (-60, 60), "noise_dbfs": (-120, 0),
}  # fmt: skip


@dataclass(frozen=True)
class OptimConfig:
    """How parameters are updated."""

    name: str = "adafactor"  # or "adamw", "muon"
    lr: float = 1e-3
    warmup_steps: int = 0
    decay: str = "constant"  # or "cosine", which falls to a tenth at the last step
    weight_decay: float = 0.0  # Adafactor has none
    clip_norm: float = (
        0.0  # largest norm of the gradient of the mean loss per token; 0: no clipping
    )
    z_loss: float = 1e-4  # weight of log(Z)^2 in the loss
    label_smoothing: float = 0.0  # share of the target that all other tokens get
    ema: float = (
        0.0  # decay of an exponential moving average of the weights, such as 0.999; 0: none
    )


@dataclass(frozen=True)
class LogConfig:
    """Where metrics go besides the run's folder and TensorBoard."""

    wandb: bool = False  # needs the package wandb
    project: str = "mt3kit"  # of wandb


@dataclass(frozen=True)
class Config:
    """One training run. The defaults reproduce MT3's."""

    run: str = "runs/mt3"  # folder of checkpoints and metrics; an unfinished run there is resumed
    init_checkpoint: str = ""  # weights of a new run: a checkpoint, the folder of a run, or "mt3"
    seed: int = 0
    steps: int = 1_000_000
    hours: float = 0.0  # ends the run and the decay of its learning rate by the clock; 0: by steps
    batch: int = 256  # segments per update, over all processes
    # One process runs as many segments at once as need the memory of this many longest ones.
    micro_batch: int = 16
    device: str = "auto"  # or "cpu", "cuda", "mps"; every process takes a GPU of its own
    precision: str = "auto"  # or "float32", "bf16", "fp16", "float64"; see device.py
    threads: int = 0  # of every process on a CPU; 0: torch's choice
    deterministic: bool = False  # bit-identical resume on a GPU too, slower
    compile: bool = False  # layers by torch.compile: a minute at the start, then faster
    freeze: str = ""  # parameters without updates: names with wildcards, "encoder.*,..."
    log_every: int = 100  # steps per line of metrics.jsonl
    save_every: int = 5000
    keep_checkpoints: int = 3  # newest ones; best.safetensors is kept besides
    eval_every: int = 5000  # steps; 0: never
    eval_segments: int = 5120
    transcribe_every: int = 0  # steps between transcriptions of evaluation tracks; 0: never
    transcribe_tracks: int = 8  # of every build
    patience: int = 0  # evaluations in a row without a better score that end the run; 0: never
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        _one_of("device", self.device, DEVICES)
        _one_of("precision", self.precision, (*PRECISIONS, "float64"))
        _one_of("optim.name", self.optim.name, ("adafactor", "adamw", "muon"))
        _one_of("optim.decay", self.optim.decay, ("constant", "cosine"))
        _one_of("data.reader", self.data.reader, ("indexed", "webdataset"))
        if self.data.reader == "webdataset" and (self.data.weights or self.data.mix_examples):
            raise UserError("data.weights and data.mix_examples are for data.reader='indexed'")
        if self.optim.name == "adafactor" and self.optim.weight_decay:
            raise UserError(
                "optim.weight_decay is for optim.name='adamw' and 'muon'; Adafactor has none"
            )
        values = dict(_flatten(dataclasses.asdict(self)))
        for key, (low, high) in RANGES.items():
            if not low <= values[key] <= high or math.isinf(values[key]):
                expected = f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:.12g}"
                raise UserError(f"{key}={values[key]}; expected {expected}")
        for key in ("model.dropout_rate", "optim.label_smoothing", "optim.ema"):
            if not 0.0 <= values[key] < 1.0:
                raise UserError(f"{key}={values[key]}; expected 0 to below 1")
        for name in AUGMENTATIONS:
            if not 0.0 <= getattr(self.augment, name) <= 1.0:
                raise UserError(
                    f"augment.{name}={getattr(self.augment, name)}; expected a probability, 0 to 1"
                )
        for name, (lowest, highest) in AUGMENT_LIMITS.items():
            low, high = getattr(self.augment, name)
            if not lowest <= low <= high <= highest:
                raise UserError(
                    f"augment.{name}=[{low:g}, {high:g}]; expected two numbers, the smaller one first,"
                    f" within {lowest:g} to {highest:g}"
                )
        if any(semitones % 1 for semitones in self.augment.transpose_semitones):
            raise UserError(
                f"augment.transpose_semitones={list(self.augment.transpose_semitones)};"
                " expected whole numbers"
            )
        for build, weight in self.data.weights.items():
            if type(weight) not in (int, float) or not 0 < weight < math.inf:
                raise UserError(f"data.weights: {build} = {weight!r}; expected a number above 0")
        if self.log.wandb:
            require_package("wandb", "wandb", "log.wandb=true")
        if self.patience and not (self.eval_every or self.transcribe_every):
            raise UserError("patience counts evaluations; set eval_every or transcribe_every")
        if self.data.cache_gb and not self.data.cache:
            raise UserError("data.cache_gb limits the size of data.cache; name that folder too")
        if self.data.reader == "webdataset" and (self.data.cache_gb or self.data.shuffle_shards):
            raise UserError(
                "data.cache_gb and data.shuffle_shards are for data.reader=indexed; webdataset reads "
                "every shard front to back, and needs no copy"
            )
        if self.model.emb_dim % 2:
            raise UserError(f"model.emb_dim={self.model.emb_dim}; expected an even number")


def load_config(arguments: Sequence[str] = ()) -> Config:
    """Returns the configuration of a command line: at most one TOML file, then key=value overrides.

    Args:
        arguments: such as ["demo.toml", "steps=100", "optim.lr=1e-3"]. A file that does not exist is
            looked for in mt3train/configs. Without a file it is mt3.toml of that folder.
    Raises:
        UserError: an unknown key, a value of the wrong type, a missing or malformed file.
    """
    files = [a for a in arguments if "=" not in a]
    if len(files) > 1:
        raise UserError(f"expected one configuration file and key=value, got {' and '.join(files)}")
    path = _find(files[0] if files else "mt3.toml")
    try:
        tree = tomllib.loads(read_limited(path).decode())
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, nested without end
        raise UserError(f"{path} is not a TOML file: {error}") from None
    values = {key: (value, str(path)) for key, value in _flatten(tree)}
    for argument in arguments:
        key, is_override, text = argument.partition("=")
        if is_override:
            values[key] = (text, COMMAND_LINE)
    return _build(values)


def _find(name: str) -> Path:
    for path in (Path(name), CONFIGS / name):
        if path.is_file():
            return path
    own = ", ".join(sorted(p.name for p in CONFIGS.glob("*.toml")))
    there = Path(name)
    what = f"{name}: {kind_of(there)}" if there.exists() else f"no configuration file {name}"
    raise UserError(f"{what}; give a path, or one of the package's: {own}")


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and prefix + key not in TABLES:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _build(values: dict[str, tuple[Any, str]]) -> Config:
    defaults = Config()
    known = {k: v for k, v in _flatten(dataclasses.asdict(defaults)) if k not in FROM_SHARDS}
    parts: dict[str, dict[str, Any]] = {
        "": {}, "model": {}, "data": {}, "augment": {}, "optim": {}, "log": {},
    }  # fmt: skip
    for key, (value, origin) in values.items():
        if key in FROM_SHARDS:
            raise UserError(f"{origin}: {key} is not a setting; it comes from the shards")
        if key not in known:
            raise UserError(f"{origin}: unknown key {key}; {_hint(key, list(known))}")
        section, _, name = key.rpartition(".")
        parts[section][name] = _typed(key, value, type(known[key]), origin)
    sections = {s: dataclasses.replace(getattr(defaults, s), **parts[s]) for s in parts if s}
    return dataclasses.replace(defaults, **parts[""], **sections)


def _hint(key: str, known: list[str]) -> str:
    """Suggests a known key in place of an unknown one."""
    section, dot, name = key.rpartition(".")
    own = {k.removeprefix(section + "."): k for k in known if dot and k.startswith(section + ".")}
    if own:  # compared without the section, which would make all its keys look alike
        near = [own[n] for n in difflib.get_close_matches(name, own, n=1)]
    else:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    near += [k for k in known if k.rpartition(".")[2] == name]
    if near:
        return f"did you mean {near[0]}?"
    return f"{section} has {', '.join(own)}" if own else f"known are {', '.join(known)}"


def _typed(key: str, value: Any, wanted: type, origin: str) -> Any:
    if origin == COMMAND_LINE:
        value = _parse(value, wanted)
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is int and type(value) is float and value.is_integer():
        return int(value)  # steps=1e5
    if (
        wanted is tuple
        and type(value) is list
        and [type(v) in (int, float) for v in value] == [True] * 2
    ):
        return float(value[0]), float(value[1])
    if type(value) is not wanted:
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text",
                 dict: "a table such as {slakh = 3, urmp = 1}", tuple: "two numbers such as [-2, 2]"}  # fmt: skip
        raise UserError(f"{origin}: {key} must be {names[wanted]}, not {value!r}")
    if key in PATHS:
        if "\0" in str(value) or (key == "run" and not value):
            raise UserError(f"{origin}: {key} must be the name of a folder or file, not {value!r}")
        parts = str(value).split(",")
        return ",".join(os.path.expanduser(part) for part in parts)  # noqa: PTH111 (keeps "shards/")
    return value


def _parse(text: str, wanted: type) -> Any:
    """Reads a value of the command line as TOML does. Text needs no quotes there."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    return text if wanted is str and type(value) is not str else value  # run=2024


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value!r}; expected one of {', '.join(choices)}")
