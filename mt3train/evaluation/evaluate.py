"""Scores of a model on a split of a build, from its shards alone.

The windows of each track (of variant 0) are its input (mt3train.transcription.segments). The estimate is what
`transcribe` would write; the reference is the track's notes before overlaps were trimmed, which
builds keep for their evaluation splits (for a training split, the notes of its records, which are
trimmed). Shards hold log-mel as float16 or audio as int16, so a transcription of the recording may
differ in a rare token.

Every track is scored in both scorings of mt3train.evaluation.metrics: `mt3`, to stand beside published
numbers, and `corrected`. As in the original a mean is over tracks, whatever their length; of `corrected`
scores it leaves out tracks that have nothing to score, such as drums where there are none.
"""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import torch

from mt3data.errors import UserError
from mt3data.music.notes import Notes
from mt3data.music.vocabulary import VocabularyConfig
from mt3data.shards.index import TrackRecords, read_tracks
from mt3train.evaluation.leakage import InstrumentScores, instrument_scores
from mt3train.evaluation.metrics import MEASURES, SCORES, SCORINGS, transcription_scores
from mt3train.model import MT3
from mt3train.transcription.decode import DecodingConfig
from mt3train.transcription.segments import require_fit, segments_of
from mt3train.transcription.transcribe import Transcription, transcribe_segments
from mt3train.weights.checkpoint import CheckpointInfo

COLUMNS = {  # heading: score
    "onset": "onset_f1", "+offset": "onset_offset_f1", "+program": "program_f1", "drums": "drum_f1",
}  # fmt: skip
NAMES = (*SCORES, *(f"program_{measure}" for measure in MEASURES))


@dataclass(frozen=True)
class TrackScores:
    """How one track went.

    Attributes:
        track: its short id.
        scores: scoring ("corrected", "mt3") -> name -> value, as
            mt3train.evaluation.metrics.transcription_scores returns them, and program_precision,
            _recall and _f1 at the granularity of the model. NaN if there is nothing to score.
        instruments: counts by program, as finely as the model tells them apart.
        n_reference: notes in the reference.
        n_estimate: notes found.
        n_segments: segments decoded.
        invalid: events that made no sense.
        dropped: tokens behind the end of their segment.
    """

    track: str
    scores: dict[str, dict[str, float]]
    instruments: list[InstrumentScores]
    n_reference: int
    n_estimate: int
    n_segments: int
    invalid: int
    dropped: int


def evaluate(
    model: MT3,
    info: CheckpointInfo,
    build: str | Path,
    split: str = "test",
    *,
    batch: int = 16,
    max_tracks: int | None = None,
    workers: int = 1,
    done: Mapping[str, TrackScores] | None = None,
    on_track: Callable[[TrackScores], None] | None = None,
) -> list[TrackScores]:
    """Score the tracks of a split; programs are compared as finely as the model tells them apart.

    Args:
        model: the network, on the device that shall run it.
        info: what its checkpoint says.
        build: folder of one build.
        split: which of its splits.
        batch: segments decoded at once.
        max_tracks: only the first so many.
        workers: processes, each of which takes one track at a time; the scores are the same.
        done: scores that an earlier run has found, by track; these tracks are not decoded again.
        on_track: called for each track, in the order in which they are done.
    Returns:
        One entry per track, in the order of the shards.
    Raises:
        UserError: no finished build, no such split, no tracks in it, a build whose spectrograms
            do not fit the model's (mt3train.transcription.segments), or a worker that died.
    """
    require_fit(Path(build), info)
    known, order = dict(done or {}), list[str]()

    def undone() -> Iterator[TrackRecords]:
        for records in islice(read_tracks(build, split), max_tracks):
            order.append(records.track)
            if records.track not in known:
                yield records

    for result in _scored(model, info, undone(), batch, workers):
        known[result.track] = result
        if on_track:
            on_track(result)
    if not order:
        raise UserError(f"{build}: no tracks in split {split!r}; see `mt3data info {build}`")
    return [known[track] for track in order]


