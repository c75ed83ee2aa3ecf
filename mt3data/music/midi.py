"""MIDI files to notes and back.

Reading goes through pretty_midi and note_seq, as in MT3, so that tempo changes, repeated note-ons
and the sustain pedal mean here what they mean there. Writing uses pretty_midi with one tick per
millisecond, so that times on MT3's 10 ms grid come back exactly.

Reading spends its time in mido, which pretty_midi uses, so each file is parsed once: for its notes
and for the count of its note-ons. note_seq is asked only where there is a pedal to apply.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.errors import UserError
from mt3data.files import write_atomically
from mt3data.music.notes import COLUMNS, Notes
from mt3data.music.sequences import import_note_seq

TEMPO_BPM = 120.0
TICKS_PER_BEAT = 500
TICK_SECONDS = 60 / TEMPO_BPM / TICKS_PER_BEAT  # 1 ms
SUSTAIN = 64  # number of the pedal's controller
DRUMS = -1  # stands for all drums where a program is expected


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
    """As `read_midi`, and the number of note-ons: more than notes where pretty_midi drops some.

    Raises:
        UserError: see `read_midi`.
    """
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
            cause = error.__context__ or error  # note_seq wraps it into words for programmers
            why = "it is cut short, or empty" if isinstance(cause, EOFError) else cause
            said = f"not a MIDI file that pretty_midi can read ({why})"
            raise UserError(f"{name}: {said}") from error
    if sustain:
        sequence = note_seq.apply_sustain_control_changes(sequence)
    return _from_sequence(sequence), note_ons


def _parsed(data: bytes) -> tuple[Any, int]:
    """What note_seq takes, and the number of note-ons; the bytes themselves where they are odd."""
    import mido
    import pretty_midi

    note_ons = 0
    try:
        midi = mido.MidiFile(file=io.BytesIO(data))
        note_ons = _count_note_ons(midi)
        return pretty_midi.PrettyMIDI(mido_object=midi), note_ons
    except Exception:  # mido and pretty_midi raise anything; note_seq says what is wrong, if it is
        return data, note_ons


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
    """Writes notes as a MIDI file, which appears under its name only when it is complete.

    Args:
        notes: in any order; see `midi_bytes`.
        path: of the file; one that is there is replaced.
    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(Path(path), midi_bytes(notes))


def midi_bytes(notes: Notes) -> bytes:
    """Notes as a MIDI file, one track per instrument, named after its program.

    Times are rounded to 1 ms, and a shorter note lasts 1 ms. Two things MIDI cannot say: of equal
    pitches that overlap in one instrument, a reader ends the first at the first note-off (decoded
    notes never do that); and beyond 15 instruments and drums, channels are shared, which players
    that go by channel alone get wrong.

    Args:
        notes: in any order.
    """
    import pretty_midi

    midi = pretty_midi.PrettyMIDI(resolution=TICKS_PER_BEAT, initial_tempo=TEMPO_BPM)
    voices = np.stack([notes.instrument, notes.program, notes.is_drum], axis=1)
    for instrument, program, is_drum in np.unique(voices, axis=0).tolist():
        name = instrument_name(DRUMS if is_drum else program)
        track = pretty_midi.Instrument(program=program, is_drum=bool(is_drum), name=name)
        mine = notes[(voices == (instrument, program, is_drum)).all(axis=1)]
        offsets = np.maximum(mine.offset, mine.onset + TICK_SECONDS)
        for onset, offset, pitch, velocity in zip(
            mine.onset.tolist(), offsets.tolist(), mine.pitch.tolist(), mine.velocity.tolist(),
            strict=True,
        ):  # fmt: skip
            track.notes.append(pretty_midi.Note(velocity, pitch, onset, offset))
        midi.instruments.append(track)
    file = io.BytesIO()
    midi.write(file)
    return file.getvalue()


def instrument_name(program: int) -> str:
    """What General MIDI calls a program; "Drums" for DRUMS."""
    import pretty_midi

    return "Drums" if program == DRUMS else str(pretty_midi.program_to_instrument_name(program))


def _from_sequence(sequence: Any) -> Notes:
    rows = [
        (n.start_time, n.end_time, n.pitch, n.velocity, n.program, n.is_drum, n.instrument)
        for n in sequence.notes
    ]
    return _from_rows(rows)


def _from_rows(rows: list[tuple[Any, ...]]) -> Notes:
    return Notes(*zip(*rows, strict=True)) if rows else Notes.empty()  # type: ignore[arg-type]
