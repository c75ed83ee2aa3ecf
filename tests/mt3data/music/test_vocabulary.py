"""The vocabulary, as facts to check by hand; the golden tests cover every id."""

import numpy as np
import pytest

from mt3data.music.vocabulary import (
    Codec,
    Event,
    VocabularyConfig,
    apply_granularity,
    bin_to_velocity,
    describe_tokens,
    num_embeddings,
    tokens_to_event_ids,
    velocity_to_bin,
    vocabulary_size,
)


def test_tokens_are_event_ids_plus_three() -> None:
    codec = Codec(VocabularyConfig())
    assert codec.encode(Event("shift", 0)) + 3 == 3
    assert codec.encode(Event("pitch", 0)) + 3 == 1004
    assert codec.encode(Event("tie", 0)) + 3 == 1134
    assert codec.encode(Event("drum", 127)) + 3 == 1390


@pytest.mark.parametrize(("bins", "size", "rows"), [(1, 1491, 1536), (127, 1617, 1664)])
def test_the_embedding_has_a_multiple_of_128_rows(bins: int, size: int, rows: int) -> None:
    config = VocabularyConfig(bins)
    assert (vocabulary_size(config), num_embeddings(config)) == (size, rows)


def test_decoding_stops_at_the_first_eos_and_marks_what_is_no_event() -> None:
    ids = np.array([1134, 0, 2, 1390, 1391, 1, 1004])
    assert tokens_to_event_ids(ids, VocabularyConfig()).tolist() == [1131, -2, -2, 1387, -2]


def test_any_audible_velocity_falls_into_a_bin_above_zero() -> None:
    assert velocity_to_bin(np.array([0, 1, 127]), 1).tolist() == [0, 1, 1]
    assert velocity_to_bin(np.array([0, 1, 64, 127]), 127).tolist() == [0, 1, 64, 127]
    assert [bin_to_velocity(b, 8) for b in (0, 1, 8)] == [0, 15, 127]


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [("full", [0, 7, 127]), ("midi_class", [0, 0, 120]), ("flat", [0, 0, 0])],
)
def test_programs_map_to_themselves_their_family_or_nothing(
    granularity: str, expected: list[int]
) -> None:
    assert apply_granularity(np.array([0, 7, 127]), granularity).tolist() == expected


def test_tokens_read_as_words() -> None:
    words = describe_tokens(
        np.array([1135, 1064, 1134, 15, 1133, 1300, 1400, 1]), VocabularyConfig()
    )
    assert words == [
        "program 0",
        "pitch 60",
        "tie",
        "shift 12",
        "velocity 1",
        "drum 37",
        "unused 1400",
        "EOS",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"encoding": "tie"},
        {"granularity": "fine"},
        {"num_velocity_bins": 0},
        {"steps_per_second": 0},
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected|at least"):
        VocabularyConfig(**wrong)
