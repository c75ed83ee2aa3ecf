"""mt3train.transcription.transcribe: a recording of any length becomes notes."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import mt3train
from mt3data.audio.spectrogram import SpectrogramConfig, log_mel
from mt3data.errors import UserError
from mt3data.music.notes import Notes
from mt3data.music.vocabulary import EOS_ID, Event, VocabularyConfig, get_codec
from mt3train.model import MT3, ModelConfig
from mt3train.transcription import transcribe as module
from mt3train.transcription.decode import DecodedSegment, DecodingConfig, SegmentDecoder
from mt3train.transcription.programs import ProgramFilter
from mt3train.transcription.transcribe import segment_mels, transcribe
from mt3train.weights.checkpoint import CheckpointInfo, save_weights

SAMPLES = Path(__file__).resolve().parents[4] / "shared" / "samples"
RECORDINGS = sorted((SAMPLES / "maestro" / "mirdata_v2_excerpt" / "2018").glob("*.wav"))
TIES = VocabularyConfig()


def info(right_context: str = "zeros", frames: int = 256) -> CheckpointInfo:
    return CheckpointInfo(vocabulary=TIES, right_context=right_context, frames=frames)


def tiny_model() -> MT3:
    torch.manual_seed(0)
    return MT3(ModelConfig(
        emb_dim=16, num_heads=2, head_dim=8, num_encoder_layers=1, num_decoder_layers=1, mlp_dim=16
    )).double()  # fmt: skip


def noise(n_samples: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(n_samples) * 0.1).astype(np.float32)


def tokens(*events: tuple[str, int]) -> list[int]:
    return [get_codec(TIES).encode(Event(*event)) + 3 for event in events] + [EOS_ID]


@pytest.fixture
def says(monkeypatch):
    """Makes the model say given tokens, one list per segment; returns the segments it was shown."""

    def install(segments: list[list[int]]) -> list[np.ndarray]:
        shown: list[np.ndarray] = []

        def decode(self: SegmentDecoder, mels: Iterator[np.ndarray]) -> Iterator[DecodedSegment]:
            for index, mel in enumerate(mels):
                shown.append(mel)
                yield DecodedSegment(index, np.array(segments[index]))

        monkeypatch.setattr(SegmentDecoder, "decode", decode)
        return shown

    return install


def rows(notes: Notes) -> list[tuple]:
    return list(zip(notes.onset, notes.offset, notes.pitch, notes.program, strict=True))


def test_a_note_tied_over_a_border_is_one_note(says):
    says([
        tokens(("tie", 0), ("shift", 150), ("program", 24), ("velocity", 1), ("pitch", 60)),
        tokens(("program", 24), ("pitch", 60), ("tie", 0), ("shift", 50), ("velocity", 0),
               ("pitch", 60)),
    ])  # fmt: skip
    result = transcribe(tiny_model(), info(), noise(50000))
    # The second segment begins at frame 256, 2.048 s, so its steps count from 2.04 s.
    assert rows(result.notes) == [(1.5, pytest.approx(2.54), 60, 24)]
    assert (result.n_segments, result.invalid, result.dropped) == (2, 0, 0)


def test_a_note_that_is_not_tied_ends_where_the_next_segment_begins(says):
    onset = tokens(("tie", 0), ("shift", 150), ("velocity", 1), ("pitch", 60))
    says([onset, tokens(("tie", 0))])
    result = transcribe(tiny_model(), info(), noise(40000))
    assert rows(result.notes) == [(1.5, 2.04, 60, 0)]


def test_what_lies_behind_the_next_segments_start_is_dropped(says):
    late = tokens(("tie", 0), ("shift", 300), ("velocity", 1), ("pitch", 60))
    says([late, tokens(("tie", 0))])
    result = transcribe(tiny_model(), info(), noise(40000))
    assert result.dropped == 3 and len(result.notes) == 0


def test_nothing_begins_or_sounds_after_the_end_of_the_recording(says):
    """The last segment is padded to 2.048 s, and the recording lasts 1.5 s."""
    says([
        tokens(("tie", 0), ("shift", 100), ("velocity", 1), ("pitch", 60), ("pitch", 61), ("shift", 149),
               ("pitch", 62), ("shift", 150), ("pitch", 63), ("shift", 170), ("pitch", 64),
               ("velocity", 0), ("pitch", 60)),
    ])  # fmt: skip
    result = transcribe(tiny_model(), info(), noise(24000))
    assert [row[:3] for row in rows(result.notes)] == [
        (1.0, 1.5, 60), (1.0, 1.5, 61), (1.49, 1.5, 62),
    ]  # fmt: skip


def test_a_note_that_begins_twice_in_one_time_step_is_one_note(says):
    """Decoding as the original does would give notes of 10 ms and of 600 ms that overlap."""
    twice = tokens(("tie", 0), ("shift", 100), ("program", 5), ("velocity", 1), ("pitch", 60),
                   ("pitch", 60), ("shift", 160), ("velocity", 0), ("pitch", 60))  # fmt: skip
    says([twice])
    notes = transcribe(tiny_model(), info(), noise(32000)).notes
    assert rows(notes) == [(1.0, 1.6, 60, 5)]


@pytest.mark.parametrize("constrained, onsets", [(False, [1.0, 1.05, 1.11]), (True, [1.0, 1.11])])
def test_constrained_decoding_merges_onsets_within_50_ms(says, constrained, onsets):
    events = [("tie", 0), ("program", 5), ("velocity", 1)]
    for step in (100, 105, 111):
        events += [("shift", step), ("pitch", 60)]
    says([tokens(*events, ("shift", 120), ("velocity", 0), ("pitch", 60))])
    decoding = DecodingConfig(constrained=constrained, passes=1)
    notes = transcribe(tiny_model(), info(), noise(32000), decoding).notes
    assert notes.onset.tolist() == pytest.approx(onsets)
    assert notes.offset.tolist() == pytest.approx([*onsets[1:], 1.2])


def test_what_makes_no_sense_is_counted(says):
    says([tokens(("tie", 0), ("velocity", 0), ("pitch", 60))])
    assert transcribe(tiny_model(), info(), noise(100)).invalid == 1


def test_every_segment_of_a_long_recording_starts_at_its_place(says):
    says([tokens(("tie", 0), ("velocity", 1), ("drum", 36))] * 50)
    result = transcribe(tiny_model(), info(), np.zeros(50 * 32768 - 1, np.float32))
    assert result.notes.onset.tolist() == [256 * k * 100 // 125 / 100 for k in range(50)]


def test_progress_covers_all_segments_and_each_is_shown_once(says):
    shown = says([tokens(("tie", 0))] * 5)
    samples, calls = noise(32768 * 4 + 1000), []
    transcribe(tiny_model(), info(), samples, on_progress=lambda *done: calls.append(done))
    assert calls == [(k, 5) for k in range(1, 6)]
    expected = [log_mel(samples[32768 * k : 32768 * (k + 1)]) for k in range(4)]
    assert np.array_equal(np.stack(shown)[:4], np.stack(expected))


@pytest.mark.parametrize("stated", [None, 1.0, 100.0])
def test_progress_ends_at_the_true_number_of_segments(says, tmp_path, monkeypatch, stated):
    says([tokens(("tie", 0))] * 3)
    soundfile.write(tmp_path / "a.wav", noise(32768 * 2 + 1000), 16000)
    monkeypatch.setattr(module, "stated_seconds", lambda path: stated)
    calls = []
    transcribe(
        tiny_model(), info(), tmp_path / "a.wav", on_progress=lambda *done: calls.append(done)
    )
    assert [done for done, _ in calls][:3] == [1, 2, 3] and calls[-1] == (3, 3)


@pytest.mark.parametrize("right_context", ["zeros", "audio"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_result_does_not_depend_on_the_batch(right_context, batch):
    samples, model = noise(5 * 4096), tiny_model()
    first, other = (
        transcribe(
            model, info(right_context, frames=32), samples, DecodingConfig(size), max_length=40
        )
        for size in (3, batch)
    )
    assert np.array_equal(first.notes.to_array(), other.notes.to_array())
    assert (first.invalid, first.dropped) == (other.invalid, other.dropped)


def test_segments_are_made_when_they_are_decoded(monkeypatch):
    """So that memory does not grow with a recording: at most a batch and the next are there."""
    made, ahead = 0, []

    def counted(*_: object) -> Iterator[np.ndarray]:
        nonlocal made
        for mel in noise(40 * 32 * 512).reshape(40, 32, 512):
            made += 1
            yield mel

    monkeypatch.setattr(module, "segment_mels", counted)
    transcribe(
        tiny_model(), info(frames=32), noise(100), DecodingConfig(batch=4), max_length=8,
        on_progress=lambda done, _: ahead.append(made - done),
    )  # fmt: skip
    assert len(ahead) == made == 40 and max(ahead) <= 5


def test_only_notes_of_chosen_instruments_are_returned(says):
    """Also a pitch before the first program token, which means program 0, is left out."""
    says([
        tokens(("tie", 0), ("velocity", 1), ("pitch", 60), ("program", 33), ("pitch", 40),
               ("drum", 36)),
    ])  # fmt: skip
    everything = transcribe(tiny_model(), info(), noise(100))
    assert sorted(everything.notes.program) == [0, 0, 33]
    bass = DecodingConfig(programs=ProgramFilter.parse("bass"))
    assert [row[2:] for row in rows(transcribe(tiny_model(), info(), noise(100), bass).notes)] == [
        (40, 33)
    ]


def test_a_transcriber_returns_the_notes_of_a_recording(tmp_path, says):
    says([tokens(("tie", 0), ("shift", 20), ("program", 5), ("velocity", 1), ("pitch", 60))] * 40)
    model = tiny_model().float()
    described = replace(info(right_context="audio"), model=model.config)
    save_weights(tmp_path / "a.safetensors", model, described)
    soundfile.write(tmp_path / "a.wav", noise(40000), 16000)
    decoding = DecodingConfig(constrained=True, passes=1)
    transcriber = mt3train.Transcriber.from_pretrained(tmp_path / "a.safetensors", decoding)
    notes = transcriber(tmp_path / "a.wav")
    assert rows(notes) == [(0.2, 2.04, 60, 5), (pytest.approx(2.24), pytest.approx(2.25), 60, 5)]
    assert transcriber.info.right_context == "audio" and transcriber.decoding.constrained


def test_a_transcriber_without_a_checkpoint_has_the_weights_of_the_package():
    assert mt3train.Transcriber.from_pretrained().model.config.emb_dim == 192
    with pytest.raises(UserError, match="nowhere: no such file"):
        mt3train.Transcriber.from_pretrained("nowhere")


@pytest.mark.parametrize("samples", [noise(9000), np.array([0.1, np.nan] * 4000, np.float32)])
def test_the_model_s_mode_is_left_as_it_was(samples):
    """Also where the audio turns out to be unusable."""
    model = tiny_model().train()
    with contextlib.suppress(UserError):
        transcribe(model, info(frames=32), samples, max_length=3)
    assert model.training


@pytest.mark.parametrize("right_context", ["zeros", "audio"])
@pytest.mark.parametrize("n_samples", [1, 128, 3999, 4096, 4097, 20000])
def test_segments_are_those_of_the_whole_track_for_any_blocks(right_context, n_samples):
    samples, config = noise(n_samples), SpectrogramConfig()
    n_frames = n_samples // 128 + 1
    padded = np.pad(samples, (0, n_frames * 128 - n_samples))
    track = log_mel(padded)
    for size in (100, 5000, 20000):
        blocks = [samples[i : i + size] for i in range(0, n_samples, size)]
        mels = list(segment_mels(blocks, config, right_context, 32))
        assert len(mels) == -(-n_frames // 32)
        for k, mel in enumerate(mels):
            valid = min(32, n_frames - 32 * k)
            cut = log_mel(padded[4096 * k : 4096 * k + 128 * valid])
            expected = cut if right_context == "zeros" else track[32 * k : 32 * k + valid]
            assert np.array_equal(mel[:valid], expected)
            assert (mel[valid:] == 0).all()  # in log-mel: loud, as in MT3


def test_a_file_gives_what_its_samples_give(tmp_path):
    samples = noise(20000)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    model = tiny_model()
    from_file = transcribe(model, info(frames=32), tmp_path / "a.wav", max_length=30)
    from_array = transcribe(model, info(frames=32), samples, max_length=30)
    assert np.array_equal(from_file.notes.to_array(), from_array.notes.to_array())


@pytest.mark.parametrize("seconds", [0.1, 3.0])
def test_silence_and_a_short_clip_go_through(seconds):
    silence = np.zeros(int(16000 * seconds), np.float32)
    assert transcribe(tiny_model(), info(), silence, max_length=20).n_segments == 1 + (seconds > 2)


@pytest.mark.skipif(not RECORDINGS, reason=f"no MAESTRO excerpt under {SAMPLES}")
def test_a_real_recording_at_48_khz_in_stereo_goes_through():
    result = transcribe(tiny_model(), info(), RECORDINGS[0], max_length=50)
    seconds = soundfile.info(RECORDINGS[0]).duration
    assert result.n_segments == int(seconds * 125) // 256 + 1


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0, np.float32), "0 samples"),
        (
            np.array([0, 0, np.nan, 0] * 4, np.float32),
            r"NaN or infinite samples, first at 0\.000 s",
        ),
    ],
)
def test_arrays_that_are_no_audio_are_refused(samples, message):
    with pytest.raises(UserError, match=message):
        transcribe(tiny_model(), info(), samples)


@pytest.mark.slow
def test_a_recording_of_two_hours_stays_below_2_gb():
    """In a process of its own, since memory is counted per process."""
    script = Path(__file__).resolve().parents[3] / "benchmarks" / "decode.py"
    words = [sys.executable, script, "--hours", "2", "--threads", "1"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
    found = re.search(r"7200 s of audio.* 3516 segments.* at most ([\d,]+) MB", done.stdout)
    assert found and int(found[1].replace(",", "")) < 2000, done.stdout
