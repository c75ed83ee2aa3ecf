"""What stays of a track that kills its worker, or hangs, and how the others go on.

Before a worker begins a track it makes a marker, an empty file, and removes it afterwards. A worker
that dies leaves its marker; one that is stopped because the track took too long leaves one with a
traceback in it. Whoever comes to the track next, on whatever machine, sees the markers and knows.

Two deaths are needed for a verdict: memory may have run out because of another process. Markers
belong to one run: the death of the whole build, driver included, says nothing about any track.
"""

from __future__ import annotations

import faulthandler
import itertools
import platform
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mt3data import __version__
from mt3data.build.plan import PlannedTrack
from mt3data.errors import UserError
from mt3data.files import remove_atomically

LEAST_LIMIT_SECONDS, LIMIT_PER_SECOND = 600.0, 2.0  # a track takes a hundredth of that
MOST_LIMIT_SECONDS = 1e9  # of what a system's timer takes
MAX_CRASHES = 2


@dataclass(frozen=True)
class Run:
    """One run of a build, as its workers know it.

    Attributes:
        folder: of the markers; it goes when the run ends, and tells workers so.
        root: where the dataset lies.
        track_timeout: seconds after which a track's worker is stopped; 0: by the track's length.
        environment: what changes bytes, see `environment`; workers must have the same.
    """

    folder: Path
    root: Path
    track_timeout: float
    environment: dict[str, str]

    def require_same_place(self) -> None:
        """Raises a UserError where this worker sees other folders or has other libraries."""
        here = platform.node()
        if not self.folder.is_dir():
            raise UserError(
                f"worker on {here}: no folder {self.folder}; every worker must see the folder of the "
                "build under the path that it has here (or the run that asked for this is over)"
            )
        if not self.root.is_dir() or not any(self.root.iterdir()):
            raise UserError(
                f"worker on {here}: nothing in {self.root}; every worker must see --root under the "
                "path that it has here"
            )
        ours = environment()
        for name, wanted in self.environment.items():
            if ours.get(name) != wanted:
                raise UserError(
                    f"worker on {here} has {name} {ours.get(name)}, this machine {wanted}; bytes "
                    "could differ, so install the same versions on both"
                )

    def limit_seconds(self, planned: PlannedTrack) -> float:
        """How long a worker may take for a track."""
        by_length = LIMIT_PER_SECOND * planned.variants * planned.seconds
        return self.track_timeout or max(LEAST_LIMIT_SECONDS, by_length)

    def should_skip(self, planned: PlannedTrack) -> tuple[str, str] | None:
        """Stage and reason, the same on any machine, if the track is not to be tried again."""
        markers = self.markers()
        hung = [markers[path] for path in markers if track_of(path) == planned.track.id]
        if any(hung):
            limit = self.limit_seconds(planned)
            return (
                "hang",
                f"not done after {limit:g} s, see track_timeout; its worker was stopped",
            )
        if len(hung) >= MAX_CRASHES:
            return (
                "worker",
                f"its worker died {MAX_CRASHES} times at it (memory, or a library crashed)",
            )
        return None

    @contextmanager
    def guard(self, planned: PlannedTrack) -> Iterator[None]:
        """Marks a track as begun; ends this process if the body takes longer than it may."""
        marker = self._new_marker(planned.track.id)
        try:
            with marker.open("w") as file:
                # From a thread of C, so it works where Python is stuck in a library.
                faulthandler.dump_traceback_later(self.limit_seconds(planned), exit=True, file=file)
                try:
                    yield
                finally:
                    faulthandler.cancel_dump_traceback_later()
        finally:
            marker.unlink(missing_ok=True)

    def _new_marker(self, track: str) -> Path:
        for number in itertools.count(1):
            marker = self.folder / f"{track}.{number}"
            try:
                marker.touch(exist_ok=False)
            except FileExistsError:
                continue
            except FileNotFoundError as error:
                raise UserError("the run that asked for this shard is over") from error
            return marker
        raise AssertionError

    def markers(self) -> dict[Path, bool]:
        """The markers that lie there, and whether each tells of a hang."""
        found = {}
        for path in sorted(self.folder.glob("*")):
            with suppress(FileNotFoundError):  # it may go at any moment
                found[path] = path.stat().st_size > 0
        return found


def track_of(marker: Path) -> str:
    """The id of the track that a marker is about."""
    return marker.stem


@contextmanager
def new_run(state: Path, root: Path, track_timeout: float) -> Iterator[Run]:
    """A run whose markers lie in a new folder below `state`; those of earlier runs are removed.

    Args:
        state: the folder of a build's state records.
        root: the dataset, which every worker must find there.
        track_timeout: seconds that a track may take; 0: as long as `Run.limit_seconds` says.
    """
    for old in state.glob("run-*"):
        remove_atomically(old)
    folder = state / f"run-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield Run(folder, root, track_timeout, environment())
    finally:
        remove_atomically(folder)


def environment() -> dict[str, str]:
    """Versions that could change bytes; never a time, host or path."""
    import scipy
    import soundfile
    import soxr

    return {
        "mt3kit": __version__, "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "machine": platform.machine(), "numpy": np.__version__, "scipy": scipy.__version__,
        "soxr": soxr.__version__, "libsndfile": soundfile.__libsndfile_version__,
    }  # fmt: skip
