"""MIDI files in and out."""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3data.errors import UserError
from mt3data.music import midi
from mt3data.music.midi import apply_sustain, read_midi, read_midi_and_count, write_midi
from mt3data.music.notes import Notes

NOTES = Notes.from_array(
    np.array([
        [0.01, 0.52, 60, 100, 0, 0, 0],
        [0.37, 1.111, 43, 90, 33, 0, 1],
        [0.5, 0.51, 36, 127, 0, 1, 9],
    ])
)  # fmt: skip


def test_written_notes_come_back_to_the_millisecond(tmp_path: Path) -> None:
    write_midi(NOTES, tmp_path / "out.mid")
    back = read_midi(tmp_path / "out.mid").sorted()
    np.testing.assert_allclose(back.to_array()[:, :6], NOTES.to_array()[:, :6], atol=1e-9)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mid"]


def test_tracks_are_named_after_their_instrument(tmp_path: Path) -> None:
    write_midi(NOTES, tmp_path / "out.mid")
    names = [i.name for i in pretty_midi.PrettyMIDI(str(tmp_path / "out.mid")).instruments]
    assert names == ["Acoustic Grand Piano", "Electric Bass (finger)", "Drums"]


def test_a_note_shorter_than_a_tick_lasts_one(tmp_path: Path) -> None:
    short = Notes([0.5], [0.5001], [60], [80], [0], [False], [0])
    write_midi(short, tmp_path / "out.mid")
    assert read_midi(tmp_path / "out.mid").offset.tolist() == [0.501]


def test_of_equal_pitches_that_overlap_the_first_note_off_ends_the_first(tmp_path: Path) -> None:
    # What MIDI cannot say; see write_midi.
    twins = Notes([0.0, 1.0], [2.0, 1.5], [60, 60], [80, 80], [0, 0], [False, False], [0, 0])
    write_midi(twins, tmp_path / "out.mid")
    assert sorted(read_midi(tmp_path / "out.mid").offset.tolist()) == [1.5, 1.5]


def test_twenty_instruments_keep_their_programs(tmp_path: Path) -> None:
    programs = np.arange(20)
    many = Notes(0.1 * programs, 0.1 * programs + 0.05, programs + 40, np.full(20, 80), programs,
                 np.zeros(20), programs)  # fmt: skip
    write_midi(many, tmp_path / "out.mid")
    assert read_midi(tmp_path / "out.mid").sorted().program.tolist() == programs.tolist()


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "out.mid").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_midi(NOTES, tmp_path / "out.mid")
    assert [path.name for path in tmp_path.iterdir()] == ["out.mid"]


def test_no_notes_make_a_valid_empty_file(tmp_path: Path) -> None:
    write_midi(Notes.empty(), tmp_path / "out.mid")
    assert len(read_midi(tmp_path / "out.mid")) == 0


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
    assert read_midi(tmp_path / "pedal.mid").offset.tolist() == [2.0]
    assert read_midi(tmp_path / "pedal.mid", sustain=False).offset.tolist() == [1.0]


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
        read_midi(tmp_path / "bad.mid")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.mid: cannot be read"):
        read_midi(tmp_path / "gone.mid")


SAMPLES = Path(__file__).resolve().parents[4] / "shared" / "samples" / "maestro" / "aria_amt_midi"


@pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="real MAESTRO MIDI files are not beside the checkout"
)
def test_a_real_recording_is_lengthened_by_its_pedal() -> None:
    dry, held = (read_midi(SAMPLES / "maestro1.mid", sustain=s) for s in (False, True))
    assert len(dry) >= len(held) > 1000
    assert (held.offset - held.onset).mean() > 1.5 * (dry.offset - dry.onset).mean()


# --- with and without note_seq -------------------------------------------------------------------


def midi_file(*tracks: bytes, kind: int = 1, resolution: int = 480) -> bytes:
    header = b"MThd" + struct.pack(">LHHH", 6, kind, len(tracks), resolution)
    return header + b"".join(b"MTrk" + struct.pack(">L", len(t)) + t for t in tracks)


NOTE_EVENTS = st.builds(
    lambda kind, channel, pitch, velocity: bytes([kind | channel, pitch, velocity]),
    st.sampled_from([0x80, 0x90, 0x90]), st.sampled_from([0, 9]),
    st.sampled_from([60, 61]), st.sampled_from([0, 64]),
)  # fmt: skip
OTHER_EVENTS = st.sampled_from([
    b"\xb0\x07\x40", b"\xc0\x21", b"\xe9\x00\x40", b"\xff\x51\x03\x09\x27\xc0", b"\xff\x03\x05Piano",
])  # fmt: skip
TRACKS = st.lists(
    st.builds(lambda ticks, event: bytes([ticks]) + event, st.integers(0, 127),
              st.one_of(NOTE_EVENTS, NOTE_EVENTS, OTHER_EVENTS)),
    min_size=1, max_size=25,
).map(b"".join)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(TRACKS, min_size=1, max_size=3))
def test_a_file_without_pedal_gives_what_note_seq_gives(tracks: list[bytes]) -> None:
    data = midi_file(*tracks)
    ours = read_midi(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(midi, "_has_pedal", lambda _: True)  # so that note_seq is asked
        np.testing.assert_array_equal(ours.to_array(), read_midi(data).to_array())


def test_note_ons_are_counted_also_where_they_give_no_note() -> None:
    track = b"\x00\x90\x3c\x40\x10\x3c\x00\x00\x3e\x40\x00\x3e\x00\x10\x40\x40\x00\xff\x2f\x00"
    notes, struck = read_midi_and_count(midi_file(track))
    assert (notes.pitch.tolist(), struck) == ([60], 3)  # one of no length, one that never ends


def test_reading_leaves_the_rest_of_note_seq_until_it_is_asked_for() -> None:
    code = """
import sys
from mt3data.music.midi import apply_sustain
from mt3data.music.notes import Notes
apply_sustain(Notes([0.0], [1.0], [60], [80], [0], [False], [0]), [(0.5, 64, 127, 0)])
print("bokeh" in sys.modules, "pandas" in sys.modules)
import note_seq
print(note_seq.plot_sequence.__name__, note_seq.midi_io.midi_to_note_sequence.__name__)
from note_seq import sequences_lib, melodies_lib
import note_seq.chords_lib
print("bokeh" in sys.modules, note_seq.sequences_lib is sequences_lib)
print(hasattr(note_seq, "nonsense"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "False", "False", "plot_sequence", "midi_to_note_sequence", "True", "True", "False",
    ]  # fmt: skip
    assert done.stderr == ""
