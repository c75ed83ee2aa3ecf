"""mt3train.evaluate: scores of a split from shards alone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import slakh_tree

from mt3data.build import build
from mt3data.errors import UserError
from mt3data.plan import BuildConfig, make_plan
from mt3data.records import read_tracks
from mt3data.tokens import encode_notes
from mt3data.vocabulary import VocabularyConfig
from mt3data.windows import WindowConfig
from mt3train import transcribe
from mt3train.checkpoint import CheckpointInfo
from mt3train.evaluate import TrackScores, evaluate, format_table, mean_scores
from mt3train.metrics import SCORES
from mt3train.model import MT3, ModelConfig

SECONDS = 5.0  # 626 frames: two whole segments of 256 frames and a part
TRACKS = {"Track00001": "train", "Track01877": "test", "Track01878": "test"}


@pytest.fixture(scope="module", params=[(256, "segment"), (512, "track")], ids=str)
def built(request, tmp_path_factory) -> tuple[Path, CheckpointInfo]:
    """A build of one training and two test tracks, and a checkpoint that fits it."""
    root = tmp_path_factory.mktemp("data")
    slakh_tree(root, "redux", TRACKS, seconds=SECONDS)
    frames, edge = request.param
    windows = WindowConfig(frames=frames, edge=edge)
    config = BuildConfig("slakh", root, tmp_path_factory.mktemp("shards"), windows=windows)
    build(make_plan(config))
    return config.out / "slakh", CheckpointInfo(edge=edge)


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

        def greedy(model: MT3, mel_BFM: torch.Tensor, max_length: int) -> torch.Tensor:
            rows = []
            for mel in mel_BFM:
                assert mel.shape == (256, 512)
                matches = [ids for heard, ids in known if torch.equal(mel[: len(heard)], heard)]
                assert matches, "a segment that is not in the build"
                rows.append(matches[0])
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

        monkeypatch.setattr(transcribe, "greedy", greedy)

    return install


@pytest.mark.parametrize("split", ["test", "train"])
def test_the_right_tokens_score_1_on_every_track(built, know_all, split):
    folder, info = built
    know_all(folder, split)
    results = evaluate(model(), info, folder, split)
    assert [r.track for r in results] == [t for t, s in sorted(TRACKS.items()) if s == split]
    for result in results:
        # Three pitched stems and drums, 24 notes each.
        assert (result.n_reference, result.n_estimate, result.n_segments) == (96, 96, 3)
        assert result.scores == dict.fromkeys(SCORES, 1.0)
        assert (result.invalid, result.dropped, result.has_drums) == (0, 0, True)


def test_an_untrained_model_scores_next_to_nothing(built):
    folder, info = built
    results = evaluate(model(), CheckpointInfo(edge=info.edge, max_target_length=50), folder)
    assert mean_scores(results)["onset_f1"] < 0.1


def test_max_tracks_ends_early_and_tells_each(built):
    folder, info = built
    told: list[TrackScores] = []
    short = CheckpointInfo(edge=info.edge, max_target_length=10)
    results = evaluate(model(), short, folder, max_tracks=1, on_track=told.append)
    assert told == results and len(results) == 1


def test_a_model_of_the_other_edge_is_refused(built):
    folder, info = built
    other = CheckpointInfo(edge={"segment": "track", "track": "segment"}[info.edge])
    with pytest.raises(UserError, match=f"edge is {info.edge}, the checkpoint's is {other.edge}"):
        evaluate(model(), other, folder)


def test_an_unknown_split_is_named(built):
    with pytest.raises(UserError, match="no split 'tset'"):
        evaluate(model(), built[1], built[0], "tset")


def test_a_folder_that_is_no_build_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json"):
        evaluate(model(), CheckpointInfo(), tmp_path)


def scored(track: str, value: float, drums: bool) -> TrackScores:
    scores = dict.fromkeys(SCORES, value)
    if not drums:
        scores["drum_f1"] = 0.0
    return TrackScores(track, scores, drums, 10, 9, 1, 0, 0)


def test_tracks_without_drums_do_not_count_in_the_mean_of_drum_scores():
    means = mean_scores([scored("a", 0.5, True), scored("b", 0.9, False)])
    assert (means["onset_f1"], means["drum_f1"]) == (pytest.approx(0.7), 0.5)


def test_the_table_shows_each_track_and_the_mean():
    table = format_table([scored("a", 0.5, True), scored("b", 0.75, False)]).splitlines()
    assert table[1].split() == ["a", "0.500", "0.500", "0.500", "0.500", "10", "9", "0", "0"]
    assert table[2].split() == ["b", "0.750", "0.750", "0.750", "-", "10", "9", "0", "0"]
    assert table[3].split() == ["mean", "of", "tracks", "0.625", "0.625", "0.625", "0.500"]