def mean_scores(results: Sequence[TrackScores]) -> dict[str, float]:
    """Mean of each `corrected` score over the tracks that have it (0.0 if none has).

    Args:
        results: tracks of one or several builds; may be empty.
    """
    names = results[0].scores["corrected"] if results else NAMES
    means = {name: nan_mean(values_of(results, name, "corrected")) for name in names}
    return {name: 0.0 if math.isnan(mean) else mean for name, mean in means.items()}


def values_of(results: Sequence[TrackScores], name: str, scoring: str) -> np.ndarray:
    """The score of a name in a scoring, of each track: float64 [tracks], NaN where there is none."""
    return np.array([result.scores[scoring].get(name, math.nan) for result in results], np.float64)


def nan_mean(values: np.ndarray) -> float:
    """The mean of the values that are numbers; NaN if none is."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def score_track(
    model: MT3,
    info: CheckpointInfo,
    records: TrackRecords,
    batch: int = 16,
    on_batch: Callable[[int], None] | None = None,
) -> TrackScores:
    """The scores of one track, transcribed from its records.

    Args:
        batch: segments that are decoded together.
        on_batch: called with the number of segments done so far.
    """
    found = transcribe_segments(
        model, info.vocabulary, segments_of(records, info), DecodingConfig(batch),
        max_length=info.max_target_length, on_segment=on_batch,
    )  # fmt: skip
    return score_notes(records.track, records.notes, found, info.vocabulary)


def score_notes(
    track: str, reference: Notes, found: Transcription, vocabulary: VocabularyConfig
) -> TrackScores:
    """The scores of what was found in one track against what is there.

    Args:
        track: its short id.
        reference: its notes before overlaps were trimmed.
        found: from `transcribe` or `transcribe_segments`.
        vocabulary: of the model that found it.
    """
    granularity, scores = vocabulary.granularity, {}
    for scoring in SCORINGS:
        scores[scoring] = transcription_scores(
            reference, found.notes, scoring=scoring, has_offsets=vocabulary.encoding != "onsets"
        )
        for measure in MEASURES:
            scores[scoring][f"program_{measure}"] = scores[scoring][
                f"program_{granularity}_{measure}"
            ]
    return TrackScores(
        track=track,
        scores=scores,
        instruments=instrument_scores(reference, found.notes, granularity),
        n_reference=len(reference),
        n_estimate=len(found.notes),
        n_segments=found.n_segments,
        invalid=found.invalid,
        dropped=found.dropped,
    )


# --- several processes ---------------------------------------------------------------------------

_worker: tuple[MT3, CheckpointInfo, int]  # what a worker process scores with


def _scored(
    model: MT3, info: CheckpointInfo, tracks: Iterator[TrackRecords], batch: int, workers: int
) -> Iterator[TrackScores]:
    """Scores tracks, in this process or in several, in the order in which they are given."""
    if workers == 1:
        yield from (score_track(model, info, records, batch) for records in tracks)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), _begin_work, (model, info, batch, threads)
    )
    waiting: list[Future[TrackScores]] = []
    try:
        for records in tracks:
            waiting.append(pool.submit(_work, records))
            if len(waiting) > workers:  # each holds the spectrogram of a track
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps for want of memory; try fewer --workers or a smaller "
            "--batch"
        ) from error
    except BaseException:
        for process in pool._processes.values():  # no public way: the tracks begun are given up
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_work(model: MT3, info: CheckpointInfo, batch: int, threads: int) -> None:
    """Sets up a worker, which does not outlive its parent, not even after kill -9 of that."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to the parent, too
    parent = parent_process()

    def watch() -> None:
        if parent:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(threads)
    _worker = model, info, batch


def _work(records: TrackRecords) -> TrackScores:
    model, info, batch = _worker
    return score_track(model, info, records, batch)
