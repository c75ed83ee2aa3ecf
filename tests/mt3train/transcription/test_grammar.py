"""What may follow in a target, and that decoding by it gives what waiting would have given."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3data.errors import UserError
from mt3data.music.detokenizer import NoteDecoder, decode_segments
from mt3data.music.events import EventTable
from mt3data.music.fast_tokenizer import encode, first_step, segment_start
from mt3data.music.notes import Notes, trim_overlapping
from mt3data.music.vocabulary import EOS_ID, Event, VocabularyConfig, codec_of, num_embeddings
from mt3train.transcription.decode import DecodeOptions, Found
from mt3train.transcription.grammar import Grammar
from mt3train.transcription.programs import Instruments, by_grammar

TIES = VocabularyConfig()
VOCABULARIES = [
    TIES,
    VocabularyConfig(num_velocity_bins=4),
    VocabularyConfig(encoding="noties"),
    VocabularyConfig(encoding="onsets"),
    VocabularyConfig(granularity="flat"),
    VocabularyConfig(num_velocity_bins=127, encoding="noties", granularity="flat"),
]


def ids(*events: tuple[str, int], config: VocabularyConfig = TIES) -> list[int]:
    return [codec_of(config).encode(Event(*event)) + 3 for event in events]


def may(grammar: Grammar, *events: tuple[str, int]) -> list[bool]:
    allowed = grammar.allowed(num_embeddings(grammar.config))
    return [bool(allowed[token]) for token in ids(*events, config=grammar.config)]


def after(grammar: Grammar, *events: tuple[str, int]) -> Grammar:
    """The grammar after these events, each of which it must allow."""
    for event in events:
        assert may(grammar, event) == [True], event
        grammar.accept(ids(event, config=grammar.config)[0])
    return grammar


def ends(grammar: Grammar) -> bool:
    return bool(grammar.allowed(num_embeddings(grammar.config))[EOS_ID])


def test_the_tie_section_comes_first_and_names_only_notes_that_were_left_open():
    grammar = Grammar(TIES, frozenset({(60, 24), (64, 24), (40, 33)}))
    assert may(grammar, ("program", 24), ("program", 0), ("tie", 0)) == [True, False, True]
    assert may(grammar, ("shift", 3), ("velocity", 1), ("pitch", 60)) == [False] * 3
    assert not ends(grammar)
    after(grammar, ("program", 24))
    assert may(grammar, ("pitch", 60), ("pitch", 40), ("tie", 0)) == [True, False, False]
    after(grammar, ("pitch", 60))
    assert may(grammar, ("pitch", 60), ("pitch", 64), ("tie", 0)) == [False, True, True]
    after(grammar, ("tie", 0))
    assert grammar.open_notes == {(60, 24)} and ends(grammar)


def test_time_moves_on_and_stays_within_the_segment():
    grammar = after(Grammar(TIES, frozenset(), limit=204), ("tie", 0))
    assert may(grammar, ("shift", 0), ("shift", 1), ("shift", 203), ("shift", 204)) == [
        False, True, True, False,
    ]  # fmt: skip
    after(grammar, ("shift", 50))
    assert not ends(grammar)  # a shift to nowhere
    assert may(grammar, ("shift", 60), ("velocity", 1), ("program", 3)) == [False, True, True]
    after(grammar, ("program", 3), ("velocity", 1), ("pitch", 60))
    assert may(grammar, ("shift", 50), ("shift", 51)) == [False, True]


def test_without_an_end_shifts_longer_than_one_token_are_said_in_full():
    grammar = after(Grammar(TIES, frozenset()), ("tie", 0), ("shift", 1000))
    after(grammar, ("shift", 500), ("program", 0), ("velocity", 1), ("pitch", 60))  # step 1500
    assert may(grammar, ("shift", 600), ("shift", 1000)) == [False, True]
    after(grammar, ("shift", 1000))
    assert may(grammar, ("shift", 500), ("shift", 501), ("pitch", 60)) == [False, True, False]


def test_a_note_off_ends_a_note_that_sounds():
    grammar = after(Grammar(TIES, frozenset({(60, 5)})), ("program", 5), ("pitch", 60), ("tie", 0))
    after(grammar, ("shift", 7), ("velocity", 0))
    assert may(grammar, ("pitch", 60), ("pitch", 61), ("drum", 36)) == [True, False, False]
    after(grammar, ("pitch", 60))
    assert may(grammar, ("pitch", 60), ("velocity", 0), ("velocity", 1)) == [False, False, True]


def test_a_drum_needs_no_program_but_a_velocity():
    grammar = after(Grammar(TIES, frozenset()), ("tie", 0))
    assert may(grammar, ("drum", 36), ("pitch", 60)) == [False, False]
    after(grammar, ("velocity", 1))
    assert may(grammar, ("drum", 36), ("pitch", 60)) == [True, False]  # no program was said
    no_drums = after(Grammar(TIES, frozenset(), drums=False), ("tie", 0))
    assert may(no_drums, ("velocity", 1), ("program", 4)) == [False, True]


@pytest.mark.parametrize("config", VOCABULARIES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_whatever_the_grammar_allows_is_accepted_by_the_decoder(config, seed):
    """Any tokens at all, chosen among those allowed: nothing invalid, nothing dropped."""
    rng, size = np.random.default_rng(seed), num_embeddings(config)
    starts = [256 * k for k in range(4)]
    steps = [first_step(start, config) for start in starts]
    decoder, sounding = NoteDecoder(config), frozenset()
    for k, start in enumerate(starts):
        limit = steps[k + 1] - steps[k] if k < 3 else None
        grammar = Grammar(config, sounding, limit)
        said: list[int] = []
        while len(said) < 30:
            weight = rng.random(size) * grammar.allowed(size)
            weight[3:1004] *= 0.97  # shifts are many
            said.append(int(weight.argmax()))
            grammar.accept(said[-1])
            if said[-1] == EOS_ID:
                break
        next_start = segment_start(starts[k + 1], config) if k < 3 else None
        decoder.segment(np.array(said), segment_start(start, config), next_start)
        sounding = grammar.open_notes
    assert (decoder.invalid, decoder.dropped) == (0, 0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**9), config=st.sampled_from(VOCABULARIES))
def test_true_targets_obey_the_grammar(seed, config):
    rng = np.random.default_rng(seed)
    onset = np.sort(rng.random(40) * 9)
    is_drum = rng.random(40) < 0.2
    # Where programs are not said, two of them on one pitch are one note that is named twice.
    program = rng.integers(0, 1 if config.granularity == "flat" else 3, 40) * 8
    notes = Notes(onset, onset + 0.05 + rng.random(40) * 3, rng.integers(40, 60, 40),
                  rng.integers(1, 128, 40), np.where(is_drum, 0, program), is_drum,
                  np.zeros(40))  # fmt: skip
    events = EventTable.of(trim_overlapping(notes), config)
    sounding, n_frames, size = frozenset(), 1200, num_embeddings(config)
    for start in range(0, n_frames, 256):
        length = min(256, n_frames - start)
        target = encode(events, start, length, n_frames).tolist()
        last = start + length == n_frames
        limit = None if last else first_step(start + 256, config) - first_step(start, config)
        grammar = Grammar(config, sounding, limit)
        assert grammar.follows(target, size), target
        sounding = grammar.open_notes


class Speaker:
    """In place of a network: logits that depend on the segment and what was said in it."""

    options = DecodeOptions(batch=2)

    class model:
        class config:
            vocab_size = num_embeddings(TIES)

    def __init__(self) -> None:
        self.decoded = 0

    def say(self, mel: np.ndarray, grammar: Grammar) -> np.ndarray:
        rng = np.random.default_rng(int(mel[0, 0]))
        grammar, said, size = grammar.copy(), [], self.model.config.vocab_size
        first = codec_of(TIES).first
        while len(said) < 25 and (not said or said[-1] != EOS_ID):
            weight = rng.random(size)
            # A few notes and programs, so that sections often agree, and often do not.
            weight[3 + first["pitch"] : 3 + first["pitch"] + 3] += 1
            weight[3 + first["program"] : 3 + first["program"] + 2] += 1
            weight[3 + first["tie"]] += 0.6
            said.append(int(np.where(grammar.allowed(size), weight, -1).argmax()))
            grammar.accept(said[-1])
        return np.array(said)

    def decode(self, mels: Iterator[np.ndarray], grammar) -> Iterator[Found]:
        for index, mel in enumerate(mels):
            self.decoded += 1
            yield Found(index, self.say(mel, grammar(index))[None], np.zeros(1))


@pytest.mark.parametrize("seed", range(5))
def test_decoding_side_by_side_gives_what_one_after_the_other_gives(seed):
    mels = [np.full((256, 1), 100 * seed + k, np.float32) for k in range(40)]
    segments = [(256 * k, mel) for k, mel in enumerate(mels)]
    speaker = Speaker()
    found = list(by_grammar(speaker, TIES, iter(segments)))
    assert [start for start, _ in found] == [start for start, _ in segments]
    sounding, redone = frozenset(), 0
    for k, (start, tokens) in enumerate(found):
        limit = first_step(start + 256, TIES) - first_step(start, TIES) if k < 39 else None
        expected = speaker.say(mels[k], Grammar(TIES, sounding, limit))
        assert tokens.tolist() == expected.tolist()
        free = speaker.say(mels[k], Grammar(TIES, None, limit))
        redone += free.tolist() != expected.tolist()
        grammar = Grammar(TIES, sounding, limit)
        assert grammar.follows(tokens.tolist(), num_embeddings(TIES))
        sounding = grammar.open_notes
    assert 3 < redone < 40 < speaker.decoded  # both cases were there
    result = decode_segments([(segment_start(s, TIES), t) for s, t in found], TIES)
    assert (result.invalid, result.dropped) == (0, 0)


def test_instruments_are_families_programs_and_drums():
    chosen = Instruments.parse("Piano, 33,drums")
    assert chosen == Instruments(frozenset([*range(8), 33]), True)
    first = codec_of(TIES).first["program"] + 3
    allowed = {t - first for t in range(first, first + 128)} - {
        t - first for t in chosen.forbidden(TIES)
    }
    assert allowed == chosen.programs
    assert len(Instruments.parse("bass").forbidden(TIES)) == 120 + 128
    classes = VocabularyConfig(granularity="midi_class")
    assert first + 32 not in Instruments.parse("33").forbidden(classes)


@pytest.mark.parametrize("text", ["", "pianoo", "128", "piano,,bass", "-1", "³"])
def test_instruments_that_there_are_not_are_named(text):
    with pytest.raises(UserError, match=r"no instrument '.*expected, between commas"):
        Instruments.parse(text)


@pytest.mark.parametrize(
    ("word", "family"),
    [
        ("sax", "reed"), ("Saxophones", "reed"), ("alto sax", "reed"), ("flute", "pipe"),
        ("violin", "strings"), ("cello", "strings"), ("string", "strings"), ("harp", "strings"),
        ("trumpets", "brass"), ("synth", "synth-lead or synth-pad or synth-effects"),
        ("drum", "drums"), ("electric guitar", "guitar"), ("choir", "ensemble"),
    ],
)  # fmt: skip
def test_a_musician_s_word_leads_to_its_family(word, family):
    with pytest.raises(UserError, match=rf"no instrument '.*' \(take {family}\); expected"):
        Instruments.parse(f"piano,{word}")


@pytest.mark.parametrize("word", ["vocals", "voice", "singer"])
def test_that_no_instrument_sings_is_said(word):
    with pytest.raises(UserError, match=f"no instrument '{word}' .there is none for singing.;"):
        Instruments.parse(word)


def test_a_model_of_one_instrument_cannot_be_asked_for_others():
    with pytest.raises(UserError, match="does not tell instruments apart"):
        Instruments.parse("piano").forbidden(VocabularyConfig(granularity="flat"))
