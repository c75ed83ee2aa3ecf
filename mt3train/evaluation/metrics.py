"""Scores an estimate against a reference, in two scorings.

`mt3` reproduces MT3's scoring code to 1e-9 (tests/golden/metrics.json), so its values can be compared
with published ones. `corrected`, the default, differs where that code makes a mistake:

    frame        mt3: a frame of the reference counts if its velocities sum to more than 30, and a
                 frame of the estimate if they sum to more than 0. So a quiet piece scores below 1
                 against itself. Of the notes with instrument 0, only those of one program count.
                 corrected: a frame sounds or not, and all notes count.
    tolerance_*  mt3: compares notes that the frame score made at least 50 ms long.
                 corrected: compares the notes as they are.
    program_*, drum   mt3: drums with different programs differ, and an estimate has program 0. The
                 program of drums in a reference from MIDI may be 128 or 40.
                 corrected: all drums are the same instrument.
    all          mt3: 0 if both sides are empty. corrected: NaN, and means ignore it.

Scores of notes other than drums: `onset` (within 50 ms, equal pitch), `onset_offset`,
`onset_velocity`, `onset_offset_velocity`, `frame`, and `tolerance_S` (onset_offset with S seconds in
place of 50 ms). Score of drums: `drum` (onset). `nondrum_G` is onset_offset within each program,
summed over programs. `program_G` adds the onsets of drums. G is the granularity of programs: full,
midi_class or flat. Each score has precision, recall and f1. mt3train.evaluation.leakage defines
`leakage`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mt3data.music.notes import Notes
from mt3data.music.vocabulary import apply_granularity
from mt3train.evaluation.frames import (
    VELOCITY_ABOVE,
    frame_counts,
    notes_of_mt3_roll,
    with_minimum_length,
)
from mt3train.evaluation.leakage import confusion, leakage
from mt3train.evaluation.note_matching import Counts, count

SCORINGS = ("corrected", "mt3")
MEASURES = ("precision", "recall", "f1")
GRANULARITIES = ("flat", "midi_class", "full")
TOLERANCES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # s; mt3/metrics.py _note_onset_tolerance_sweep
COUNTED = (
    "onset", "onset_offset", "onset_velocity", "onset_offset_velocity", "frame", "drum",
    *(f"{what}_{granularity}" for granularity in GRANULARITIES for what in ("program", "nondrum")),
    *(f"tolerance_{tolerance}" for tolerance in TOLERANCES),
)  # fmt: skip
SCORES = (*(f"{what}_{measure}" for what in COUNTED for measure in MEASURES), "leakage")


@dataclass(frozen=True)
class TrackSpec:
    """A part of the piece that is also scored alone.

    Attributes:
        name: prefix of its scores, such as "Bass" in "Bass/onset_f1".
        program: 0 to 127. Scoring "corrected" ignores the program of drums.
        is_drum: whether the part is drums.
    """

    name: str
    program: int
    is_drum: bool = False


def transcription_scores(
    reference: Notes, estimate: Notes, *, scoring: str = "corrected", has_offsets: bool = True,
    tracks: Sequence[TrackSpec] = (),
) -> dict[str, float]:  # fmt: skip
    """Scores one track. All values are in [0, 1].

    Args:
        reference: the right notes in any order, before overlaps are trimmed.
        estimate: the notes that were found.
        scoring: "corrected" or "mt3", as the module describes.
        has_offsets: False for models that write only onsets. The result then lacks the scores of
            offsets and velocities that the original does not compute for such models.
        tracks: parts that are also scored alone.
    Returns:
        Values by the names in SCORES. Scoring "mt3" has no leakage. Each of `tracks` adds "NAME/onset_f1"
        and so on up to frame. Drums have no scores with offsets.
    Raises:
        ValueError: a note ends before it begins or begins before time 0, or the scoring is unknown.

    Source: mt3/metrics.py transcription_metrics.
    """
    if scoring not in SCORINGS:
        raise ValueError(f"scoring={scoring!r}; expected corrected or mt3")
    like_mt3 = scoring == "mt3"
    for notes, side in ((reference, "reference"), (estimate, "estimate")):
        _require_forward(notes, side)
    if not like_mt3:
        reference, estimate = _plain(reference), _plain(estimate)
    pitched = reference[~reference.is_drum], estimate[~estimate.is_drum]
    found = _part_counts(*pitched, has_offsets, False, like_mt3)
    for spec in tracks:
        part = _part(reference, spec, like_mt3), _part(estimate, spec, like_mt3)
        counts = _part_counts(*part, has_offsets, spec.is_drum, like_mt3)
        found |= {f"{spec.name}/{name}": value for name, value in counts.items()}
    for granularity in GRANULARITIES:
        found |= _program_counts(reference, estimate, granularity)
    if like_mt3:  # MT3's frame scores changed the lengths of the notes before this point
        pitched = with_minimum_length(pitched[0], False), with_minimum_length(pitched[1], False)
    for tolerance in TOLERANCES:
        found[f"tolerance_{tolerance}"] = count(*pitched, offsets=True, tolerance=tolerance)
    nothing = 0.0 if like_mt3 else float("nan")
    scores = {
        f"{name}_{measure}": value
        for name, counts in found.items()
        for measure, value in zip(MEASURES, counts.scores(nothing), strict=True)
    }
    return scores if like_mt3 else scores | {"leakage": leakage(confusion(reference, estimate))}


def none_if_nan(value: float) -> float | None:
    """Returns the value, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else float(value)


