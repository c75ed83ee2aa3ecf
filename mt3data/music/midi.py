"""Reads and writes MIDI files.

Reading gives the notes that MT3 gets from the same file through pretty_midi and note-seq: the
instruments in the same order, repeated note-ons paired with note-offs in the same way, and the
sustain pedal applied by the same rule. tests/mt3data/music/test_midi.py compares them on random
files. It differs from MT3 in three points:

- Tempo events count in whatever track they are. pretty_midi reads them from the first track only,
  so it returns wrong times for files that have them in another one.
- A type 2 file with several tracks is refused, because its tracks are separate pieces. pretty_midi
  lays them over each other.
- Files with SMPTE time codes are read. pretty_midi raises or returns wrong times.

Times are limited to a day and files to MAX_BYTES, so memory never grows with a number in a file.
"""

from __future__ import annotations

import io
import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mt3data.errors import UserError
from mt3data.files import write_atomically
from mt3data.music.beats import GRID, Beats
from mt3data.music.notes import Notes, separate_equal_pitches

MIDI_SUFFIXES = (".mid", ".midi", ".kar")  # .kar: karaoke, a MIDI file with lyrics
MAX_SECONDS = 86400.0  # a day; a note that ends later comes from a damaged file
MAX_BYTES = 1 << 24  # of a file; the largest in the datasets has 1 MB
MAX_PEDALS = 1_000_000  # changes of sustain pedals, counted for every instrument
TEMPO_BPM = 120.0
TICKS_PER_BEAT = (500, 250, 100, 50)  # ticks of 1, 2, 5 and 10 ms at TEMPO_BPM
TICKS_PER_QUARTER = (1920, 960, 480, 240, 96, GRID)  # of files with bars; multiples of GRID
MAX_TICKS = 9_000_000  # pretty_midi refuses files with events after 10 million ticks
SUSTAIN = 64  # number of the pedal's controller
DRUM_CHANNEL = 9  # counted from 0
CHANNELS = 16  # of a MIDI port
DRUMS = -1  # all drums, in place of a program

NOTE_OFF, NOTE_ON, CONTROL_CHANGE, PROGRAM_CHANGE, PITCH_BEND = 0x80, 0x90, 0xB0, 0xC0, 0xE0
SYSEX, SYSEX_END, META = 0xF0, 0xF7, 0xFF  # status bytes
SET_TEMPO = 0x51  # type of a meta event
# Data bytes behind each status byte; channel messages without their channel.
DATA_BYTES = {
    0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2, 0xF1: 1, 0xF2: 2, 0xF3: 1,
    0xF6: 0, 0xF8: 0, 0xF9: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFD: 0, 0xFE: 0,
}  # fmt: skip

Event = tuple[int, int, int, int]  # tick, status byte, first and second data byte


def read_midi(source: str | Path | bytes, *, sustain: bool = True) -> tuple[Notes, int]:
    """Reads the notes of a MIDI file, instrument by instrument.

    Args:
        source: a path, or the bytes of a file.
        sustain: extend notes by the sustain pedal (controller 64), per instrument.
    Returns:
        The notes, `instrument` being the index of the MIDI instrument, and the number of note-ons
        without an end. These are note-ons without a later note-off, which give no note.
    Raises:
        UserError: the file is missing or not MIDI, has several separate pieces, is larger than
            MAX_BYTES, or has a note that ends after MAX_SECONDS.

    Source: pretty_midi.PrettyMIDI, note_seq.midi_io.midi_to_note_sequence,
    note_seq.apply_sustain_control_changes.
    """
    name = "MIDI data" if isinstance(source, bytes) else str(source)
    try:
        notes, pedals, unended = _decode(_read_bytes(source))
    except OSError as error:
        raise UserError(
            f"{name}: cannot be read ({error.strerror}); expected a MIDI file"
        ) from error
    except (ValueError, IndexError, struct.error) as error:
        why = error if isinstance(error, ValueError) else "it is cut short, or empty"
        raise UserError(f"{name}: not a MIDI file that can be read ({why})") from error
    if sustain and pedals:
        notes = apply_sustain(notes, pedals)
    last = float(notes.offset.max(initial=0.0))
    if last > MAX_SECONDS:
        raise UserError(
            f"{name}: a note ends after {last:,.0f} s; expected at most a day ({MAX_SECONDS:,.0f} "
            "s); the file is damaged, export it again"
        )
    return notes, unended


