"""What builds must agree on, and what is said where they do not."""

from dataclasses import asdict
from typing import Any

import pytest

from mt3data.audio.spectrogram import SpectrogramConfig
from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig
from mt3data.shards.compatibility import common_settings


def manifest(**changes: Any) -> dict[str, Any]:
    settings = {
        "spectrogram": asdict(SpectrogramConfig()),
        "vocabulary": asdict(VocabularyConfig(num_velocity_bins=1)),
        "right_context": "zeros", "window": 256, "features": ["mel"],
    }  # fmt: skip
    return settings | changes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"vocabulary": asdict(VocabularyConfig(num_velocity_bins=127))},
            "num_velocity_bins: 1 in shards/a, 127 in shards/b",
        ),
        ({"right_context": "audio"}, "right_context: zeros in shards/a, audio in shards/b"),
        ({"window": 512}, "window: 256 in shards/a, 512 in shards/b"),
    ],
)
def test_of_builds_that_differ_only_the_difference_is_told(
    changes: dict[str, Any], told: str
) -> None:
    builds = [("shards/a", manifest()), ("shards/b", manifest(**changes))]
    assert common_settings(builds[:1] * 2).vocabulary.num_velocity_bins == 1
    with pytest.raises(UserError) as said:
        common_settings(builds)
    assert str(said.value) == f"{told}; builds can be mixed only if they agree"