def _part_counts(
    reference: Notes, estimate: Notes, has_offsets: bool, are_drums: bool, like_mt3: bool
) -> dict[str, Counts]:
    """Counts matches regardless of programs. The notes are all drums, or none is."""
    with_offsets = has_offsets and not are_drums
    counts = {"onset": count(reference, estimate, offsets=False)}
    if with_offsets:
        counts["onset_offset"] = count(reference, estimate, offsets=True)
    if has_offsets:
        counts["onset_velocity"] = count(reference, estimate, offsets=False, velocity=True)
    if with_offsets:
        counts["onset_offset_velocity"] = count(reference, estimate, offsets=True, velocity=True)
    if like_mt3:
        rolls = [notes_of_mt3_roll(notes, are_drums) for notes in (reference, estimate)]
        counts["frame"] = frame_counts(*rolls, above=VELOCITY_ABOVE)
    else:
        rolls = [with_minimum_length(notes, are_drums) for notes in (reference, estimate)]
        counts["frame"] = frame_counts(*rolls)
    return counts


def _program_counts(reference: Notes, estimate: Notes, granularity: str) -> dict[str, Counts]:
    """Counts matches within each (program, is_drum) and sums them."""
    reference, estimate = (_mapped(notes, granularity) for notes in (reference, estimate))
    drum, nondrum = Counts(), Counts()
    for group in np.union1d(_groups(reference), _groups(estimate)):
        part, guess = (notes[_groups(notes) == group] for notes in (reference, estimate))
        if group % 2:
            drum += count(part, guess, offsets=False)
        else:
            nondrum += count(part, guess, offsets=True)
    return {
        f"program_{granularity}": drum + nondrum, f"nondrum_{granularity}": nondrum, "drum": drum,
    }  # fmt: skip


def _require_forward(notes: Notes, side: str) -> None:
    wrong = (notes.offset < notes.onset) | (notes.onset < 0)
    if wrong.any():
        raise ValueError(
            f"{wrong.sum()} notes of the {side} end before they begin, or begin before time 0, first "
            f"the one at {notes.onset[wrong].min():.3f} s; mt3data.music.notes.validate names them"
        )


def _plain(notes: Notes) -> Notes:
    """Removes notes of zero length and gives all drums program 0."""
    notes = notes[notes.onset != notes.offset]
    return replace(notes, program=np.where(notes.is_drum, 0, notes.program))


def _part(notes: Notes, spec: TrackSpec, like_mt3: bool) -> Notes:
    same = (notes.is_drum == spec.is_drum) & (notes.program == spec.program)
    return notes[notes.is_drum if spec.is_drum and not like_mt3 else same]


def _mapped(notes: Notes, granularity: str) -> Notes:
    # Drums keep their program: the original maps that of other notes only.
    programs = np.where(notes.is_drum, notes.program, apply_granularity(notes.program, granularity))
    return replace(notes, program=programs)


def _groups(notes: Notes) -> np.ndarray:
    """Numbers each (program, is_drum). Drums get odd numbers."""
    return 2 * notes.program.astype(np.int64) + notes.is_drum
