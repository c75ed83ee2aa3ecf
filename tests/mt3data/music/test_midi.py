"""MIDI files in and out."""

import io
import struct
import tracemalloc
from pathlib import Path

import mido
import numpy as np
import pretty_midi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from note_seq import midi_io, sequences_lib
from note_seq.protobuf import music_pb2

from mt3data.errors import UserError
from mt3data.music.midi import apply_sustain, midi_bytes, read_midi, write_midi
from mt3data.music.notes import Notes, separate_equal_pitches

NOTES = Notes.from_array(
    np.array([
        [0.01, 0.52, 60, 100, 0, 0, 0],
        [0.37, 1.111, 43, 90, 33, 0, 1],
        [0.5, 0.51, 36, 127, 0, 1, 9],
    ])
)  # fmt: skip


def test_written_notes_come_back_to_the_millisecond(tmp_path: Path) -> None:
    write_midi(NOTES, tmp_path / "out.mid")
    back = read_midi(tmp_path / "out.mid")[0].sorted()
    np.testing.assert_allclose(back.to_array()[:, :6], NOTES.to_array()[:, :6], atol=1e-9)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mid"]


def test_tracks_are_named_after_their_instrument(tmp_path: Path) -> None:
    write_midi(NOTES, tmp_path / "out.mid")
    names = [i.name for i in pretty_midi.PrettyMIDI(str(tmp_path / "out.mid")).instruments]
    assert names == ["Acoustic Grand Piano", "Electric Bass (finger)", "Drums"]


def test_a_note_shorter_than_a_tick_lasts_one(tmp_path: Path) -> None:
    short = Notes([0.5], [0.5001], [60], [80], [0], [False], [0])
    write_midi(short, tmp_path / "out.mid")
    assert read_midi(tmp_path / "out.mid")[0].offset.tolist() == [0.501]


def test_equal_pitches_that_overlap_are_separated(tmp_path: Path) -> None:
    onset, offset = [0.0, 1.0, 1.0, 1.5, 1.5], [2.0, 1.01, 1.6, 1.7, 1.8]
    notes = Notes(
        onset, offset, [60] * 5, [80, 81, 82, 83, 84], [0, 0, 0, 0, 1], [0] * 5, [0, 0, 0, 0, 1]
    )
    write_midi(notes, tmp_path / "out.mid")
    back = read_midi(tmp_path / "out.mid")[0].sorted().to_array()[:, :4].tolist()
    assert back == [[0, 1, 60, 80], [1, 1.5, 60, 82], [1.5, 1.7, 60, 83], [1.5, 1.8, 60, 84]]
    assert rows(separate_equal_pitches(notes).sorted()) == rows(
        read_midi(tmp_path / "out.mid")[0].sorted()
    )


