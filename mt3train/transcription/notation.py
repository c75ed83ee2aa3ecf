"""Writes quantised notes as a MusicXML score, with music21.

Each instrument is a part, keyboards and harps with two staves, drums on a percussion staff. The page
is meant to be read: each staff has one voice of chords. A note therefore ends where the next one on
its staff begins, and short gaps are closed. MIDI keeps the true lengths. Key signature and spelling
are estimates from the pitches of the whole piece.

The original has no scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3data.errors import require_package
from mt3data.music.beats import GRID, Beats
from mt3data.music.midi import DRUMS, instrument_name
from mt3data.music.notes import Notes

if TYPE_CHECKING:
    from music21 import stream

TWO_STAVES = {*range(8), *range(16, 24), 46}  # pianos, organs, harp
OCTAVE_LOWER = range(24, 40)  # guitars and basses are written an octave above their sound
MIDDLE_C = 60  # the lowest pitch of an upper staff
BASS_CLEF = 57  # staves whose median pitch is lower have a bass clef
EIGHTH, SMALL_GAP = GRID // 2, GRID // 4
# Lengths of single notes, in positions of the grid: plain and dotted ones, and those of triplets.
PLAIN = (192, 144, 96, 72, 48, 36, 24, 18, 12, 6, 3)
TRIPLETS = (32, 16, 8, 4)
# Place on the staff and note head of drums, by General MIDI number; others are at C5.
DRUM_PLACES = {
    **dict.fromkeys((35, 36), ("F4", "normal")), 37: ("C5", "x"), 38: ("C5", "normal"), 40: ("C5", "normal"),
    39: ("C5", "slash"), 41: ("G4", "normal"), 43: ("A4", "normal"), 45: ("B4", "normal"), 47: ("D5", "normal"),
    48: ("D5", "normal"), 50: ("E5", "normal"), 42: ("G5", "x"), 44: ("D4", "x"), 46: ("G5", "circle-x"),
    **dict.fromkeys((49, 52, 55, 57), ("A5", "x")), **dict.fromkeys((51, 53, 59), ("F5", "x")),
    54: ("E5", "diamond"), 56: ("E5", "triangle"),
}  # fmt: skip

Chord = tuple[int, int, tuple[int, ...]]  # begin and end on the grid, pitches


def musicxml_bytes(notes: Notes, beats: Beats, title: str, text: str = "") -> bytes:
    """Encodes notes as a MusicXML score.

    Args:
        notes: quantised by `beats`, see mt3data.music.beats.quantize.
        beats: of the recording.
        title: of the score.
        text: of a comment at its beginning, which holds no "--".

    Raises:
        UserError: music21 is missing.
    """
    require_package("music21", "notation", "MusicXML")
    from music21 import layout, metadata, stream

    lines = beats.bars * beats.beat_grid
    begin, end = (
        np.rint(beats.to_quarters(t) * GRID).astype(np.int64) for t in (notes.onset, notes.offset)
    )
    kept = begin < lines[-1]  # the last bar line is not before the end of the recording
    notes, begin, end = notes[kept], begin[kept], np.minimum(end[kept], lines[-1])
    number = np.where(notes.is_drum, DRUMS, notes.program)
    lines = lines[: np.searchsorted(lines, end.max(initial=1)) + 1]  # of the bars that hold notes
    sharps = _sharps(notes)
    score = stream.Score()
    score.metadata = metadata.Metadata(title=title)
    order = sorted(np.unique(number).tolist(), key=lambda one: (one == DRUMS, one))  # drums last
    for program in order or [0]:
        mine = number == program
        pitch = notes.pitch[mine]
        if program == DRUMS:  # a hit has no length; it is written up to the next beat
            end[mine] = (begin[mine] // beats.beat_grid + 1) * beats.beat_grid
        upper = pitch >= (MIDDLE_C if program in TWO_STAVES else 0)
        staves = list[Any]()
        for which in (upper, ~upper) if program in TWO_STAVES else (upper,):
            chords = merge_to_chords(begin[mine][which], end[mine][which], pitch[which], lines)
            clef = None if program not in TWO_STAVES else ("bass" if staves else "treble")
            staff = _staff(chords, beats, lines, sharps, clef, program, pitch, not score.parts)
            staff.partName = instrument_name(program)
            staves.append(staff)
            score.insert(0, staff)
        if len(staves) > 1:
            group = layout.StaffGroup(staves, name=staves[0].partName, symbol="brace")
            score.insert(0, group)
    return _write(score, text)


def merge_to_chords(
    begin: np.ndarray, end: np.ndarray, pitch: np.ndarray, lines: np.ndarray
) -> list[Chord]:
    """Merges the notes of a staff to one voice of chords, in order of time.

    Notes that begin together are a chord, which lasts as long as its longest note, but not after the
    next chord begins. A gap before the next chord or the end of the bar is closed if it is as short as
    SMALL_GAP or half of the chord. Other ends are moved to the next eighth, except those of triplets.

    Args:
        begin: positions on the grid, int64, shape (n,).
        end: as begin, later.
        pitch: of the notes.
        lines: positions of all bar lines, the last not before the end of any note.
    """
    chords = []
    onsets = np.unique(begin).tolist()
    for start, following in zip(onsets, [*onsets[1:], int(lines[-1])], strict=False):
        which = begin == start
        stop = int(end[which].max())
        goal = min(following, int(lines[np.searchsorted(lines, stop)]))
        if following <= stop:
            stop = following
        elif goal - stop <= max(SMALL_GAP, (stop - start) // 2):
            stop = goal
        elif start % SMALL_GAP == stop % SMALL_GAP == 0:  # no triplet
            stop = min(goal, -(-stop // EIGHTH) * EIGHTH)
        chords.append((start, stop, tuple(sorted(set(pitch[which].tolist())))))
    return chords


def split_length(begin: int, end: int, bar: int, beat: int) -> Iterator[tuple[int, int]]:
    """Splits a time within a bar into lengths of single notes, so that beats can be seen.

    Args:
        begin: position on the grid.
        end: as begin, later, in the same bar.
        bar: position of the bar's beginning.
        beat: positions in a beat.

    Yields:
        Begin and end of each part.
    """
    while begin < end:
        within = (begin - bar) % beat
        left = end - begin
        whole = [n for n in PLAIN if n <= left and n >= beat and n % beat == 0]
        if not within and whole:
            length = whole[0]
        elif within * 2 == beat and left == beat and beat in PLAIN:
            length = beat  # a syncopation
        else:
            left = min(left, beat - within)
            plain = [n for n in PLAIN if n <= left and within % min(n, 12) == 0 and left % 3 == 0]
            triplets = [n for n in TRIPLETS if n <= left and within % min(n, 8) == 0]
            exact = [n for n in (*plain, *triplets) if n == left]
            length = (exact or sorted([*plain, *triplets], reverse=True) or [left])[0]
        yield begin, begin + length
        begin += length


def _staff(
    chords: list[Chord], beats: Beats, lines: np.ndarray, sharps: int, clef: str | None, program: int,
    pitches: np.ndarray, is_first: bool,
) -> stream.PartStaff:  # fmt: skip
    """Returns a staff of music21 with all bars."""
    from music21 import key, meter, note, stream, tempo
    from music21 import tie as ties

    staff = stream.PartStaff()
    numerators = beats.numerators[: len(lines) - 1].tolist()
    has_pickup = len(numerators) > 1 and numerators[0] < numerators[1]
    shown, place = 0, 0
    for n, (start, stop) in enumerate(zip(lines[:-1].tolist(), lines[1:].tolist(), strict=True)):
        measure = stream.Measure(number=n if has_pickup else n + 1)
        numerator = numerators[1] if n == 0 and has_pickup else numerators[n]
        if n == 0:
            measure.insert(0, _clef(clef, program, pitches))
            if program != DRUMS:
                measure.insert(0, key.KeySignature(sharps))
            if is_first:
                bpm = 60 / float(np.median(np.diff(beats.times)))
                measure.insert(0, tempo.MetronomeMark(number=round(bpm), referent=beats.quarters))
        if numerator != shown:
            measure.timeSignature = meter.TimeSignature(f"{numerator}/{beats.denominator}")
            shown = numerator
        if n == 0 and has_pickup:
            missing = (numerators[1] - numerators[0]) * 4 / beats.denominator
            measure.paddingLeft = missing
        now = start
        if place == len(chords) or chords[place][0] >= stop:  # an empty bar
            rest = note.Rest(quarterLength=Fraction(stop - start, GRID))
            rest.fullMeasure = not (n == 0 and has_pickup)
            measure.insert(0, rest)
            now = stop
        while place < len(chords) and chords[place][0] < stop:
            begin, end, pitch = chords[place]
            _add_rests(measure, now, max(begin, start), start, beats.beat_grid)
            now = min(end, stop)
            for a, b in split_length(max(begin, start), now, start, beats.beat_grid):
                element = _element(pitch, sharps, program == DRUMS)
                element.quarterLength = Fraction(b - a, GRID)
                if (a, b) != (begin, end) and program != DRUMS:
                    kind = "start" if a == begin else "stop" if b == end else "continue"
                    element.tie = ties.Tie(kind)
                if program != DRUMS or a == begin:
                    measure.insert(Fraction(a - start, GRID), element)
                else:
                    _add_rests(measure, a, b, start, beats.beat_grid)
            if end > stop:
                break  # it continues in the next bar
            place += 1
        _add_rests(measure, now, stop, start, beats.beat_grid)
        staff.append(measure)
    for measure in staff.getElementsByClass(stream.Measure):
        stream.makeNotation.makeTupletBrackets(measure, inPlace=True)
    staff.makeBeams(inPlace=True)
    staff.makeAccidentals(inPlace=True)
    return staff


def _add_rests(measure: stream.Measure, begin: int, end: int, bar: int, beat: int) -> None:
    from music21 import note

    for a, b in split_length(begin, end, bar, beat):
        rest = note.Rest(quarterLength=Fraction(b - a, GRID))
        measure.insert(Fraction(a - bar, GRID), rest)


def _element(pitches: tuple[int, ...], sharps: int, is_drum: bool) -> Any:
    """Returns a note or chord of music21."""
    from music21 import chord, note, percussion

    if is_drum:
        places = sorted({DRUM_PLACES.get(pitch, ("C5", "normal")) for pitch in pitches})
        heads = []
        for name, head in places:
            heads.append(note.Unpitched(displayName=name))
            heads[-1].notehead = head
        element = percussion.PercussionChord(heads) if len(heads) > 1 else heads[0]
        element.stemDirection = "up"
        return element
    spelled = [_spell(pitch, sharps) for pitch in pitches]
    return chord.Chord(spelled) if len(spelled) > 1 else note.Note(spelled[0])


def _spell(pitch: int, sharps: int) -> Any:
    """Returns a pitch of music21, spelled near to the key on the line of fifths.

    Of all spellings it is the one between three fifths below and eight above the key's tonic: Eb to
    G# in C major.
    """
    from music21 import pitch as pitches

    lowest = sharps - 3
    fifths = lowest + (7 * pitch - lowest) % 12
    step, alter = "FCGDAEB"[(fifths + 1) % 7], (fifths + 1) // 7
    spelled = pitches.Pitch(step, octave=(pitch - alter) // 12 - 1)
    if alter:
        spelled.accidental = pitches.Accidental(alter)
    return spelled


def _sharps(notes: Notes) -> int:
    """Estimates the sharps of the key signature (negative: flats) from lengths of pitch classes."""
    from music21 import note, stream

    pitched = ~notes.is_drum
    if not pitched.any():
        return 0
    length = (notes.offset - notes.onset)[pitched]
    weight = np.bincount(notes.pitch[pitched] % 12, length, minlength=12)
    counted: Any = stream.Stream()
    for pitch_class, seconds in enumerate((weight / weight.sum() * 100).tolist()):
        if seconds > 0:
            counted.append(note.Note(60 + pitch_class, quarterLength=seconds))
    sharps = int(counted.analyze("key").sharps)
    return (sharps + 5) % 12 - 5  # five flats to six sharps


def _clef(name: str | None, program: int, pitches: np.ndarray) -> Any:
    from music21 import clef

    if program == DRUMS:
        return clef.PercussionClef()
    is_low = float(np.median(pitches)) < BASS_CLEF if len(pitches) else False
    if name is None and program in OCTAVE_LOWER:
        return clef.Treble8vbClef() if program < 32 else clef.Bass8vbClef()
    return clef.BassClef() if name == "bass" or (name is None and is_low) else clef.TrebleClef()


def _write(score: stream.Score, text: str) -> bytes:
    """Returns the file that music21 writes, with a comment and the same bytes for the same score."""
    with TemporaryDirectory(prefix="mt3train-") as folder:
        data = Path(score.write("musicxml", Path(folder) / "score.musicxml", makeNotation=False))
        xml = data.read_text("utf-8")
    xml = re.sub(r"\s*<encoding-date>.*?</encoding-date>", "", xml)
    for n, name in enumerate(re.findall(r'<score-part id="(\w+)"', xml), 1):
        xml = xml.replace(f'id="{name}"', f'id="P{n}"')  # a random number
    head, _, rest = xml.partition("?>")
    return f"{head}?>\n<!-- {text} -->{rest}".encode()
