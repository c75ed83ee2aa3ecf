"""Compares the settings of builds that are read together, and checks which crops they allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig


@dataclass(frozen=True)
class CommonSettings:
    """The common settings of some builds, and the feature that is read.

    Attributes:
        spectrogram, vocabulary, right_context: the settings of the builds.
        window_frames: length of a record.
        feature: "mel" or "audio".
    """

    spectrogram: SpectrogramConfig
    vocabulary: VocabularyConfig
    right_context: str
    window_frames: int
    feature: str

    def check_crops(self, frames: int) -> None:
        """Checks that the records allow crops of a number of frames.

        Raises:
            UserError: crops longer than the records, or random crops of a mel of right_context "zeros".
        """
        if frames > self.window_frames:
            raise UserError(
                f"segments of {frames} frames do not fit into records of {self.window_frames}; "
                f"build with --window {frames} or more"
            )
        if frames < self.window_frames and self.right_context == "zeros" and self.feature == "mel":
            raise UserError(
                f"records of {self.window_frames} frames with right_context 'zeros' cannot be cut to {frames} "
                f"frames: build with --window {frames}, with --context audio, or with --store audio"
            )

    def crop(self, frames: int) -> tuple[tuple[int, ...], np.dtype]:
        """Returns shape and type of one crop: [frames, n_mels] float16, or [samples] int16."""
        spectrogram = self.spectrogram
        if self.feature == "mel":
            return (frames, spectrogram.n_mels), np.dtype(np.float16)
        context = spectrogram.context if self.right_context == "audio" else 0
        return (frames * spectrogram.hop + context,), np.dtype(np.int16)


def common_settings(
    builds: Sequence[tuple[Any, dict[str, Any]]], feature: str | None = None
) -> CommonSettings:
    """Returns the common settings of some builds.

    Args:
        builds: place and manifest of each, at least one.
        feature: what to read, "mel" or "audio"; None: mel where all builds hold it.
    Raises:
        UserError: they differ, or not all hold the feature.
    """
    place, first = builds[0]
    for key in ("spectrogram", "vocabulary", "right_context", "window"):
        for other, manifest in builds:
            if manifest[key] != first[key]:
                apart = describe_difference(key, (first[key], place), (manifest[key], other))
                raise UserError(f"{apart}; builds can be mixed only if they agree")
    return CommonSettings(
        SpectrogramConfig(**first["spectrogram"]),
        VocabularyConfig(**first["vocabulary"]),
        first["right_context"],
        first["window"],
        _shared_feature(builds, feature),
    )


def describe_difference(name: str, one: tuple[Any, Any], other: tuple[Any, Any]) -> str:
    """Describes how two settings differ: "num_velocity_bins: 1 in shards/a, 127 in shards/b".

    Args:
        name: of the setting.
        one, other: its value, and the place that has it. Of dicts only the differences are listed.
    """
    (a, here), (b, there) = one, other
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return f"{name}: {a} in {here}, {b} in {there}"
    keys = [key for key in a | b if a.get(key) != b.get(key)]
    return "; ".join(f"{key}: {a.get(key)} in {here}, {b.get(key)} in {there}" for key in keys)


def _shared_feature(builds: Sequence[tuple[Any, dict[str, Any]]], wanted: str | None) -> str:
    for name in [wanted] if wanted else ["mel", "audio"]:
        if all(name in manifest["features"] for _, manifest in builds):
            return name
    lacking = [f"{place} has {', '.join(manifest['features'])}" for place, manifest in builds]
    raise UserError(
        f"not all builds hold {wanted or 'the same of mel and audio'} ({'; '.join(lacking)}); "
        "build them with the same --store"
    )
