"""What builds must agree on to be read together, and which crops of their records there can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig


@dataclass(frozen=True)
class Agreement:
    """How all records of some builds were made, and what is read of them.

    Attributes:
        spectrogram, vocabulary, edge: the settings of the builds.
        window_frames: length of a record.
        member: "mel" or "audio".
    """

    spectrogram: SpectrogramConfig
    vocabulary: VocabularyConfig
    edge: str
    window_frames: int
    member: str

    def check_crops(self, frames: int) -> None:
        """Refuses crops of so many frames where the records cannot give them.

        Raises:
            UserError: crops longer than the records, or random crops of a mel of edge "segment".
        """
        if frames > self.window_frames:
            raise UserError(
                f"segments of {frames} frames do not fit into records of {self.window_frames}; "
                f"build with --window {frames} or more"
            )
        if frames < self.window_frames and self.edge == "segment" and self.member == "mel":
            raise UserError(
                f"records of {self.window_frames} frames with edge 'segment' cannot be cut to {frames} "
                f"frames: build with --window {frames}, with --edge track, or with --members audio"
            )

    def crop(self, frames: int) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of one crop: [frames, n_mels] float16, or [samples] int16."""
        spectrogram = self.spectrogram
        if self.member == "mel":
            return (frames, spectrogram.n_mels), np.dtype(np.float16)
        context = spectrogram.context if self.edge == "track" else 0
        return (frames * spectrogram.hop + context,), np.dtype(np.int16)


def agree(builds: Sequence[tuple[Any, dict[str, Any]]], member: str | None = None) -> Agreement:
    """What some builds agree on.

    Args:
        builds: place and manifest of each, at least one.
        member: what to read, "mel" or "audio"; None: mel where all builds hold it.
    Raises:
        UserError: they differ, or not all hold the member.
    """
    place, first = builds[0]
    for key in ("spectrogram", "vocabulary", "edge", "window"):
        for other, manifest in builds:
            if manifest[key] != first[key]:
                apart = told_apart(key, (first[key], place), (manifest[key], other))
                raise UserError(f"{apart}; builds can be mixed only if they agree")
    return Agreement(
        SpectrogramConfig(**first["spectrogram"]),
        VocabularyConfig(**first["vocabulary"]),
        first["edge"],
        first["window"],
        _member_of_all(builds, member),
    )


def told_apart(name: str, one: tuple[Any, Any], other: tuple[Any, Any]) -> str:
    """In what two unequal settings differ: "num_velocity_bins: 1 in shards/a, 127 in shards/b".

    Args:
        name: of the setting.
        one, other: its value, and the place that has it. Of dicts only what differs is told.
    """
    (a, here), (b, there) = one, other
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return f"{name}: {a} in {here}, {b} in {there}"
    keys = [key for key in a | b if a.get(key) != b.get(key)]
    return "; ".join(f"{key}: {a.get(key)} in {here}, {b.get(key)} in {there}" for key in keys)


def _member_of_all(builds: Sequence[tuple[Any, dict[str, Any]]], wanted: str | None) -> str:
    for name in [wanted] if wanted else ["mel", "audio"]:
        if all(name in manifest["members"] for _, manifest in builds):
            return name
    lacking = [f"{place} has {', '.join(manifest['members'])}" for place, manifest in builds]
    raise UserError(
        f"not all builds hold {wanted or 'the same of mel and audio'} ({'; '.join(lacking)}); "
        "build them with the same --members"
    )
