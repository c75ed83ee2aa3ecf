"""mt3train.transcription.segments: the segments of a track, from mel or from audio, with the model's right_context."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from fakes_listed import folder_tree

from mt3data.audio.spectrogram import SpectrogramConfig, log_mel, pad_to_frames
from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.errors import UserError
from mt3data.shards.index import read_tracks
from mt3data.shards.windows import WindowConfig
from mt3train.transcription.segments import require_fit, segments_of
from mt3train.weights.checkpoint import CheckpointInfo

SECONDS = 5.0  # 626 frames: two whole segments of 256 frames and a part


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one recording at 16 kHz, which is then read as it is."""
    root = folder_tree(tmp_path_factory.mktemp("segments"), ["test/a.wav"], seconds=SECONDS)
    time = np.arange(int(16000 * SECONDS)) / 16000
    tone = 0.4 * np.sin(2 * np.pi * 440 * time) + 0.1 * np.sin(2 * np.pi * 3000 * time * time)
    soundfile.write(root / "test/a.wav", tone, 16000, subtype="PCM_16")
    return root


def built(root: Path, out: Path, **settings: object) -> Path:
    windows = WindowConfig(align="off", **settings)  # type: ignore[arg-type]
    build(make_plan(BuildConfig("folder", root, out, windows=windows)))
    return out / "folder"


def expected(root: Path, right_context: str) -> list[tuple[int, np.ndarray]]:
    """Straight from the recording: cut, then transformed; or transformed, then cut."""
    samples, _ = soundfile.read(root / "test/a.wav", dtype="float32")
    samples = pad_to_frames(samples)
    found = []
    for start in range(0, 626, 256):
        n = min(256, 626 - start)
        if right_context == "zeros":
            mel = log_mel(samples[start * 128 : (start + n) * 128])
        else:
            mel = log_mel(samples)[start : start + n]
        found.append((start, np.pad(mel, ((0, 256 - n), (0, 0)))))
    return found


@pytest.mark.parametrize("right_context", ["zeros", "audio"])
@pytest.mark.parametrize(
    "settings",
    [{"features": ("audio",), "frames": 300}, {"features": ("mel", "audio"), "frames": 2048}],
    ids=["audio", "both"],
)
def test_audio_serves_models_of_either_edge(root, tmp_path, settings, right_context):
    folder = built(root, tmp_path, **settings)
    info = CheckpointInfo(right_context=right_context)
    require_fit(folder, info)
    segments = list(segments_of(next(read_tracks(folder, "test")), info))
    assert [start for start, _ in segments] == [0, 256, 512]
    for (_, found), (_, wanted) in zip(segments, expected(root, right_context), strict=True):
        assert found.shape == (256, 512)
        # The same samples but for 32767 / 32768; the quietest bins are rounding noise.
        loud = wanted > -2
        assert loud.mean() > 0.1
        np.testing.assert_allclose(found[loud], wanted[loud], atol=0.01)
        assert (found[wanted == 0] == 0).all()


@pytest.mark.parametrize(("frames", "right_context"), [(256, "zeros"), (512, "audio")])
def test_mel_serves_models_of_its_own_edge(root, tmp_path, frames, right_context):
    folder = built(root, tmp_path, frames=frames, right_context=right_context)
    info = CheckpointInfo(right_context=right_context)
    require_fit(folder, info)
    segments = list(segments_of(next(read_tracks(folder, "test")), info))
    for (_, found), (_, wanted) in zip(segments, expected(root, right_context), strict=True):
        np.testing.assert_allclose(found, wanted, atol=4e-3)  # float16
    other = CheckpointInfo(right_context={"zeros": "audio", "audio": "zeros"}[right_context])
    window = 256  # the build's own 256, or that of the model
    with pytest.raises(UserError) as refused:
        require_fit(folder, other)
    assert (
        f"its right_context is {right_context}, the checkpoint's is {other.right_context}"
        in str(refused.value)
    )
    assert f"mt3data build folder --window {window} --context {other.right_context}" in str(
        refused.value
    )


def test_segments_of_another_length_are_refused_with_the_command_that_makes_some(root, tmp_path):
    folder = built(root, tmp_path, frames=512, right_context="zeros")
    with pytest.raises(UserError, match="have 512 frames, the checkpoint's 256; `mt3data build folder "
                       "--window 256 --context zeros"):  # fmt: skip
        require_fit(folder, CheckpointInfo(right_context="zeros"))


def test_another_spectrogram_is_refused_for_audio_too(root, tmp_path):
    folder = built(root, tmp_path, features=("audio",), frames=256)
    info = CheckpointInfo(spectrogram=SpectrogramConfig(n_mels=229))
    with pytest.raises(UserError, match="its spectrogram is"):
        require_fit(folder, info)
