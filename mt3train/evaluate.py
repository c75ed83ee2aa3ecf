"""Scores of a model on a split of a build, from its shards alone.

The windows of each track (of pass 0) are its input: with edge "segment" each is a segment; longer
windows of edge "track" are joined and cut into segments. The estimate is what `transcribe` would
write; the reference is the track's notes before overlaps were trimmed, which builds keep for their
evaluation splits (for a training split, the notes of its records, which are trimmed). Shards hold
log-mel as float16, so a transcription from audio may differ in a rare token.

As in the original the mean is over tracks, whatever their length, with one exception: tracks
without drums, in the reference and in the estimate, do not count in the mean of the drum scores,
where the original counts them as 0.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mt3data.errors import UserError
from mt3data.records import TrackRecords, read_tracks
from mt3data.shards import read_manifest
from mt3train.checkpoint import CheckpointInfo
from mt3train.metrics import SCORES, has_drums, transcription_scores
from mt3train.model import MT3
from mt3train.transcribe import transcribe_segments

COLUMNS = {  # heading: score
    "onset": "onset_f1", "+offset": "onset_offset_f1", "+program": "program_f1", "drums": "drum_f1",
}  # fmt: skip


@dataclass(frozen=True)
class TrackScores:
    """How one track went.

    Attributes:
        track: its short id.
        scores: as mt3train.metrics.transcription_scores returns them.
        has_drums: whether reference or estimate has any; else its drum scores say nothing.
        n_reference: notes in the reference.
        n_estimate: notes found.
        n_segments: segments decoded.
        invalid: events that made no sense.
        dropped: tokens behind the end of their segment.
    """

    track: str
    scores: dict[str, float]
    has_drums: bool
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
    batch: int = 8,
    max_tracks: int | None = None,
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
        on_track: called after each track.
    Returns:
        One entry per track, in the order of the shards.
    Raises:
        UserError: no finished build, no such split, no tracks in it, or a build whose spectrograms
            are not made as the model's were.
    """
    require_fit(Path(build), info)
    results = []
    for records in islice(read_tracks(build, split), max_tracks):
        result = score_track(model, info, records, batch)
        results.append(result)
        if on_track:
            on_track(result)
    if not results:
        raise UserError(f"{build}: no tracks in split {split!r}; see `mt3data info {build}`")
    return results


def mean_scores(results: Sequence[TrackScores]) -> dict[str, float]:
    """Mean of each score over tracks; of drum scores, over tracks with drums (0.0 if none has)."""
    with_drums = [result for result in results if result.has_drums]
    return {
        name: float(np.mean([result.scores[name] for result in counted])) if counted else 0.0
        for name in SCORES
        for counted in [with_drums if name.startswith("drum") else results]
    }


def format_table(results: Sequence[TrackScores]) -> str:
    """The F1 of each track and their means, as text for a terminal."""
    width = max(len("mean of tracks"), *(len(result.track) for result in results))
    headings = "".join(f"{heading:>9}" for heading in COLUMNS)
    lines = [f"{'F1':{width}}{headings}{'notes':>8}{'found':>8}{'invalid':>9}{'dropped':>9}"]
    for result in results:
        cells = "".join(
            f"{result.scores[score]:9.3f}"
            if result.has_drums or score != "drum_f1"
            else f"{'-':>9}"
            for score in COLUMNS.values()
        )
        counts = f"{result.n_reference:8}{result.n_estimate:8}{result.invalid:9}{result.dropped:9}"
        lines.append(f"{result.track:{width}}{cells}{counts}")
    means = mean_scores(results)
    lines.append(
        f"{'mean of tracks':{width}}" + "".join(f"{means[s]:9.3f}" for s in COLUMNS.values())
    )
    return "\n".join(lines)


def score_track(
    model: MT3,
    info: CheckpointInfo,
    records: TrackRecords,
    batch: int = 8,
    on_batch: Callable[[int], None] | None = None,
) -> TrackScores:
    """Transcribe one track and compare; on_batch is called with the segments done so far."""
    found = transcribe_segments(
        model, info.vocabulary, _segments(records, info),
        batch=batch, max_length=info.max_target_length, on_batch=on_batch,
    )  # fmt: skip
    return TrackScores(
        track=records.track,
        scores=transcription_scores(
            records.notes, found.notes, granularity=info.vocabulary.granularity
        ),
        has_drums=has_drums(records.notes, found.notes),
        n_reference=len(records.notes),
        n_estimate=len(found.notes),
        n_segments=found.n_segments,
        invalid=found.invalid,
        dropped=found.dropped,
    )


def _segments(records: TrackRecords, info: CheckpointInfo) -> Iterator[tuple[int, np.ndarray]]:
    """(start frame, float32 [frames, n_mels]) of each segment of a track, padded with 0.0."""
    if all(len(mel) == info.frames for mel in records.mel):
        for start, mel in zip(records.starts, records.mel, strict=True):
            yield start, mel.astype(np.float32)
        return
    track = np.concatenate(records.mel)
    for start in range(0, records.track_frames, info.frames):
        mel = track[start : start + info.frames].astype(np.float32)  # padding included, if any
        yield start, np.pad(mel, ((0, info.frames - len(mel)), (0, 0)))


def require_fit(build: Path, info: CheckpointInfo) -> None:
    """Raises UserError if a build's spectrograms are not made as the model's were."""
    manifest = read_manifest(build)
    ours = {"spectrogram": asdict(info.spectrogram), "edge": info.edge}
    for key, value in ours.items():
        if manifest[key] != value:
            raise UserError(
                f"{build}: its {key} is {manifest[key]}, the checkpoint's is {value}; evaluate on "
                "a build made with the settings of the training shards"
            )
    if info.edge == "segment" and manifest["window"] != info.frames:
        raise UserError(
            f"{build}: its segments have {manifest['window']} frames, the checkpoint's "
            f"{info.frames}; build with --window {info.frames}"
        )
