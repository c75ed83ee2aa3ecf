"""Constrained decoding allows every target of the encoder, and nothing against its rules."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3data.music.fast_tokenizer import EventTable, encode
from mt3data.music.notes import Notes, trim_overlapping
from mt3data.music.vocabulary import (
    EOS_ID,
    Event,
    VocabularyConfig,
    apply_granularity,
    describe_tokens,
    get_codec,
    num_embeddings,
)
from mt3train.model import MT3, ModelConfig
from mt3train.transcription.constraint import TokenConstraint
from mt3train.transcription.decode import DecodingConfig, SegmentDecoder

CPU = torch.device("cpu")
TIES = VocabularyConfig()
VOCABULARIES = [
    TIES,
    VocabularyConfig(num_velocity_bins=127),
    VocabularyConfig(granularity="midi_class"),
    VocabularyConfig(granularity="flat"),
    VocabularyConfig(max_shift_seconds=1),
    VocabularyConfig(encoding="noties"),
    VocabularyConfig(num_velocity_bins=127, encoding="noties", granularity="flat"),
    VocabularyConfig(encoding="onsets"),
]


def ids(text: str, config: VocabularyConfig = TIES) -> list[int]:
    """Returns the tokens of "program 5, velocity 1, pitch 60, EOS"."""
    tokens = []
    for word in text.split(", "):
        kind, _, value = word.partition(" ")
        event = Event(kind, int(value or 0))
        tokens.append(EOS_ID if kind == "EOS" else get_codec(config).encode(event) + 3)
    return tokens


def first_refused(tokens: list[int], config: VocabularyConfig = TIES) -> int | None:
    """Returns the index of the first token that is not allowed after those before it."""
    refused = refusals([np.array(tokens)], config)
    return refused[0]


def refusals(targets: list[np.ndarray], config: VocabularyConfig) -> list[int | None]:
    """Returns for every target the index of its first token that is not allowed."""
    size, n_slots = num_embeddings(config), len(targets)
    constraint = TokenConstraint(config, size, n_slots, CPU)
    for slot in range(n_slots):
        constraint.reset(slot)
    length = max(map(len, targets))
    padded = torch.tensor([[*target, *[EOS_ID] * (length - len(target))] for target in targets])
    found: list[int | None] = [None] * n_slots
    for i, token_S in enumerate(padded.long().T):
        logits = torch.zeros(n_slots, size)
        logits[range(n_slots), token_S] = 1.0
        for slot in torch.nonzero(constraint.choose(logits) != token_S).flatten().tolist():
            if found[slot] is None and i < len(targets[slot]):
                found[slot] = i
    return found


def once_per_step(notes: Notes, config: VocabularyConfig) -> Notes:
    """Returns the notes without those whose key begins, or ends, a second time in a time step."""
    seen, keep = set(), []
    for i in np.argsort(notes.onset, kind="stable"):
        key = (notes.pitch[i], notes.program[i], notes.is_drum[i])
        if config.encoding == "onsets":
            key = (notes.pitch[i],)
        times = np.rint([notes.onset[i] * 100, notes.offset[i] * 100])
        edges = {(*key, "begins", times[0]), (*key, "ends", times[1])}
        if config.encoding == "onsets" or notes.is_drum[i]:
            edges = {(*key, "begins", times[0])}
        if not edges & seen:
            keep.append(i)
            seen |= edges
    return notes[np.array(keep, np.int64)]


@st.composite
def any_notes(draw: st.DrawFn) -> Notes:
    """Draws up to 30 notes on few pitches, crowded in time, some shorter than a time step."""
    n = draw(st.integers(0, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    span = draw(st.sampled_from([0.05, 0.5, 8.0]))
    grid = draw(st.sampled_from([None, 0.005, 0.01]))  # ties of rounding, equal times
    onset = rng.random(n) * span
    length = rng.choice([0.001, 0.004, 0.011, 0.3, 3.0], n)
    if grid:
        onset, length = np.rint(onset / grid) * grid, np.ceil(length / grid) * grid
    is_drum = rng.random(n) < 0.2
    program = np.where(is_drum, 0, rng.choice([0, 1, 33, 127], n))
    return Notes(onset, onset + length, rng.choice([0, 60, 61, 127], n), rng.integers(1, 128, n),
                 program, is_drum, np.zeros(n))  # fmt: skip


@pytest.mark.parametrize("config", VOCABULARIES, ids=str)
@settings(max_examples=20, deadline=None)
@given(notes=any_notes())
def test_every_target_of_the_encoder_is_allowed(config: VocabularyConfig, notes: Notes) -> None:
    program = apply_granularity(notes.program, config.granularity)
    mapped = Notes.from_array(notes.to_array())
    object.__setattr__(mapped, "program", program)
    # Dropping a note leaves overlaps trimmed, so trimming comes first.
    events = EventTable.from_notes(once_per_step(trim_overlapping(mapped), config), config)
    n_frames = 1500
    targets = [encode(events, k, min(256, n_frames - k), n_frames) for k in range(0, n_frames, 256)]
    for target, refused in zip(targets, refusals(targets, config), strict=True):
        assert refused is None, describe_tokens(target[: refused + 1], config)


RULES = {  # a sequence whose last token breaks the rule, and what is decoded in its place
    "a loop ends a note twice in one time step": (
        "program 5, pitch 76, tie, velocity 0, pitch 76, velocity 1, pitch 76, velocity 0, pitch 76",
        "shift 9",
    ),
    "a note begins twice in one time step": (
        "tie, program 5, velocity 1, pitch 76, pitch 76", "shift 9",
    ),
    "a note ends twice in one time step": (
        "program 5, pitch 76, tie, shift 3, velocity 0, pitch 76, pitch 76", "shift 9",
    ),
    "a drum is hit twice in one time step": ("tie, velocity 1, drum 36, drum 36", "shift 9"),
    "time runs back": ("tie, shift 7, velocity 1, drum 36, shift 6", "shift 9"),
    "time stands still": ("tie, shift 7, velocity 1, drum 36, shift 7", "shift 9"),
    "no later shift is left but EOS": ("tie, shift 9, velocity 1, drum 36, drum 36", "EOS"),
    "a shift follows a shift": ("tie, shift 7, shift 8", "drum 35"),
    "an event before the tie section ends": ("program 5, pitch 60, shift 3", "tie"),
    "a segment without a tie section": ("EOS", "tie"),
    "a second tie section": ("tie, tie", "shift 9"),
    "a note is tied twice": ("program 5, pitch 60, pitch 60", "tie"),
    "a program that plays nothing": ("tie, program 5, program 6", "shift 9"),
    "a velocity follows a velocity": ("tie, program 5, velocity 1, velocity 0", "shift 9"),
}  # fmt: skip


@pytest.mark.parametrize("token", [0, 2, 1535])
def test_ids_that_are_no_event_end_the_time_step(token: int) -> None:
    constraint = TokenConstraint(TIES, 1536, 1, CPU)
    constraint.reset(0)
    assert constraint.choose(one_hot(token) + 0.5 * one_hot(EOS_ID)).tolist() == ids("tie")
    assert constraint.choose(one_hot(token) + 0.5 * one_hot(EOS_ID)).tolist() == [EOS_ID]


@pytest.mark.parametrize("rule", RULES)
def test_a_token_that_breaks_a_rule_is_replaced_by_the_end_of_the_time_step(rule: str) -> None:
    """The model prefers the wrong token, then drum 35, shifts 9 and 4, EOS, and the rest."""
    text, expected = RULES[rule]
    *before, wrong = ids(text)
    constraint = TokenConstraint(TIES, 1536, 1, CPU)
    constraint.reset(0)
    for token in before:
        assert constraint.choose(one_hot(token)).tolist() == [token]
    logits = one_hot(wrong)
    for rank, token in enumerate(ids("drum 35, shift 9, shift 4, EOS")):
        logits[0, token] = max(float(logits[0, token]), 0.9 - rank / 10)
    assert describe_tokens(constraint.choose(logits), TIES) == [expected]


def one_hot(token: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor([token]), 1536).float()


@pytest.mark.parametrize(
    "text",
    [
        # The controls: one word differs from a sequence that is refused.
        "program 5, pitch 76, tie, velocity 0, pitch 76, velocity 1, pitch 76, shift 1, velocity 0, pitch 76, EOS",
        "tie, program 5, velocity 1, pitch 76, shift 1, pitch 76, EOS",
        "program 5, pitch 76, pitch 77, tie, shift 3, velocity 0, pitch 77, pitch 76, EOS",
        "tie, velocity 1, drum 36, shift 1, drum 36, drum 35, EOS",
        "tie, shift 50, velocity 1, drum 36, shift 51, drum 36, EOS",
        "tie, program 5, velocity 1, pitch 60, velocity 0, pitch 60, EOS",  # begins and ends at once
        "program 5, pitch 60, program 6, pitch 60, tie, EOS",
        "program 5, pitch 60, tie, velocity 1, pitch 60, EOS",  # a new onset ends the old note
    ],
)
def test_what_a_target_may_hold_is_allowed(text: str) -> None:
    assert first_refused(ids(text)) is None


def test_shifts_beyond_the_longest_one_go_on_to_a_later_time() -> None:
    start = "tie, shift 1000, shift 500, velocity 1, drum 36"  # step 1500
    assert first_refused(ids(f"{start}, shift 1000, shift 501, drum 36")) is None
    for late, wrong in (("shift 1000, shift 500", 1), ("shift 1000, drum 35", 1), ("shift 500", 0)):
        assert first_refused(ids(f"{start}, {late}")) == 5 + wrong


def test_random_logits_decode_to_rising_times_and_no_repeated_event() -> None:
    """Control: without the constraint the same logits break the rules."""
    logits = torch.randn(150, 4, num_embeddings(TIES), generator=torch.Generator().manual_seed(0))
    logits[:, :, ids("shift 0")[0] : ids("shift 1000")[0] + 1] -= 1.5
    logits[:, :, ids("pitch 60")[0] : ids("pitch 62")[0]] += 4  # few pitches, so that they repeat
    logits[:, :, ids("velocity 0")[0] : ids("velocity 1")[0] + 1] += 4
    constraint = TokenConstraint(TIES, num_embeddings(TIES), 4, CPU)
    for slot in range(4):
        constraint.reset(slot)
    tokens = torch.stack([constraint.choose(step) for step in logits], 1)
    assert all(count_faults(describe_tokens(row, TIES)) == 0 for row in tokens)
    assert all(count_faults(describe_tokens(row, TIES)) > 5 for row in logits.argmax(-1).T)


def count_faults(words: list[str]) -> int:
    """Counts events that repeat within a time step, and shifts that do not move time forward."""
    faults, seen, time, program, velocity = 0, set(), -1, "", ""
    for word in words[: words.index("EOS")] if "EOS" in words else words:
        kind, _, value = word.partition(" ")
        if kind == "shift":
            faults += int(value) <= time
            time, seen = int(value), set()
        elif kind == "tie":
            seen, time = set(), 0
        elif kind in ("pitch", "drum"):
            event = (kind, program * (kind == "pitch"), value, velocity == "0" and time >= 0)
            faults += event in seen
            seen.add(event)
        program = value if kind == "program" else program
        velocity = value if kind == "velocity" else velocity
    return faults


def test_slots_are_independent_and_can_be_copied() -> None:
    logits = torch.randn(40, 2, 1536, generator=torch.Generator().manual_seed(1))
    logits[:, :, ids("pitch 60")[0] : ids("pitch 62")[0]] += 4
    both = TokenConstraint(TIES, 1536, 2, CPU)
    alone = [TokenConstraint(TIES, 1536, 1, CPU) for _ in range(2)]
    for slot in (0, 1):
        both.reset(slot)
        alone[slot].reset(0)
    for step in logits[:20]:
        expected = [one.choose(step[slot : slot + 1]).item() for slot, one in enumerate(alone)]
        assert both.choose(step).tolist() == expected
    both.copy_slot(0, 1)
    for step in logits[20:]:
        same = step[[0, 0]]
        assert both.choose(same).tolist() == alone[0].choose(same[:1]).tolist() * 2


def test_constrained_decoding_is_applied_to_every_segment_of_any_batch() -> None:
    """Segments end at different lengths, so that slots are loaded again and the batch shrinks."""
    torch.manual_seed(0)
    sizes = ModelConfig(num_embeddings(TIES), 16, 2, 8, 1, 1, 16, 12)
    model = MT3(sizes).eval()
    model.decoder.logits_dense.weight.data[EOS_ID] *= 3
    mel = torch.randn(9, 7, 12)
    decoded = {}
    for batch in (1, 4):
        config = DecodingConfig(batch=batch, constrained=True)
        decoder = SegmentDecoder(model, TIES, config, n_frames=7, max_length=200)
        decoded[batch] = {s.index: s.tokens.tolist() for s in decoder.decode(mel)}
    assert decoded[1] == decoded[4] and len(decoded[1]) == 9
    assert len({len(tokens) for tokens in decoded[1].values()}) > 2
    for tokens in decoded[1].values():
        assert first_refused(tokens) is None
