"""What can follow in a target: the grammar of the tokens, for decoding that breaks no rule.

The network may say anything anywhere, and what makes no sense is skipped later
(mt3data/music/detokenizer.py). With this mask it is not said in the first place: the tie section comes
first and names notes that the segment before left open, each once; time moves on; a program is
followed by a note, a note-off ends a note that sounds, no event lies behind the segment's end, and
EOS does not follow an unfinished thought. This is the order in which mt3data/music/fast_tokenizer.py writes
targets, and what it allows is accepted by `NoteDecoder` without an invalid event (a test holds it).

The original has no such mask. It is off by default, so that tokens are the original's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from mt3data.music.vocabulary import EOS_ID, NUM_SPECIAL_IDS, VocabularyConfig, codec_of

Key = tuple[int, int]  # pitch, program


@dataclass
class Grammar:
    """What may follow in one segment, token by token.

    Attributes:
        config: the vocabulary.
        sounding: notes (pitch, program) that the segment before left open; None: not known, then
            any may be tied.
        limit: first step behind the segment, counted from its start; None: no end.
        programs: that may be said; None: all. It does not restrict notes that are tied.
        drums: whether drums may be said.
    """

    config: VocabularyConfig
    sounding: frozenset[Key] | None = None
    limit: int | None = None
    programs: frozenset[int] | None = None
    drums: bool = True
    _open: set[Key] | None = None  # None: not known
    _tied: set[Key] = field(default_factory=set)
    _in_tie_section: bool = False
    _program: int | None = None  # said in this segment
    _velocity: int | None = None
    _step: int = 0  # of the last event; what happens in the first step needs no shift
    _pending: int = 0  # sum of the shifts since then
    _after: str = ""  # type of the last token

    def __post_init__(self) -> None:
        self._open = None if self.sounding is None else set(self.sounding)
        self._in_tie_section = self.config.encoding == "ties"
        if self.config.granularity == "flat" or self.config.encoding == "onsets":
            self._program = 0  # never said
        if self.config.encoding == "onsets":
            self._velocity = 1

    def copy(self) -> Grammar:
        """An independent copy, as it stands."""
        other = copy.copy(self)
        other._open = None if self._open is None else set(self._open)
        other._tied = set(self._tied)
        return other

    @property
    def open_notes(self) -> frozenset[Key]:
        """Notes that sound now (those that are known to)."""
        return frozenset(self._open or ())

    def allowed(self, size: int) -> np.ndarray:
        """Which tokens may come next.

        Args:
            size: how many tokens the model has.
        Returns:
            bool [size], at least one of them True.
        """
        may = np.zeros(size, dtype=bool)
        if self._in_tie_section:
            self._allow_ties(may)
        else:
            self._allow_events(may)
        if not may.any():
            may[EOS_ID] = True
        return may

    def accept(self, token: int) -> None:
        """Takes the token that was said; one that was not allowed changes as little as it can."""
        event_id = token - NUM_SPECIAL_IDS
        if not 0 <= event_id < codec_of(self.config).num_classes:
            return
        kind, value = codec_of(self.config).decode(event_id)
        if kind == "shift":
            self._pending = value + (self._pending if self._after == "shift" else 0)
        elif self._after == "shift":
            self._step = self._pending
        if kind == "program":
            self._program = value
        elif kind == "velocity":
            self._velocity = value
        elif kind == "tie":
            self._in_tie_section, self._open = False, set(self._tied)
        elif kind == "pitch" and self._program is not None:
            key = (value, self._program)
            if self._in_tie_section:
                self._tied.add(key)
            elif self._open is not None:
                (self._open.add if self._velocity else self._open.discard)(key)
        self._after = kind

    def follows(self, tokens: Iterable[int], size: int) -> bool:
        """Accepts tokens; False as soon as one may not come where it stands. For size see `allowed`."""
        for token in tokens:
            if not self.allowed(size)[token]:
                return False
            self.accept(token)
        return True

    def _allow_ties(self, may: np.ndarray) -> None:
        """Notes left open and not yet named, then the tie token."""
        can_say_program = self._after != "program" and self.config.granularity != "flat"
        if self._open is None:
            if can_say_program:
                self._permit(may, "program", range(128))
            tied = {pitch for pitch, program in self._tied if program == self._program}
            if self._program is not None:
                self._permit(may, "pitch", set(range(128)) - tied)
        else:
            left = self._open - self._tied
            if can_say_program:
                self._permit(may, "program", {program for _, program in left})
            self._permit(may, "pitch", {p for p, program in left if program == self._program})
        if self._after != "program":
            self._permit(may, "tie", (0,))

    def _allow_events(self, may: np.ndarray) -> None:
        kinds, after = self.config.encoding != "onsets", self._after
        if after == "shift" and self._pending <= self._step:  # the first part of a long one
            self._allow_shifts(may)
            return
        may[EOS_ID] = after not in ("shift", "program", "velocity")
        if after not in ("program", "velocity"):
            self._allow_shifts(may)
            if kinds and self.config.granularity != "flat":
                self._permit(may, "program", range(128) if self.programs is None else self.programs)
        ends: Iterable[int] = range(128)  # pitches of the program that can be ended
        if self._open is not None:
            ends = {pitch for pitch, program in self._open if program == self._program}
        if kinds and after != "velocity":
            if self._program is not None or (self.drums and after != "program"):
                self._permit(may, "velocity", range(1, self.config.num_velocity_bins + 1))
            if self._program is not None and ends:
                self._permit(may, "velocity", (0,))
        if self._velocity is not None and self._program is not None:
            self._permit(may, "pitch", range(128) if self._velocity else ends)
        if kinds and self.drums and self._velocity and after != "program":
            self._permit(may, "drum", range(128))

    def _allow_shifts(self, may: np.ndarray) -> None:
        """Later than the last event and before the end; after a full shift, how much more."""
        full = self.config.max_shift_steps
        before = self._pending if self._after == "shift" else 0
        if self._after == "shift" and (before == 0 or before % full):
            return
        first = max(self._step + 1 - before, 1)
        last = full if self.limit is None else min(full, self.limit - 1 - before)
        self._permit(may, "shift", range(first, last + 1))
        if self._step >= before + full and (self.limit is None or before + full < self.limit):
            self._permit(may, "shift", (full,))  # said in full again, since shifts are absolute

    def _permit(self, may: np.ndarray, kind: str, values: Iterable[int]) -> None:
        first = codec_of(self.config).first[kind] + NUM_SPECIAL_IDS
        places = _indices(values)
        may[first + places] = True


def _indices(values: Iterable[int]) -> np.ndarray:
    if isinstance(values, range):
        return np.arange(values.start, max(values.start, values.stop))
    return np.fromiter(values, np.int64)