@pytest.mark.parametrize("n", [15, 16, 40])
def test_every_instrument_has_a_channel_of_its_own_on_one_of_several_ports(n: int) -> None:
    """Also beside drums. All readers get the programs."""
    programs = np.append(np.arange(n), 0)
    times, is_drum = 0.1 * np.arange(n + 1), np.arange(n + 1) == n
    many = Notes(times, times + 0.05, programs + 40, programs + 1, programs, is_drum, range(n + 1))
    data = midi_bytes(many)
    back = read_midi(data)[0].sorted().to_array()[:, :6]
    np.testing.assert_allclose(back, many.sorted().to_array()[:, :6], atol=1e-9)
    theirs = pretty_midi.PrettyMIDI(io.BytesIO(data)).instruments
    assert [(i.program, i.is_drum, i.notes[0].pitch) for i in theirs] == [
        (program, drum, program + 40)
        for program, drum in zip(programs.tolist(), is_drum.tolist(), strict=True)
    ]
    places = []
    for track in mido.MidiFile(file=io.BytesIO(data)).tracks[1:]:
        port = next((event.port for event in track if event.type == "midi_port"), None)
        channels = {event.channel for event in track if not event.is_meta}
        assert len(channels) == 1
        places.append((port, channels.pop()))
    assert len(set(places)) == n + 1
    assert [channel for _, channel in places].count(9) == 1
    assert {port for port, _ in places} == ({None} if n == 15 else set(range(-(-n // 15))))


def test_a_file_ends_where_the_recording_ends_or_after_its_last_note() -> None:
    for seconds, end in ((0.0, 1.6), (2.5, 2.5), (1.0, 1.6)):
        data = midi_bytes(Notes([0.5], [1.6], [60], [80], [0], [False], [0]), "", seconds)
        for track in (midi := mido.MidiFile(file=io.BytesIO(data))).tracks:
            assert sum(event.time for event in track) == pytest.approx(1000 * end)
        assert midi.length == pytest.approx(end)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "out.mid").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_midi(NOTES, tmp_path / "out.mid")
    assert [path.name for path in tmp_path.iterdir()] == ["out.mid"]


def test_no_notes_make_a_valid_empty_file(tmp_path: Path) -> None:
    write_midi(Notes.empty(), tmp_path / "out.mid")
    assert len(read_midi(tmp_path / "out.mid")[0]) == 0


def test_the_pedal_holds_only_notes_of_its_own_instrument() -> None:
    two = Notes([0.0, 0.0], [1.0, 1.0], [60, 60], [9, 9], [0, 0], [False, False], [0, 1])
    pedal = [(0.5, 1, 64, 127), (3.0, 1, 64, 0)]
    assert apply_sustain(two, pedal).offset.tolist() == [1.0, 3.0]


def test_sustain_can_be_left_out(tmp_path: Path) -> None:
    midi = pretty_midi.PrettyMIDI(resolution=500)
    piano = pretty_midi.Instrument(0)
    piano.notes.append(pretty_midi.Note(80, 60, 0.0, 1.0))
    piano.control_changes += [
        pretty_midi.ControlChange(64, value, t) for value, t in ((127, 0.5), (0, 2.0))
    ]
    midi.instruments.append(piano)
    midi.write(str(tmp_path / "pedal.mid"))
    assert read_midi(tmp_path / "pedal.mid")[0].offset.tolist() == [2.0]
    assert read_midi(tmp_path / "pedal.mid", sustain=False)[0].offset.tolist() == [1.0]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is cut short, or empty"),
        (b"MThd\x00\x00", "it is cut short, or empty"),
        (
            b"MThd\x00\x00\x00\x06\x00\x01\x00\x01\x01\xe0MTrk\x00\x00\x00\x09\x00\x90",
            "it is cut short",
        ),
        (b"not midi at all", "MThd not found"),
    ],
)
def test_a_file_that_is_no_midi_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "bad.mid").write_bytes(content)
    with pytest.raises(UserError, match=rf"bad\.mid: not a MIDI file .*\({why}"):
        read_midi(tmp_path / "bad.mid")[0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.mid: cannot be read"):
        read_midi(tmp_path / "gone.mid")[0]


SAMPLES = Path(__file__).resolve().parents[4] / "shared" / "samples" / "maestro" / "aria_amt_midi"


@pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="real MAESTRO MIDI files are not beside the checkout"
)
def test_a_real_recording_is_lengthened_by_its_pedal() -> None:
    dry, held = (read_midi(SAMPLES / "maestro1.mid", sustain=s)[0] for s in (False, True))
    assert len(dry) >= len(held) > 1000
    assert (held.offset - held.onset).mean() > 1.5 * (dry.offset - dry.onset).mean()


# --- the same notes as note-seq ------------------------------------------------------------------


def midi_file(*tracks: bytes, kind: int = 1, resolution: int = 480) -> bytes:
    header = b"MThd" + struct.pack(">LHHH", 6, kind, len(tracks), resolution)
    return header + b"".join(b"MTrk" + struct.pack(">L", len(t)) + t for t in tracks)


NOTE_EVENTS = st.builds(
    lambda kind, channel, pitch, velocity: bytes([kind | channel, pitch, velocity]),
    st.sampled_from([0x80, 0x90, 0x90]), st.sampled_from([0, 9]),
    st.sampled_from([60, 61]), st.sampled_from([0, 64]),
)  # fmt: skip
OTHER_EVENTS = st.sampled_from([
    b"\xb0\x07\x40", b"\xb0\x40\x40", b"\xb0\x40\x00", b"\xb9\x40\x7f", b"\xc0\x21", b"\xc0\x00", b"\xe9\x00\x40", b"\xff\x51\x03\x09\x27\xc0", b"\xff\x03\x05Piano",
])  # fmt: skip
TRACKS = st.lists(
    st.builds(lambda ticks, event: bytes([ticks]) + event, st.integers(0, 127),
              st.one_of(NOTE_EVENTS, NOTE_EVENTS, OTHER_EVENTS)),
    min_size=1, max_size=25,
).map(b"".join)  # fmt: skip


