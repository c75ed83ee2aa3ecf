"""Alignment: known lags and tempo changes are found and undone; noise and harmony are left alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from mt3data.align import lag as align
from mt3data.align.warp import dtw_path, warp
from mt3data.audio.spectrogram import SpectrogramConfig, log_mel
from mt3data.build.plan import BuildConfig, make_plan
from mt3data.build.run import build
from mt3data.music.notes import Notes
from mt3data.shards.index import read_tracks
from mt3data.shards.windows import WindowConfig, windows_of

CONFIG = SpectrogramConfig()
SECONDS = 30.0


def melody(seed: int, seconds: float = SECONDS) -> list[fakes.FakeNote]:
    """Notes at random times, so that no beat repeats."""
    rng = np.random.default_rng(seed)
    onsets = np.cumsum(rng.uniform(0.12, 0.5, 400))
    onsets = onsets[onsets < seconds - 1]
    return [(t, t + rng.uniform(0.2, 0.6), int(rng.integers(48, 84)), 100) for t in onsets]


def as_notes(notes: list[fakes.FakeNote]) -> Notes:
    onset, offset, pitch, velocity = map(np.array, zip(*notes, strict=True))
    zeros = np.zeros(len(notes))
    return Notes(onset, offset, pitch, velocity, zeros, zeros, zeros)


def sound(notes: list[fakes.FakeNote], seconds: float = SECONDS) -> np.ndarray:
    return (0.1 * fakes.tones(notes, seconds, 16000)).astype(np.float32)


def audio_bands(samples: np.ndarray) -> np.ndarray:
    """Bands of the log-mel as a build has it."""
    return align.semitone_magnitudes(log_mel(samples).astype(np.float16), CONFIG)


@pytest.fixture(scope="module")
def played() -> tuple[np.ndarray, Notes]:
    """The bands of a melody, and its notes."""
    notes = melody(1)
    return audio_bands(sound(notes)), as_notes(notes)


@pytest.mark.parametrize("lag", [-0.3, -0.11, -0.02, 0.0, 0.007, 0.05, 0.3])
def test_a_known_shift_is_found(played: tuple[np.ndarray, Notes], lag: float) -> None:
    bands, notes = played
    early = replace(notes, onset=notes.onset - lag, offset=notes.offset - lag)
    unmoved = align.measure(bands, notes, CONFIG).lag_seconds
    found = align.measure(bands, early, CONFIG)
    assert abs(unmoved) < 0.015  # bare sines read early; see the module's text
    assert found.lag_seconds - unmoved == pytest.approx(lag, abs=0.003)
    assert abs(found.drift_seconds) < 0.01
    assert found.confidence > 0.3


def test_segments_that_fade_at_their_end_give_the_same_lag(
    played: tuple[np.ndarray, Notes],
) -> None:
    whole, notes = played
    cut = windows_of(
        sound(melody(1)), Notes.empty(), "t", 1, WindowConfig(256, right_context="zeros")
    )
    mel = np.concatenate([window.sound["mel"][: window.valid_frames] for window in cut])
    segments = align.semitone_magnitudes(mel, CONFIG)
    assert len(segments) == len(whole) + 1
    whole, faded = (align.measure(m, notes, CONFIG, n) for m, n in ((whole, 0), (segments, 256)))
    assert faded.lag_seconds == pytest.approx(whole.lag_seconds, abs=0.002)


def test_a_drum_is_found_as_early_as_a_tone() -> None:
    rng = np.random.default_rng(3)
    onsets = np.cumsum(rng.uniform(0.15, 0.6, 60))
    samples = np.zeros(16000 * 30, np.float32)
    for onset in onsets[onsets < 29]:
        first = round(onset * 16000)
        samples[first : first + 1600] += rng.normal(0, 0.1, 1600) * np.exp(-np.arange(1600) / 400)
    n = len(onsets)
    notes = Notes(onsets, onsets + 0.1, np.full(n, 38), np.full(n, 90), np.zeros(n),
                  np.ones(n), np.full(n, 9))  # fmt: skip
    assert align.measure(audio_bands(samples), notes, CONFIG).lag_seconds == pytest.approx(
        0, abs=0.01
    )


def test_drift_is_the_last_thirds_lag_minus_the_firsts(played: tuple[np.ndarray, Notes]) -> None:
    bands, notes = played
    late = notes.onset > SECONDS / 2
    moved = replace(notes, onset=notes.onset - 0.1 * late, offset=notes.offset - 0.1 * late)
    assert align.measure(bands, moved, CONFIG).drift_seconds == pytest.approx(0.1, abs=0.01)


def other_audio(kind: str) -> np.ndarray:
    if kind == "noise":
        noise = np.random.default_rng(0).normal(0, 0.1, int(16000 * SECONDS))
        return audio_bands(noise.astype(np.float32))
    if kind == "silence":
        return audio_bands(np.zeros(int(16000 * SECONDS), np.float32))
    return audio_bands(sound(melody(2)))


@pytest.mark.parametrize("kind", ["noise", "silence", "another melody"])
def test_audio_that_has_nothing_to_do_with_the_labels_moves_nothing(
    played: tuple[np.ndarray, Notes], kind: str
) -> None:
    bands, notes = other_audio(kind), played[1]
    found = align.measure(bands, notes, CONFIG)
    assert found.confidence < align.MIN_CONFIDENCE
    kept, remark = align.remove_lag(notes, found)
    assert kept is notes
    assert remark.startswith("not shifted")
    kept, _, remark = warp(bands, notes, CONFIG)
    assert kept is notes
    assert remark.startswith("not warped")


def test_a_beat_that_fits_as_well_one_beat_later_has_no_confidence() -> None:
    beat = [(0.5 * k, 0.5 * k + 0.2, 60, 100) for k in range(1, 56)]
    found = align.measure(audio_bands(sound(beat)), as_notes(beat), CONFIG)
    assert found.peak > 2 * align.NOISE_PEAK
    assert found.confidence < align.MIN_CONFIDENCE


def test_no_notes_and_no_frames_are_not_measured() -> None:
    bands = audio_bands(np.zeros(16000, np.float32))
    for found in (
        align.measure(bands, Notes.empty(), CONFIG),
        align.measure(bands[:0], as_notes(melody(1)), CONFIG),
    ):
        assert np.isnan(found.lag_seconds)
        assert found.confidence == 0
    assert warp(bands, Notes.empty(), CONFIG)[2] == "not warped: nothing to align"


def test_a_shift_below_20_ms_is_left_and_a_larger_one_removed() -> None:
    notes = as_notes([(1.0, 2.0, 60, 100), (0.05, 0.08, 62, 100)])
    small, large = (align.Alignment(lag, 0.0, 0.5) for lag in (0.015, -0.1))
    assert align.remove_lag(notes, small) == (notes, "")
    moved, remark = align.remove_lag(notes, large)
    assert (moved.onset.tolist(), moved.offset.tolist(), remark) == ([0.9], [1.9], "")


def slower(t: np.ndarray) -> np.ndarray:
    return t * 1.03


def faster(t: np.ndarray) -> np.ndarray:
    return t * 0.97


def breathing(t: np.ndarray) -> np.ndarray:
    return t + 0.03 * 20 / (2 * np.pi) * np.sin(2 * np.pi * t / 20)


def late(t: np.ndarray) -> np.ndarray:
    return t + 0.25


@pytest.mark.parametrize("change", [slower, faster, breathing, late])
def test_a_tempo_change_of_3_percent_is_undone(
    played: tuple[np.ndarray, Notes], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    bands, notes = played
    changed = replace(notes, onset=change(notes.onset), offset=change(notes.offset))
    warped, after, remark = warp(bands, changed, CONFIG)
    assert remark == ""
    assert after is not None
    errors = np.abs(warped.onset - notes.onset)
    assert np.median(errors) < 0.02
    assert errors.max() < 0.1


def test_labels_that_agree_are_not_warped(played: tuple[np.ndarray, Notes]) -> None:
    bands, notes = played
    assert warp(bands, notes, CONFIG) == (notes, None, "")


def test_finer_levels_stay_in_a_band_around_coarser_ones(
    played: tuple[np.ndarray, Notes], monkeypatch: pytest.MonkeyPatch
) -> None:
    bands, notes = played  # 375 of the finest frames: three levels, and pieces of 150
    monkeypatch.setattr("mt3data.align.warp.MAX_DTW_FRAMES", 150)
    monkeypatch.setattr("mt3data.align.warp.ZOOM", 2)
    warped, _, remark = warp(bands, replace(notes, onset=slower(notes.onset), offset=slower(notes.offset)), CONFIG)  # fmt: skip
    assert remark == ""
    assert np.median(np.abs(warped.onset - notes.onset)) < 0.02


@pytest.mark.parametrize("audio_frames", [950, 1000, 1800])
def test_labels_that_outlast_the_audio_are_still_aligned_inside_it(audio_frames: int) -> None:
    # librosa swaps the columns of its path where the cost has more rows than columns.
    labels = np.random.default_rng(4).normal(size=(2000, 24)).astype(np.float32)
    path = dtw_path(labels[:audio_frames], labels, slack=24)
    inside = np.arange(audio_frames - 30)
    np.testing.assert_allclose(path[inside], inside, atol=1)
    assert path.max() < audio_frames


@pytest.mark.parametrize("stretch", [5.0, 0.2])
@pytest.mark.parametrize("frames", [1, 5, 3750])
def test_labels_and_audio_of_very_different_length_are_refused_with_a_reason(
    played: tuple[np.ndarray, Notes], stretch: float, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bands, notes = played
    monkeypatch.setattr("mt3data.align.warp.MAX_DTW_FRAMES", 150)
    other = replace(notes, onset=notes.onset * stretch, offset=notes.offset * stretch)
    kept, _, remark = warp(bands[:frames], other, CONFIG)
    assert kept is other
    assert remark.startswith("not warped")


# --- in a build ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def late_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fake dataset whose audio is 150 ms later than its labels."""
    root = tmp_path_factory.mktemp("late")
    folder = fakes.slakh_tree(
        root, "demo", {"Track00001": "train", "Track00002": "test"}, seconds=1.0
    )
    notes = melody(5)
    for track in folder.glob("*/Track*"):
        for path in (track / "MIDI").iterdir():
            fakes.write_midi(path, [(0, [])])
        fakes.write_midi(track / "MIDI" / "S02.mid", [(1, notes)])
        soundfile.write(track / "mix.flac", np.pad(sound(notes), (2400, 0)), 16000)
    return root


