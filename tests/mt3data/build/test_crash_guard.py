"""Markers of tracks that were begun, and which tracks are skipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mt3data.build.crash_guard import Run, limit_seconds, new_run
from mt3data.build.plan import PlannedTrack, ShardPlan
from mt3data.build.run import _suspects
from mt3data.datasets.track import Track
from mt3data.errors import UserError


def planned(name: str, seconds: float = 60.0, variants: int = 1) -> PlannedTrack:
    track = Track(name, name, "demo", "train", Path("mix.flac"))
    return PlannedTrack(track, seconds, (1,), None, variants, 1)


SONG = planned("song")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with new_run(tmp_path, tmp_path, 0.0) as found:
        yield found


def crash(run: Run, track: PlannedTrack, text: str = "") -> Path:
    """Leaves the marker of a worker that crashed."""
    marker = run._new_marker(track.track.id)
    marker.write_text(text)
    return marker


def test_a_track_is_skipped_after_two_crashes(run: Run) -> None:
    crash(run, SONG)
    assert run.should_skip(SONG) is None
    crash(run, SONG)
    assert run.should_skip(SONG) == (
        "worker", "its worker crashed 2 times at it (memory, or a library crashed)",
    )  # fmt: skip
    assert run.should_skip(planned("son")) is None


def test_a_track_is_skipped_after_one_hang(run: Run) -> None:
    crash(run, SONG, "Timeout (0:10:00)!")
    assert run.should_skip(SONG) == (
        "hang", "not done after 600 s, see track_timeout; its worker was stopped",
    )  # fmt: skip


def test_an_attempt_that_ends_leaves_no_marker(run: Run) -> None:
    with run.guard(SONG):
        assert [path.name for path in run.markers()] == ["1.song"]
    with pytest.raises(ValueError, match="bad"), run.guard(SONG):
        raise ValueError("bad")
    assert run.markers() == {}


def test_markers_of_an_earlier_run_are_cleared(tmp_path: Path) -> None:
    with new_run(tmp_path, tmp_path, 0.0) as first:
        pass
    first.folder.mkdir()
    crash(first, SONG)
    crash(first, SONG)
    with new_run(tmp_path, tmp_path, 0.0) as second:
        assert second.should_skip(SONG) is None
        assert list(tmp_path.iterdir()) == [second.folder]


def test_a_worker_whose_run_is_over_stops_at_the_next_track(run: Run) -> None:
    run.folder.rmdir()
    with pytest.raises(UserError, match="the run that asked for this shard is over"):
        run._new_marker("song")


@pytest.mark.parametrize(
    ("track", "timeout", "seconds"),
    [
        (SONG, 0.0, 600),
        (planned("long", 1800.0), 0.0, 3600),
        (planned("often", 60.0, 10), 0.0, 1200),
        (SONG, 5.0, 5),
    ],
)
def test_the_limit_grows_with_the_track_unless_given(
    track: PlannedTrack, timeout: float, seconds: float
) -> None:
    assert limit_seconds(track, timeout) == seconds


# --- who is to be built alone ---------------------------------------------------------------------

SHARDS = {
    name: ShardPlan(name, "train", (planned(f"{name}1"), planned(f"{name}2")), 1) for name in "abc"
}


def suspects(run: Run) -> list[str]:
    return _suspects(run.markers(), SHARDS)


def test_the_only_track_at_work_keeps_its_marker(run: Run) -> None:
    crash(run, planned("b2"))
    assert suspects(run) == ["b"]
    assert [path.name for path in run.markers()] == ["1.b2"]


def test_of_several_tracks_none_is_to_blame_yet(run: Run) -> None:
    crash(run, planned("a1"))
    crash(run, planned("c2"))
    assert suspects(run) == ["a", "c"]
    assert run.markers() == {}


def test_a_hang_explains_the_deaths_of_the_others(run: Run) -> None:
    crash(run, planned("a1"))
    crash(run, planned("c2"), "Timeout (0:10:00)!")
    assert suspects(run) == []
    assert [path.name for path in run.markers()] == ["1.c2"]
