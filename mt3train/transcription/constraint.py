"""Constrained decoding: keeps the decoder from looping on tokens that no target of MT3 holds.

A decoder may repeat a note at one instant (`velocity 0, pitch 76, velocity 1, pitch 76, velocity 0,
...`). In the targets of training

- the tie section comes first and names each (program, pitch) once,
- an event is [shifts] [program] [velocity] pitch, or [shifts] [velocity] drum,
- time increases from one shift to the next,
- within one time step each (program, pitch) begins at most once and ends at most once, and each drum
  is hit at most once. Pitches within a time step have no order.

Where the most probable token breaks a rule, the decoder ends what it is in: the tie section by a tie
token, the time step by the most probable later shift or EOS. A mask that lets the decoder choose any
other pitch instead makes it invent notes (benchmarks/README.md has figures). For the same reason a
note-off needs no open note here, although targets hold no other: models end some notes twice, which
changes no note.

A target breaks these rules only where two notes of one pitch and program begin, or end, within 10 ms.
The original has no constraints, so results that must equal the original's are decoded without them.

Sizes in tensor names:  S slots · V vocabulary · R program rows (128 programs, then drums) · K 128 pitches
"""

import torch
from torch import Tensor

from mt3data.music.vocabulary import EOS_ID, NUM_SPECIAL_IDS, VocabularyConfig, get_codec

DRUMS = 128  # row of drums, after those of the programs
BEFORE_TIME, NEVER = -1, -2  # time steps: of the tie section, and before anything
TYPES = ("shift", "program", "velocity", "pitch", "drum", "tie")
SHIFT, PROGRAM, VELOCITY, PITCH, DRUM, TIE = range(len(TYPES))
EOS, OTHER = len(TYPES), len(TYPES) + 1  # OTHER: ids that are no event


