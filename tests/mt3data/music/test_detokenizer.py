"""The note decoder, as facts to check by hand; the golden tests feed it corrupted tokens too."""

import numpy as np

from mt3data.music.detokenizer import NoteDecoder, decode_segments
from mt3data.music.fast_tokenizer import encode_notes
from mt3data.music.notes import Notes
from mt3data.music.tokenizer import segment_start
from mt3data.music.vocabulary import Codec, Event, VocabularyConfig, describe_tokens

TIES = VocabularyConfig()


def ids(*events: tuple[str, int]) -> np.ndarray:
    codec = Codec(TIES)
    return np.array([3 + codec.encode(Event(*event)) for event in events] + [1])


NOTE_ON = (("program", 5), ("velocity", 1), ("pitch", 60))
NOTE_OFF = (("velocity", 0), ("pitch", 60))
TIE = ("tie", 0)


def times(notes: Notes) -> list[tuple[float, float]]:
    return [(round(a, 3), round(b, 3)) for a, b in zip(notes.onset, notes.offset, strict=True)]


def test_a_tied_note_goes_on_through_the_border() -> None:
    first = ids(TIE, ("shift", 150), *NOTE_ON)
    second = ids(("program", 5), ("pitch", 60), TIE, ("shift", 50), *NOTE_OFF)
    decoded = decode_segments([(0.0, first), (2.04, second)], TIES)
    assert times(decoded.notes) == [(1.5, 2.54)]


def test_an_untied_note_ends_where_the_next_segment_begins() -> None:
    decoded = decode_segments([(0.0, ids(TIE, ("shift", 150), *NOTE_ON)), (2.04, ids(TIE))], TIES)
    assert times(decoded.notes) == [(1.5, 2.04)]


def test_a_second_onset_ends_the_first_note() -> None:
    decoded = decode_segments(
        [(0.0, ids(TIE, ("shift", 10), *NOTE_ON, ("shift", 50), ("pitch", 60)))], TIES
    )
    assert times(decoded.notes) == [(0.1, 0.5), (0.5, 0.51)]


def test_events_behind_the_next_segment_are_dropped_and_counted() -> None:
    late = ids(TIE, ("shift", 300), *NOTE_ON)
    decoded = decode_segments([(0.0, late), (2.04, ids(TIE))], TIES)
    assert (len(decoded.notes), decoded.dropped) == (0, 4)


def test_what_makes_no_sense_is_skipped_and_counted() -> None:
    decoded = decode_segments(
        [(0.0, ids(("pitch", 60), TIE, TIE, *NOTE_OFF, ("shift", 5), *NOTE_ON))], TIES
    )
    assert (len(decoded.notes), decoded.invalid) == (1, 3)


def test_a_segment_without_tie_is_a_tie_section_to_its_end() -> None:
    first = ids(TIE, ("shift", 150), *NOTE_ON)
    without = ids(("shift", 50), ("program", 5), ("velocity", 1), ("pitch", 60), ("pitch", 62))
    segments = [(0.0, first), (2.04, without), (4.09, ids(TIE))]
    decoded = decode_segments(segments, TIES)
    assert times(decoded.notes) == [(1.5, 4.09)]  # pitch 60 is held, and the next tie closes it
    assert decoded.invalid == 1  # pitch 62 is not open


def test_without_programs_the_second_note_of_a_pitch_is_invalid_as_in_mt3() -> None:
    flat = VocabularyConfig(granularity="flat")
    rows = [(0.5, 3, 60, 80, 0, 0, 0), (0.6, 3, 60, 80, 33, 0, 1)]
    notes = Notes.from_array(np.array(rows, float))
    segments = [
        (start, encode_notes(notes, k, 256, 512, flat)) for start, k in ((0.0, 0), (2.04, 256))
    ]
    assert describe_tokens(segments[1][1], flat)[:3] == ["pitch 60", "pitch 60", "tie"]
    decoded = decode_segments(segments, flat)
    assert times(decoded.notes) == [(0.5, 0.6), (0.6, 3.0)]
    assert decoded.invalid == 2  # the second tied pitch, and the second offset


def test_program_and_velocity_persist_into_the_next_segment() -> None:
    decoder = NoteDecoder(TIES)
    decoder.decode_segment(ids(TIE, ("shift", 10), *NOTE_ON, ("shift", 20), *NOTE_OFF), 0.0)
    decoder.decode_segment(ids(TIE, ("velocity", 1), ("shift", 10), ("pitch", 62)), 2.04)
    assert decoder.finish().program.tolist() == [5, 5]


def test_a_drum_hit_lasts_ten_milliseconds() -> None:
    decoded = decode_segments([(0.0, ids(TIE, ("shift", 10), ("velocity", 1), ("drum", 36)))], TIES)
    assert times(decoded.notes) == [(0.1, 0.11)]
    assert decoded.notes.instrument.tolist() == [9]


def test_what_was_encoded_segment_by_segment_comes_back_on_the_grid() -> None:
    rng = np.random.default_rng(0)
    onset = np.sort(rng.uniform(0, 9, 60))
    track = Notes(
        onset, onset + rng.uniform(0.03, 3, 60), np.arange(30, 90), np.full(60, 127),
        rng.integers(0, 3, 60) * 24, np.zeros(60), np.zeros(60),
    )  # fmt: skip
    frames = 1600
    segments = [
        (segment_start(start, TIES), encode_notes(track, start, 256, frames, TIES))
        for start in range(0, frames, 256)
    ]
    decoded = decode_segments(segments, TIES)
    assert (decoded.invalid, decoded.dropped, len(decoded.notes)) == (0, 0, 60)
    back, expected = decoded.notes.sorted(), track.sorted()
    order, order_expected = np.argsort(back.pitch), np.argsort(expected.pitch)
    np.testing.assert_allclose(
        back.onset[order], np.rint(100 * expected.onset[order_expected]) / 100, atol=1e-9
    )
    np.testing.assert_allclose(
        back.offset[order], np.rint(100 * expected.offset[order_expected]) / 100, atol=1e-9
    )
    np.testing.assert_array_equal(back.program[order], expected.program[order_expected])
