"""Beats in bars: tempo maps that other readers read back, quantisation, files of beats."""

import io

import mido
import numpy as np
import pretty_midi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3data.errors import UserError
from mt3data.music.beats import (
    GRID,
    Beats,
    arrange_bars,
    beats_per_bar,
    constant_beats,
    estimate_downbeats,
    parse_meter,
    parse_step,
    quantize,
    read_beats,
    require_beats_within,
)
from mt3data.music.midi import midi_bytes, read_midi
from mt3data.music.notes import Notes, validate


def notes_of(*rows: tuple[float, float, int]) -> Notes:
    """Piano notes from (onset, offset, pitch)."""
    onset, offset, pitch = np.array(rows, np.float64).reshape(-1, 3).T
    zeros = np.zeros(len(onset))
    return Notes(onset, offset, pitch, zeros + 90, zeros, zeros, zeros)


def rubato(n: int, seed: int = 0) -> np.ndarray:
    """Beats from 1.37 s on, of a tempo that swings between 60 and 130 bpm and jitters."""
    jitter = np.random.default_rng(seed).standard_normal(n)
    bpm = 90 * np.exp(0.35 * np.sin(np.arange(n) * 2 * np.pi / 23) + 0.1 * jitter)
    return 1.37 + np.append(0.0, np.cumsum(60 / bpm))


def mido_seconds(midi: mido.MidiFile, tick: int) -> float:
    """Seconds at a tick by mido's own arithmetic."""
    now, seconds, tempo = 0, 0.0, 500_000
    for message in midi.tracks[0]:
        step = min(message.time, tick - now)
        seconds += mido.tick2second(step, midi.ticks_per_beat, tempo)
        now += step
        tempo = message.tempo if message.type == "set_tempo" and now <= tick else tempo
    return seconds + mido.tick2second(tick - now, midi.ticks_per_beat, tempo)


@pytest.mark.parametrize("meter, per_bar", [((4, 4), 4), ((3, 4), 3), ((6, 8), 2), ((2, 2), 2), ((7, 8), 7)])  # fmt: skip
@pytest.mark.parametrize("pickup", [0, 1])
def test_bar_lines_of_a_rubato_piece_are_on_its_downbeats_for_other_readers(meter, per_bar, pickup):
    times = rubato(160)
    downbeats = np.arange(len(times)) % per_bar == pickup % per_bar
    end = float(times[-1]) + 2
    rng = np.random.default_rng(1)
    onset = np.sort(rng.uniform(0, end - 1, 300))
    notes = notes_of(*zip(onset, onset + 0.1, np.arange(300) % 88 + 21, strict=True))
    data = midi_bytes(notes, "", end, arrange_bars(times, downbeats, meter, end))
    midi = pretty_midi.PrettyMIDI(io.BytesIO(data))
    bar_lines = midi.get_downbeats()
    if meter != (7, 8):  # pretty_midi takes its beats for quarter notes
        wanted = times[downbeats][:-1]
        nearest = np.abs(bar_lines[:, None] - wanted).min(axis=0)
        assert nearest.max() < 2e-6  # 10 ms are asked for
        between = (bar_lines > wanted[0] - 1e-3) & (bar_lines < wanted[-1] + 1e-3)
        assert between.sum() == len(wanted)  # and no other bar lines
    file = mido.MidiFile(file=io.BytesIO(data))
    tick, signatures = 0, []
    for message in file.tracks[0]:
        tick += message.time
        if message.type == "time_signature":
            signatures.append((tick, message.numerator, message.denominator))
    assert signatures[-1][1:] == meter
    bar = 4 * meter[0] * file.ticks_per_beat // meter[1]
    for number, time in enumerate(times[downbeats][1:-1], 1):
        line = signatures[-1][0] + bar * number
        lines = [mido_seconds(file, signatures[-1][0] + bar * k) for k in (number, number + 1)]
        assert min(abs(time - second) for second in lines) < 2e-6 or line == 0
    played = sorted(note.start for part in midi.instruments for note in part.notes)
    assert np.abs(np.array(played) - onset).max() < 0.0006  # half a tick of 1/1920 quarter notes


