"""mt3train.evaluation.evaluate: scores of a split from shards alone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import slakh_tree

from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.errors import UserError
from mt3data.music.fast_tokenizer import encode_notes
from mt3data.music.vocabulary import VocabularyConfig
from mt3data.shards.index import read_tracks
from mt3data.shards.windows import WindowConfig
from mt3train.evaluation.evaluate import TrackScores, evaluate, mean_scores, score_track
from mt3train.evaluation.tables import to_record
from mt3train.model import MT3, ModelConfig
from mt3train.transcription.decode import DecodedSegment, SegmentDecoder
from mt3train.weights.checkpoint import CheckpointInfo

SECONDS = 5.0  # 626 frames: two whole segments of 256 frames and a part
TRACKS = {"Track00001": "train", "Track01877": "test", "Track01878": "test"}


@pytest.fixture(scope="module")
def builds(tmp_path_factory) -> dict[str, tuple[Path, CheckpointInfo]]:
    """By right_context, a build of one training and two test tracks, and a checkpoint that fits it."""
    root = tmp_path_factory.mktemp("data")
    slakh_tree(root, "redux", TRACKS, seconds=SECONDS)
    found = {}
    for frames, right_context in ((256, "zeros"), (512, "audio")):
        out, windows = (
            tmp_path_factory.mktemp(right_context),
            WindowConfig(frames=frames, right_context=right_context),
        )
        build(make_plan(BuildConfig("slakh", root, out, windows=windows)))
        found[right_context] = out / "slakh", CheckpointInfo(right_context=right_context)
    return found


@pytest.fixture(params=["zeros", "audio"])
def of_each_edge(builds, request) -> tuple[Path, CheckpointInfo]:
    return builds[request.param]


@pytest.fixture
def built(builds) -> tuple[Path, CheckpointInfo]:
    return builds["zeros"]


def model() -> MT3:
    torch.manual_seed(0)
    return MT3(ModelConfig(
        emb_dim=16, num_heads=2, head_dim=8, num_encoder_layers=1, num_decoder_layers=1, mlp_dim=16
    ))  # fmt: skip


def answers(folder: Path, split: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(log-mel, right tokens) of every segment of a split."""
    for track in read_tracks(folder, split):
        mel = np.concatenate([m.astype(np.float32) for m in track.mel])
        for start in range(0, track.track_frames, 256):
            n_frames = min(256, track.track_frames - start)
            ids = encode_notes(track.notes, start, n_frames, track.track_frames, VocabularyConfig())
            yield (
                torch.from_numpy(mel[start : start + n_frames]),
                torch.from_numpy(ids.astype("i8")),
            )


@pytest.fixture
def know_all(monkeypatch) -> Callable[[Path, str], None]:
    """Makes the model recognise every segment of a split by its log-mel and say its tokens."""

    def install(folder: Path, split: str) -> None:
        known = list(answers(folder, split))

        def decode(self: SegmentDecoder, mels: Iterator[np.ndarray]) -> Iterator[DecodedSegment]:
            for index, mel in enumerate(mels):
                assert mel.shape == (256, 512)
                heard = torch.from_numpy(mel)
                matches = [ids for mine, ids in known if torch.equal(heard[: len(mine)], mine)]
                assert matches, "a segment that is not in the build"
                yield DecodedSegment(index, matches[0].numpy())

        monkeypatch.setattr(SegmentDecoder, "decode", decode)

    return install


