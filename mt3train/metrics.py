"""How good is a transcription? Notes found, with and without offsets and instruments.

mir_eval matches notes one to one: an estimated note fits a reference note when its onset lies
within 50 ms, its pitch within 50 cents and, where offsets count, its offset within 50 ms or 20 % of
the reference note's length, whichever is larger. Precision is the share of estimated notes that
fit, recall the share of reference notes that are found, F1 their harmonic mean.

    onset          onset and pitch, of all notes but drums          "Onset F1"
    onset_offset   onset, pitch and offset, of all notes but drums  "Onset + offset F1"
    program        onset, pitch, offset and program; of drums, onset and drum
                                                                    "Onset + offset + program F1"
    drum           onset and drum, of drums                         "Drum onset F1"

On the right are the original's names; every number equals the original's (golden/metrics.json).
As there, `program` and `drum` match the notes of each (program, is_drum) on their own and weight
the precision of each by its estimated and the recall by its reference notes; an estimate with the
wrong program is thus wrong twice. A score whose reference or estimate holds no notes is 0, also
when both are empty: what to leave out of a mean is for the caller to say (`has_drums`). Notes of
zero length are ignored, because mir_eval refuses them.
"""

from dataclasses import replace

import mir_eval.transcription
import mir_eval.util
import numpy as np

from mt3data.notes import Notes
from mt3data.vocabulary import map_programs

MEASURES = ("precision", "recall", "f1")
SCORES = tuple(
    f"{what}_{measure}"
    for what in ("onset", "onset_offset", "program", "drum")
    for measure in MEASURES
)


def transcription_scores(
    reference: Notes, estimate: Notes, *, granularity: str = "full"
) -> dict[str, float]:
    """Precision, recall and F1 of an estimate; keys are SCORES, values in [0, 1].

    Args:
        reference: the notes that are there, in any order, before overlaps are trimmed.
        estimate: the notes that were found.
        granularity: how finely programs are told apart: "full", "midi_class" or "flat".
    Raises:
        ValueError: a note ends before it begins.

    Source: mt3/metrics.py transcription_metrics, _program_aware_note_scores.
    """
    reference = _comparable(reference, "reference", granularity)
    estimate = _comparable(estimate, "estimate", granularity)
    pitched = reference[~reference.is_drum], estimate[~estimate.is_drum]
    groups = {
        (int(program), bool(is_drum))
        for notes in (reference, estimate)
        for program, is_drum in zip(notes.program, notes.is_drum, strict=True)
    }
    scores = {
        "onset": _precision_recall(*pitched, offsets=False),
        "onset_offset": _precision_recall(*pitched, offsets=True),
        "program": _by_group(reference, estimate, groups),
        "drum": _by_group(reference, estimate, {group for group in groups if group[1]}),
    }
    return {
        f"{name}_{measure}": value
        for name, (precision, recall) in scores.items()
        for measure, value in zip(
            MEASURES, (precision, recall, mir_eval.util.f_measure(precision, recall)), strict=True
        )
    }


def has_drums(reference: Notes, estimate: Notes) -> bool:
    """Whether drum scores say anything about this track."""
    return bool(reference.is_drum.any() or estimate.is_drum.any())


def _comparable(notes: Notes, side: str, granularity: str) -> Notes:
    backwards = notes.offset < notes.onset
    if backwards.any():
        raise ValueError(
            f"{backwards.sum()} notes of the {side} end before they begin, first the one at "
            f"{notes.onset[backwards].min():.3f} s; mt3data.notes.validate names them"
        )
    notes = notes[notes.onset != notes.offset]
    # Drums keep their program: the original maps that of other notes only.
    programs = np.where(notes.is_drum, notes.program, map_programs(notes.program, granularity))
    return replace(notes, program=programs)


def _by_group(
    reference: Notes, estimate: Notes, groups: set[tuple[int, bool]]
) -> tuple[float, float]:
    """Precision and recall over several (program, is_drum), each matched on its own."""
    hits_estimated = hits_found = 0.0
    n_estimated = n_found = 0
    for program, is_drum in sorted(groups):
        part, guess = (
            notes[(notes.program == program) & (notes.is_drum == is_drum)]
            for notes in (reference, estimate)
        )
        precision, recall = _precision_recall(part, guess, offsets=not is_drum)
        hits_estimated += precision * len(guess)
        hits_found += recall * len(part)
        n_estimated += len(guess)
        n_found += len(part)
    return hits_estimated / max(1, n_estimated), hits_found / max(1, n_found)


def _precision_recall(reference: Notes, estimate: Notes, *, offsets: bool) -> tuple[float, float]:
    if len(reference) == 0 or len(estimate) == 0:
        return 0.0, 0.0
    precision, recall, _, _ = mir_eval.transcription.precision_recall_f1_overlap(
        np.stack([reference.onset, reference.offset], axis=1),
        _hertz(reference.pitch),
        np.stack([estimate.onset, estimate.offset], axis=1),
        _hertz(estimate.pitch),
        onset_tolerance=0.05,
        pitch_tolerance=50.0,
        offset_ratio=0.2 if offsets else None,
        offset_min_tolerance=0.05,
    )
    return float(precision), float(recall)


def _hertz(pitch: np.ndarray) -> np.ndarray:
    return 440.0 * 2.0 ** ((pitch - 69) / 12.0)
