"""How tokens are chosen from logits: the most probable one, or the best sequences of a beam.

Both searches work on slots that are independent of each other (see stepper.py), each as far as it
is. `choose` takes one step for the first slots; `finished` says which of them need no more, which
on a GPU means waiting for it, so it is asked now and then.

Sizes in tensor names:  S slots · W beams · V vocabulary · L length of a sequence
"""

import torch
from torch import Tensor

from mt3data.music.vocabulary import EOS_ID, PAD_ID

ALPHA = 0.6  # of the brevity penalty; t5x/decoding.py beam_search
NEGLIGIBLE = -1e7  # t5x/decoding.py NEG_INF: the score of what is no candidate


class Greedy:
    """The most probable token at every position, in so many slots, at most max_length tokens in each.

    Source: t5x/decoding.py temperature_sample with temperature 0.
    """

    width = 1

    def __init__(self, slots: int, max_length: int, device: torch.device) -> None:
        self.max_length = max_length
        self.said_SL = torch.full((slots, max_length), PAD_ID, dtype=torch.int64, device=device)
        self.ended_S = torch.zeros(slots, dtype=torch.bool, device=device)
        self.length_S = torch.zeros(slots, dtype=torch.int64, device=device)
        self.slot_S = torch.arange(slots, device=device)

    def start(self, slot: int) -> None:
        """Begin a sequence in a slot."""
        self.said_SL[slot], self.ended_S[slot], self.length_S[slot] = PAD_ID, False, 0

    def move(self, source: int, target: int) -> None:
        """Make slot `target` what slot `source` is."""
        for state in (self.said_SL, self.ended_S, self.length_S):
            state[target] = state[source]

    def last(self, slots: int) -> Tensor:
        """The tokens said last in the first slots, one per row; the start token 0 where none was."""
        before_S = (self.length_S[:slots] - 1).clamp(min=0)
        return self.said_SL[self.slot_S[:slots], before_S]

    def choose(self, logits_SV: Tensor) -> None:
        """Say one more token in each of the first len(logits_SV) slots."""
        slots = len(logits_SV)
        ended_S, length_S = self.ended_S[:slots], self.length_S[:slots]
        token_S = logits_SV.argmax(-1)
        silent_S = ended_S | (length_S >= self.max_length)
        place_S = length_S.clamp(max=self.max_length - 1)
        old_S = self.said_SL[self.slot_S[:slots], place_S]
        self.said_SL[self.slot_S[:slots], place_S] = torch.where(silent_S, old_S, token_S)
        length_S += (~silent_S).long()
        ended_S |= (token_S == EOS_ID) | (length_S >= self.max_length)

    def finished(self, slots: int) -> list[bool]:
        """Whether each of the first slots is done."""
        return self.ended_S[:slots].tolist()

    def parents(self) -> None:
        """Every row goes on from itself."""
        return None

    def sequences(self, slot: int) -> tuple[Tensor, Tensor]:
        """The sequence [1, length] of a slot, EOS included, and its score, which is 0 by definition."""
        return self.said_SL[slot, : int(self.length_S[slot])][None], torch.zeros(1)


