"""mt3data.audio.load: any file in, 16 kHz mono out, and helpful errors."""

import errno
import io
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from mt3data.audio import load as audio
from mt3data.errors import UserError


def noise(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    shape = (int(seconds * rate), channels)
    return (np.random.default_rng(seed).standard_normal(shape) * 0.1).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int, **options: str) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def test_two_channels_become_their_mean(tmp_path):
    samples = np.array([[0.5, 0.25], [-0.5, 0.25], [0.0, 1.0]], np.float32)
    path = write(tmp_path / "stereo.wav", samples, 16000, subtype="FLOAT")
    assert audio.read_audio(path).tolist() == [0.375, -0.125, 0.5]


def test_six_channels_become_their_mean(tmp_path):
    samples = np.eye(6, dtype=np.float32)[:2] * 3
    path = write(tmp_path / "surround.wav", samples, 16000, subtype="FLOAT")
    assert audio.read_audio(path).tolist() == [0.5, 0.5]


def test_a_file_at_the_target_rate_is_not_touched(tmp_path):
    samples = noise(0.5, 16000)
    path = write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    assert audio.read_audio(path).tobytes() == samples[:, 0].tobytes()


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("block_seconds", [0.001, 0.37, 10.0])
def test_blocks_of_any_size_give_the_bytes_of_one_piece(tmp_path, rate, block_seconds):
    samples = noise(1.234, rate, channels=2)
    path = write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    blocks = list(audio.read_blocks(path, block_seconds=block_seconds))
    mono = (samples[:, 0] + samples[:, 1]) * np.float32(0.5)
    expected = soxr.resample(mono, rate, 16000, quality="HQ")
    assert np.concatenate(blocks).tobytes() == expected.tobytes()
    assert all(len(block) for block in blocks)


def test_a_tone_keeps_its_pitch_and_level_through_resampling(tmp_path):
    def tone(rate: int) -> np.ndarray:
        return (0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)).astype(np.float32)

    path = write(tmp_path / "a.wav", tone(44100), 44100, subtype="FLOAT")
    resampled = audio.read_audio(path)
    assert len(resampled) == 16000
    assert np.abs(resampled - tone(16000))[1000:-1000].max() < 1e-4


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.ogg", "a.aiff"])
def test_other_formats_are_read(tmp_path, name):
    time = np.arange(44100) / 44100
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    path = write(tmp_path / name, np.stack([tone, tone], axis=1), 44100)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(audio.read_audio(path)[2000:14000] - expected[2000:14000]).max() < 0.02


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.ogg"])
def test_compressed_files_decode_to_the_same_bytes_in_blocks(tmp_path, name):
    path = write(tmp_path / name, noise(3, 44100, channels=2), 44100)
    blocks = list(audio.read_blocks(path, block_seconds=0.21))
    assert np.concatenate(blocks).tobytes() == audio.read_audio(path).tobytes()


def test_the_header_is_told_without_decoding(tmp_path):
    path = write(tmp_path / "a.flac", noise(1.5, 22050, channels=2), 22050)
    info = audio.audio_info(path)
    assert info == audio.AudioInfo(n_samples=33075, rate=22050, channels=2)
    assert info.seconds == 1.5


def test_a_flac_that_does_not_know_its_length_is_refused(tmp_path):
    path = write(tmp_path / "piped.flac", noise(0.5, 16000), 16000)
    content = bytearray(path.read_bytes())
    # STREAMINFO follows "fLaC" and a 4-byte header; its last 36 bits before the MD5 are the length.
    content[8 + 13] &= 0xF0
    content[8 + 14 : 8 + 18] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"piped\.flac: its header does not give its length"):
        audio.audio_info(path)


