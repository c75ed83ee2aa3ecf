"""Damaged headers of audio files never raise anything but a UserError."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt3data.audio.containers import find_parts
from mt3data.errors import UserError

KINDS = ("WAV", "AIFF", "AU", "W64", "RF64", "CAF", "OGG", "MP3", "FLAC")


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    samples = np.random.default_rng(0).normal(0, 0.1, 2000).astype(np.float32)
    soundfile.write(buffer, samples, 16000, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 5000),
    tail=st.sampled_from([b"", b"ID3", b"TAG", b"APETAGEX\xff\xff\xff\xff", b"OggS" * 9, b"\xff\xfb"]),
)  # fmt: skip
def test_damaged_files_have_parts_inside_them_or_are_refused(
    tmp_path: Path, kind: str, changes: list[tuple[int, int]], cut: int, tail: bytes
) -> None:
    data = bytearray(encoded(kind))
    for place, value in changes:
        data[place % len(data)] = value
    path = tmp_path / "a.mp3"
    path.write_bytes(data[: max(1, len(data) - cut)] + tail)
    try:
        parts = find_parts(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert parts
        assert all(0 <= part.start < part.end <= path.stat().st_size for part in parts)
