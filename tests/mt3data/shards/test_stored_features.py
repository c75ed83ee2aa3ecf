"""Stored audio: the very samples that mel is made of, and builds that hold it."""

import tarfile
from pathlib import Path

import fakes
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from builds import digests

from mt3data.audio.load import from_int16, read_audio, to_int16
from mt3data.audio.spectrogram import log_mel
from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.music.notes import Notes
from mt3data.shards.check import check
from mt3data.shards.format import read_build_manifest, read_npy
from mt3data.shards.index import ShardSet
from mt3data.shards.windows import WindowConfig, windows_of

HOP, CONTEXT = 128, 2048 - 128
SPLITS = {"Track00001": "train", "Track00002": "train", "Track00003": "test"}
SECONDS = 9.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.slakh_tree(tmp_path_factory.mktemp("source"), "demo", SPLITS, seconds=SECONDS)


def built(source: Path, out: Path, features: str, workers: int = 1, subsets: int = 0,
          **windows: object) -> Path:  # fmt: skip
    config = WindowConfig(features=tuple(features.split(",")), **windows)  # type: ignore[arg-type]
    plan = make_plan(BuildConfig("demo", source, out, windows=config, workers=workers, subsets=subsets))  # fmt: skip
    return build(plan).folder


@pytest.fixture(scope="module")
def audio(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio alone, in two windows of 800 frames for each track."""
    return built(source, tmp_path_factory.mktemp("audio"), "audio", frames=800)


@pytest.fixture(scope="module")
def mel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(source, tmp_path_factory.mktemp("mel"), "mel", frames=800)


@pytest.fixture(scope="module")
def both(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(source, tmp_path_factory.mktemp("both"), "mel,audio", frames=800)


def test_stored_audio_is_rounded_and_reaches_as_far_as_the_last_frame(
    source: Path, audio: Path
) -> None:
    samples = read_audio(source / "train" / "Track00001" / "mix.flac")
    shards = ShardSet(audio, "train")
    row = shards.index["key"].index("demo-Track00001-p0-0000000")
    stored = read_npy(shards.member(row, "audio"))
    assert (stored.dtype, stored.shape) == (np.int16, (800 * HOP + CONTEXT,))
    np.testing.assert_array_equal(stored, np.rint(samples[: len(stored)] * 32767))
    assert np.abs(stored).max() > 3000
    row = shards.index["key"].index("demo-Track00001-p0-0000800")
    stored, rest = read_npy(shards.member(row, "audio")), samples[800 * HOP :]
    np.testing.assert_array_equal(stored[: len(rest)], np.rint(rest * 32767))
    assert len(rest) < len(stored)
    assert not stored[len(rest) :].any()


def test_full_scale_survives_and_what_is_beyond_is_clipped() -> None:
    samples = np.array([1.0, -1.0, 1.5, -1.5, 0.5 / 32767, 1.5 / 32767], np.float32)
    assert to_int16(samples).tolist() == [32767, -32767, 32767, -32767, 0, 2]
    assert from_int16(to_int16(samples))[:2].tolist() == [1.0, -1.0]


def test_what_is_clipped_is_counted(tmp_path: Path) -> None:
    root = fakes.slakh_tree(tmp_path / "root", "demo", {"Track00001": "train"})
    loud = np.full(16000, 0.5)
    loud[100:110] = 1.25
    loud[200:203] = -1.25
    mix = root / "train" / "Track00001" / "mix.flac"
    mix.unlink()  # libsndfile tells formats by content, so a WAV file under this name is read
    soundfile.write(mix, loud, 16000, format="WAV", subtype="FLOAT")
    folder = built(root, tmp_path / "out", "audio")
    row = pq.read_table(folder / "tracks.parquet").to_pylist()[0]
    assert "13 of 16000 samples are beyond full scale; clipped" in row["problems"]
    stored = read_npy(ShardSet(folder, "train").member(0, "audio"))
    assert np.flatnonzero(np.abs(stored) == 32767).tolist() == [*range(100, 110), 200, 201, 202]


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    """Music-like: tones over a noise floor at -60 dB, as no recording is without."""
    tones = 0.2 * fakes.tones(fakes.slakh_notes("S02", SECONDS), SECONDS, 16000)
    return (tones + np.random.default_rng(0).normal(0, 1e-3, len(tones))).astype(np.float32)


@pytest.mark.parametrize("right_context", ["zeros", "audio"])
@pytest.mark.parametrize("first", [0, 256, 512])
def test_mel_of_a_crop_is_that_of_a_window_of_its_length(
    noisy: np.ndarray, right_context: str, first: int
) -> None:
    config = WindowConfig(256, right_context=right_context)
    wanted = next(
        window for window in windows_of(noisy, Notes.empty(), "t", 1, config)
        if window.start_frame == first
    )  # fmt: skip
    long = next(windows_of(noisy, Notes.empty(), "t", 1, WindowConfig(800, features=("audio",))))
    last = (first + 256) * HOP + (CONTEXT if right_context == "audio" else 0)
    crop = from_int16(long.sound["audio"][first * HOP : last])
    off = np.abs(log_mel(crop)[:256] - wanted.sound["mel"].astype(np.float32))
    # Rounding to 16 bits, and that of mel to float16, which alone is 0.0005 here.
    assert off.mean() < 0.018
    other = WindowConfig(256, right_context="audio" if right_context == "zeros" else "zeros")
    control = next(
        window for window in windows_of(noisy, Notes.empty(), "t", 1, other)
        if window.start_frame == first
    )  # fmt: skip
    beyond = np.abs(log_mel(crop)[:256] - control.sound["mel"].astype(np.float32))
    assert beyond[-1].mean() > 1


def test_audio_takes_a_quarter_of_the_room(mel: Path, audio: Path) -> None:
    sizes = [
        sum(shard["bytes"] for shard in read_build_manifest(f)["shards"]) for f in (mel, audio)
    ]
    assert 0.25 < sizes[1] / sizes[0] < 0.28


def test_both_features_are_those_of_builds_with_one(mel: Path, audio: Path, both: Path) -> None:
    one, two, of_both = (ShardSet(folder, "train") for folder in (mel, audio, both))
    assert one.index["key"] == two.index["key"] == of_both.index["key"]
    for row in range(len(one)):
        assert of_both.member(row, "mel") == one.member(row, "mel")
        assert of_both.member(row, "audio") == two.member(row, "audio")
        for name in ("tokens", "notes"):
            assert of_both.member(row, name) == one.member(row, name) == two.member(row, name)


@pytest.mark.parametrize(
    ("features", "names"),
    [
        ("mel", ["json", "mel.npy", "notes.npy", "tokens.npy"]),
        ("audio", ["audio.npy", "json", "notes.npy", "tokens.npy"]),
        ("mel,audio", ["audio.npy", "json", "mel.npy", "notes.npy", "tokens.npy"]),
    ],
)
def test_a_record_holds_the_features_asked_for_in_order(
    features: str, names: list[str], mel: Path, audio: Path, both: Path
) -> None:
    folder = {"mel": mel, "audio": audio, "mel,audio": both}[features]
    with tarfile.open(folder / "train-00000-of-00001.tar") as tar:
        found = [name.split(".", 1)[1] for name in tar.getnames()]
    assert found == names * (len(found) // len(names))
    index = pq.read_schema(folder / "index" / "train.parquet").names
    for name in ("mel", "audio"):
        columns = {f"{name}_offset", f"{name}_size", f"{name}_crc32"}
        assert columns & set(index) == (columns if name in features else set())
    stored = read_build_manifest(folder)["features"]
    assert sorted(stored) == sorted([*features.split(","), "notes", "tokens"])
    assert check(folder) == []


@pytest.mark.parametrize(
    "settings",
    [{"align": "shift", "variants": 2}, {"align": "off", "subsets": 2}, {"frames": 256}],
    ids=str,
)
def test_audio_builds_have_the_bytes_of_one_worker_and_the_labels_of_mel(
    source: Path, tmp_path: Path, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mt3data.build.plan.MIN_SHARD_BYTES", 1 << 17)
    one, two = (built(source, tmp_path / str(n), "audio", n, **settings) for n in (1, 2))  # type: ignore[arg-type]
    assert digests(one) == digests(two)
    assert check(one) == []
    with_mel = built(source, tmp_path / "mel", "mel", right_context="zeros", **settings)  # type: ignore[arg-type]
    tracks, wanted = (pq.read_table(f / "tracks.parquet").to_pylist() for f in (one, with_mel))
    assert tracks == wanted
    ours, theirs = ShardSet(one, "train"), ShardSet(with_mel, "train")
    assert sorted(ours.index["key"]) == sorted(theirs.index["key"])
    for row, key in enumerate(ours.index["key"]):
        other = theirs.index["key"].index(key)
        assert ours.member(row, "tokens") == theirs.member(other, "tokens")


def test_zeros_follow_audio_whatever_the_window() -> None:
    assert WindowConfig(2048, features=("audio",)).right_context == "zeros"
    assert WindowConfig(2048, features=("mel", "audio")).right_context == "audio"
    assert WindowConfig(2048, features=("audio",), right_context="audio").right_context == "audio"


def test_features_have_one_order_and_unknown_ones_are_named() -> None:
    assert WindowConfig(features=("audio", "mel", "mel")) == WindowConfig(features=("mel", "audio"))
    for wrong in (("mel", "flac"), ()):
        with pytest.raises(ValueError, match="expected mel, audio or mel,audio"):
            WindowConfig(features=wrong)


def test_other_features_in_the_same_folder_are_refused(source: Path, audio: Path) -> None:
    from mt3data.errors import UserError

    with pytest.raises(UserError, match="features.audio"):
        built(source, audio.parent, "mel", frames=800, right_context="zeros")


def test_a_picture_of_audio_shows_its_mel(audio: Path, mel: Path) -> None:
    from mt3data.report.statistics import mel_of

    shown, wanted = (
        mel_of(shards, shards.index["key"].index("demo-Track00001-p0-0000800"))
        for shards in (ShardSet(audio, "train"), ShardSet(mel, "train"))
    )
    assert shown.shape == wanted.shape == (800, 512)
    np.testing.assert_array_equal(shown == 0, wanted == 0)
    assert np.median(np.abs(shown - wanted)) < 0.01


def test_the_card_says_what_sound_the_windows_hold(mel: Path, audio: Path, both: Path) -> None:
    cards = [(folder / "README.md").read_text() for folder in (mel, audio, both)]
    said = [next(line for line in card.splitlines() if "Windows of" in line) for card in cards]
    assert [line.split(" with ")[0] for line in said] == [
        "Windows of log-mel", "Windows of audio", "Windows of log-mel and audio",
    ]  # fmt: skip
