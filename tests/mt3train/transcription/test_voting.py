"""Several passes over one recording: notes that most find are kept, at their median times."""

import math
from collections.abc import Iterator
from itertools import repeat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3data.music.notes import Notes
from mt3data.music.vocabulary import EOS_ID, Event, VocabularyConfig, get_codec
from mt3train.model import MT3, ModelConfig
from mt3train.transcription import transcribe as module
from mt3train.transcription.decode import DecodedSegment, DecodingConfig, SegmentDecoder
from mt3train.transcription.note_stream import earliest
from mt3train.transcription.transcribe import stream, transcribe
from mt3train.transcription.voting import NoteVote
from mt3train.weights.checkpoint import CheckpointInfo

TIES = VocabularyConfig()
TINY = ModelConfig(emb_dim=16, num_heads=1, head_dim=8, num_encoder_layers=1, num_decoder_layers=1,
                   mlp_dim=16)  # fmt: skip


def notes_of(*rows: tuple) -> Notes:
    """Makes notes of (onset, offset, pitch, program), and True for drums."""
    full = [(on, off, pitch, 90, program, bool(drum), 0) for on, off, pitch, program, *drum in rows]
    return Notes.from_array(np.array(full, np.float64).reshape(-1, 7))


def voted(*passes: Notes) -> list[tuple]:
    vote = NoteVote(len(passes), numbered=True)
    for number, notes in enumerate(passes):
        vote.push(number, notes)
    found = vote.finish()
    columns = (found.onset, found.offset, found.pitch, found.program)
    return [tuple(round(float(x), 4) for x in row) for row in zip(*columns, strict=True)]


def test_most_passes_decide_and_times_are_their_medians() -> None:
    first = notes_of((1.0, 2.0, 60, 0), (3.0, 4.0, 64, 0))
    second = notes_of((1.01, 2.3, 60, 0), (5.0, 6.0, 67, 0))
    third = notes_of((1.04, 2.1, 60, 0), (3.06, 4.0, 64, 0), (5.04, 5.5, 67, 0))
    assert voted(first, second, third) == [(1.01, 2.1, 60, 0), (5.02, 5.75, 67, 0)]
    assert voted(first, second) == [(1.005, 2.15, 60, 0)]  # both of two


def test_one_pass_that_repeats_a_note_has_one_vote() -> None:
    twice = notes_of((1.0, 2.0, 60, 0), (1.03, 2.0, 60, 0))
    assert voted(twice, notes_of(), notes_of()) == []


def test_programs_are_those_of_most_and_unisons_stay_two_notes() -> None:
    def one(*programs: int) -> Notes:
        return notes_of(*((1.0, 2.0, 60, program) for program in programs))

    assert voted(one(40), one(40), one(73)) == [(1.0, 2.0, 60, 40)]
    assert voted(one(40), one(73), one()) == [(1.0, 2.0, 60, 40)]  # a note, of a program or other
    assert sorted(voted(one(40, 73), one(40, 73), one(40))) == [
        (1.0, 2.0, 60, 40), (1.0, 2.0, 60, 73)
    ]  # fmt: skip
    drum = notes_of((1.0, 1.01, 60, 0, True))
    assert voted(one(0), drum, drum) == [(1.0, 1.01, 60, 0)]


def test_a_pitch_sounds_once_at_a_time() -> None:
    long, short = notes_of((1.0, 3.0, 60, 0)), notes_of((2.0, 2.5, 60, 0))
    assert voted(Notes.concat([long, short]), Notes.concat([long, short])) == [
        (1.0, 2.0, 60, 0), (2.0, 2.5, 60, 0)
    ]  # fmt: skip


def test_a_note_that_is_held_delays_no_other_pitch() -> None:
    vote = NoteVote(2, numbered=True)
    for number in (0, 1):
        vote.push(number, notes_of((1.0, 1.5, 60, 0), (1.0, 1.5, 64, 0)))
    first = vote.settle(9.0, {(64, False): 0.9})  # a pass has a note of pitch 64 since 0.9 s
    assert first.pitch.tolist() == [60]
    vote.push(1, notes_of((0.9, 12.0, 64, 0)))
    assert vote.finish().pitch.tolist() == [64]


def test_instruments_are_numbered_by_their_first_note() -> None:
    vote = NoteVote(2, numbered=True)
    both = notes_of(
        (1.0, 2.0, 60, 40), (1.5, 2.0, 50, 0), (1.2, 1.21, 36, 0, True), (4.0, 5.0, 60, 40)
    )
    for number in (0, 1):
        vote.push(number, both)
    assert vote.settle(3.0).instrument.tolist() == [0, 9, 1]
    assert vote.finish().instrument.tolist() == [0]


ROWS = st.lists(
    st.tuples(st.integers(0, 400), st.integers(1, 200), st.sampled_from((60, 61)),
              st.sampled_from((0, 40)), st.booleans()),
    max_size=25,
)  # fmt: skip


