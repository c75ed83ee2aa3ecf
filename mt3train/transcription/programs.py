"""Decoding under rules: the grammar of targets across segments, and a choice of instruments.

Which notes a tie section may name depends on how the segment before it ended, so strictly speaking
segments have to wait for each other. They do not here: all of a group are decoded side by side as
if any note might be held over. What that gives is what waiting would have given, as long as it
obeys the stricter grammar (the most probable of many tokens is also that of fewer, if it is among
them). The others are decoded once more, now with the notes known that were left open, until nothing
changes. With a beam search the result obeys the grammar too, but is not always the one that waiting
would have found.

The original has no grammar and no choice of instruments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mt3data.errors import UserError
from mt3data.music.fast_tokenizer import first_step
from mt3data.music.notes import Notes
from mt3data.music.vocabulary import NUM_SPECIAL_IDS, VocabularyConfig, codec_of
from mt3train.transcription.decode import SegmentDecoder
from mt3train.transcription.grammar import Grammar, Key

# General MIDI's families, eight programs each.
FAMILIES = (
    "piano", "chromatic-percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass",
    "reed", "pipe", "synth-lead", "synth-pad", "synth-effects", "ethnic", "percussive",
    "sound-effects",
)  # fmt: skip
DRUMS = "drums"
GROUP = 8  # batches that are decoded before any of their segments is final

Segment = tuple[int, np.ndarray]  # start frame, log-mel
Sounding = frozenset[Key]


@dataclass(frozen=True)
class Instruments:
    """A choice of instruments.

    Attributes:
        programs: MIDI programs 0-127.
        drums: whether drums are among them.
    """

    programs: frozenset[int]
    drums: bool

    @staticmethod
    def parse(text: str) -> Instruments:
        """Instruments from a text, between commas: families ("piano", "bass"), programs 0-127, "drums".

        Raises:
            UserError: a word that is none of these; it is named.
        """
        programs: set[int] = set()
        words = [word.strip().lower().replace(" ", "-") for word in text.split(",")]
        for word in words:
            if word in FAMILIES:
                first = 8 * FAMILIES.index(word)
                programs.update(range(first, first + 8))
            elif word.isdecimal() and int(word) < 128:
                programs.add(int(word))
            elif word != DRUMS:
                raise UserError(
                    f"no instrument {word!r}{_hint(word)}; expected, between commas, programs 0 to 127 or "
                    f"{', '.join((*FAMILIES, DRUMS))}"
                )
        return Instruments(frozenset(programs), DRUMS in words)

    def forbidden(self, vocabulary: VocabularyConfig) -> tuple[int, ...]:
        """The tokens that say another instrument.

        Raises:
            UserError: the vocabulary does not tell instruments apart, or not all of these.
        """
        if vocabulary.granularity == "flat" or vocabulary.encoding == "onsets":
            raise UserError(
                "this model does not tell instruments apart, so none can be chosen; use another "
                "checkpoint, or leave --programs out"
            )
        first = {
            kind: codec_of(vocabulary).first[kind] + NUM_SPECIAL_IDS for kind in ("program", "drum")
        }
        tokens = [first["program"] + p for p in range(128) if p not in self._said(vocabulary)]
        return (*tokens, *(() if self.drums else range(first["drum"], first["drum"] + 128)))

    def select(self, notes: Notes, vocabulary: VocabularyConfig) -> Notes:
        """Its notes; those before a model has said any program are of program 0."""
        programs = np.array(sorted(self._said(vocabulary)), np.int64)
        return notes[np.where(notes.is_drum, self.drums, np.isin(notes.program, programs))]

    def _said(self, vocabulary: VocabularyConfig) -> set[int]:
        """The programs as a model with this vocabulary says them."""
        if vocabulary.granularity == "midi_class":
            return {program // 8 * 8 for program in self.programs}
        return set(self.programs)


def _hint(word: str) -> str:
    """Where what a musician calls so is found, by the names of families, then of General MIDI."""
    from mt3data.music.midi import instrument_name

    if word.startswith(("voc", "voice", "sing")):
        return " (there is none for singing)"
    families = [(family, family.split("-")) for family in (*FAMILIES, DRUMS)]
    programs = [(FAMILIES[p // 8], instrument_name(p).lower().split()) for p in range(128)]
    for named, alike in ((families, _near), (programs, str.__eq__), (programs, _near)):
        found = [
            family for family, names in named
            if any(alike(name, part) for name in names for part in word.split("-"))
        ]  # fmt: skip
        if found:
            return f" (take {' or '.join(dict.fromkeys(found))})"
    return ""


def _near(one: str, other: str) -> bool:
    """Whether one word begins with the other: sax, saxophones."""
    short, long = sorted((one, other), key=len)
    return len(short) > 2 and long.startswith(short)


def by_grammar(
    decoder: SegmentDecoder,
    vocabulary: VocabularyConfig,
    segments: Iterator[Segment],
    only: Instruments | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """(start frame, tokens) of each segment of one track, in their order, by the grammar.

    Args:
        decoder: of the model.
        vocabulary: what its tokens mean.
        segments: in time order.
        only: instruments that may be said; None: all.
    """
    size = decoder.model.config.vocab_size
    sounding: Sounding = frozenset()
    following = next(segments, None)
    while following is not None:
        group = [following, *islice(segments, GROUP * decoder.options.batch - 1)]
        following = next(segments, None)
        steps = [first_step(start, vocabulary) for start, _ in group]
        after = [first_step(following[0], vocabulary)] if following else []
        lengths = [b - a for a, b in zip(steps, steps[1:] + after, strict=False)]
        limits = [*lengths, None][: len(group)]  # a track's last segment has no end
        rules = _Rules(vocabulary, size, limits, only)
        tokens, sounding = _settle(decoder, rules, [mel for _, mel in group], sounding)
        yield from zip((start for start, _ in group), tokens, strict=True)


@dataclass(frozen=True)
class _Rules:
    """The grammar of every segment of a group."""

    vocabulary: VocabularyConfig
    size: int
    limits: Sequence[int | None]
    only: Instruments | None

    def of(self, index: int, sounding: Sounding | None) -> Grammar:
        """Of one segment, after one that left these notes open (None: not known)."""
        return Grammar(
            self.vocabulary, sounding, self.limits[index],
            self.only.programs if self.only else None, self.only.drums if self.only else True,
        )  # fmt: skip


def _settle(
    decoder: SegmentDecoder, rules: _Rules, mels: list[np.ndarray], sounding: Sounding
) -> tuple[list[np.ndarray], Sounding]:
    """The tokens of a group of segments, and the notes that the last one leaves open."""
    known: list[dict[Sounding | None, np.ndarray]] = [{} for _ in mels]
    todo: dict[int, Sounding | None] = dict.fromkeys(range(len(mels)))
    todo[0] = sounding
    while True:
        orders = list(todo.items())
        grammars = [rules.of(*order) for order in orders]
        found = decoder.decode((mels[i] for i, _ in orders), grammars.__getitem__)
        for one in found:
            index, held = orders[one.index]
            known[index][held] = one.tokens
        todo, held, result = {}, sounding, []
        for i, said in enumerate(known):
            free = said.get(None)
            if held not in said and free is not None:
                if rules.of(i, held).follows(free, rules.size):
                    said[held] = free
                else:
                    todo[i] = held
            tokens = said[held] if held in said else said[None]
            grammar = rules.of(i, held)
            for token in tokens:
                grammar.accept(int(token))
            result.append(tokens)
            held = grammar.open_notes
        if not todo:
            return result, held