@pytest.mark.parametrize("tag", [b"", b"ID3\x04\x00\x00\x00\x01\x00\x00" + bytes(16384)])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_mp3_that_does_not_say_its_length_is_read_to_its_end(tmp_path, mode, tag):
    samples = noise(20, 44100)
    samples[5 * 44100 : 15 * 44100] *= 1e-3  # so that the first bit rate is not the mean
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 44100, format="MP3", bitrate_mode=mode, compression_level=0.5)
    content = buffer.getvalue()
    first, second = content.find(b"\xff\xfb"), content.find(b"\xff\xfb", 40)
    assert b"Xing" in content[first:second] or b"Info" in content[first:second]
    path = tmp_path / "silent about its length.mp3"
    path.write_bytes(tag + content[second:])
    assert audio.audio_info(path).seconds == pytest.approx(20, abs=0.1)
    assert len(audio.read_audio(path)) == pytest.approx(20 * 16000, abs=1600)
    blocks = audio.read_blocks(path)
    next(blocks)
    blocks.close()  # what is left unread must not hang


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.wav: no such file; expected an audio file"):
        audio.read_audio("nowhere.wav")


def test_a_folder_is_not_audio(tmp_path):
    with pytest.raises(UserError, match="a folder"):
        audio.audio_info(tmp_path)


@pytest.mark.parametrize("content", [b"RIFF", b"this is not audio at all" * 40])
@pytest.mark.parametrize("name", ["song.wav", "my song.mp3"])
def test_an_unreadable_file_says_what_would_be_read(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: not audio .* expected wav, flac") as error:
        audio.read_audio(path)
    assert "(Format not recognised)" in str(error.value)
    assert "exist" not in str(error.value)  # the message of libsndfile for what is no MP3 file
    assert f"`ffmpeg -i {shlex.quote(str(path))} converted.wav`" in str(error.value)


def test_an_empty_file_is_said_to_be(tmp_path):
    (tmp_path / "song.mp3").touch()
    with pytest.raises(UserError, match=r"song\.mp3: empty file; record or download it again"):
        audio.read_audio(tmp_path / "song.mp3")


def test_a_file_that_must_not_be_read_is_no_bug(tmp_path, monkeypatch):
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "song.wav").write_bytes(b"RIFF")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"song\.wav: cannot be opened \(Permission denied\)"):
        audio.read_audio(tmp_path / "song.wav")


@pytest.mark.parametrize("address", ["https://example.org/song.mp3", "http://a/b.wav"])
def test_a_web_address_is_to_be_downloaded_first(address):
    with pytest.raises(UserError, match=f"{address}: a web address; .*; download it"):
        audio.audio_info(Path(address))


def test_what_a_mac_leaves_beside_a_file_does_not_spoil_it(tmp_path):
    path = write(tmp_path / "song.mp3", noise(1, 16000), 16000)
    alone = audio.read_audio(path)
    (tmp_path / "._song.mp3").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    with pytest.raises(soundfile.LibsndfileError, match="bad data offset"):
        soundfile.SoundFile(path)  # so it would be, by its name alone
    assert audio.read_audio(path).tobytes() == alone.tobytes()
    assert audio.audio_info(path).n_samples == 16000


def test_an_mp3_with_junk_before_its_first_frame_is_read(tmp_path):
    content = write(tmp_path / "a.mp3", noise(2, 44100), 44100).read_bytes()
    (tmp_path / "b.mp3").write_bytes(bytes(1000) + content)
    assert len(audio.read_audio(tmp_path / "b.mp3")) == 32000
    first = content.find(b"\xff\xfb")
    (tmp_path / "c.mp3").write_bytes(bytes(1000) + content[content.find(b"\xff\xfb", first + 40) :])
    with pytest.raises(
        UserError, match=r"c\.mp3: not audio .* try `ffmpeg"
    ):  # and no header gives its length
        audio.read_audio(tmp_path / "c.mp3")


