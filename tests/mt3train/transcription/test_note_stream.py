"""Notes that come while segments are decoded are those of the whole transcription."""

import tracemalloc
from collections.abc import Iterator
from itertools import repeat

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mt3train
from mt3data.music.detokenizer import decode_segments
from mt3data.music.notes import Notes, separate_equal_pitches
from mt3data.music.vocabulary import EOS_ID, Event, VocabularyConfig, get_codec
from mt3train.model import MT3, ModelConfig
from mt3train.transcription.decode import DecodedSegment, DecodingConfig, SegmentDecoder
from mt3train.transcription.note_stream import MIN_SECONDS, REPEAT_SECONDS, NoteStream, cut_notes
from mt3train.transcription.programs import ProgramFilter
from mt3train.transcription.transcribe import merge_repeats
from mt3train.weights.checkpoint import CheckpointInfo

TIES = VocabularyConfig()
ONSETS = VocabularyConfig(encoding="onsets", granularity="flat")
# Few pitches and programs, and times around the limits of 10 and 50 ms, so that notes meet.
EVENTS = st.one_of(
    st.tuples(st.just("shift"), st.sampled_from([1, 2, 4, 5, 6, 10, 100, 203, 204, 205, 210])),
    st.tuples(st.just("pitch"), st.integers(60, 62)),
    st.tuples(st.just("velocity"), st.integers(0, 1)),
    st.tuples(st.just("program"), st.sampled_from([0, 33])),
    st.tuples(st.just("drum"), st.just(36)),
    st.tuples(st.just("tie"), st.just(0)),
)


def ids(config: VocabularyConfig, events: list[tuple[str, int]]) -> np.ndarray:
    codec = get_codec(config)
    known = [event for event in events if event[0] in codec.first]
    return np.array([*(codec.encode(Event(*event)) + 3 for event in known), EOS_ID])


def at_once(
    segments: list[tuple[float, np.ndarray]], config: VocabularyConfig, decoding: DecodingConfig,
    end: float,
) -> Notes:  # fmt: skip
    """The definition: each rule is applied to all notes of the recording."""
    notes = decode_segments(segments, config).notes
    if decoding.programs:
        notes = decoding.programs.select(notes, config)
    notes = notes.sorted()
    if decoding.constrained:
        notes = merge_repeats(notes, REPEAT_SECONDS)
    notes = merge_repeats(notes, MIN_SECONDS)
    return cut_notes(separate_equal_pitches(notes), end)


TIED = [("program", 33), ("pitch", 60), ("tie", 0)]
HELD = [("tie", 0), ("program", 33), ("velocity", 1), ("pitch", 60)]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(EVENTS, max_size=25), min_size=1, max_size=5),
    st.booleans(), st.booleans(), st.sampled_from([TIES, ONSETS]), st.integers(0, 204),
)  # fmt: skip
@example([HELD, TIED, TIED, [("tie", 0)]], True, False, TIES, 100)
@example([[*HELD, ("shift", 204), ("pitch", 60)], TIED], False, False, TIES, 3)
def test_they_are_the_same_notes_in_whatever_order(
    segments: list[list[tuple[str, int]]], constrained: bool, only_bass: bool,
    config: VocabularyConfig, rest: int,
) -> None:  # fmt: skip
    chosen = ProgramFilter.parse("bass") if only_bass and config is TIES else None
    decoding = DecodingConfig(constrained=constrained, programs=chosen)
    tokens = [ids(config, events) for events in segments]
    starts = [256 * k * 100 // 125 / 100 for k in range(len(tokens))]
    end = starts[-1] + rest / 100
    stream, parts = NoteStream(config, decoding), list[Notes]()
    for here, start, after in zip(tokens, starts, [*starts[1:], None], strict=True):
        parts.append(stream.push(here, start, after))
    parts.append(stream.finish(end))
    whole = at_once(list(zip(starts, tokens, strict=True)), config, decoding, end)
    np.testing.assert_array_equal(Notes.concat(parts).sorted().to_array(), whole.to_array())
    decoded = decode_segments(list(zip(starts, tokens, strict=True)), config)
    assert (stream.invalid, stream.dropped) == (decoded.invalid, decoded.dropped)
    assert stream.n_segments == len(tokens)


def test_a_note_comes_when_it_has_ended_and_a_tied_one_waits() -> None:
    stream = NoteStream(TIES, DecodingConfig(constrained=True))
    short = [*HELD, ("program", 0), ("pitch", 64), ("shift", 50), ("velocity", 0), ("pitch", 64)]
    first = stream.push(ids(TIES, short), 0.0, 2.04)
    assert first.to_array()[:, :5].tolist() == [[0.0, 0.5, 64, 127, 0]]
    assert len(stream.push(ids(TIES, TIED), 2.04, 4.09)) == 0
    second = stream.push(ids(TIES, [("tie", 0)]), 4.09, 6.14)
    assert second.to_array()[:, :5].tolist() == [[0.0, 4.09, 60, 127, 33]]
    assert first.instrument.tolist() == [0] and second.instrument.tolist() == [1]
    assert len(stream.finish(7.0)) == 0


@pytest.fixture
def transcriber(monkeypatch) -> mt3train.Transcriber:
    """A model that finds four notes in every segment, and that ends every other segment late."""
    tiny = ModelConfig(emb_dim=16, num_heads=1, head_dim=8, num_encoder_layers=1,
                       num_decoder_layers=1, mlp_dim=16)  # fmt: skip

    def decode(self: SegmentDecoder, mels: Iterator[np.ndarray]) -> Iterator[DecodedSegment]:
        late = None
        for index, _ in enumerate(mels):
            steps = [("tie", 0), ("program", index % 128), ("velocity", 1)]
            steps += [("pitch", 40 + index % 9 + k) for k in range(4)]
            segment = DecodedSegment(index, ids(TIES, [*steps, ("shift", 100), ("velocity", 0)]))
            if late:
                yield segment
                yield late
            late = None if late else segment
        if late:
            yield late

    monkeypatch.setattr(SegmentDecoder, "decode", decode)
    decoding = DecodingConfig(constrained=True, passes=1)
    return mt3train.Transcriber(MT3(tiny), CheckpointInfo(model=tiny), decoding)


def test_a_recording_gives_the_same_notes_in_parts(transcriber) -> None:
    samples = np.zeros(16000 * 61, np.float32)
    parts = list(transcriber.stream(samples))
    whole = transcriber(samples)
    assert len(parts) > 20 and min(map(len, parts)) > 0
    np.testing.assert_array_equal(Notes.concat(parts).sorted().to_array(), whole.to_array())
    assert len(whole) == 4 * 30


def test_memory_does_not_grow_with_the_length(transcriber, monkeypatch) -> None:
    """The audio is made block by block. Notes are let go."""
    peaks = []
    module = "mt3train.transcription.transcribe"
    block = np.zeros(160_000, np.float32)
    for minutes in (2, 20):
        monkeypatch.setattr(f"{module}.stated_seconds", lambda path, m=minutes: 60.0 * m)
        monkeypatch.setattr(f"{module}.read_blocks", lambda *_, n=6 * minutes: repeat(block, n))
        tracemalloc.start()
        n_notes = sum(map(len, transcriber.stream("made-up.wav")))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert n_notes == 4 * -(-(60 * minutes * 16000 // 128 + 1) // 256)
    assert peaks[1] < 1.1 * peaks[0]