@pytest.mark.parametrize("sustain", [True, False])
@settings(max_examples=200, deadline=None)
@given(tracks=st.lists(TRACKS, min_size=1, max_size=3))
def test_a_file_gives_the_notes_that_note_seq_gives(tracks: list[bytes], sustain: bool) -> None:
    # pretty_midi reads tempo changes from the first track only, so the others get none.
    tracks[1:] = [
        track.replace(b"\xff\x51\x03\x09\x27\xc0", b"\xff\x03\x00") for track in tracks[1:]
    ]
    data = midi_file(*tracks)
    sequence = midi_io.midi_to_note_sequence(data)
    if sustain:
        sequence = sequences_lib.apply_sustain_control_changes(sequence)
    assert rows(read_midi(data, sustain=sustain)[0]) == sequence_rows(sequence)


def rows(notes: Notes) -> list[tuple[float, ...]]:
    return [tuple(row) for row in notes.to_array().tolist()]


def sequence_rows(sequence: music_pb2.NoteSequence) -> list[tuple[float, ...]]:
    return [
        (n.start_time, n.end_time, n.pitch, n.velocity, n.program, n.is_drum, n.instrument)
        for n in sequence.notes
    ]


# Times on a coarse grid, so that onsets, offsets and pedal changes coincide often.
GRID = st.integers(0, 12).map(lambda n: n / 4)
CROWDED = st.lists(
    st.tuples(GRID, st.integers(0, 8).map(lambda n: n / 4), st.sampled_from([60, 61]),
              st.sampled_from([80, 90]), st.booleans(), st.sampled_from([0, 1])),
    max_size=20,
)  # fmt: skip
PEDALS = st.lists(
    st.tuples(GRID, st.sampled_from([0, 1, 2]), st.sampled_from([64, 64, 64, 7]),
              st.sampled_from([0, 63, 64, 127])),
    max_size=12,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(CROWDED, PEDALS)
def test_the_pedal_gives_what_note_seq_gives(
    crowded: list[tuple[float, float, int, int, bool, int]],
    pedals: list[tuple[float, int, int, int]],
) -> None:
    sequence = music_pb2.NoteSequence()
    for onset, length, pitch, velocity, is_drum, instrument in crowded:
        sequence.notes.add(
            start_time=onset, end_time=onset + length, pitch=pitch, velocity=velocity,
            is_drum=is_drum, instrument=instrument,
        )  # fmt: skip
    for time, instrument, number, value in pedals:
        sequence.control_changes.add(
            time=time, instrument=instrument, control_number=number, control_value=value
        )
    notes = Notes.from_array(np.array(sequence_rows(sequence)).reshape(-1, 7))
    held = sequences_lib.apply_sustain_control_changes(sequence)
    assert rows(apply_sustain(notes, pedals)) == sequence_rows(held)


# --- files that other readers get wrong ----------------------------------------------------------


def test_note_ons_without_an_end_are_counted() -> None:
    track = b"\x00\x90\x3c\x40\x10\x3c\x00\x00\x3e\x40\x00\x3e\x00\x10\x40\x40\x00\xff\x2f\x00"
    notes, unended = read_midi(midi_file(track))
    assert (notes.pitch.tolist(), unended) == ([60], 2)  # one ends at once, one never


NOTE = b"\x00\x90\x3c\x40\x83\x60\x3c\x00"  # one beat of 480 ticks
TEMPO = b"\x00\xff\x51\x03\x0f\x42\x40"  # 1 s per beat


@pytest.mark.parametrize(
    "tracks", [(NOTE, TEMPO), (TEMPO, NOTE), (TEMPO + NOTE,), (b"\x00\xff\x03\x00", NOTE, TEMPO)]
)
def test_a_tempo_counts_in_whatever_track_it_is(tracks: tuple[bytes, ...]) -> None:
    assert read_midi(midi_file(*tracks))[0].offset.tolist() == [1.0]


def test_tempo_changes_of_several_tracks_are_taken_in_the_order_of_their_ticks() -> None:
    later = b"\x83\x60" + TEMPO[1:]
    notes = b"\x00\x90\x3c\x40\x87\x40\x3c\x00"  # two beats: 0.5 s and 1 s
    assert read_midi(midi_file(later, b"\x00\xff\x51\x03\x07\xa1\x20" + notes))[0].offset[0] == 1.5


def test_the_separate_pieces_of_a_type_2_file_are_refused() -> None:
    with pytest.raises(UserError, match="2 separate pieces"):
        read_midi(midi_file(NOTE, NOTE, kind=2))
    assert read_midi(midi_file(NOTE, kind=2))[0].offset.tolist() == [0.5]


def test_a_second_file_behind_a_midi_file_is_not_lost() -> None:
    data = midi_file(NOTE)
    with pytest.raises(UserError, match=f"second MIDI file begins at byte {len(data)}"):
        read_midi(data + data)
    assert len(read_midi(data + b"padding")[0]) == 1


@pytest.mark.parametrize(
    ("division", "seconds"),
    [(0xE728, 0.48), (0xE850, 0.25), (0xE364, 480 * 1001 / 3e6), (0xE20A, 1.6)],
)
def test_smpte_time_codes_give_seconds_whatever_the_tempo(division: int, seconds: float) -> None:
    notes, _ = read_midi(midi_file(TEMPO, NOTE, resolution=division))
    assert notes.offset[0] == pytest.approx(seconds, abs=1e-12)


@pytest.mark.parametrize(
    ("tracks", "resolution", "why"),
    [
        ((NOTE,), 0, "0 ticks per beat"),
        ((b"\x00\xff\x51\x03\x00\x00\x00" + NOTE,), 480, "tempo of 0"),
        ((b"\xff\xff\xff\xff\x7f" + NOTE[1:],), 480, "more than 4 bytes"),
        ((NOTE[:-1],), 480, "unexpected byte"),
        ((b"\x00\xff\x03\x84\x00" + NOTE,), 480, "longer than its track"),
        ((b"\x00\x90\x3c\xff" + NOTE,), 480, "unexpected byte"),
        ((b"\x00\x3c\x40",), 480, "unexpected byte"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(
    tracks: tuple[bytes, ...], resolution: int, why: str
) -> None:
    with pytest.raises(UserError, match=why):
        read_midi(midi_file(*tracks, resolution=resolution))


def test_a_key_signature_that_does_not_exist_costs_no_note() -> None:
    assert len(read_midi(midi_file(b"\x00\xff\x59\x02\xee\x00" + NOTE))[0]) == 1


def test_chunks_that_are_no_tracks_are_skipped() -> None:
    data = midi_file(NOTE)
    assert len(read_midi(data[:14] + b"XFIH\x00\x00\x00\x02\x00\x00" + data[14:])[0]) == 1


def test_tracks_that_the_header_does_not_count_are_read() -> None:
    data = bytearray(midi_file(NOTE, NOTE))
    data[11] = 1
    assert len(read_midi(bytes(data))[0]) == 2


def test_a_note_that_ends_after_a_day_is_refused_in_little_memory() -> None:
    tracemalloc.start()
    with pytest.raises(UserError, match=r"after 279,620 s; expected at most a day"):
        read_midi(midi_file(b"\x00\x90\x3c\x40\xff\xff\xff\x7f\x3c\x00"))
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 1 << 20
    far_text = b"\xff\xff\xff\x7f\xff\x01\x00"
    assert read_midi(midi_file(NOTE + far_text))[0].offset.tolist() == [0.5]


@pytest.mark.parametrize("hours", [1, 2.8, 5, 12, 24])
def test_a_long_piece_is_written_so_that_pretty_midi_reads_it(hours: float) -> None:
    end = hours * 3600
    notes = Notes([0.01, end - 1], [0.02, end], [60, 61], [80, 80], [0, 0], [0, 0], [0, 0])
    data = midi_bytes(notes)
    theirs = pretty_midi.PrettyMIDI(io.BytesIO(data)).instruments[0].notes
    for back in (read_midi(data)[0].to_array()[:, :2], [[n.start, n.end] for n in theirs]):
        np.testing.assert_allclose(back, notes.to_array()[:, :2], atol=1e-6)


def test_a_piece_of_more_than_a_day_is_not_written() -> None:
    with pytest.raises(UserError, match="90,000 s; .* at most a day"):
        midi_bytes(Notes([0.0], [90000.0], [60], [80], [0], [False], [0]))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(TRACKS, min_size=1, max_size=3).map(lambda tracks: midi_file(*tracks)),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
    st.integers(0, 200),
)
def test_damaged_files_are_read_or_refused_in_one_line(
    data: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        notes, unended = read_midi(bytes(damaged[: len(damaged) - cut % len(damaged)]))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert unended >= 0
        assert (notes.offset > notes.onset).all() and notes.offset.max(initial=0) <= 86400