class Beam:
    """The W (width) best sequences of at most max_length, by log probability over a brevity penalty.

    Step by step as the original's: of the 2 W best continuations of all beams those that end are
    candidates for the result, the W best others live on; a slot is done when no live sequence can
    become better than the worst result. Each slot stops for itself, where the original goes on
    until all of a batch are done; that cannot change its results any more.

    Source: t5x/decoding.py beam_search.
    """

    def __init__(self, slots: int, width: int, max_length: int, device: torch.device) -> None:
        self.width, self.max_length = width, max_length
        shape = (slots, width)
        # One place more than tokens: sequences begin with the start token.
        self.live_SWL = torch.full(
            (*shape, max_length + 1), PAD_ID, dtype=torch.int64, device=device
        )
        self.done_SWL = self.live_SWL.clone()
        self.live_score_SW = torch.zeros(shape, device=device)
        self.done_score_SW = torch.zeros(shape, device=device)
        self.done_SW = torch.zeros(shape, dtype=torch.bool, device=device)
        self.length_S = torch.zeros(slots, dtype=torch.int64, device=device)
        self.slot_S1 = torch.arange(slots, device=device)[:, None]
        self.parent_R: Tensor | None = None

    def start(self, slot: int) -> None:
        """Begin a search in a slot, with one live sequence that holds nothing."""
        self.live_SWL[slot], self.done_SWL[slot], self.length_S[slot] = PAD_ID, PAD_ID, 0
        self.live_score_SW[slot] = NEGLIGIBLE
        self.live_score_SW[slot, 0] = 0.0
        self.done_score_SW[slot], self.done_SW[slot] = NEGLIGIBLE, False

    def move(self, source: int, target: int) -> None:
        """Make slot `target` what slot `source` is."""
        for state in (
            self.live_SWL, self.done_SWL, self.live_score_SW, self.done_score_SW, self.done_SW,
            self.length_S,
        ):  # fmt: skip
            state[target] = state[source]

    def last(self, slots: int) -> Tensor:
        """The last token of every live sequence in the first slots, one per row."""
        return self.live_SWL[self.slot_S1[:slots], :, self.length_S[:slots, None]].flatten()

    def choose(self, logits_RV: Tensor) -> None:
        """Continue the live sequences of the first len(logits_RV) / W slots by one token."""
        width, slots, vocabulary = self.width, len(logits_RV) // self.width, logits_RV.shape[1]
        slot_S1, length_S = self.slot_S1[:slots], self.length_S[:slots]
        log_SWV = logits_RV.float().log_softmax(-1).view(slots, width, vocabulary)
        total_SWV = log_SWV + self.live_score_SW[:slots, :, None]
        # Of 2 W beams at most W end, so that W are left to live on.
        best_SK, index_SK = total_SWV.flatten(1).topk(2 * width)
        token_SK, beam_SK = index_SK % vocabulary, index_SK // vocabulary
        place_S = (length_S + 1).clamp(max=self.max_length)
        sequence_SKL = self.live_SWL[slot_S1, beam_SK]
        sequence_SKL[slot_S1, :, place_S[:, None]] = token_SK[:, None]
        ends_SK = token_SK == EOS_ID

        alive_SK = best_SK + ends_SK * NEGLIGIBLE
        chosen_SW = alive_SK.topk(width).indices.flip(1)
        penalty_S1 = ((5.0 + place_S) / 6.0).pow(ALPHA)[:, None]
        ended_SK = best_SK / penalty_S1 + ~ends_SK * NEGLIGIBLE
        score_SX = torch.cat([self.done_score_SW[:slots], ended_SK], 1)
        result_SW = score_SX.topk(width).indices.flip(1)
        done_SXL = torch.cat([self.done_SWL[:slots], sequence_SKL], 1)
        done_SX = torch.cat([self.done_SW[:slots], ends_SK], 1)

        self.live_SWL[:slots] = sequence_SKL[slot_S1, chosen_SW]
        self.live_score_SW[:slots] = alive_SK[slot_S1, chosen_SW]
        self.done_SWL[:slots] = done_SXL[slot_S1, result_SW]
        self.done_score_SW[:slots] = score_SX[slot_S1, result_SW]
        self.done_SW[:slots] = done_SX[slot_S1, result_SW]
        self.parent_R = (slot_S1 * width + beam_SK[slot_S1, chosen_SW]).flatten()
        length_S.copy_(place_S)

    def finished(self, slots: int) -> list[bool]:
        """Whether each of the first slots is at the longest length, or cannot get better."""
        penalty = ((5.0 + self.max_length + 1) / 6.0) ** ALPHA  # of the longest, the mildest
        hope_S = self.live_score_SW[:slots, -1] / penalty
        worst_S = self.done_score_SW[:slots].amin(1)
        settled_S = self.done_SW[:slots].all(1) & (worst_S > hope_S)
        return (settled_S | (self.length_S[:slots] >= self.max_length)).tolist()

    def parents(self) -> Tensor | None:
        """For every row the row that its sequence went on from in the last step."""
        return self.parent_R

    def sequences(self, slot: int) -> tuple[Tensor, Tensor]:
        """The W sequences [W, max_length] of a slot, padded with 0, and scores [W], the best last."""
        if bool(self.done_SW[slot].any()):
            return self.done_SWL[slot, :, 1:], self.done_score_SW[slot]
        return self.live_SWL[slot, :, 1:], self.live_score_SW[slot]
