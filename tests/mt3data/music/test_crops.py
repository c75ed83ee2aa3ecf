"""Many crops encoded at once have the tokens that each has when its whole track is encoded."""

import numpy as np
import pytest
from crowded_notes import TRACK_FRAMES, WINDOW, tracks
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3data.music.fast_tokenizer import EventTable, encode, encode_crops, encode_many
from mt3data.music.notes import Notes, trim_overlapping
from mt3data.music.vocabulary import ENCODINGS, GRANULARITIES, VocabularyConfig
from mt3data.shards.windows import window_notes

CONFIG = VocabularyConfig()


@st.composite
def crops(draw: st.DrawFn) -> tuple[Notes, int, int, int]:
    """Notes of a crowded track, the first frame of a window of it, and a crop of that window."""
    notes, window = draw(tracks()), WINDOW * draw(st.integers(0, 2))
    notes = trim_overlapping(notes) if draw(st.booleans()) else notes
    length = min(WINDOW, TRACK_FRAMES - window)
    first = draw(st.integers(0, length - 1))
    return notes, window, window + first, draw(st.integers(1, length - first))


@settings(max_examples=120, deadline=None)
@given(
    several=st.lists(crops(), min_size=1, max_size=5),
    bins=st.sampled_from([1, 127]),
    encoding=st.sampled_from(ENCODINGS),
    granularity=st.sampled_from(GRANULARITIES),
    steps=st.sampled_from([100, 50, 125]),
)
def test_crops_of_several_windows_are_encoded_as_their_whole_tracks_are(
    several: list[tuple[Notes, int, int, int]],
    bins: int, encoding: str, granularity: str, steps: int,
) -> None:  # fmt: skip
    config = VocabularyConfig(bins, steps, encoding=encoding, granularity=granularity)
    windows = [
        window_notes(notes, window, min(WINDOW, TRACK_FRAMES - window), TRACK_FRAMES).to_array()
        for notes, window, _, _ in several
    ]
    starts, lengths = (np.array([crop[i] for crop in several]) for i in (2, 3))
    ends = np.full(len(several), TRACK_FRAMES)
    tokens, counts = encode_crops(windows, starts, lengths, ends, config)
    for i, (notes, _, start, length) in enumerate(several):
        expected = encode(
            EventTable.from_notes(notes, config), start, length, TRACK_FRAMES
        ).tolist()
        assert tokens[i, : counts[i]].tolist() == expected
        assert not tokens[i, counts[i] :].any()


def note(onset: float, offset: float, pitch: int) -> list[float]:
    return [onset, offset, pitch, 80, 0, 0, 0]


def test_the_only_event_of_a_second_window_comes_before_the_only_event_of_the_first() -> None:
    # Sorted by time, the event of the second window is first; it must still follow the first's.
    drums = [np.array([[second, second + 1, 60, 80, 0, 1, 0]]) for second in (4.0, 0.0)]
    start, length, end = np.array([496, 0]), np.array([32, 32]), np.array([TRACK_FRAMES] * 2)
    tokens, counts = encode_crops(drums, start, length, end, CONFIG)
    for i, drum in enumerate(drums):
        alone, (count,) = encode_crops([drum], start[i:][:1], length[i:][:1], end[:1], CONFIG)
        assert tokens[i, : counts[i]].tolist() == alone[0, :count].tolist()
        assert count == 5 - i  # (shift), velocity, drum, tie, EOS


def test_a_note_that_ended_long_before_the_crop_still_ends_the_one_it_overlapped() -> None:
    # 60 sounds from 0 to 9 s, but its key was released at 2 s; 64 is truly held.
    window = np.array([note(0.0, 9.0, 60), note(1.0, 2.0, 60), note(1.5, 9.0, 64)])
    crop = np.array([512]), np.array([256]), np.array([TRACK_FRAMES])  # from 4.1 s on
    tokens, _ = encode_crops([window], *crop, CONFIG)
    expected, _ = encode_crops([window[2:]], *crop, CONFIG)
    assert tokens.tolist() == expected.tolist()
    control, _ = encode_crops([window[[0, 2]]], *crop, CONFIG)
    assert control.tolist() != expected.tolist()


def test_a_crop_far_from_most_notes_of_a_long_window_looks_at_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    window = np.array([note(0.1 * k, 0.1 * k + 0.2, 60 + k % 12) for k in range(1000)])
    seen: list[int] = []
    from_notes = EventTable.from_notes

    def counting(notes: Notes, *rest: object) -> EventTable:
        seen.append(len(notes))
        return from_notes(notes, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(EventTable, "from_notes", counting)
    encode_crops([window], np.array([6000]), np.array([256]), np.array([12500]), CONFIG)
    assert 20 <= seen[0] <= 26  # 2.048 s at ten notes a second, and the edges


def test_no_crops_and_windows_without_notes_are_encoded_too() -> None:
    none = np.zeros(0, np.int64)
    tokens, lengths = encode_crops([], none, none, none, CONFIG)
    assert (tokens.shape, lengths.shape) == ((0, 0), (0,))
    tokens, lengths = encode_crops(
        [np.zeros((0, 7))], np.array([0]), np.array([5]), np.array([9]), CONFIG
    )
    assert (tokens.tolist(), lengths.tolist()) == ([[1134, 1]], [2])  # tie, EOS


def test_a_bad_crop_among_several_is_named() -> None:
    events = EventTable.from_notes(Notes.empty(), CONFIG)
    with pytest.raises(ValueError, match="crop of 5 frames at 9; expected .* track of 9 frames"):
        encode_many(events, np.array([0, 9]), np.array([5, 5]), np.array([9, 9]))


@settings(max_examples=60, deadline=None)
@given(
    notes=tracks(),
    crops=st.lists(st.tuples(st.integers(0, TRACK_FRAMES - 1), st.integers(1, 512)), max_size=6),
    encoding=st.sampled_from(ENCODINGS),
)
def test_crops_of_one_track_may_overlap_and_come_in_any_order(
    notes: Notes, crops: list[tuple[int, int]], encoding: str
) -> None:
    events = EventTable.from_notes(notes, VocabularyConfig(encoding=encoding))
    starts, lengths = (np.array([crop[i] for crop in crops], np.int64) for i in (0, 1))
    tokens, counts = encode_many(events, starts, lengths, np.full(len(crops), TRACK_FRAMES))
    for i, (start, length) in enumerate(crops):
        expected = encode(events, start, length, TRACK_FRAMES).tolist()
        assert tokens[i, : counts[i]].tolist() == expected
