"""Windows: what they hold, and that any crop of one is tokenised as the whole track is."""

from dataclasses import replace

import note_rows
import numpy as np
import pytest
from crowded_notes import TRACK_FRAMES, WINDOW, tracks
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3data.audio.room import in_random_room
from mt3data.audio.spectrogram import count_frames, log_mel
from mt3data.music.fast_tokenizer import EventTable, encode
from mt3data.music.notes import Notes, trim_overlapping
from mt3data.music.vocabulary import ENCODINGS, GRANULARITIES, VocabularyConfig
from mt3data.shards.windows import WindowConfig, window_notes, window_starts, windows_of


def test_the_default_right_context_follows_the_length_of_the_window() -> None:
    contexts = {frames: WindowConfig(frames).right_context for frames in (256, 512, 2048)}
    assert contexts == {256: "zeros", 512: "zeros", 2048: "audio"}


def test_variant_0_starts_at_frame_0_and_later_variants_at_a_seeded_phase() -> None:
    config = WindowConfig(256)
    assert list(window_starts(700, 0, "a", config)) == [0, 256, 512]
    phases = [window_starts(700, k, "a", config)[0] for k in range(1, 20)]
    assert len(set(phases)) > 10
    assert all(0 <= phase < 256 for phase in phases)
    assert window_starts(700, 1, "a", config) == window_starts(700, 1, "a", config)
    assert window_starts(700, 1, "a", config) != window_starts(700, 1, "b", config)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, 70_000).astype(np.float32)


def test_rooms_change_the_audio_of_later_variants_and_no_label(samples: np.ndarray) -> None:
    notes = note_rows.notes((0.5, 0.9, 60, 100, 0, 0), (1.2, 3.0, 64, 100, 0, 0))
    plain = WindowConfig(256, variants=3, features=("audio",))
    dry = list(windows_of(samples, notes, "t", 3, plain))
    wet = list(windows_of(samples, notes, "t", 3, replace(plain, rooms=True)))
    again = list(windows_of(samples, notes, "t", 3, replace(plain, rooms=True)))
    assert len(dry) == len(wet)
    for one, other, third in zip(dry, wet, again, strict=True):
        np.testing.assert_array_equal(other.sound["audio"], third.sound["audio"])
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.notes.to_array(), other.notes.to_array())
        is_same = bool((one.sound["audio"] == other.sound["audio"]).all())
        assert is_same == (one.variant == 0)
    peak = max(int(np.abs(window.sound["audio"]).max()) for window in dry)
    assert max(int(np.abs(window.sound["audio"]).max()) for window in wet) <= peak


def test_a_room_keeps_the_place_of_the_direct_sound() -> None:
    click = np.zeros(16_000, np.float32)
    click[4000] = 0.5
    placed = [in_random_room(click, 16_000, f"room {n}") for n in range(20)]
    assert {int(np.argmax(np.abs(one))) for one in placed} == {4000}
    assert {float(np.abs(one).max()) for one in placed} == {0.5}
    assert all(not one[:4000].any() or np.abs(one[:4000]).max() < 1e-6 for one in placed)
    tails = [float(np.sum(one[4001:] ** 2)) / 0.25 for one in placed]  # relative to the click
    assert min(tails) < 10**-0.3 and max(tails) > 1 and max(tails) < 10**0.55
    assert not in_random_room(np.zeros(100, np.float32), 16_000, "silence").any()


def test_a_segment_window_is_cut_first_and_transformed_then(samples: np.ndarray) -> None:
    second = list(windows_of(samples, Notes.empty(), "t", 1, WindowConfig(256)))[1]
    want = log_mel(samples[256 * 128 : 512 * 128]).astype(np.float16)
    np.testing.assert_array_equal(second.sound["mel"], want)


def test_a_track_window_sees_the_audio_that_follows(samples: np.ndarray) -> None:
    config = WindowConfig(256, right_context="audio")
    windows = list(windows_of(samples, Notes.empty(), "t", 1, config))
    whole = log_mel(np.pad(samples, (0, 128 - len(samples) % 128)))
    assert len(whole) == count_frames(len(samples)) == windows[0].track_frames
    ours = np.concatenate([w.sound["mel"][: w.valid_frames] for w in windows])
    np.testing.assert_allclose(ours, whole, atol=0.01)
    segment = next(windows_of(samples, Notes.empty(), "t", 1, WindowConfig(256))).sound["mel"]
    first = windows[0].sound["mel"]
    np.testing.assert_array_equal(segment[:241], first[:241])
    assert np.abs(segment[241:].astype(float) - first[241:]).max() > 0.5


def test_frames_behind_the_end_are_zero_in_log_mel(samples: np.ndarray) -> None:
    last = list(windows_of(samples, Notes.empty(), "t", 1, WindowConfig(256)))[-1]
    assert last.valid_frames == count_frames(70_000) - 512 == 35
    assert (last.sound["mel"][35:] == 0).all()
    assert (last.sound["mel"][:35] != 0).any()


@settings(max_examples=250, deadline=None)
@given(
    notes=tracks(),
    trim=st.booleans(),
    window=st.integers(0, 2),
    crops=st.lists(st.tuples(st.integers(0, 511), st.integers(1, 512)), min_size=1, max_size=4),
    bins=st.sampled_from([1, 127]),
    encoding=st.sampled_from(ENCODINGS),
    granularity=st.sampled_from(GRANULARITIES),
    steps=st.sampled_from([100, 50]),
)
def test_every_crop_of_a_window_is_tokenised_as_the_whole_track_is(
    notes: Notes, trim: bool, window: int, crops: list[tuple[int, int]],
    bins: int, encoding: str, granularity: str, steps: int,
) -> None:  # fmt: skip
    config = VocabularyConfig(bins, steps, encoding=encoding, granularity=granularity)
    notes = trim_overlapping(notes) if trim else notes
    start = window * WINDOW
    n_frames = min(WINDOW, TRACK_FRAMES - start)
    whole = EventTable.from_notes(notes, config)
    carried = EventTable.from_notes(window_notes(notes, start, n_frames, TRACK_FRAMES), config)
    for offset, length in crops:
        first = start + offset % n_frames
        length = min(length, start + n_frames - first)
        want = encode(whole, first, length, TRACK_FRAMES).tolist()
        assert encode(carried, first, length, TRACK_FRAMES).tolist() == want


def test_without_the_earlier_overlapping_note_a_crop_would_go_wrong() -> None:
    # The control of the property above: A sounds through, B ends A's pitch before the window.
    a, b = (0.0, 9.0), (1.0, 2.0)
    notes = Notes([a[0], b[0]], [a[1], b[1]], [60, 60], [9, 9], [0, 0], [False, False], [0, 0])
    config = VocabularyConfig()
    want = encode(EventTable.from_notes(notes, config), 512, 256, TRACK_FRAMES).tolist()
    assert encode(EventTable.from_notes(notes[:1], config), 512, 256, TRACK_FRAMES).tolist() != want
    assert len(window_notes(notes, 512, 512, TRACK_FRAMES)) == 2