def test_times_of_notes_are_those_without_beats_to_a_tick():
    times = rubato(40)
    notes = notes_of((0.0, 0.5, 60), (0.7, 1.36, 62), (1.37, 9.0, 64), (30.0, 40.0, 65))
    beats = arrange_bars(times, np.arange(41) % 4 == 0, None, 45.0)
    read, unended = read_midi(midi_bytes(notes, "", 45.0, beats))
    assert unended == 0
    np.testing.assert_allclose(read.onset, notes.onset, atol=0.0006)
    np.testing.assert_allclose(read.offset, notes.offset, atol=0.0006)


def test_a_constant_tempo_is_one_event_and_a_pickup_is_a_shorter_bar():
    beats = constant_beats(90, 2 + 4 / 3, (4, 4), 60.0)  # five beats before the downbeat
    assert beats.bars[:4].tolist() == [0, 1, 5, 9]
    assert beats.numerators[:3].tolist() == [1, 4, 4]
    assert beats.times[5] == pytest.approx(2 + 4 / 3) and beats.times[-1] >= 60
    at_tempo = constant_beats(130, 0.0, (4, 4), 60.0)
    file = mido.MidiFile(file=io.BytesIO(midi_bytes(Notes.empty(), "", 60.0, at_tempo)))
    assert [m.tempo for m in file.tracks[0] if m.type == "set_tempo"] == [461_538]
    assert file.length == pytest.approx(60.0, abs=0.001)
    at_zero = constant_beats(90, 0.0, (6, 8), 60.0)
    assert at_zero.bars[:3].tolist() == [0, 2, 4] and at_zero.numerators[0] == 6
    assert at_zero.quarters == 1.5


def test_the_first_beat_is_longer_or_shorter_so_that_the_recording_begins_at_0():
    flags = np.array([True, False, False, False, True])
    for first, lead in ((0.2, [0.0]), (1.3, [0.0, 0.3, 0.8]), (1.2, [0.0, 0.7]), (0.0, [])):
        beats = arrange_bars(first + np.arange(5) / 2, flags, None, 3.0)
        assert beats.times[: len(lead)] == pytest.approx(lead)
        assert beats.times[len(lead)] == pytest.approx(first)
        assert len(lead) in beats.bars


def test_bars_have_the_beats_between_downbeats_and_lost_downbeats_are_filled():
    downbeats = np.isin(np.arange(61), (0, 4, 8, 11, 15, 19, 59))  # 3/4 once; none for 40 beats
    beats = arrange_bars(np.arange(61) / 2, downbeats, None, 31.0)
    assert beats.bars.tolist() == [0, 4, 8, 11, *range(15, 64, 4)]
    assert set(beats.numerators.tolist()) == {3, 4}
    alone = arrange_bars(np.arange(9) / 2, np.arange(9) == 2, (3, 4), 4.0)
    assert alone.bars.tolist() == [0, 2, 5, 8]


def test_beats_of_a_compound_meter_may_be_dotted_quarters_or_eighths():
    two = arrange_bars(np.arange(9.0), np.arange(9) % 2 == 0, (6, 8), 8.0)
    six = arrange_bars(np.arange(13.0), np.arange(13) % 6 == 0, (6, 8), 12.0)
    assert (two.quarters, six.quarters) == (1.5, 0.5)
    assert two.numerators[0] == six.numerators[0] == 6
    assert [beats_per_bar(m) for m in ((6, 8), (12, 8), (3, 8), (2, 2), (5, 4))] == [2, 4, 3, 2, 5]
    with pytest.raises(UserError, match="4 beats.*3/4"):
        arrange_bars(np.arange(9.0), np.arange(9) % 4 == 0, (3, 4), 8.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["1/4", "1/8", "1/16", "1/12", "1/8T", "1/2", "1/1"]),
       st.sampled_from([(4, 4), (3, 4), (6, 8), (7, 8)]))  # fmt: skip