def _read_bytes(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    with Path(source).open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    return data


def _decode(data: bytes) -> tuple[Notes, list[tuple[float, int, int, int]], int]:
    """Returns notes without pedal, rows of pedal changes for `apply_sustain`, and unended notes."""
    division, tracks = _parse(data)
    rows, changes, unended = _pair_notes(tracks)
    tempos = [
        (tick, value) for track in tracks for tick, status, value, _ in track if status == META
    ]
    ticks = np.array([row[:2] for row in rows], dtype=np.int64).reshape(-1, 2)
    onset, offset = _seconds(ticks, division, tempos).T
    columns = np.array([row[2:] for row in rows], dtype=np.int64).reshape(-1, 5).T
    notes = Notes(onset, offset, *columns)
    times = _seconds(np.array([row[0] for row in changes], np.int64), division, tempos)
    pedals = [
        (float(time), instrument, number, value)
        for time, (_, instrument, number, value) in zip(times, changes, strict=True)
    ]
    return notes[np.argsort(notes.instrument, kind="stable")], pedals, unended


def _parse(data: bytes) -> tuple[int, list[list[Event]]]:
    """Returns the division of the header (ticks per beat, or SMPTE) and the events of every track.

    Raises:
        ValueError, IndexError, struct.error: not a MIDI file, or one that is cut short.
    """
    if data[:4] != b"MThd"[: len(data)]:
        raise ValueError("MThd not found at its start")
    size, kind, n_tracks, division = struct.unpack_from(">4xLHHH", data)
    if kind == 2 and n_tracks > 1:
        raise ValueError(f"type 2, {n_tracks} separate pieces; save each as a file of its own")
    if division & 0x7FFF == 0 or (division & 0x8000 and not division & 0xFF):
        raise ValueError("its header gives 0 ticks per beat")
    tracks: list[list[Event]] = []
    place = 8 + size
    while len(tracks) < n_tracks or data[place : place + 4] == b"MTrk":
        name, size = struct.unpack_from(">4sL", data, place)
        place += 8
        if place + size > len(data):
            raise ValueError(f"it is cut short: {place + size - len(data):,} bytes are missing")
        if name == b"MTrk":  # chunks of other kinds are skipped
            tracks.append(_track_events(data[place : place + size]))
        place += size
    if data[place : place + 4] == b"MThd":
        raise ValueError(
            f"a second MIDI file begins at byte {place}; save each as a file of its own"
        )
    return division, tracks


def _track_events(data: bytes) -> list[Event]:
    """Returns the channel messages and tempo changes of one track.

    A tempo change has status META and its microseconds per beat in place of the first data byte.
    """
    events: list[Event] = []
    tick, place, running = 0, 0, 0
    while place < len(data):
        delta, place = _variable_length(data, place)
        tick += delta
        status = running
        if data[place] & 0x80:
            status, place = data[place], place + 1
            running = running if status == META else status
        if status == META:
            size, start = _variable_length(data, place + 1)
            if data[place] == SET_TEMPO:
                tempo = int.from_bytes(data[start : start + 3])
                if size != 3 or not tempo:
                    raise ValueError(f"a tempo of 0 at tick {tick}")
                events.append((tick, META, tempo, 0))
            place = start + size
        elif status in (SYSEX, SYSEX_END):
            size, start = _variable_length(data, place)
            place = start + size
        else:
            size = DATA_BYTES.get(status if status > META - 16 else status & 0xF0, -1)
            values = data[place : place + size]
            if size < 0 or len(values) < size or max(values, default=0) > 127:
                raise ValueError(f"unexpected byte {data[place - 1]:#04x} at tick {tick}")
            place += size
            if status < SYSEX:
                events.append((tick, status, values[0], values[-1]))
    if place > len(data):
        raise ValueError("an event is longer than its track")
    return events


def _variable_length(data: bytes, place: int) -> tuple[int, int]:
    """Returns the number at `place`, 7 bits per byte and at most 4 bytes, and the place behind it."""
    number = 0
    for length in range(1, 5):
        byte = data[place + length - 1]
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            return number, place + length
    raise ValueError("a number of more than 4 bytes")


def _pair_notes(
    tracks: list[list[Event]],
) -> tuple[list[tuple[int, ...]], list[tuple[int, int, int, int]], int]:
    """Pairs note-ons with note-offs as pretty_midi does.

    A note-off ends all open notes of its channel and pitch that began at an earlier tick. An
    instrument is a (program, channel, track), in the order in which their first notes end. Pedal
    changes in front of a channel's first note belong to all its instruments of that track.

    Returns:
        Rows (tick of onset, tick of offset, and the columns of Notes from pitch on); rows (tick,
        instrument, SUSTAIN, value); and the number of note-ons that gave no note.

    Source: pretty_midi.PrettyMIDI._load_instruments.
    """
    rows: list[tuple[int, ...]] = []
    instruments: dict[tuple[int, int, int], int] = {}
    pedals: list[list[tuple[int, int]]] = []  # of each instrument
    early: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    note_ons = 0
    for number, events in enumerate(tracks):
        open_notes: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        programs = [0] * 16
        for tick, status, first, second in events:
            kind, channel = status & 0xF0, status & 0x0F
            key = (programs[channel], channel, number)
            if kind == NOTE_ON and second:
                open_notes[channel, first].append((tick, second))
                note_ons += 1
            elif kind in (NOTE_ON, NOTE_OFF):
                begun = open_notes.pop((channel, first), [])
                ended = [note for note in begun if note[0] < tick]
                if ended and key not in instruments:
                    instruments[key] = len(instruments)
                    pedals.append(early.get((channel, number), []))
                if 0 < len(ended) < len(begun):  # the others begin at this very tick
                    open_notes[channel, first] = begun[len(ended) :]
                for onset, velocity in ended:
                    played_by = key[0], channel == DRUM_CHANNEL, instruments[key]
                    rows.append((onset, tick, first, velocity, *played_by))
            elif kind == PROGRAM_CHANGE:
                programs[channel] = first
            elif kind in (CONTROL_CHANGE, PITCH_BEND):
                held = pedals[instruments[key]] if key in instruments else early[channel, number]
                if kind == CONTROL_CHANGE and first == SUSTAIN:
                    held.append((tick, second))
    if sum(map(len, pedals)) > MAX_PEDALS:  # instruments of one channel and track share them
        raise ValueError(f"it has more than {MAX_PEDALS:,} pedal changes")
    changes = [
        (tick, number, SUSTAIN, value) for number, held in enumerate(pedals) for tick, value in held
    ]
    return rows, changes, note_ons - len(rows)


def _seconds(ticks: np.ndarray, division: int, tempos: list[tuple[int, int]]) -> np.ndarray:
    """Returns the time of each tick, in the arithmetic of pretty_midi.

    Args:
        ticks: int64, any shape.
        division: of the header: ticks per beat, or SMPTE frames per second and ticks per frame.
        tempos: (tick, microseconds per beat), in any order of ticks.
    """
    if division & 0x8000:  # the high byte is a negative number of frames per second
        frames_per_second = 256 - (division >> 8)
        frame_seconds = 1001 / 30000 if frames_per_second == 29 else 1 / frames_per_second
        return ticks * (frame_seconds / (division & 0xFF))
    starts, bases, scales = [0], [0.0], [60.0 / (120.0 * division)]
    for tick, tempo in sorted(tempos, key=lambda change: change[0]):
        scale = 60.0 / ((6e7 / tempo) * division)
        if tick == 0:
            scales = [scale]
        elif scale != scales[-1]:
            bases.append(bases[-1] + scales[-1] * (tick - starts[-1]))
            starts.append(tick)
            scales.append(scale)
    piece = np.searchsorted(starts, ticks, side="right") - 1
    elapsed = np.array(scales)[piece] * (ticks - np.array(starts)[piece])
    return np.asarray(np.array(bases)[piece] + elapsed)


def apply_sustain(notes: Notes, control_changes: Iterable[tuple[float, int, int, int]]) -> Notes:
    """Extends notes by the sustain pedal of their own instrument.

    A note whose key is released while the pedal is down sounds until the pedal goes up, until the
    same pitch is struck again, or until the last event. A note that the next one of its pitch cuts
    to no length is dropped. Of equal times, pedal changes come first, then onsets, then offsets.

    Args:
        notes: any notes; drums are left as they are.
        control_changes: rows (time in seconds, instrument, controller number, value 0-127).
    Returns:
        The notes with later offsets.

    Source: note_seq.sequences_lib.apply_sustain_control_changes.
    """
    pedal_down, pedal_up, note_on, note_off = range(4)
    rows = zip(notes.onset.tolist(), notes.offset.tolist(), notes.instrument.tolist(), strict=True)
    pitched = [(i, *row) for i, row in enumerate(rows) if not notes.is_drum[i]]
    events = [(onset, note_on, instrument, i) for i, onset, _, instrument in pitched]
    events += [(offset, note_off, instrument, i) for i, _, offset, instrument in pitched]
    events += [
        (time, pedal_down if value >= 64 else pedal_up, instrument, -1)
        for time, instrument, number, value in control_changes
        if number == SUSTAIN
    ]
    events.sort(key=lambda event: event[:2])
    offset, kept, pitch = notes.offset.copy(), np.ones(len(notes), bool), notes.pitch.tolist()
    pedals: set[int] = set()  # instruments whose pedal is down
    # Notes in the order of their onsets; dicts in place of lists, to remove one in constant time.
    sounding: defaultdict[tuple[int, int], dict[int, None]] = defaultdict(dict)
    released: defaultdict[int, dict[int, None]] = defaultdict(dict)  # held by the pedal alone
    time = 0.0
    for time, kind, instrument, i in events:
        if kind == pedal_down:
            pedals.add(instrument)
        elif kind == pedal_up:
            pedals.discard(instrument)
            for held in released.pop(instrument, ()):
                offset[held] = time
                del sounding[instrument, pitch[held]][held]
        elif kind == note_on:
            same_pitch = sounding[instrument, pitch[i]]
            if instrument in pedals:
                for before in same_pitch:
                    offset[before] = time
                    kept[before] = notes.onset[before] < time
                    released[instrument].pop(before, None)
                same_pitch.clear()
            same_pitch[i] = None
        elif i in sounding[instrument, pitch[i]]:
            if instrument in pedals:
                released[instrument][i] = None
            else:
                del sounding[instrument, pitch[i]][i]
    for held in (i for group in released.values() for i in group):
        offset[held] = time
    return replace(notes, offset=offset)[kept]


def write_midi(notes: Notes, path: str | Path, beats: Beats | None = None) -> None:
    """Writes notes as a MIDI file, which appears under its name only when it is complete.

    Args:
        notes: in any order; see `midi_bytes`.
        path: of the file; an existing one is replaced.
        beats: see `midi_bytes`.
    Raises:
        UserError: see `midi_bytes`.
        OSError: the file cannot be written.
    """
    write_atomically(Path(path), midi_bytes(notes, beats=beats))


def midi_bytes(
    notes: Notes, text: str = "", seconds: float = 0.0, beats: Beats | None = None
) -> bytes:
    """Encodes notes as a MIDI file, one track per instrument, named after its program.

    Times are rounded to 1 ms, and a shorter note lasts 1 ms. Pieces longer than 2.5 hours have
    ticks of 2, 5 or 10 ms, because many readers refuse files of more than 10 million ticks. With
    `beats` a tick is 1/1920 of a quarter note (in long pieces 1/960 to 1/48), the tempo changes at
    every beat, and time signatures put bar lines at those of `beats`. The time of each beat is exact
    to 1 microsecond. A MIDI
    track cannot hold two sounding notes of one pitch, so these are separated as by
    `separate_equal_pitches`. A MIDI port has channels for 15 instruments and drums. More instruments
    are written for further ports: every track then begins with the number of its port. All drums are
    on the first port.

    Args:
        notes: in any order.
        text: of a text event at the beginning, such as the name of the command; none if empty.
        seconds: where the file ends, unless a note ends later.
        beats: beats and bars of the recording; None: a constant TEMPO_BPM in 4/4.
    Raises:
        UserError: a note ends after MAX_SECONDS.
    """
    import mido

    last = max(float(notes.offset.max(initial=0.0)), seconds)
    if not last <= MAX_SECONDS:
        raise UserError(
            f"a note ends after {last:,.0f} s; MIDI files are written for at most a day "
            f"({MAX_SECONDS:,.0f} s); split the recording"
        )
    resolutions = TICKS_PER_BEAT if beats is None else TICKS_PER_QUARTER
    beats = beats or Beats(np.array([0.0, 240 / TEMPO_BPM]), np.array([0, 1]), units=4)
    quarters = float(beats.to_quarters(np.array(last)))
    resolution = next((t for t in resolutions if quarters * t <= MAX_TICKS), resolutions[-1])
    onset, offset = (
        np.rint(beats.to_quarters(time) * resolution) for time in (notes.onset, notes.offset)
    )
    ticks = separate_equal_pitches(
        replace(notes, onset=onset, offset=np.maximum(offset, onset + 1))
    )
    end = round(float(beats.to_quarters(np.array(seconds))) * resolution)
    end = max(end, int(ticks.offset.max(initial=0)))
    voices = np.stack([ticks.instrument, ticks.program, ticks.is_drum], axis=1)
    parts = np.unique(voices, axis=0).tolist()
    ports = _ports_and_channels([bool(is_drum) for _, _, is_drum in parts])
    midi = mido.MidiFile(type=1, ticks_per_beat=resolution)
    timing = _tempos_and_signatures(beats, resolution)
    timing += [(0, mido.MetaMessage("text", text=text))] if text else []
    timing = sorted((event for event in timing if event[0] <= end), key=lambda event: event[0])
    midi.tracks.append(_timed(timing, end))
    for (instrument, program, is_drum), (port, channel) in zip(parts, ports, strict=True):
        name = instrument_name(DRUMS if is_drum else program)
        first = [mido.MetaMessage("track_name", name=name)]
        first += [mido.MetaMessage("midi_port", port=port)] if max(ports)[0] else []
        first += [mido.Message("program_change", program=program, channel=channel)]
        mine = ticks[(voices == (instrument, program, is_drum)).all(axis=1)]
        ends = np.zeros_like(mine.velocity)
        rows = np.concatenate([
            np.stack([mine.onset.astype(np.int64), mine.pitch, mine.velocity], axis=1),
            np.stack([mine.offset.astype(np.int64), mine.pitch, ends], axis=1),
        ])  # fmt: skip
        events = [
            (tick, mido.Message("note_on", note=pitch, velocity=velocity, channel=channel))
            for tick, pitch, velocity in sorted(rows.tolist())  # an end before a beginning
        ]
        midi.tracks.append(_timed([*((0, event) for event in first), *events], end))
    file = io.BytesIO()
    midi.save(file=file)
    return file.getvalue()


def _tempos_and_signatures(beats: Beats, resolution: int) -> list[tuple[int, Any]]:
    """Returns (tick, event): the tempos of the beats, where they change, and the time signatures.

    Each tempo is rounded to a microsecond per quarter note, so that the next beat is closest to its
    time. Errors do not accumulate.
    """
    import mido

    events, now, last = list[tuple[int, Any]](), 0.0, 0
    ticks = beats.beat_grid * resolution // GRID  # of a beat
    for k, following in enumerate(beats.times[1:].tolist()):
        tempo = round((following - now) * 1e6 / beats.quarters)
        now += tempo * beats.quarters / 1e6
        if tempo != last:
            events.append((k * ticks, mido.MetaMessage("set_tempo", tempo=tempo)))
        last = tempo
    clicks, before = 96 // beats.denominator * (3 if beats.units == 3 else 1), 0
    for line, numerator in zip(beats.bars.tolist(), beats.numerators.tolist(), strict=False):
        if numerator != before:
            signature = mido.MetaMessage(
                "time_signature", numerator=numerator, denominator=beats.denominator, clocks_per_click=clicks
            )  # fmt: skip
            events.append((line * ticks, signature))
        before = numerator
    return events


def _ports_and_channels(is_drum: Sequence[bool]) -> list[tuple[int, int]]:
    """Returns the MIDI port and the channel of every instrument."""
    places, melodic = list[tuple[int, int]](), 0
    for drum in is_drum:
        port, channel = divmod(melodic, CHANNELS - 1)
        places.append((0, DRUM_CHANNEL) if drum else (port, channel + (channel >= DRUM_CHANNEL)))
        melodic += not drum
    return places


def _timed(events: Sequence[tuple[int, Any]], end: int) -> Any:
    """Returns a track of mido from (tick, event) in order of ticks. It ends at the tick `end`."""
    import mido

    track, now = mido.MidiTrack(), 0
    for tick, event in [*events, (end, mido.MetaMessage("end_of_track"))]:
        track.append(event.copy(time=tick - now))
        now = tick
    return track


def instrument_name(program: int) -> str:
    """Returns the name of a program in General MIDI, or "Drums" for DRUMS."""
    import pretty_midi

    return "Drums" if program == DRUMS else str(pretty_midi.program_to_instrument_name(program))
