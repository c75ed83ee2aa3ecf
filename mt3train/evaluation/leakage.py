"""Which instrument plays the notes that were found: confusions, leakage and a table.

An estimated note that is right in onset and pitch may stand under a wrong program: it has leaked.
Notes are first matched within each program; what both sides have left over is then matched over
programs. So a note of two instruments in unison counts as right for each that has it. Drums have no
pitch to be wrong about and stay with drums. MT3 has no such measure; Gardner et al. (2022) call the
problem instrument leakage.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mt3data.music.midi import DRUMS, instrument_name
from mt3data.music.notes import Notes
from mt3data.music.vocabulary import apply_granularity
from mt3train.evaluation.note_matching import Counts, count, match

Confusion = Counter[tuple[int, int]]  # (program that is right, program that was said) -> notes


@dataclass(frozen=True)
class InstrumentScores:
    """How the notes of one program, or drums, were found.

    Attributes:
        program: 0 to 127; DRUMS.
        onset: by onset and pitch.
        onset_offset: by offsets, too; None for drums.
        heard_as: its notes that stand under another program, and under which.
    """

    program: int
    onset: Counts
    onset_offset: Counts | None
    heard_as: dict[int, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What General MIDI calls it."""
        return instrument_name(self.program)


def confusion(reference: Notes, estimate: Notes, granularity: str = "full") -> Confusion:
    """Notes found (onset within 50 ms, equal pitch), by their true and their estimated program.

    Args:
        reference, estimate: drums are left out.
        granularity: how finely programs are told apart: "full", "midi_class" or "flat".
    """
    reference, estimate = (_pitched(notes, granularity) for notes in (reference, estimate))
    found: Confusion = Counter()
    left, over = np.ones(len(reference), bool), np.ones(len(estimate), bool)
    for program in np.intersect1d(reference.program, estimate.program):
        mine, theirs = (np.flatnonzero(n.program == program) for n in (reference, estimate))
        pairs = match(reference[mine], estimate[theirs], offsets=False)
        left[mine[pairs[:, 0]]] = over[theirs[pairs[:, 1]]] = False
        found[int(program), int(program)] += len(pairs)
    reference, estimate = reference[left], estimate[over]
    for i, j in match(reference, estimate, offsets=False):
        found[int(reference.program[i]), int(estimate.program[j])] += 1
    return +found


def leakage(found: Confusion) -> float:
    """Share of the notes found that stand under a wrong program; NaN where none was found."""
    total = sum(found.values())
    wrong = sum(n for (right, said), n in found.items() if right != said)
    return wrong / total if total else float("nan")


def instrument_scores(
    reference: Notes, estimate: Notes, granularity: str = "full"
) -> list[InstrumentScores]:
    """One entry for each program of either side, those with most notes in the reference first.

    Programs are compared at a granularity of the vocabulary: "full", "midi_class" or "flat".
    """
    heard_as: dict[int, Counter[int]] = {}
    for (right, said), n in confusion(reference, estimate, granularity).items():
        if right != said:
            heard_as.setdefault(right, Counter())[said] += n
    drums = reference[reference.is_drum], estimate[estimate.is_drum]
    reference, estimate = (_pitched(notes, granularity) for notes in (reference, estimate))
    scores = []
    for program in np.union1d(reference.program, estimate.program).tolist():
        part = reference[reference.program == program], estimate[estimate.program == program]
        scores.append(
            InstrumentScores(
                program, count(*part, offsets=False), count(*part, offsets=True),
                dict(heard_as.get(program, {})),
            )
        )  # fmt: skip
    if any(map(len, drums)):
        scores.append(InstrumentScores(DRUMS, count(*drums, offsets=False), None))
    return _in_order(scores)


def pooled(tracks: Iterable[Sequence[InstrumentScores]]) -> list[InstrumentScores]:
    """The instruments of several tracks, all notes of each taken together."""
    whole: dict[int, InstrumentScores] = {}
    for one in (each for track in tracks for each in track):
        before = whole.get(one.program)
        if before:
            offsets = one.onset_offset
            if offsets is not None and before.onset_offset is not None:
                offsets = before.onset_offset + offsets
            one = InstrumentScores(
                one.program,
                before.onset + one.onset,
                offsets,
                dict(Counter(before.heard_as) + Counter(one.heard_as)),
            )
        whole[one.program] = one
    return _in_order(whole.values())


def instrument_table(scores: Sequence[InstrumentScores]) -> list[str]:
    """Lines for a terminal: notes there and found, F1, and what most of its notes are mistaken for."""
    lines = [f"{'instrument':26}{'notes':>8}{'found':>8}{'onset':>8}{'+offset':>9}  mistaken for"]
    for one in scores:
        offset = f"{one.onset_offset.scores()[2]:9.3f}" if one.onset_offset else f"{'-':>9}"
        wrong = [f"{instrument_name(p)} {n}" for p, n in Counter(one.heard_as).most_common(2)]
        lines.append(
            f"{one.name:26}{one.onset.n_reference:8}{one.onset.n_estimate:8}"
            f"{one.onset.scores()[2]:8.3f}{offset}  {', '.join(wrong)}".rstrip()
        )
    return lines


def _in_order(scores: Iterable[InstrumentScores]) -> list[InstrumentScores]:
    return sorted(scores, key=lambda one: (-one.onset.n_reference, one.program))


def _pitched(notes: Notes, granularity: str) -> Notes:
    """Notes with a length, without drums, their programs mapped."""
    notes = notes[~notes.is_drum & (notes.onset != notes.offset)]
    return replace(notes, program=apply_granularity(notes.program, granularity))
