"""Scores a model on a split of a build, from its shards alone.

The windows of variant 0 of each track are the input of the model (mt3train.transcription.segments).
The estimate is what `transcribe` would write. The reference is the notes of the track before
overlaps were trimmed, which builds keep for their evaluation splits. For a training split it is the
trimmed notes of the records. Shards hold log-mel as float16 or audio as int16, so a transcription
of the original recording may differ in a rare token.

Every track is scored in both scorings of mt3train.evaluation.metrics. `mt3` can be compared with
published numbers, and `corrected` is the default. As in the original, a mean is over tracks,
whatever their length. A mean of `corrected` scores ignores tracks with nothing to score, such as
drum scores of tracks without drums.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed

from mt3data.build.executor import prepare_worker
from mt3data.errors import UserError
from mt3data.music.notes import Notes
from mt3data.music.vocabulary import VocabularyConfig
from mt3data.shards.index import TrackRecords, read_tracks
from mt3train.evaluation.leakage import InstrumentScores, instrument_scores
from mt3train.evaluation.metrics import MEASURES, SCORES, SCORINGS, transcription_scores
from mt3train.model import MT3, ModelConfig
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
    """The scores of one track.

    Attributes:
        track: its short id.
        scores: scoring ("corrected", "mt3") -> name -> value, as
            mt3train.evaluation.metrics.transcription_scores returns them, and program_precision,
            _recall and _f1 at the granularity of the model. NaN if there is nothing to score.
        instruments: counts by program, at the granularity of the model.
        n_reference: notes in the reference.
        n_estimate: notes found.
        n_segments: segments decoded.
        invalid: ignored invalid model outputs.
        dropped: ignored tokens after the end of their segment.
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
    decoding: DecodingConfig = DecodingConfig(),
    max_tracks: int | None = None,
    workers: int = 1,
    done: Mapping[str, TrackScores] | None = None,
    on_track: Callable[[TrackScores], None] | None = None,
) -> list[TrackScores]:
    """Scores the tracks of a split. Programs are compared at the granularity of the model.

    Args:
        model: the network, on the device that runs it.
        info: the metadata of its checkpoint.
        build: folder of one build.
        split: name of one of its splits.
        decoding: how segments are decoded. The default decodes as the original does.
        max_tracks: score only this many tracks, the first ones.
        workers: number of processes. Each scores one track at a time. The scores do not change.
        done: scores of an earlier run, by track. These tracks are not decoded again.
        on_track: called with the scores of each newly decoded track.
    Returns:
        One entry per track, in the order of the shards.
    Raises:
        UserError: the build is missing or incomplete, has no such split or no tracks in it, its
            spectrograms do not fit the model (mt3train.transcription.segments), or a worker process
            crashed.
    """
    require_fit(Path(build), info)
    known, order = dict(done or {}), list[str]()

    def remaining() -> Iterator[TrackRecords]:
        for records in islice(read_tracks(build, split), max_tracks):
            order.append(records.track)
            if records.track not in known:
                yield records

    results: Iterator[TrackScores]
    if workers == 1:
        results = (score_track(model, info, records, decoding) for records in remaining())
    else:
        results = _score_in_processes(model, info, remaining(), decoding, workers)
    for result in results:
        known[result.track] = result
        if on_track:
            on_track(result)
    if not order:
        raise UserError(f"{build}: no tracks in split {split!r}; see `mt3data info {build}`")
    return [known[track] for track in order]


def mean_scores(results: Sequence[TrackScores]) -> dict[str, float]:
    """Averages each `corrected` score over the tracks that have it; 0.0 if none has it.

    Args:
        results: tracks of one or several builds; may be empty.
    """
    names = results[0].scores["corrected"] if results else NAMES
    means = {name: nan_mean(values_of(results, name, "corrected")) for name in names}
    return {name: 0.0 if math.isnan(mean) else mean for name, mean in means.items()}


def values_of(results: Sequence[TrackScores], name: str, scoring: str) -> np.ndarray:
    """Returns one score of every track, float64 [tracks]. NaN marks a track without this score."""
    return np.array([result.scores[scoring].get(name, math.nan) for result in results], np.float64)


def nan_mean(values: np.ndarray) -> float:
    """Averages the values that are not NaN; NaN if all are."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def score_track(
    model: MT3,
    info: CheckpointInfo,
    records: TrackRecords,
    decoding: DecodingConfig = DecodingConfig(),
    on_batch: Callable[[int], None] | None = None,
) -> TrackScores:
    """Transcribes one track from its records and scores the result.

    Args:
        decoding: how segments are decoded.
        on_batch: called with the number of segments done so far.
    """
    found = transcribe_segments(
        model, info.vocabulary, segments_of(records, info), decoding,
        max_length=info.max_target_length, on_segment=on_batch,
    )  # fmt: skip
    return score_notes(records.track, records.notes, found, info.vocabulary)


def score_notes(
    track: str, reference: Notes, found: Transcription, vocabulary: VocabularyConfig
) -> TrackScores:
    """Scores the transcription of one track against its reference.

    Args:
        track: its short id.
        reference: its notes before overlaps were trimmed.
        found: the result of `transcribe` or `transcribe_segments`.
        vocabulary: the vocabulary of the model.
    """
    granularity, scores = vocabulary.granularity, {}
    for scoring in SCORINGS:
        values = transcription_scores(
            reference, found.notes, scoring=scoring, has_offsets=vocabulary.encoding != "onsets"
        )
        scores[scoring] = values | {
            f"program_{measure}": values[f"program_{granularity}_{measure}"] for measure in MEASURES
        }
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


def _score_in_processes(
    model: MT3, info: CheckpointInfo, tracks: Iterator[TrackRecords], decoding: DecodingConfig,
    workers: int,
) -> Iterator[TrackScores]:  # fmt: skip
    """Scores tracks in several processes and yields them in the order in which they are given."""
    # joblib writes large arrays, and not tensors, once into memory that all workers share.
    weights = {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}
    device = str(next(model.parameters()).device)
    pool = Parallel(
        workers, return_as="generator", batch_size=1, pre_dispatch=workers + 1,
        inner_max_num_threads=max(1, (os.cpu_count() or 1) // workers),
        initializer=prepare_worker, initargs=(os.getpid(),),
    )  # fmt: skip
    score = delayed(_score_in_worker)
    try:
        yield from pool(
            score(model.config, weights, device, info, records, decoding) for records in tracks
        )
    except BrokenExecutor as error:
        raise UserError(
            "a worker process crashed, perhaps because memory ran out; try fewer --workers or a "
            "smaller --batch"
        ) from error


def _score_in_worker(
    config: ModelConfig, weights: Mapping[str, np.ndarray], device: str, info: CheckpointInfo,
    records: TrackRecords, decoding: DecodingConfig,
) -> TrackScores:  # fmt: skip
    model = MT3(config)
    model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    return score_track(model.to(device), info, records, decoding)