def test_quantised_notes_are_on_the_grid_with_a_length_and_do_not_overlap(seed, step, meter):
    rng, per_bar = np.random.default_rng(seed), beats_per_bar(meter)
    times = rubato(30, seed)
    beats = arrange_bars(times, np.arange(31) % per_bar == 1, meter, float(times[-1]))
    onset = rng.uniform(0, times[-1] + 3, 80)
    notes = notes_of(*zip(onset, onset + rng.exponential(0.3, 80) + 1e-4, rng.integers(60, 64, 80),
                          strict=True))  # fmt: skip
    notes.instrument[:] = rng.integers(0, 2, 80)  # of one program
    done = quantize(notes, beats, parse_step(step))
    validate(done)
    lines = beats.bars * beats.beat_grid
    for column in (done.onset, done.offset):
        position = beats.to_quarters(column) * GRID
        assert np.abs(position - np.rint(position)).max() < 1e-6
        position = np.rint(position).astype(int)
        bar = np.searchsorted(lines, position, "right") - 1
        assert np.all((position - lines[bar]) % parse_step(step) == 0)
    for pitch in range(60, 64):
        mine = done[done.pitch == pitch]
        assert np.all(mine.offset[:-1] <= mine.onset[1:] + 1e-9)
    read, unended = read_midi(midi_bytes(done, "", 0.0, beats))
    assert (len(read), unended) == (len(done), 0)
    np.testing.assert_allclose(np.sort(read.onset), np.sort(done.onset), atol=1e-5)


def test_quantising_moves_to_the_nearest_line_and_keeps_the_longest_of_equal_notes():
    beats = constant_beats(60, 0.0, (4, 4), 8.0)
    notes = notes_of(
        (0.1, 0.13, 60), (0.02, 0.9, 60), (1.2, 1.6, 62), (1.3, 1.32, 64), (3.95, 4.1, 65)
    )
    done = quantize(notes, beats, parse_step("1/16"))
    rows = np.stack([done.onset, done.offset, done.pitch], axis=1).tolist()
    assert rows == [[0.0, 1.0, 60], [1.25, 1.5, 62], [1.25, 1.5, 64], [4.0, 4.25, 65]]


def test_steps_and_meters_are_parsed():
    wanted = {"1/4": 48, "1/8": 24, "1/16": 12, "1/8T": 16, "1/12": 16, "1/16t": 8, "1/64": 3}
    assert {text: parse_step(text) for text in wanted} == wanted
    assert parse_meter("12/8") == (12, 8)
    for text in ("1/0", "16", "1/7", "2/16", "1/96", "", "1/5T"):
        with pytest.raises(UserError, match="expected"):
            parse_step(text)
    for text in ("4", "0/4", "4/3", "99/4", "4/32", "-3/4"):
        with pytest.raises(UserError, match="4/4"):
            parse_meter(text)


@pytest.mark.parametrize("text, downbeats", [
    ("0.5\n1.0\n1.5\n", None),
    ("# made by a tracker\n0.5\t1\n1.0\t2\n1.5\t1\n", [True, False, True]),
    ("0.5 1.0\n1.0 2.0\n1.5 3.0\n", [True, False, False]),
    ("\ufefftime,beat\n0.5,4\n1.0,1\n1.5,2\n", [False, True, False]),
    ("bar;position;time\n1;1;0.5\n1;2;1.0\n2;1;1.5\n", [True, False, True]),
    ('0.5,"New Point"\n1.0,"New Point"\n1.5,"New Point"\n', None),
    ("0.5\t1\t7\n1.0\t2\t7 # third column: bar\n\n1.5\t3\t7\r\n", [True, False, False]),
])  # fmt: skip
def test_lists_of_beat_trackers_are_read(tmp_path, text, downbeats):
    (tmp_path / "a.beats").write_text(text, "utf-8")
    times, is_downbeat = read_beats(tmp_path / "a.beats")
    assert times.tolist() == [0.5, 1.0, 1.5]
    assert (None if is_downbeat is None else is_downbeat.tolist()) == downbeats


