"""Marks for tests that only some systems can run, each with its reason."""

import os
import signal
from pathlib import Path

import pytest

posix = pytest.mark.skipif(
    not hasattr(signal, "SIGHUP") or not hasattr(os, "mkfifo"),
    reason="uses signals, links, pipes, devices or shells of POSIX",
)
proc = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="looks for processes or open files in Linux's /proc"
)


def skip_module_without_posix() -> None:
    """Skips all tests of the module that calls this where signals of POSIX are missing."""
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("sends signals of POSIX to other processes", allow_module_level=True)
