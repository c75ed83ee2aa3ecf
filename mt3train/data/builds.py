"""Opens the builds that a run trains and evaluates on, in their shares of the mixture."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.download.address import is_address, local_path
from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig
from mt3data.shards.cache import build_names, cached
from mt3data.shards.compatibility import describe_difference
from mt3data.shards.format import find_builds, read_build_manifest
from mt3data.shards.reader import Batch, IndexedShards
from mt3train.config import Config, DataConfig
from mt3train.data.mixing import MixedShards
from mt3train.data.recordings import require_recordings
from mt3train.data.streaming import StreamedShards


class TrainingData(Protocol):
    """Training data: mt3data.shards.reader.IndexedShards, or another class with these members."""

    spectrogram: SpectrogramConfig
    vocabulary: VocabularyConfig
    right_context: str
    feature: str
    builds: list[Path]
    n_records: int

    def batch(
        self, step: int, global_batch: int, rank: int = 0, world_size: int = 1, frames: int = 256
    ) -> Batch:
        """Returns this rank's segments of a global batch."""


def open_shards(config: DataConfig, seed: int, audio: bool = False) -> TrainingData:
    """Opens the shards that a configuration names for training.

    Args:
        config: names the builds.
        seed: of the order and the crops.
        audio: read audio also where log-mel is stored, as augmentation needs it.
    Raises:
        UserError: there are none, or none with audio, or a set of the mixture has no build.
    """
    if config.reader == "webdataset":
        streamed = _open_streamed(config, seed)
        if audio and streamed.feature != "audio":
            raise UserError(
                f"augmentation changes audio, and data.reader=webdataset reads {streamed.feature} from "
                f"{config.train}; build with --store audio, or take data.reader=indexed"
            )
        return streamed
    builds, temperature = mixture_builds(builds_at(config.train, config), config)
    shards = IndexedShards(
        builds,
        config.split,
        seed=seed,
        temperature=temperature,
        weights=weights_of(builds, config),
        feature="audio" if config.mix_examples or audio else None,
        shuffle_shards=config.shuffle_shards,
    )
    return MixedShards(shards, config.mix_examples) if config.mix_examples else shards


def _open_streamed(config: DataConfig, seed: int) -> TrainingData:
    builds: Sequence[str | Path]
    if any(map(is_address, _named(config.train))) and not config.cache:
        builds, temperature = _named(config.train), config.temperature
        if config.mixture:
            raise UserError(
                "data.mixture chooses among builds on this machine; give data.cache=DIR"
            )
    else:
        builds, temperature = mixture_builds(builds_at(config.train, config), config)
    if len(builds) > 1 and temperature != 1.0:
        raise UserError(
            f"data.reader=webdataset reads every record of {len(builds)} builds once per epoch, which "
            f"is data.temperature=1, not {temperature:g}; set that, or take data.reader=indexed"
        )
    return StreamedShards(builds, config.split, seed)


def builds_at(where: str, config: DataConfig) -> list[Path]:
    """Finds the builds that a setting names, on this machine.

    Args:
        where: a build, a pattern of builds, an address, or several of these with commas.
        config: its `cache` is the folder into which builds with an address are copied, unless they
            are there. Its `cache_gb` limits the size of the shards there.
    Raises:
        UserError: there is no build, or an address without a cache.
    """
    builds = [build for part in _named(where) for build in _builds_at_one(part, config)]
    return list(dict.fromkeys(builds))  # once, however many patterns find it


def _named(where: str) -> list[str]:
    """Splits a setting at its commas into builds, patterns and addresses."""
    if os.path.exists(where):  # noqa: PTH110 (a list may be longer than a path can be)
        return [where]  # a name may have commas
    return [part for part in map(str.strip, where.split(",")) if part] or [where]


def _builds_at_one(part: str, config: DataConfig) -> list[Path]:
    if not is_address(part):
        return find_builds(local_path(part))
    if not config.cache:
        raise UserError(
            f"{part} is an address, where single crops cannot be read: copy it with data.cache=DIR, "
            "of which data.cache_gb=N limits the size; or train with data.reader=webdataset, and "
            "evaluate on data.eval=DIR or not at all (eval_every=0)"
        )
    return [cached(part, Path(config.cache), max_bytes=math.ceil(config.cache_gb * 1e9))]


