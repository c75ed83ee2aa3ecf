"""Paths that are no regular files, for tests of what commands print about them."""

import os
from pathlib import Path

# Name of a path -> what a message calls it.
SPECIAL_FILES = {
    "pipe.pth": "a named pipe", "device.pth": "a device", "broken.pth": "a broken link",
    "absent.pth": "no such file",
}  # fmt: skip


def make_special(path: Path) -> Path:
    """Makes the special file of this name, unless it is one that is absent."""
    if path.stem == "pipe":
        os.mkfifo(path)
    elif path.stem != "absent":
        path.symlink_to("/dev/zero" if path.stem == "device" else "nowhere")
    return path
