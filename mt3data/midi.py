"""MIDI files to notes and back.

Reading goes through pretty_midi and note_seq, as in MT3, so that tempo changes, repeated note-ons
and the sustain pedal mean here what they mean there. Writing uses pretty_midi with one tick per
millisecond, so that times on MT3's 10 ms grid come back exactly.

Only the bytes of a file are taken apart here, because that is where reading spends its time: mido,
which pretty_midi uses, needs 25 us for each event. What is out of the ordinary is left to mido, and
a test holds that both give the same notes.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.errors import UserError
from mt3data.notes import COLUMNS, Notes
from mt3data.sequences import import_note_seq

TEMPO_BPM = 120.0
TICKS_PER_BEAT = 500
TICK_SECONDS = 60 / TEMPO_BPM / TICKS_PER_BEAT  # 1 ms
SUSTAIN = 64  # number of the pedal's controller
NOTE_OFF, NOTE_ON, CONTROL, PROGRAM, BEND, SYSEX, ESCAPE, META = (
    0x80, 0x90, 0xB0, 0xC0, 0xE0, 0xF0, 0xF7, 0xFF,
)  # fmt: skip
EVENT_TYPES = {
    NOTE_OFF: "note_off", NOTE_ON: "note_on", 0xA0: "polytouch", CONTROL: "control_change",
    PROGRAM: "program_change", 0xD0: "aftertouch", BEND: "pitchwheel",
}  # fmt: skip


def read_midi(source: str | Path | bytes, *, sustain: bool = True) -> Notes:
    """Notes of a MIDI file, instrument by instrument as pretty_midi lists them.

    Args:
        source: a path, or the bytes of a file.
        sustain: extend notes by the sustain pedal (controller 64), per instrument.
    Returns:
        The notes, `instrument` being the index of the MIDI instrument; zero-length notes included.
    Raises:
        UserError: the file is missing or not MIDI.

    Source: note_seq.midi_io.midi_to_note_sequence, note_seq.apply_sustain_control_changes.
    """
    return read_midi_and_count(source, sustain=sustain)[0]


def read_midi_and_count(source: str | Path | bytes, *, sustain: bool = True) -> tuple[Notes, int]:
    """As `read_midi`, and the number of note-ons: more than notes where pretty_midi drops some."""
    name = "MIDI data" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise UserError(
            f"{name}: cannot be read ({error.strerror}); expected a MIDI file"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # pretty_midi warns about type 0 and 2 files, which are fine
        midi, note_ons = _parsed(data)
        if not isinstance(midi, bytes) and not _has_pedal(midi):
            return _from_instruments(midi.instruments), note_ons
        note_seq = import_note_seq()
        try:
            sequence = note_seq.midi_to_note_sequence(midi)
        except note_seq.MIDIConversionError as error:
            said = f"not a MIDI file that pretty_midi can read ({error})"
            raise UserError(f"{name}: {said}") from error
    if sustain:
        sequence = note_seq.apply_sustain_control_changes(sequence)
    return _from_sequence(sequence), note_ons


def _parsed(data: bytes) -> tuple[Any, int]:
    """What note_seq takes, and the number of note-ons; the bytes themselves where they are odd."""
    import mido
    import pretty_midi

    try:
        midi = _parse_file(data)
        note_ons = _count_note_ons(midi)
        return pretty_midi.PrettyMIDI(mido_object=midi), note_ons
    except Exception:  # mido says what is wrong, if anything is
        try:
            return data, _count_note_ons(mido.MidiFile(file=io.BytesIO(data)))
        except Exception:  # note_seq will raise
            return data, 0


def _has_pedal(midi: Any) -> bool:
    return any(
        change.number == SUSTAIN for one in midi.instruments for change in one.control_changes
    )


def _from_instruments(instruments: list[Any]) -> Notes:
    """The notes as note_seq would number them, without its protocol buffers."""
    rows = [
        (n.start, n.end, n.pitch, n.velocity, one.program, one.is_drum, number)
        for number, one in enumerate(instruments)
        for n in one.notes
    ]
    return _from_rows(rows)


def _count_note_ons(midi: Any) -> int:
    events = (event for part in midi.tracks for event in part)
    return sum(event.type == "note_on" and event.velocity > 0 for event in events)


@dataclass(slots=True)
class _Event:
    """A channel event with the attributes that pretty_midi asks for; `time` in ticks."""

    type: str
    time: int
    channel: int
    first: int
    second: int

    @property
    def note(self) -> int:
        return self.first

    @property
    def velocity(self) -> int:
        return self.second

    @property
    def control(self) -> int:
        return self.first

    @property
    def value(self) -> int:
        return self.second

    @property
    def program(self) -> int:
        return self.first

    @property
    def pitch(self) -> int:
        return self.first + (self.second << 7) - 8192


def _parse_file(data: bytes) -> Any:
    """A MIDI file as mido's object, with events of our own.

    Raises:
        ValueError, IndexError: the file is broken, or holds what mido alone understands.
    """
    import mido

    size = int.from_bytes(data[4:8], "big")
    kind, n_tracks, resolution = (int.from_bytes(data[at : at + 2], "big") for at in (8, 10, 12))
    if data[:4] != b"MThd" or size < 6 or max(n_tracks, resolution) >= 1 << 15:
        raise ValueError("no ordinary header")
    tracks, at = [], 8 + size
    for _ in range(n_tracks):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "big")
        if data[at : at + 4] != b"MTrk" or end > len(data):
            raise ValueError("no whole track")
        tracks.append(_parse_track(data, at + 8, end))
        at = end
    return mido.MidiFile(type=kind, ticks_per_beat=resolution, tracks=tracks)


def _parse_track(data: bytes, at: int, end: int) -> list[Any]:
    """The events between two positions; `ValueError` as for `_parse_file`."""
    from mido.midifiles.meta import build_meta_message

    events: list[Any] = []
    status = 0  # of the last event; it holds until another is given, beyond meta events too
    while at < end:
        ticks, at = _variable_int(data, at)
        if data[at] >= 0x80:
            at += 1
            if data[at - 1] == META:
                kind = data[at]
                length, at = _variable_int(data, at + 1)
                events.append(build_meta_message(kind, list(data[at : at + length]), ticks))
                at += length
                continue
            status = data[at - 1]
        if status in (SYSEX, ESCAPE):
            length, at = _variable_int(data, at)
            events.append(_Event("sysex", ticks, 0, 0, 0))
            at, status = at + length, 0
            continue
        first, second = data[at], 0
        at += 1
        if status & 0xF0 not in (PROGRAM, 0xD0):
            second = data[at]
            at += 1
        if first > 0x7F or second > 0x7F:
            raise ValueError("a data byte with the highest bit set")
        events.append(_Event(EVENT_TYPES[status & 0xF0], ticks, status & 0x0F, first, second))
    if at != end:
        raise ValueError("an event that reaches beyond its track")
    return events


def _variable_int(data: bytes, at: int) -> tuple[int, int]:
    """A number of as many bytes as have the highest bit set, and one more; and where it ends."""
    number = data[at] & 0x7F
    while data[at] >= 0x80:
        at += 1
        number = number << 7 | data[at] & 0x7F
    return number, at + 1


def apply_sustain(notes: Notes, control_changes: list[tuple[float, int, int, int]]) -> Notes:
    """Extends notes by the sustain pedal of their own instrument.

    Args:
        notes: any notes; drums are left as they are.
        control_changes: rows (time in seconds, instrument, controller number, value 0-127).
    Returns:
        The notes with later offsets; notes still held at the end last until the last event.

    Source: note_seq.sequences_lib.apply_sustain_control_changes, which does the work.
    """
    note_seq = import_note_seq()
    sequence = note_seq.NoteSequence()
    for row in zip(*(getattr(notes, name).tolist() for name in COLUMNS), strict=True):
        onset, offset, pitch, velocity, program, is_drum, instrument = row
        sequence.notes.add(
            start_time=onset, end_time=offset, pitch=pitch, velocity=velocity,
            program=program, is_drum=is_drum, instrument=instrument,
        )  # fmt: skip
    for time, instrument, number, value in control_changes:
        sequence.control_changes.add(
            time=time, instrument=instrument, control_number=number, control_value=value
        )
    return _from_sequence(note_seq.apply_sustain_control_changes(sequence))


def write_midi(notes: Notes, path: str | Path) -> None:
    """Writes notes as a MIDI file, one track per instrument, named after its program.

    Times are rounded to 1 ms, and a shorter note lasts 1 ms. The file appears under its name only
    when it is complete. Two things MIDI cannot say: of equal pitches that overlap in one instrument,
    a reader ends the first at the first note-off (decoded notes never do that); and beyond 15
    instruments and drums, channels are shared, which players that go by channel alone get wrong.

    Args:
        notes: in any order.
        path: of the file; one that is there is replaced.
    Raises:
        OSError: the file cannot be written.
    """
    import pretty_midi

    midi = pretty_midi.PrettyMIDI(resolution=TICKS_PER_BEAT, initial_tempo=TEMPO_BPM)
    voices = np.stack([notes.instrument, notes.program, notes.is_drum], axis=1)
    for instrument, program, is_drum in np.unique(voices, axis=0).tolist():
        label = "Drums" if is_drum else pretty_midi.program_to_instrument_name(program)
        track = pretty_midi.Instrument(program=program, is_drum=bool(is_drum), name=label)
        mine = notes[(voices == (instrument, program, is_drum)).all(axis=1)]
        offsets = np.maximum(mine.offset, mine.onset + TICK_SECONDS)
        for onset, offset, pitch, velocity in zip(
            mine.onset.tolist(), offsets.tolist(), mine.pitch.tolist(), mine.velocity.tolist(),
            strict=True,
        ):  # fmt: skip
            track.notes.append(pretty_midi.Note(velocity, pitch, onset, offset))
        midi.instruments.append(track)
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        midi.write(str(part))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _from_sequence(sequence: Any) -> Notes:
    rows = [
        (n.start_time, n.end_time, n.pitch, n.velocity, n.program, n.is_drum, n.instrument)
        for n in sequence.notes
    ]
    return _from_rows(rows)


def _from_rows(rows: list[tuple[Any, ...]]) -> Notes:
    return Notes(*zip(*rows, strict=True)) if rows else Notes.empty()  # type: ignore[arg-type]