@given(st.lists(ROWS, min_size=2, max_size=5), st.lists(st.integers(0, 450), max_size=6))
def test_parts_give_the_same_notes_as_the_whole(passes: list, times: list[int]) -> None:
    passes = [
        notes_of(*((on / 100, (on + n) / 100, *rest) for on, n, *rest in rows)) for rows in passes
    ]
    whole, parts = (NoteVote(len(passes), numbered=False) for _ in range(2))
    for number, notes in enumerate(passes):
        whole.push(number, notes)
    expected = whole.finish().sorted().to_array()
    found = []
    waiting = [notes.to_array() for notes in passes]
    for time in [*sorted(time / 100 for time in times), math.inf]:  # a note comes when it has ended
        for number, rows in enumerate(waiting):
            ended = rows[:, 1] < time
            parts.push(number, Notes.from_array(rows[ended]))
            waiting[number] = rows[~ended]
        begun = [row for rows in waiting for row in rows.tolist() if row[0] < time]
        held = earliest(((int(row[2]), bool(row[5])), row[0]) for row in begun)
        found.append(parts.settle(time, held))
    assert np.array_equal(Notes.concat(found).sorted().to_array(), expected)
    for key in {(row[2], row[4], row[5]) for row in expected.tolist()}:
        mine = expected[(expected[:, [2, 4, 5]] == key).all(1)]
        assert (mine[1:, 0] - mine[:-1, 0] > 0.05).all() and (mine[1:, 0] >= mine[:-1, 1]).all()


@pytest.fixture
def clicks(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Returns audio with clicks, and makes the decoder write a drum for each, and one where none is."""

    def decode(self: SegmentDecoder, mels: Iterator[np.ndarray]) -> Iterator[DecodedSegment]:
        late = None
        for index, mel in enumerate(mels):
            level = np.asarray(mel).mean(1)
            near = [level[max(0, f - 16) : f + 17].max() for f in range(len(level))]
            onsets = np.flatnonzero((level == near) & (level > -8))
            events = [("tie", 0), ("velocity", 1)]
            for step, drum in sorted([(round(0.8 * f), 36) for f in onsets] + [(90, 50)]):
                events += [("shift", step), ("drum", drum)]
            codec = get_codec(TIES)
            ids = [codec.encode(Event(*event)) + 3 for event in events if event != ("shift", 0)]
            segment = DecodedSegment(index, np.array([*ids, EOS_ID]))
            if late:
                yield segment  # segments end in another order than they begin in
                yield late
            late = None if late else segment
        if late:
            yield late

    monkeypatch.setattr(SegmentDecoder, "decode", decode)
    samples = np.zeros(16000 * 20, np.float32)
    for time in (0.5, 3.33, 7.1, 12.8, 19.2):
        place = round(time * 16000)
        samples[place : place + 400] = np.random.default_rng(0).normal(0, 0.3, 400)
    return samples


@pytest.mark.parametrize("right_context", ["zeros", "audio"])
@pytest.mark.parametrize("n_passes", [3, 4])
def test_a_recording_is_decoded_in_passes_that_begin_at_other_times(
    clicks: np.ndarray, right_context: str, n_passes: int
) -> None:
    model, info = MT3(TINY), CheckpointInfo(model=TINY, right_context=right_context)
    decoding = DecodingConfig(passes=n_passes)
    calls: list[tuple[int, int]] = []
    found = transcribe(model, info, clicks, decoding, on_progress=lambda *done: calls.append(done))
    one = transcribe(model, info, clicks, DecodingConfig(passes=1)).notes
    assert {36, 50} == set(one.pitch.tolist())
    assert found.notes.onset == pytest.approx(one.onset[one.pitch == 36], abs=0.02)
    assert found.notes.pitch.tolist() == [36] * 5 and found.seconds == 20
    n_segments = sum(-(-(2501 + 256 * k // n_passes) // 256) for k in range(n_passes))
    assert found.n_segments == n_segments
    assert calls == [(k, n_segments) for k in range(1, n_segments + 1)]
    parts = [notes for notes, _ in stream(model, info, clicks, decoding)]
    assert np.array_equal(Notes.concat(parts).sorted().to_array(), found.notes.to_array())
    assert sum(map(len, parts[: len(parts) // 2])) >= 2  # they come while the rest is decoded


def test_the_state_of_passes_does_not_grow(
    clicks: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    settle = NoteVote.settle

    def counted(self: NoteVote, *known_until: object) -> Notes:
        known = settle(self, *known_until)
        sizes.append(sum(map(len, self._found.values())) + len(self._last))
        return known

    monkeypatch.setattr(NoteVote, "settle", counted)
    monkeypatch.setattr(module, "stated_seconds", lambda path: 1200.0)
    monkeypatch.setattr(module, "read_blocks", lambda *_: repeat(clicks, 60))
    info = CheckpointInfo(model=TINY, right_context="audio")
    n_notes = 0
    for notes, _ in stream(MT3(TINY), info, "made-up.wav", DecodingConfig(passes=3)):
        n_notes += len(notes)
    assert n_notes == 300 and max(sizes) < 40


def test_small_models_that_know_any_segments_are_run_five_times_where_decoding_is_constrained() -> (
    None
):
    small, large = MT3(TINY), MT3(ModelConfig())
    assert DecodingConfig(constrained=True).passes_of(small, "audio") == 5
    assert DecodingConfig(constrained=True).passes_of(large, "audio") == 1
    assert DecodingConfig(constrained=True).passes_of(small, "zeros") == 1
    assert DecodingConfig().passes_of(small, "audio") == 1  # as the original
    assert DecodingConfig(passes=2).passes_of(large, "zeros") == 2
    with pytest.raises(ValueError, match="passes=0; expected at least 1"):
        DecodingConfig(passes=0)
