"""Measures which instruments notes get: confusions, leakage and a table by instrument.

An estimated note that is right in onset and pitch but has a wrong program has leaked. Notes are first
matched within each program. The notes that remain on both sides are then matched across programs. So
a note that two instruments play in unison is right for each of them that has it. Drums are matched
with drums only. MT3 has no such measure. Gardner et al. (2022) call the problem instrument leakage.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mt3data.music.midi import DRUMS, instrument_name
from mt3data.music.notes import Notes
from mt3data.music.vocabulary import apply_granularity
from mt3train.evaluation.note_matching import Counts, count, match

Confusion = Counter[tuple[int, int]]  # (right program, estimated program) -> notes


@dataclass(frozen=True)
class InstrumentScores:
    """The scores of one program, or of drums.

    Attributes:
        program: 0 to 127, or DRUMS.
        onset: counts of notes matched by onset and pitch.
        onset_offset: counts of notes matched by offset as well; None for drums.
        mistaken_for: wrong program -> number of its notes that were found there.
    """

    program: int
    onset: Counts
    onset_offset: Counts | None
    mistaken_for: dict[int, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name in General MIDI."""
        return instrument_name(self.program)


def confusion(reference: Notes, estimate: Notes, granularity: str = "full") -> Confusion:
    """Counts found notes (onset within 50 ms, equal pitch) by right and estimated program.

    Args:
        reference, estimate: notes; drums are ignored.
        granularity: of programs, "full", "midi_class" or "flat".
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
    """Returns the share of found notes that have a wrong program; NaN if none was found."""
    total = sum(found.values())
    wrong = sum(n for (right, estimated), n in found.items() if right != estimated)
    return wrong / total if total else float("nan")


def instrument_scores(
    reference: Notes, estimate: Notes, granularity: str = "full"
) -> list[InstrumentScores]:
    """Scores each program of either side. Those with most notes in the reference come first.

    Programs are compared at a granularity of the vocabulary: "full", "midi_class" or "flat".
    """
    found = confusion(reference, estimate, granularity)
    drums = reference[reference.is_drum], estimate[estimate.is_drum]
    reference, estimate = (_pitched(notes, granularity) for notes in (reference, estimate))
    scores = []
    for program in np.union1d(reference.program, estimate.program).tolist():
        part = reference[reference.program == program], estimate[estimate.program == program]
        wrong = {p: n for (right, p), n in found.items() if right == program and p != program}
        scores.append(
            InstrumentScores(
                program, count(*part, offsets=False), count(*part, offsets=True), wrong
            )
        )
    if any(map(len, drums)):
        scores.append(InstrumentScores(DRUMS, count(*drums, offsets=False), None))
    return _in_order(scores)


def pooled(tracks: Iterable[Sequence[InstrumentScores]]) -> list[InstrumentScores]:
    """Merges the instruments of several tracks by adding their counts."""
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
                dict(Counter(before.mistaken_for) + Counter(one.mistaken_for)),
            )
        whole[one.program] = one
    return _in_order(whole.values())


def instrument_table(scores: Sequence[InstrumentScores]) -> list[str]:
    """Formats one line per instrument: notes in reference and estimate, F1, most frequent mistakes."""
    lines = [f"{'instrument':26}{'notes':>8}{'found':>8}{'onset':>8}{'+offset':>9}  mistaken for"]
    for one in scores:
        offset = f"{one.onset_offset.scores()[2]:9.3f}" if one.onset_offset else f"{'-':>9}"
        wrong = [f"{instrument_name(p)} {n}" for p, n in Counter(one.mistaken_for).most_common(2)]
        lines.append(
            f"{one.name:26}{one.onset.n_reference:8}{one.onset.n_estimate:8}"
            f"{one.onset.scores()[2]:8.3f}{offset}  {', '.join(wrong)}".rstrip()
        )
    return lines


def _in_order(scores: Iterable[InstrumentScores]) -> list[InstrumentScores]:
    return sorted(scores, key=lambda one: (-one.onset.n_reference, one.program))


def _pitched(notes: Notes, granularity: str) -> Notes:
    """Removes drums and notes of zero length, and applies the granularity to programs."""
    notes = notes[~notes.is_drum & (notes.onset != notes.offset)]
    return replace(notes, program=apply_granularity(notes.program, granularity))