@pytest.mark.parametrize("split", ["test", "train"])
def test_the_right_tokens_score_1_on_every_track(of_each_edge, know_all, split):
    folder, info = of_each_edge
    know_all(folder, split)
    results = evaluate(model(), info, folder, split)
    assert [r.track for r in results] == [t for t, s in sorted(TRACKS.items()) if s == split]
    for result in results:
        # Three pitched stems and drums, 24 notes each.
        assert (result.n_reference, result.n_estimate, result.n_segments) == (96, 96, 3)
        for scores in result.scores.values():
            # Times were rounded to 10 ms and velocities are all one, which these notice.
            inexact = ("frame", "tolerance_0.01", "onset_velocity", "onset_offset_velocity")
            exact = {n: v for n, v in scores.items() if not n.startswith((*inexact, "leakage"))}
            assert set(exact.values()) == {1.0}
        assert result.scores["corrected"]["leakage"] == 0
        assert (result.invalid, result.dropped) == (0, 0)
        assert [one.onset.n_reference for one in result.instruments] == [24, 24, 24, 24]


def test_an_untrained_model_scores_next_to_nothing(built):
    folder, info = built
    results = evaluate(
        model(), CheckpointInfo(right_context=info.right_context, max_target_length=50), folder
    )
    assert mean_scores(results)["onset_f1"] < 0.1


def test_max_tracks_ends_early_and_reports_each(built):
    folder, info = built
    told: list[TrackScores] = []
    short = CheckpointInfo(right_context=info.right_context, max_target_length=10)
    results = evaluate(model(), short, folder, max_tracks=1, on_track=told.append)
    assert told == results and len(results) == 1


def test_a_model_of_the_other_edge_is_refused(of_each_edge):
    folder, info = of_each_edge
    other = CheckpointInfo(right_context={"zeros": "audio", "audio": "zeros"}[info.right_context])
    with pytest.raises(
        UserError,
        match=f"right_context is {info.right_context}, the checkpoint's is {other.right_context}",
    ):
        evaluate(model(), other, folder)


def test_an_unknown_split_is_named(built):
    with pytest.raises(UserError, match="no split 'tset'"):
        evaluate(model(), built[1], built[0], "tset")


def test_a_folder_that_is_no_build_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json"):
        evaluate(model(), CheckpointInfo(), tmp_path)


def test_tracks_done_before_are_not_decoded_again(built, monkeypatch):
    folder, info = built
    short = CheckpointInfo(right_context=info.right_context, max_target_length=10)
    first = evaluate(model(), short, folder, max_tracks=1)
    told: list[TrackScores] = []
    done = {first[0].track: first[0]}
    results = evaluate(model(), short, folder, done=done, on_track=told.append)
    assert results[0] is first[0]
    assert [result.track for result in told] == ["Track01878"]
    assert [result.track for result in results] == ["Track01877", "Track01878"]


def test_two_processes_give_the_scores_of_one(built):
    folder, info = built
    short = CheckpointInfo(right_context=info.right_context, max_target_length=10)
    one, two = (evaluate(model(), short, folder, workers=n) for n in (1, 2))
    assert [to_record(track) for track in one] == [to_record(track) for track in two]


def test_programs_are_compared_as_finely_as_the_model_tells_them_apart(built):
    folder, info = built
    coarse = VocabularyConfig(granularity="flat")
    track = next(read_tracks(folder, "test"))
    short = CheckpointInfo(
        right_context=info.right_context, vocabulary=coarse, max_target_length=10
    )
    result = score_track(model(), short, track)
    assert result.scores["corrected"]["program_f1"] == result.scores["corrected"]["program_flat_f1"]
    assert {one.program for one in result.instruments} <= {0, -1}


def scored(track: str, **scores: float) -> TrackScores:
    return TrackScores(track, {"corrected": scores, "mt3": scores}, [], 10, 9, 1, 0, 0)


def test_a_mean_is_over_the_tracks_that_have_the_score():
    means = mean_scores([
        scored("a", onset_f1=0.5, drum_f1=0.25), scored("b", onset_f1=0.9, drum_f1=float("nan")),
    ])  # fmt: skip
    assert means == {"onset_f1": pytest.approx(0.7), "drum_f1": 0.25}
    assert mean_scores([scored("a", drum_f1=float("nan"))])["drum_f1"] == 0
    assert mean_scores([])["program_f1"] == 0