@pytest.mark.parametrize("content, fact", [
    (b"", "0 beats"),
    (b"# only a comment\n", "0 beats"),
    (b"1.0\n", "1 beats"),
    (b"1.0\n2.0\n1.5\n", "line 3: 1.5 s after 2 s"),
    (b"1.0\n1.0\n", "line 2"),
    (b"1.0\nnan\n", "line 2: 'nan'"),
    (b"1.0\ninf\n", "line 2: 'inf'"),
    (b"-1.0\n1.0\n", "line 1: '-1.0'"),
    (b"1.0\n2.5x\n", "line 2"),
    (b"1.0\t2\n2.0\t3\n", "number 1"),
    (b"1.0\t1\n2.0\tx\n", "line 2: 'x'"),
    (b"1.0\t1\n2.0\n", "line 2"),
    (b"\xff\xfe\x00\x01RIFF", "not text"),
])  # fmt: skip
def test_what_is_no_list_of_beats_is_refused_with_the_line(tmp_path, content, fact):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=fact):
        read_beats(tmp_path / "a.txt")


@pytest.mark.parametrize("times, fact", [
    ([30.0, 30.5, 31.0], "30 s.*20 s"),  # after the recording
    ([1.0, 1.0001, 2.0], "apart"),
    ([1.0, 0.5, 2.0], "apart"),
    ([1.0, np.nan, 2.0], "in seconds"),
    ([-1.0, 0.0, 1.0], "in seconds"),
    ([1.0], "2 or more"),
    ([0.0, 1.0, 19.0], "no beat between 1 s and 19 s"),  # 24 bits hold 16.8 s
])  # fmt: skip
def test_beats_that_fit_no_recording_or_no_midi_file_are_refused(times, fact):
    with pytest.raises(UserError, match=fact):
        arrange_bars(np.array(times), np.ones(len(times), bool), None, 20.0)


def test_beats_of_a_longer_piece_are_refused():
    with pytest.raises(UserError, match="99.5 s.*20 s"):
        require_beats_within(np.arange(0, 100, 0.5), 20.0, "other.beats")
    require_beats_within(np.arange(0, 21, 0.5), 20.0, "own.beats")


@pytest.mark.parametrize("bpm", [0, -120, 1e9, 3.5, float("nan"), float("inf")])
def test_tempos_beyond_midi_are_refused(bpm):
    with pytest.raises(UserError, match="bpm; expected 4 to 1,000"):
        constant_beats(bpm, 0.0, (4, 4), 10.0)


@pytest.mark.parametrize("bpm", [4, 1000])
def test_the_slowest_and_the_fastest_tempo_are_written(bpm):
    beats = constant_beats(bpm, 17.0, (4, 4), 100.0)
    midi = pretty_midi.PrettyMIDI(io.BytesIO(midi_bytes(notes_of((50, 60, 60)), "", 100.0, beats)))
    assert np.abs(midi.get_downbeats() - 17.0).min() < 1e-5
    assert midi.instruments[0].notes[0].start == pytest.approx(50, abs=0.005)


def test_the_phase_of_bars_follows_bass_notes_and_bass_drums():
    times = 0.5 + np.arange(32) / 2
    chords = notes_of(*((t, t + 0.4, 72) for t in times), *((t, t + 1.9, 36) for t in times[3::4]))
    assert np.flatnonzero(estimate_downbeats(times, chords, 4)).tolist() == [*range(3, 32, 4)]
    kicks = notes_of(*((t, t + 0.1, 36 if k % 4 == 1 else 42) for k, t in enumerate(times)))
    kicks.is_drum[:] = True
    assert np.flatnonzero(estimate_downbeats(times, kicks, 4)).tolist() == [*range(1, 32, 4)]
    assert np.flatnonzero(estimate_downbeats(times, Notes.empty(), 3))[0] == 0


def test_positions_and_seconds_invert_each_other_beyond_both_ends():
    beats = arrange_bars(rubato(20), np.arange(21) % 4 == 2, None, 18.0)
    seconds = np.linspace(0, 40, 401)
    np.testing.assert_allclose(beats.to_seconds(beats.to_quarters(seconds)), seconds, atol=1e-9)
    assert isinstance(beats, Beats) and beats.times[0] == 0