class TokenConstraint:
    """Chooses the next token of every slot and keeps what the rules depend on.

    Args:
        vocabulary: the meaning of the tokens.
        vocab_size: number of tokens of the model.
        n_slots: number of segments that are decoded together.
        device: of the logits.
    """

    def __init__(
        self, vocabulary: VocabularyConfig, vocab_size: int, n_slots: int, device: torch.device
    ) -> None:
        self.vocabulary, self.has_ties = vocabulary, vocabulary.encoding == "ties"
        codec = get_codec(vocabulary)
        self.type_V = torch.full((vocab_size,), OTHER, device=device)
        self.value_V = torch.zeros_like(self.type_V)
        for number, name in enumerate(TYPES):
            first, last = (i + NUM_SPECIAL_IDS for i in codec.type_range(name))
            self.type_V[first : last + 1] = number
            self.value_V[first : last + 1] = torch.arange(last - first + 1, device=device)
        self.type_V[EOS_ID] = EOS
        self.is_shift_V, self.is_tie_V = self.type_V == SHIFT, self.type_V == TIE
        self.is_eos_V = self.type_V == EOS
        self.is_event_V = (self.type_V < TIE) & ~self.is_shift_V
        self.slot_S = torch.arange(n_slots, device=device)

        def per_slot(*sizes: int) -> Tensor:
            return torch.zeros(n_slots, *sizes, dtype=torch.int64, device=device)

        self.last_type_S, self.program_S, self.velocity_S = per_slot(), per_slot(), per_slot()
        self.step_S = per_slot()  # time step of the last event
        self.pending_S = per_slot()  # sum of the shifts after it
        # Time steps in which each key last began and ended.
        self.begun_SRK, self.ended_SRK = per_slot(DRUMS + 1, 128), per_slot(DRUMS + 1, 128)

    @property
    def _states(self) -> tuple[Tensor, ...]:
        return (
            self.last_type_S, self.program_S, self.velocity_S, self.step_S, self.pending_S,
            self.begun_SRK, self.ended_SRK,
        )  # fmt: skip

    def reset(self, slot: int) -> None:
        """Begins a segment in a slot."""
        self.last_type_S[slot] = OTHER
        self.program_S[slot], self.velocity_S[slot], self.pending_S[slot] = 0, 1, 0
        self.step_S[slot] = BEFORE_TIME if self.has_ties else 0
        self.begun_SRK[slot] = self.ended_SRK[slot] = NEVER

    def copy_slot(self, source: int, target: int) -> None:
        """Copies the state of one slot to another."""
        for state in self._states:
            state[target] = state[source]

    def choose(self, logits_SV: Tensor) -> Tensor:
        """Chooses the next token of each of the first len(logits_SV) slots, greedily.

        Args:
            logits_SV: logits of the next token.
        Returns:
            Token ids [S].
        """
        n = len(logits_SV)
        slot_S = self.slot_S[:n]
        last_type_S, program_S, velocity_S, step_S, pending_S, *_ = (s[:n] for s in self._states)
        in_ties_S, after_shift_S = step_S == BEFORE_TIME, pending_S > 0
        now_S = torch.where(after_shift_S, torch.maximum(step_S, pending_S), step_S)
        # After longest shifts that do not reach the last event yet, more shifts have to follow.
        unfinished_S = after_shift_S & (pending_S <= step_S)

        token_S = logits_SV.argmax(-1)
        type_S, value_S = self.type_V[token_S], self.value_V[token_S]
        key = slot_S, *self._key(type_S, value_S, program_S)
        ends_S = (type_S == PITCH) & (velocity_S == 0) & ~in_ties_S
        repeats_S = torch.where(ends_S, self.ended_SRK[key], self.begun_SRK[key]) == now_S
        repeats_S &= (type_S == PITCH) | (type_S == DRUM)
        longest = self.vocabulary.max_shift_steps
        later_S = (pending_S + value_S > step_S) | (value_S == longest)
        continues_S = after_shift_S & (pending_S % longest == 0)
        breaks_S = torch.where(
            type_S == SHIFT,
            ~later_S | ((last_type_S <= VELOCITY) & ~continues_S),
            (type_S <= VELOCITY) & (last_type_S <= VELOCITY) & (type_S <= last_type_S)
            | unfinished_S,
        )
        breaks_S |= repeats_S | (type_S == OTHER) | (type_S == TIE) & ~in_ties_S
        breaks_S |= in_ties_S & ((type_S == SHIFT) | (type_S == DRUM) | (type_S == EOS))

        if breaks_S.is_cuda or bool(breaks_S.any()):  # asking a GPU takes longer than computing
            later_SV = (pending_S[:, None] + self.value_V > step_S[:, None]) & self.is_shift_V
            after_shift_S = after_shift_S & ~unfinished_S
            ends_SV = torch.where(after_shift_S[:, None], self.is_event_V, later_SV) | self.is_eos_V
            ends_SV = torch.where(in_ties_S[:, None], self.is_tie_V, ends_SV)
            end_S = logits_SV.masked_fill(~ends_SV, -torch.inf).argmax(-1)
            token_S = torch.where(breaks_S, end_S, token_S)
        self._update(token_S)
        return token_S

    def _update(self, token_S: Tensor) -> None:
        """Applies the tokens of the first len(token_S) slots to the state."""
        n = len(token_S)
        type_S, value_S = self.type_V[token_S], self.value_V[token_S]
        _, program_S, velocity_S, step_S, pending_S, *_ = (s[:n] for s in self._states)
        is_shift, in_ties_S = type_S == SHIFT, step_S == BEFORE_TIME
        self.last_type_S[:n] = type_S
        program_S.copy_(torch.where(type_S == PROGRAM, value_S, program_S))
        velocity_S.copy_(torch.where(type_S == VELOCITY, value_S, velocity_S))
        now_S = torch.where(pending_S > 0, torch.maximum(step_S, pending_S), step_S)
        key = self.slot_S[:n], *self._key(type_S, value_S, program_S)
        ends_S = (type_S == PITCH) & (velocity_S == 0) & ~in_ties_S
        begins_S = ((type_S == PITCH) | (type_S == DRUM)) & ~ends_S
        self.ended_SRK[key] = torch.where(ends_S, now_S, self.ended_SRK[key])
        self.begun_SRK[key] = torch.where(begins_S, now_S, self.begun_SRK[key])
        step_S.copy_(torch.where(is_shift, step_S, now_S.masked_fill(type_S == TIE, 0)))
        pending_S.copy_(torch.where(is_shift, pending_S + value_S, 0))

    @staticmethod
    def _key(type_S: Tensor, value_S: Tensor, program_S: Tensor) -> tuple[Tensor, Tensor]:
        """Returns row and column of a pitch or drum in begun and ended (anything for other tokens)."""
        return torch.where(type_S == DRUM, DRUMS, program_S), value_S.clamp(max=127)
