"""Detects tracks that crash or hang a worker process, so that the build can skip them and finish.

Before a worker begins a track it creates a marker, an empty file, and removes it afterwards. A worker
that crashes leaves its marker. A worker that is stopped because the track took too long leaves a
marker with a traceback in it. The next worker that comes to the track finds the markers.

A track is skipped after two crashes, because the first may have come from a shortage of memory that
another process caused. Markers belong to one run: when the whole build is killed, driver included,
no track is the cause.
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

# A track takes about a hundredth of its length.
LEAST_LIMIT_SECONDS, LIMIT_PER_SECOND = 600.0, 2.0
MOST_LIMIT_SECONDS = 4e6  # that the timers of all systems accept: 46 days
MAX_CRASHES = 2


def limit_seconds(planned: PlannedTrack, track_timeout: float) -> float:
    """Returns how long a worker may take for a track; a track_timeout of 0: by its length."""
    by_length = LIMIT_PER_SECOND * planned.variants * planned.seconds
    return track_timeout or max(LEAST_LIMIT_SECONDS, by_length)


def hang_reason(planned: PlannedTrack, track_timeout: float) -> tuple[str, str]:
    """Returns stage and reason of a track that took too long, the same on any machine."""
    limit = limit_seconds(planned, track_timeout)
    return "hang", f"not done after {limit:g} s, see track_timeout; its worker was stopped"


@dataclass(frozen=True)
class Run:
    """One run of a build.

    Attributes:
        folder: of the markers. It is removed when the run ends, which stops late workers.
        root: folder of the dataset.
        track_timeout: seconds after which a track's worker is stopped; 0: by the track's length.
        environment: versions that change bytes, see `environment`; workers must have the same.
    """

    folder: Path
    root: Path
    track_timeout: float
    environment: dict[str, str]

    def require_same_place(self) -> None:
        """Raises a UserError where this worker has other folders or other libraries."""
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

    def should_skip(self, planned: PlannedTrack) -> tuple[str, str] | None:
        """Returns stage and reason, the same on any machine, if a track must not be tried again."""
        markers = self.markers()
        hung = [markers[path] for path in markers if track_of(path) == planned.track.id]
        if any(hung):
            return hang_reason(planned, self.track_timeout)
        if len(hung) >= MAX_CRASHES:
            crashed = f"its worker crashed {MAX_CRASHES} times at it (memory, or a library crashed)"
            return "worker", crashed
        return None

    @contextmanager
    def guard(self, planned: PlannedTrack) -> Iterator[None]:
        """Marks a track as begun; ends this process if the body takes longer than the limit."""
        marker = self._new_marker(planned.track.id)
        limit = limit_seconds(planned, self.track_timeout)
        try:
            with marker.open("w", encoding="utf-8") as file:
                # A thread of C does it, so it works where Python is blocked in a library.
                faulthandler.dump_traceback_later(limit, exit=True, file=file)
                try:
                    yield
                finally:
                    faulthandler.cancel_dump_traceback_later()
        finally:
            marker.unlink(missing_ok=True)

    def _new_marker(self, track: str) -> Path:
        for number in itertools.count(1):
            marker = self.folder / f"{number}.{track}"  # on Windows, "aux.1" would be a device
            try:
                marker.touch(exist_ok=False)
            except FileExistsError:
                continue
            except FileNotFoundError as error:
                raise UserError("the run that asked for this shard is over") from error
            return marker
        raise AssertionError

    def markers(self) -> dict[Path, bool]:
        """Returns the existing markers, and for each whether its track hung."""
        found = {}
        for path in sorted(self.folder.glob("*")):
            with suppress(FileNotFoundError):  # its worker may remove it at any moment
                found[path] = path.stat().st_size > 0
        return found


def track_of(marker: Path) -> str:
    """Returns the id of the track of a marker."""
    return marker.name.partition(".")[2]


@contextmanager
def new_run(state: Path, root: Path, track_timeout: float) -> Iterator[Run]:
    """Creates a run with a new folder of markers below `state`; removes those of earlier runs.

    Args:
        state: folder of the state records of a build.
        root: folder of the dataset, which every worker must find there.
        track_timeout: see `Run`.
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
    """Returns the versions that could change bytes; no time, host or path."""
    import scipy
    import soundfile
    import soxr

    return {
        "mt3kit": __version__, "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "machine": platform.machine(), "numpy": np.__version__, "scipy": scipy.__version__,
        "soxr": soxr.__version__, "libsndfile": soundfile.__libsndfile_version__,
    }  # fmt: skip