def built(root: Path, out: Path, mode: str) -> tuple[Path, list[dict[str, Any]]]:
    config = BuildConfig("demo", root, out / mode, windows=WindowConfig(256, align=mode))
    folder = build(make_plan(config)).folder
    return folder, pq.read_table(folder / "tracks.parquet").to_pylist()


def test_a_build_reports_the_lag_and_leaves_the_labels(late_labels: Path, tmp_path: Path) -> None:
    folder, rows = built(late_labels, tmp_path, "measure")
    assert [row["lag"] for row in rows] == pytest.approx([0.15, 0.15], abs=0.015)
    assert [row["drift"] for row in rows] == pytest.approx([0, 0], abs=0.01)
    assert min(row["align_confidence"] for row in rows) > 0.3
    assert [row["aligned"] for row in rows] == ["", ""]
    assert min(next(read_tracks(folder, "test")).notes.onset) == pytest.approx(melody(5)[0][0], abs=1e-3)  # fmt: skip


def test_a_build_that_does_not_align_reports_nothing(late_labels: Path, tmp_path: Path) -> None:
    rows = built(late_labels, tmp_path, "off")[1]
    assert {row[name] for row in rows for name in ("lag", "drift", "align_confidence")} == {None}


@pytest.mark.parametrize(("mode", "word"), [("shift", "shifted"), ("dtw", "warped")])
def test_a_build_moves_labels_and_references(
    late_labels: Path, tmp_path: Path, mode: str, word: str
) -> None:
    folder, rows = built(late_labels, tmp_path, mode)
    assert [row["aligned"] for row in rows] == [word, word]
    expected = [note[0] + 0.15 for note in melody(5)]
    onsets = np.sort(next(read_tracks(folder, "test")).notes.onset)
    assert np.median(np.abs(onsets - expected)) < 0.015


def test_another_way_of_aligning_is_another_build(late_labels: Path, tmp_path: Path) -> None:
    plans = [make_plan(BuildConfig("demo", late_labels, tmp_path, windows=WindowConfig(256, align=mode)))
             for mode in ("measure", "shift")]  # fmt: skip
    assert plans[0].identity != plans[1].identity
