"""Targets, as facts to check by hand. The fast tokenizer gives the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from note_rows import notes

from mt3data.music.fast_tokenizer import EventTable, encode, encode_notes
from mt3data.music.notes import Notes
from mt3data.music.tokenizer import first_time_step, segment_start, tokenize
from mt3data.music.vocabulary import (
    ENCODINGS,
    GRANULARITIES,
    VocabularyConfig,
    describe_tokens,
)

FRAMES = 1000  # 8 s
TIES = VocabularyConfig()


def words(track: Notes, start: int = 0, n: int = 256, config: VocabularyConfig = TIES) -> str:
    return ", ".join(describe_tokens(np.array(tokenize(track, start, n, FRAMES, config)), config))


def test_a_note_is_program_velocity_pitch_and_later_velocity_zero() -> None:
    assert words(notes((0.5, 1.0, 60, 80, 5, 0))) == (
        "tie, shift 50, program 5, velocity 1, pitch 60, shift 100, velocity 0, pitch 60, EOS"
    )


def test_program_and_velocity_are_written_once_until_they_change() -> None:
    chord = notes((0.5, 9, 60, 80, 5, 0), (0.5, 9, 64, 80, 5, 0), (0.6, 9, 50, 80, 7, 0))
    assert words(chord) == (
        "tie, shift 50, program 5, velocity 1, pitch 60, pitch 64, shift 60, program 7, pitch 50, EOS"
    )


def test_a_drum_has_no_program_and_no_end() -> None:
    assert words(notes((0.5, 1.0, 36, 80, 0, 1))) == "tie, shift 50, velocity 1, drum 36, EOS"


def test_shifts_count_from_the_start_of_the_segment() -> None:
    later = notes((4.2, 4.3, 60, 80, 0, 0))
    assert words(later, start=512).startswith(
        "tie, shift 11, program 0"
    )  # frame 512 is in step 409


def test_held_notes_open_the_segment_ordered_by_program_then_pitch() -> None:
    held = notes((0.5, 5, 60, 80, 5, 0), (0.6, 5, 64, 80, 3, 0), (0.7, 5, 62, 80, 5, 0))
    assert words(held, start=256) == "program 3, pitch 64, program 5, pitch 60, pitch 62, tie, EOS"


def test_the_last_program_of_the_tie_section_is_not_repeated() -> None:
    track = notes((0.5, 3, 60, 80, 5, 0), (2.5, 5, 64, 80, 5, 0))
    assert words(track, start=256) == (
        "program 5, pitch 60, tie, shift 46, velocity 1, pitch 64, shift 96, velocity 0, pitch 60, EOS"
    )


def test_a_shift_beyond_ten_seconds_takes_several_tokens() -> None:
    far = tokenize(notes((23.45, 24, 60, 80, 0, 0)), 0, 3000, 4000, TIES)
    assert describe_tokens(np.array(far), TIES)[1:4] == ["shift 1000", "shift 1000", "shift 345"]


def test_the_last_segment_takes_all_events_after_the_end_of_the_audio() -> None:
    late = notes((7.5, 30.0, 60, 80, 0, 0))
    assert words(late, start=768).endswith(
        "shift 1000, shift 1000, shift 386, velocity 0, pitch 60, EOS"
    )


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        (
            "noties",
            "shift 46, program 5, velocity 1, pitch 64, shift 96, velocity 0, pitch 60, EOS",
        ),
        ("onsets", "shift 46, pitch 64, shift 76, pitch 36, EOS"),
    ],
)
def test_the_other_encodings(encoding: str, expected: str) -> None:
    track = notes((0.5, 3, 60, 80, 5, 0), (2.5, 5, 64, 80, 5, 0), (2.8, 2.9, 36, 80, 0, 1))
    if encoding == "noties":
        track = track[:2]
    assert words(track, start=256, config=VocabularyConfig(encoding=encoding)) == expected


def test_granularities_write_families_or_no_programs() -> None:
    track = notes((0.5, 9, 60, 80, 5, 0), (0.6, 9, 64, 80, 13, 0))
    family = VocabularyConfig(granularity="midi_class")
    assert words(track, config=family) == (
        "tie, shift 50, program 0, velocity 1, pitch 60, shift 60, program 8, pitch 64, EOS"
    )
    flat = VocabularyConfig(granularity="flat")
    assert (
        words(track, config=flat) == "tie, shift 50, velocity 1, pitch 60, shift 60, pitch 64, EOS"
    )
    assert words(track, start=256, config=flat) == "pitch 60, pitch 64, tie, EOS"


# Deliberate differences from the original


def test_a_segment_after_the_last_event_has_an_empty_tie_section() -> None:
    # The original repeats the state from before the last step: "program 5, pitch 60, tie, EOS".
    assert words(notes((0.5, 1.0, 60, 80, 5, 0)), start=256) == "tie, EOS"


def test_a_track_without_notes_gives_the_target_of_silence() -> None:
    # The original raises InvalidArgumentError.
    assert words(Notes.empty()) == "tie, EOS"
    assert words(Notes.empty(), config=VocabularyConfig(encoding="noties")) == "EOS"


def test_segment_starts_are_exact_and_the_originals_rounding_can_be_had() -> None:
    assert segment_start(5 * 256, TIES) == 10.24
    assert segment_start(5 * 256, TIES, "float32") == pytest.approx(10.23)
    assert segment_start(15 * 256, TIES, "float64") == pytest.approx(30.71)
    exact = [round(100 * segment_start(256 * k, TIES)) for k in range(400)]
    early = [round(100 * segment_start(256 * k, TIES, "float32")) for k in range(400)]
    assert sum(a != b for a, b in zip(exact, early, strict=True)) == 44
    with pytest.raises(ValueError, match="rounding='float16'"):
        segment_start(0, TIES, "float16")


def test_the_step_of_a_frame_is_rounded_down_in_whole_numbers() -> None:
    steps = [first_time_step(frame, TIES) for frame in (0, 1, 2, 5, 256, 512)]
    assert steps == [0, 0, 1, 4, 204, 409]


@pytest.mark.parametrize(("start", "n"), [(-1, 10), (FRAMES, 10), (0, 0)])
def test_a_crop_outside_the_track_is_refused(start: int, n: int) -> None:
    with pytest.raises(ValueError, match="inside the track of 1000 frames"):
        encode(EventTable.from_notes(Notes.empty(), TIES), start, n, FRAMES)


# Times on a coarse grid, so that many notes overlap, coincide and end together.
GRID = st.integers(0, 60).map(lambda n: 0.045 * n)
CROWDED = st.lists(
    st.tuples(GRID, st.integers(1, 30).map(lambda n: 0.045 * n), st.integers(60, 62),
              st.integers(1, 127), st.sampled_from([0, 1, 33, 40]), st.booleans()),
    max_size=60,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    crowded=CROWDED,
    start=st.integers(0, 255),
    n=st.integers(1, 256),
    bins=st.sampled_from([1, 8, 127]),
    steps=st.sampled_from([50, 100, 250]),
    encoding=st.sampled_from(ENCODINGS),
    granularity=st.sampled_from(GRANULARITIES),
)
def test_the_fast_tokenizer_gives_the_same_tokens(
    crowded: list[tuple], start: int, n: int, bins: int, steps: int, encoding: str, granularity: str
) -> None:
    config = VocabularyConfig(bins, steps, 1, encoding, granularity)  # shifts of over a second
    track = notes(*((on, on + length, *rest) for on, length, *rest in crowded))
    assert encode_notes(track, start, n, 256, config).tolist() == tokenize(
        track, start, n, 256, config
    )
