"""Restricts decoding to chosen instruments. The original has no such choice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mt3data.errors import UserError
from mt3data.music.midi import instrument_name
from mt3data.music.notes import Notes
from mt3data.music.vocabulary import NUM_SPECIAL_IDS, VocabularyConfig, apply_granularity, get_codec

# General MIDI's families, eight programs each.
FAMILIES = (
    "piano", "chromatic-percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass",
    "reed", "pipe", "synth-lead", "synth-pad", "synth-effects", "ethnic", "percussive",
    "sound-effects",
)  # fmt: skip
DRUMS = "drums"


@dataclass(frozen=True)
class ProgramFilter:
    """Lists the instruments that a decoder may emit.

    Attributes:
        programs: MIDI programs 0-127.
        drums: whether drums are allowed.
    """

    programs: frozenset[int]
    drums: bool

    @staticmethod
    def parse(text: str) -> ProgramFilter:
        """Parses a list such as "piano,bass,33,drums": families, programs 0-127, and drums.

        Raises:
            UserError: an unknown word, with the family that was probably meant.
        """
        programs: set[int] = set()
        words = [word.strip().lower().replace(" ", "-") for word in text.split(",")]
        for word in words:
            if word in FAMILIES:
                first = 8 * FAMILIES.index(word)
                programs.update(range(first, first + 8))
            elif word.isdecimal() and len(word) <= 3 and int(word) < 128:
                programs.add(int(word))
            elif word != DRUMS:
                raise UserError(
                    f"no instrument {word!r}{_hint(word)}; expected, between commas, programs 0 to 127 or "
                    f"{', '.join((*FAMILIES, DRUMS))}"
                )
        return ProgramFilter(frozenset(programs), DRUMS in words)

    def forbidden(self, vocabulary: VocabularyConfig) -> tuple[int, ...]:
        """Returns the program and drum tokens of all other instruments.

        Raises:
            UserError: the vocabulary has no program tokens.
        """
        if vocabulary.granularity == "flat" or vocabulary.encoding == "onsets":
            raise UserError(
                "this model does not distinguish instruments, so none can be chosen; use another "
                "checkpoint, or leave --programs out"
            )
        first, allowed = get_codec(vocabulary).first, self._emitted(vocabulary)
        events = [first["program"] + p for p in range(128) if p not in allowed]
        events += [] if self.drums else range(first["drum"], first["drum"] + 128)
        return tuple(event + NUM_SPECIAL_IDS for event in events)

    def select(self, notes: Notes, vocabulary: VocabularyConfig) -> Notes:
        """Returns the notes of the chosen instruments.

        Notes of another program occur where a model emits a pitch before its first program token,
        which means program 0.
        """
        chosen = np.isin(notes.program, list(self._emitted(vocabulary)))
        return notes[np.where(notes.is_drum, self.drums, chosen)]

    def _emitted(self, vocabulary: VocabularyConfig) -> set[int]:
        """Returns the programs that stand for the chosen ones in a vocabulary."""
        return set(
            apply_granularity(np.array(sorted(self.programs)), vocabulary.granularity).tolist()
        )


def _hint(word: str) -> str:
    """Finds the family that a musician's word means, by the names of families and of programs."""
    if word.startswith(("voc", "voice", "sing")):
        return " (there is none for singing)"
    families = [(family, family.split("-")) for family in (*FAMILIES, DRUMS)]
    programs = [(FAMILIES[p // 8], instrument_name(p).lower().split()) for p in range(128)]
    for named, alike in ((families, _is_prefix), (programs, str.__eq__), (programs, _is_prefix)):
        found = [
            family for family, names in named
            if any(alike(name, part) for name in names for part in word.split("-"))
        ]  # fmt: skip
        if found:
            return f" (take {' or '.join(dict.fromkeys(found))})"
    return ""


def _is_prefix(one: str, other: str) -> bool:
    """Checks whether one word is the beginning of the other, such as sax and saxophones."""
    short, long = sorted((one, other), key=len)
    return len(short) > 2 and long.startswith(short)