def test_an_mp3_that_is_damaged_in_the_middle_says_between_which_seconds(tmp_path):
    content = write(tmp_path / "a.mp3", noise(8, 44100), 44100).read_bytes()
    middle = len(content) // 2
    damaged = content[:middle] + bytes(8000) + content[middle + 8000 :]
    (tmp_path / "a.mp3").write_bytes(damaged)
    for block_seconds, span in ((10.0, "0.00 and 8.00"), (3.0, "3.00 and 6.00")):
        with pytest.raises(UserError, match=rf"a\.mp3: damaged between {span} s; .*`ffmpeg"):
            list(audio.read_blocks(tmp_path / "a.mp3", block_seconds=block_seconds))


@pytest.mark.parametrize("read", [audio.audio_info, audio.read_audio])
def test_a_wav_of_no_samples_is_refused(tmp_path, read):
    path = write(tmp_path / "empty.wav", np.zeros((0, 2), np.float32), 44100)
    with pytest.raises(UserError, match=r"empty\.wav: 0 samples"):
        read(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("block_seconds", [0.1, 10.0])
def test_samples_that_are_no_numbers_are_refused_with_their_place(tmp_path, value, block_seconds):
    samples = noise(1, 8000, channels=2)
    samples[6000, 1] = value
    path = write(tmp_path / "bad.wav", samples, 8000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"bad\.wav: NaN or infinite samples, first at 0\.750 s"):
        list(audio.read_blocks(path, block_seconds=block_seconds))


def test_a_download_that_broke_off_is_refused(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(4, 16000), 16000, format="FLAC")
    path = tmp_path / "half.flac"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(
        UserError, match=r"half\.flac: (ends after 1\.\d+ s|damaged between 0\.00 and 4\.00 s)"
    ):
        audio.read_audio(path)


@pytest.mark.parametrize(("keep", "is_whole"), [(0.5, False), (1.0, True)])
def test_a_wav_file_that_was_cut_is_refused(tmp_path: Path, keep: float, is_whole: bool) -> None:
    path = tmp_path / "cut.wav"
    soundfile.write(path, np.zeros(16000), 16000)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    if is_whole:
        assert len(audio.read_audio(path)) == 16000
    else:
        with pytest.raises(UserError, match=r"cut\.wav: ends early: .* 32,000 bytes"):
            audio.read_audio(path)


def test_a_wav_file_from_a_pipe_has_no_true_length_and_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "piped.wav"
    soundfile.write(path, np.zeros(16000), 16000)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(audio.read_audio(path)) == 16000


# --- files that hold more, or less, than their first header states --------------------------------


def encoded(seconds: float, kind: str, seed: int = 0, rate: int = 44100, **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(seconds, rate, seed=seed), rate, format=kind, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


OGG = {"vorbis": {"subtype": "VORBIS"}, "opus": {"subtype": "OPUS", "rate": 48000}}


@pytest.mark.parametrize("codec", OGG)
def test_all_streams_of_a_chained_ogg_file_are_read(tmp_path, codec):
    options: dict = {"kind": "OGG", **OGG[codec]}
    links = [encoded(seconds, seed=k, **options) for k, seconds in enumerate((1, 2, 0.5))]
    (tmp_path / "a.ogg").write_bytes(b"".join(links))
    rate = audio.audio_info(tmp_path / "a.ogg").rate
    expected = np.concatenate([decoded(link) for link in links])
    assert audio.audio_info(tmp_path / "a.ogg").n_samples == len(expected)
    assert audio.read_audio(tmp_path / "a.ogg", rate).tobytes() == expected.tobytes()


def test_streams_of_different_rates_are_refused(tmp_path):
    links = [encoded(1, "OGG", rate=rate) for rate in (44100, 48000)]
    (tmp_path / "a.ogg").write_bytes(b"".join(links))
    with pytest.raises(UserError, match="part 2 of 2 has 48000 Hz, those before it 44100 Hz"):
        audio.read_audio(tmp_path / "a.ogg")


def test_an_ogg_file_that_was_cut_is_refused(tmp_path):
    content = encoded(3, "OGG")
    (tmp_path / "a.ogg").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a\.ogg: ends within a page of Ogg"):
        audio.audio_info(tmp_path / "a.ogg")


def pages_of(ogg: bytes) -> list[bytes]:
    """The pages of an Ogg file."""
    return [b"OggS" + page for page in ogg.split(b"OggS")[1:]]


@pytest.mark.parametrize("codec", OGG)
@pytest.mark.parametrize("behind", [False, True])
def test_an_ogg_file_that_was_cut_between_pages_is_refused(tmp_path, codec, behind):
    options: dict = {"kind": "OGG", **OGG[codec]}
    *pages, last = pages_of(encoded(6, **options))
    cut = b"".join(pages) + (encoded(1, seed=1, **options) if behind else b"")
    (tmp_path / "a.ogg").write_bytes(cut)
    with pytest.raises(UserError, match=r"a\.ogg: ends early: .* last one of its stream"):
        audio.audio_info(tmp_path / "a.ogg")
    (tmp_path / "a.ogg").write_bytes(b"".join([*pages, last]))
    assert audio.audio_info(tmp_path / "a.ogg").seconds == 6


@pytest.mark.parametrize("codec", OGG)
def test_a_page_of_ogg_that_is_missing_or_damaged_is_an_error(tmp_path, codec):
    pages = pages_of(encoded(6, "OGG", **OGG[codec]))
    flipped = pages[4][:-1] + bytes([pages[4][-1] ^ 1])
    for wrong in ([*pages[:4], *pages[5:]], [*pages[:4], flipped, *pages[5:]]):
        (tmp_path / "a.ogg").write_bytes(b"".join(wrong))
        with pytest.raises(UserError, match=r"a page of Ogg is damaged or missing at byte [\d,]+"):
            audio.audio_info(tmp_path / "a.ogg")


def id3(content: bytes) -> bytes:
    size = bytes(len(content) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x03\x00\x00" + size + content


def without_header(mp3: bytes) -> bytes:
    """An MP3 file without the frame that gives its length."""
    return mp3[mp3.find(b"\xff\xfb", 40) :]


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("between", [b"", id3(b"a title"), b"TAG" + bytes(125)])
def test_all_of_an_mp3_that_was_joined_from_several_is_read(tmp_path, mode, between):
    files = [encoded(s, "MP3", k, bitrate_mode=mode) for k, s in enumerate((2, 3, 0.2))]
    (tmp_path / "a.mp3").write_bytes(id3(b"x") + between.join(files))
    expected = np.concatenate([decoded(file) for file in files])
    assert audio.audio_info(tmp_path / "a.mp3").n_samples == len(expected)
    assert audio.read_audio(tmp_path / "a.mp3", 44100).tobytes() == expected.tobytes()


@pytest.mark.parametrize("rate", [44100, 22050, 8000])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_joined_mp3_files_whose_headers_give_no_size_are_read_too(tmp_path, mode, rate):
    files = [encoded(2, "MP3", k, rate, bitrate_mode=mode) for k in (0, 1)]
    expected = np.concatenate([decoded(file) for file in files])
    for k, file in enumerate(files):
        place = max(file.find(mark, 0, 60) for mark in (b"Xing", b"Info"))
        files[k] = file[: place + 12] + bytes(4) + file[place + 16 :]
    (tmp_path / "a.mp3").write_bytes(b"".join(files))
    np.testing.assert_allclose(audio.read_audio(tmp_path / "a.mp3", rate), expected, atol=1e-6)


@pytest.mark.parametrize("with_header", [(True, False), (False, True), (False, False)])
def test_joined_mp3_files_of_which_some_have_no_header_are_read_to_their_end(tmp_path, with_header):
    files = [encoded(seconds, "MP3", seconds) for seconds in (2, 3)]
    files = [f if has else without_header(f) for f, has in zip(files, with_header, strict=True)]
    (tmp_path / "a.mp3").write_bytes(b"".join(files))
    assert audio.audio_info(tmp_path / "a.mp3").seconds == pytest.approx(5, abs=0.15)
    assert len(audio.read_audio(tmp_path / "a.mp3")) == pytest.approx(80_000, abs=2400)


@pytest.mark.parametrize("has_header", [True, False])
@pytest.mark.parametrize("rate", [22050, 48000])
def test_an_mp3_of_another_rate_behind_one_without_header_is_not_lost(tmp_path, rate, has_header):
    second = encoded(2, "MP3", rate=rate)
    second = second if has_header else second[len(second) - len(second) // 2 :]
    second = second[second.find(b"\xff\xfb" if rate == 48000 else b"\xff\xf3") :]
    (tmp_path / "a.mp3").write_bytes(without_header(encoded(2, "MP3")) + second)
    with pytest.raises(UserError, match=f"part 2 of 2 has {rate} Hz|bytes follow"):
        audio.audio_info(tmp_path / "a.mp3")


def test_frames_that_are_missing_in_an_mp3_without_header_are_an_error(tmp_path):
    content = without_header(encoded(3, "MP3"))
    (tmp_path / "a.mp3").write_bytes(content[:9000] + bytes(400) + content[9400:])
    with pytest.raises(UserError, match=r"a\.mp3: [\d,]+ bytes follow"):
        audio.audio_info(tmp_path / "a.mp3")


def test_mono_and_stereo_mp3_files_without_header_are_read_to_their_end(tmp_path):
    shape = (2 * 44100, 2)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(1).normal(0, 0.1, shape), 44100, format="MP3")
    joined = without_header(encoded(1, "MP3")) + without_header(buffer.getvalue())
    (tmp_path / "a.mp3").write_bytes(joined)
    assert len(audio.read_audio(tmp_path / "a.mp3")) == pytest.approx(48_000, abs=1600)


def test_mp3_frames_that_give_no_size_are_refused(tmp_path):
    (tmp_path / "a.mp3").write_bytes(b"\xff\xfb\0\0" * 1000)
    with pytest.raises(UserError, match=r"a\.mp3: its MP3 frames do not give their bit rate"):
        audio.audio_info(tmp_path / "a.mp3")


@pytest.mark.parametrize("tags", [id3(b"one") + id3(b"Information"), id3(b"Xing" * 2000)])
@pytest.mark.parametrize("has_header", [True, False])
def test_words_in_tags_are_not_taken_for_headers(tmp_path, tags, has_header):
    samples = noise(20, 44100)
    samples[5 * 44100 : 15 * 44100] *= 1e-3
    buffer = io.BytesIO()
    soundfile.write(
        buffer, samples, 44100, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5
    )
    content = buffer.getvalue() if has_header else without_header(buffer.getvalue())
    (tmp_path / "a.mp3").write_bytes(tags + content)
    assert audio.audio_info(tmp_path / "a.mp3").seconds == pytest.approx(20, abs=0.1)
    assert len(audio.read_audio(tmp_path / "a.mp3")) == pytest.approx(20 * 16000, abs=1600)


def test_an_mp3_followed_by_something_else_is_refused(tmp_path):
    (tmp_path / "a.mp3").write_bytes(encoded(1, "MP3") + b"?" * 9000)
    with pytest.raises(UserError, match=r"a\.mp3: 9,000 bytes follow"):
        audio.audio_info(tmp_path / "a.mp3")
    (tmp_path / "a.mp3").write_bytes(encoded(1, "MP3") + bytes(500) + b"TAG" + bytes(125))
    assert audio.audio_info(tmp_path / "a.mp3").seconds == 1


@pytest.mark.parametrize("foreign", ["OGG", "FLAC", "WAV", "AIFF", "CAF", "W64", "AU"])
@pytest.mark.parametrize("first", ["MP3", "MP3 without header", "OGG", "FLAC", "WAV", "AU"])
def test_a_short_file_of_another_kind_behind_the_sound_is_not_lost(tmp_path, first, foreign):
    content = encoded(1, first.split()[0])
    content = content if " " not in first else without_header(content)
    behind = encoded(0.05, foreign, rate=8000, seed=1)
    assert len(behind) < 6000
    (tmp_path / "a.mp3").write_bytes(content + behind)
    if foreign == first == "OGG":  # a chain of two rates
        why = "part 2 of 2 has 8000 Hz"
    else:
        why = "bytes follow the samples|a second file of sound begins inside"
    with pytest.raises(UserError, match=why):
        audio.read_audio(tmp_path / "a.mp3")


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("stated", [0, 10, 100])
def test_an_mp3_header_that_states_too_few_frames_loses_no_sound(tmp_path, mode, stated):
    content = bytearray(encoded(3, "MP3", bitrate_mode=mode))
    place = max(content.find(mark, 0, 60) for mark in (b"Xing", b"Info"))
    assert int.from_bytes(content[place + 8 : place + 12]) == 116
    content[place + 8 : place + 12] = stated.to_bytes(4)
    (tmp_path / "a.mp3").write_bytes(content)
    assert audio.audio_info(tmp_path / "a.mp3").seconds == pytest.approx(3, abs=0.05)
    assert len(audio.read_audio(tmp_path / "a.mp3")) == pytest.approx(48_000, abs=800)


@pytest.mark.parametrize("stated", [10, 116, 1000])
def test_an_mp3_with_a_vbri_header_is_read_whole(tmp_path, stated):
    content = bytearray(encoded(3, "MP3", bitrate_mode="VARIABLE"))
    content[:40] = content[:40].replace(b"Xing", bytes(4)).replace(b"Info", bytes(4))
    content[36:62] = b"VBRI\0\1\0\0\0\0" + len(content).to_bytes(4) + stated.to_bytes(4) + bytes(8)
    (tmp_path / "a.mp3").write_bytes(content)
    assert audio.audio_info(tmp_path / "a.mp3").seconds == pytest.approx(3, abs=0.05)
    assert len(audio.read_audio(tmp_path / "a.mp3")) == pytest.approx(48_000, abs=800)


def test_a_short_mp3_behind_a_gap_is_not_lost(tmp_path):
    files = [encoded(seconds, "MP3", seconds) for seconds in (2, 1)]
    (tmp_path / "a.mp3").write_bytes((b"?" * 100).join([files[0], files[1][:8000]]))
    with pytest.raises(UserError, match=r"8,100 bytes follow"):
        audio.audio_info(tmp_path / "a.mp3")


UNCOMPRESSED = {"WAV": 40, "AIFF": 42, "AU": 8, "W64": None, "RF64": None, "CAF": None}


@pytest.mark.parametrize("kind", UNCOMPRESSED)
def test_an_uncompressed_file_that_was_cut_or_joined_is_refused(tmp_path, kind):
    content = encoded(1, kind, subtype="PCM_16")
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    assert len(audio.read_audio(path, 44100)) == 44100
    for wrong, why in (
        (content[: len(content) // 2], "ends early: .* 88,2.. bytes"),
        (content + content, f"{len(content):,} bytes follow"),
        (content + b"\x00\x01" * 30_000, "60,000 bytes follow"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=why):
            audio.audio_info(path)


@pytest.mark.parametrize("size", [3 << 30, 1 << 30, 100_000])
@pytest.mark.parametrize("big_endian", [False, True])
def test_a_wav_header_that_claims_more_than_there_is_is_refused(tmp_path, size, big_endian):
    kind = "BIG" if big_endian else "LITTLE"
    content = bytearray(encoded(1, "WAV", subtype="PCM_16", endian=kind))
    content[40:44] = size.to_bytes(4, "big" if big_endian else "little")
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UserError, match=rf"{size:,} bytes of samples, 88,200 are there"):
        audio.audio_info(tmp_path / "a.wav")


@pytest.mark.parametrize("size", [0, 1000, 80_000 - 1])
def test_a_wav_header_that_claims_less_than_there_is_is_refused(tmp_path, size):
    content = bytearray(encoded(1, "WAV", subtype="PCM_16"))
    content[40:44] = size.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UserError, match="bytes follow the samples that its header describes"):
        audio.audio_info(tmp_path / "a.wav")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFDB])
def test_a_wav_size_that_means_unknown_is_read_to_its_end(tmp_path, size):
    content = bytearray(encoded(1, "WAV", subtype="PCM_16"))
    content[40:44] = size.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    assert len(audio.read_audio(tmp_path / "a.wav", 44100)) == 44100


@pytest.mark.parametrize("padded", [True, False])
def test_chunks_after_the_samples_are_no_lost_sound(tmp_path, padded):
    content = encoded(1, "WAV", subtype="PCM_U8", rate=44101)  # odd, so a pad byte follows
    assert content[-1:] == b"\x00"
    tag = b"id3 " + (20_000).to_bytes(4, "little") + bytes(20_000)
    (tmp_path / "a.wav").write_bytes((content if padded else content[:-1]) + tag)
    assert len(audio.read_audio(tmp_path / "a.wav", 44101)) == 44101


def test_a_second_flac_file_inside_one_is_refused(tmp_path):
    content = encoded(1, "FLAC")
    (tmp_path / "a.flac").write_bytes(content + content)
    with pytest.raises(UserError, match=r"a\.flac: a second file of sound begins inside it"):
        audio.read_audio(tmp_path / "a.flac")


@pytest.mark.parametrize("behind", [encoded(2, "MP3"), bytes(30_000)])
def test_a_flac_file_with_something_else_behind_it_is_refused(tmp_path, behind):
    (tmp_path / "a.flac").write_bytes(encoded(1, "FLAC") + behind)
    with pytest.raises(UserError, match=r"a\.flac: [\d,]+ bytes follow the samples"):
        audio.read_audio(tmp_path / "a.flac")
    (tmp_path / "a.flac").write_bytes(encoded(1, "FLAC") + b"TAG" + bytes(125))
    assert len(audio.read_audio(tmp_path / "a.flac", 44100)) == 44100


def test_a_flac_header_that_claims_less_than_there_is_is_refused(tmp_path):
    content = bytearray(encoded(3, "FLAC"))
    content[22:26] = (44100).to_bytes(4, "big")  # the low bits of the number of samples
    (tmp_path / "a.flac").write_bytes(content)
    with pytest.raises(UserError, match="bytes follow the samples that its header describes"):
        audio.read_audio(tmp_path / "a.flac")


@pytest.mark.parametrize("rate", [1, 999, 1_000_001, 2_000_000_000])
def test_a_rate_that_no_recording_has_is_refused(tmp_path, rate):
    content = bytearray(encoded(1, "WAV", subtype="PCM_16"))
    content[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    for read in (audio.audio_info, audio.read_audio):
        with pytest.raises(UserError, match=f"{rate:,} Hz; expected 1,000 to 1,000,000 Hz"):
            read(tmp_path / "a.wav")


@pytest.mark.parametrize(("n_samples", "is_read"), [(86_400_000, True), (86_400_001, False)])
def test_a_recording_of_more_than_a_day_is_refused(tmp_path, n_samples, is_read):
    content = bytearray(encoded(1, "WAV", subtype="PCM_U8", rate=1000))
    content[40:44] = n_samples.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    with (tmp_path / "a.wav").open("r+b") as file:
        file.truncate(44 + n_samples)  # a hole, which takes no space
    if is_read:
        assert audio.audio_info(tmp_path / "a.wav").seconds == 86_400
    else:
        with pytest.raises(UserError, match="lasts 86,400 s or more; expected at most a day"):
            audio.audio_info(tmp_path / "a.wav")