def weights_of(builds: Sequence[Path], config: DataConfig) -> list[float] | None:
    """Returns the configured weight of each build; None where none is configured.

    Raises:
        UserError: the names of the weights are not those of the builds.
    """
    if not config.weights:
        return None
    names = build_names(builds)
    if sorted(names) != sorted(config.weights):
        raise UserError(
            f"data.weights has {', '.join(config.weights)}; the builds are {', '.join(names)}; "
            "name each of them once"
        )
    return [config.weights[name] for name in names]


def mixture_builds(builds: list[Path], config: DataConfig) -> tuple[list[Path], float]:
    """Returns the builds of the configured mixture, and the temperature at which to mix them.

    Raises:
        UserError: there is no such mixture, or no build of one of its sets.
    """
    from mt3data.datasets.manifest import load_mixture

    if not config.mixture:
        return builds, config.temperature
    mixture = load_mixture(config.mixture)
    sets = {build: read_build_manifest(build)["dataset"] for build in builds}
    if missing := [name for name in mixture.datasets if name not in sets.values()]:
        raise UserError(
            f"the mixture {mixture.name} needs builds of {', '.join(mixture.datasets)}; "
            f"{config.train} has none of {', '.join(missing)}; make them with "
            f"`mt3data build {missing[0]}` and so on, or leave out data.mixture"
        )
    return [build for build in builds if sets[build] in mixture.datasets], mixture.temperature


def open_evaluation(config: Config, like: TrainingData) -> TrainingData | None:
    """Opens the shards of the evaluation, in a fixed order.

    Args:
        config: its section `data` names builds and split.
        like: the shards of training.
    Returns:
        None if the run does not evaluate, or if no build has a record in that split.
    Raises:
        UserError: the builds are not made as those of training.
    """
    source = config.data
    if not (config.eval_every or config.transcribe_every):
        return None
    if source.validation_folder:
        require_recordings(Path(source.validation_folder))
    if source.eval:
        builds = builds_at(source.eval, source)
    else:
        builds = mixture_builds(builds_at(source.train, source), source)[0]
    builds = [build for build in builds if _n_records(build, source.eval_split)]
    if not builds:
        return None
    shards = IndexedShards(builds, source.eval_split, seed=0, feature=like.feature)
    for key in ("spectrogram", "vocabulary", "right_context"):
        ours, theirs = getattr(shards, key), getattr(like, key)
        if ours != theirs:
            if key != "right_context":
                ours, theirs = asdict(ours), asdict(theirs)
            apart = describe_difference(key, (ours, builds[0]), (theirs, "the training shards"))
            raise UserError(f"{apart}; give data.eval a build with the settings of data.train")
    shards.batch(0, 1, frames=source.frames)  # better now than after hours
    return shards


def data_order(config: Config, data: TrainingData) -> dict[str, Any]:
    """Returns all settings that decide which segments a step reads, and in which order.

    The shards of each build are stated by a checksum. A build on a server has none.
    """
    source, changes = (
        config.data,
        dataclasses.asdict(config.augment) if config.augment.is_on else {},
    )
    builds = {
        name: _checksum_of_shards(build)
        for name, build in zip(build_names(data.builds), data.builds, strict=True)
    }
    order = {
        "seed": config.seed, "batch": config.batch, "records": data.n_records, "builds": builds,
        "data.split": source.split, "data.reader": source.reader,
        "data.mix_examples": source.mix_examples, "data.temperature": source.temperature,
        "data.weights": source.weights, "data.shuffle_shards": source.shuffle_shards,
        "augment": changes,
    }  # fmt: skip
    return json.loads(json.dumps(order))  # as a checkpoint holds it


def _n_records(build: Path, split: str) -> int:
    return read_build_manifest(build)["splits"].get(split, {"records": 0})["records"]


def _checksum_of_shards(build: Path) -> str | None:
    if not build.is_dir():
        return None
    digests = [entry["sha256"] for entry in read_build_manifest(build)["shards"]]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:12]
