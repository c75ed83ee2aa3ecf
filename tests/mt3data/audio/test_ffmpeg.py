"""Files that libsndfile does not read: times, faults, and what to install. Both decoders do the same."""

import builtins
import shutil
import tracemalloc
from pathlib import Path

import needs
import numpy as np
import pytest
from videos import CLICKS, click_times, clicks, write_media

from mt3data.audio import ffmpeg
from mt3data.audio.load import audio_info, needs_ffmpeg, read_audio, read_blocks, stated_seconds
from mt3data.errors import UserError

pytest.importorskip("av", reason="PyAV writes the files (extra video)")
KINDS = {
    "a.m4a": ("aac", {"rate": 44100}),
    "a.mp4": ("aac", {"rate": 44100, "video": "mpeg4"}),
    "a.mkv": ("aac", {"rate": 44100, "video": "mpeg4"}),
    "a.mov": ("pcm_s16le", {"video": "mpeg4"}),
    "a.webm": ("libopus", {"video": "libvpx"}),
    "opus.mp4": ("libopus", {}),
    "flac.mka": ("flac", {"container": "matroska"}),
    "later.mp4": ("aac", {"video": "mpeg4", "later": 0.5}),
    "later.mkv": ("libopus", {"video": "mpeg4", "later": 0.5}),
}


@pytest.fixture(params=["pyav", "program"])
def decoder(request, monkeypatch) -> str:
    """Runs a test with PyAV and with the program ffmpeg."""
    program = shutil.which("ffmpeg")
    if request.param == "program":
        if program is None:
            pytest.skip("the program ffmpeg is not installed")
        monkeypatch.setattr(ffmpeg, "find_decoder", lambda: program)
    return request.param


@pytest.mark.parametrize("name", KINDS)
def test_no_encoder_s_delay_and_no_late_begin_moves_a_click(tmp_path, decoder, name):
    codec, options = KINDS[name]
    path = write_media(tmp_path / name, codec, **options)
    found = click_times(read_audio(path, 48000), 48000)
    later = options.get("later", 0.0)
    assert found == pytest.approx([time + later for time in CLICKS], abs=0.002)
    info = audio_info(path)
    assert info.channels == 2 and info.rate == options.get("rate", 48000)
    assert info.seconds == pytest.approx(4.0 + later, abs=0.03)


@pytest.mark.parametrize("name", KINDS)
def test_the_length_of_a_container_is_known_without_decoding(tmp_path, monkeypatch, name):
    codec, options = KINDS[name]
    path = write_media(tmp_path / name, codec, **options)
    expected = audio_info(path).seconds
    monkeypatch.setattr(ffmpeg, "decode", None)
    assert stated_seconds(path, exact=True) == pytest.approx(expected, abs=0.05)


def test_an_estimated_length_is_not_exact_and_a_damaged_one_is_none(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.aac", "aac", 44100, container="adts")
    assert stated_seconds(path, exact=True) is None
    assert stated_seconds(path) == pytest.approx(4.0, rel=0.5)
    monkeypatch.setattr(ffmpeg, "stated_seconds", lambda path, exact: 1e9)
    assert stated_seconds(path) is None


def test_bare_aac_packets_are_late_by_the_delay_that_they_do_not_state(tmp_path, decoder):
    path = write_media(tmp_path / "a.aac", "aac", 44100, container="adts")
    found = click_times(read_audio(path, 44100), 44100)
    assert found == pytest.approx([time + 1024 / 44100 for time in CLICKS], abs=0.002)


@pytest.mark.parametrize("name", ["a.m4a", "a.webm", "a.aac", "a.avi", "a.ts", "a.flv"])
def test_a_format_is_recognised_without_its_suffix(tmp_path, name):
    codec = "libopus" if name == "a.webm" else "aac"
    write_media(tmp_path / name, codec).rename(tmp_path / "standard-input")
    assert needs_ffmpeg(tmp_path / "standard-input")
    assert len(read_audio(tmp_path / "standard-input")) == pytest.approx(64_000, abs=1000)


def test_channels_are_averaged_and_integers_scaled(tmp_path):
    samples = np.full(4800, 0.25, np.float32)
    for codec in ("pcm_s16le", "pcm_u8", "pcm_f32le"):
        path = write_media(tmp_path / f"{codec}.mkv", codec, samples=samples)
        np.testing.assert_allclose(read_audio(path, 48000), 0.25, atol=1e-6)


def test_memory_does_not_grow_with_the_length(tmp_path):
    peaks = []
    for seconds in (20, 120):
        path = write_media(tmp_path / f"{seconds}.mkv", "pcm_s16le", samples=clicks(48000, seconds))
        tracemalloc.start()
        assert sum(map(len, read_blocks(path))) == 16000 * seconds
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(1).bytes(3000)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [half, overwrite])
@pytest.mark.parametrize("name", ["a.m4a", "a.mkv", "a.aac", "flac.mka", "fast.mp4"])
def test_a_damaged_file_is_one_line_about_this_file(tmp_path, decoder, name, damage):
    codec = "flac" if name == "flac.mka" else "aac"
    options = {"movflags": "faststart"} if name == "fast.mp4" else {}
    container = {"a.aac": "adts", "flac.mka": "matroska"}.get(name)
    path = write_media(tmp_path / name, codec, 44100, container=container, options=options)
    damage(path)
    with pytest.raises(UserError, match=f"^{path}: ") as caught:
        read_audio(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "content",
    [
        b"this is no audio" * 100,
        bytes(10_000),
        b"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\nfile:///SECRET\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile secret.m4a\n",
    ],
)
def test_a_file_cannot_make_ffmpeg_read_others(tmp_path, decoder, content):
    secret = write_media(tmp_path / "secret.m4a", "aac")
    path = tmp_path / "a.mp4"
    path.write_bytes(content.replace(b"/SECRET", str(secret).encode()))
    with pytest.raises(UserError, match=f"^{path}: .*(export|download)"):
        read_audio(path)


def test_a_video_without_sound_is_one_line(tmp_path, decoder):
    path = write_media(tmp_path / "a.mp4", None, video="mpeg4")
    with pytest.raises(UserError, match="a.mp4: no sound in it"):
        audio_info(path)


@needs.posix
def test_without_a_decoder_the_message_names_both(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.m4a", "aac")
    real = builtins.__import__

    def no_av(name, *rest):
        if name == "av":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_av)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"a.m4a: .*PyAV \(.*\[video\].* program ffmpeg"):
        read_audio(path)
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    assert ffmpeg.find_decoder() == str(tmp_path / "ffmpeg")
