"""The players of a composed piece: bass, chords, pads, ostinati, melodies, piano textures and drums.

Every player reads the piece and returns its notes in beats. `compose` converts beats to seconds and accents
to velocities.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from mt3data.synth.piece import Chord, Note, Piece

KICK, SIDE_STICK, SNARE, CLOSED_HAT, OPEN_HAT = 36, 37, 38, 42, 46
LOW_TOM, MID_TOM, HIGH_TOM, CRASH, RIDE, TAMBOURINE = 41, 45, 48, 49, 51, 54
# Drum grooves, one character per sixteenth of a 4/4 bar: X accented, x played, o ghost, . silent.
GROOVES: tuple[dict[int, str], ...] = (
    {KICK: "X.......X.......", SNARE: "....X.......X...", CLOSED_HAT: "X.x.X.x.X.x.X.x."},
    {KICK: "X.....x.X.x.....", SNARE: "....X..o.o..X..o", CLOSED_HAT: "XoxoXoxoXoxoXoxo"},
    {KICK: "X...X...X...X...", SNARE: "....X.......X...", OPEN_HAT: "..x...x...x...x."},
    {KICK: "X.........x.....", SIDE_STICK: "....X.......X...", RIDE: "X...x...X...x..."},
    {KICK: "X..x..x.X..x..x.", SIDE_STICK: "X..x..x...x.x...", TAMBOURINE: "xoXoxoXoxoXoxoXo"},
    {KICK: "X..x....X.......", SNARE: "....X..o....X.x.", RIDE: "X.x.X.x.X.x.X.x."},
)
WALTZES: tuple[dict[int, str], ...] = (
    {KICK: "X...........", SNARE: "....x...x...", CLOSED_HAT: "X...x.x.x.x."},
    {KICK: "X.......x...", SIDE_STICK: "....X...o...", RIDE: "X...x...x.x."},
)
STEPS = (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 8)  # lengths of notes, in beats
MIN_REPEAT_SECONDS = 0.11
STRENGTH = {"X": 0.8, "x": 0.0, "o": -1.6}


Player = Callable[[Piece, random.Random], list[Note]]


def _voicing(chord: Chord, centre: float) -> list[int]:
    """Returns the chord's tones, ascending, each in the octave nearest to `centre`."""
    return sorted(round((centre - tone) / 12) * 12 + tone for tone in set(chord.tones))


def _near(tones: tuple[int, ...], pitch: float, low: int, high: int) -> int:
    """Returns the pitch within low..high nearest to `pitch` whose pitch class is one of `tones`."""
    allowed = [p for p in range(low, high + 1) if p % 12 in tones]
    return min(allowed, key=lambda p: (abs(p - pitch), p))


def bass(piece: Piece, rng: random.Random) -> list[Note]:
    """Plays a bass line: held roots, repeated eighths, walking, syncopated, fifths or octaves."""
    style = rng.choice(("roots", "eighths", "fifths", "walking", "syncopated", "octaves"))
    notes, chords = [], piece.chords
    for chord, following in zip(chords, [*chords[1:], chords[-1]], strict=True):
        root = _near(chord.tones[:1], 38, 33, 44)
        fifth, goal = root + (chord.tones[2] - chord.tones[0]) % 12, following.tones[:1]
        if style == "roots" or chord is chords[-1]:
            line = [(0.0, chord.beats * 0.95, root)]
        elif style == "eighths":
            line = [(k / 2, rng.choice((0.3, 0.45)), root) for k in range(int(chord.beats * 2))]
        elif style == "syncopated":
            line = [(0.0, 1.3, root), (1.5, 0.45, root), (2.5, 0.4, fifth), (3.0, 0.9, root)]
        elif style == "walking":
            target = _near(goal, root, 33, 50)
            line = [(float(k), 0.9, _near(piece.scale, root + (target - root) * k / chord.beats
                     + rng.choice((-2, 0, 2)) * (k > 0), 31, 52)) for k in range(int(chord.beats))]  # fmt: skip
        else:
            other = fifth if style == "fifths" else root + 12
            line = [(float(k), 0.8, (root, other)[k % 2]) for k in range(int(chord.beats))]
        notes += [Note(chord.beat + at, length, pitch, 0.6 * (at == 0))
                  for at, length, pitch in line if at < chord.beats]  # fmt: skip
    return notes


def comp(piece: Piece, rng: random.Random, strum: float) -> list[Note]:
    """Plays block chords in one rhythm; strum > 0 spreads the tones, in beats per string."""
    rhythm = rng.choice((
        ((0.0, 3.8),), ((0.0, 1.9), (2.0, 1.9)), ((0.0, 0.9), (1.0, 0.9), (2.0, 0.9), (3.0, 0.9)),
        ((0.5, 0.3), (1.5, 0.3), (2.5, 0.3), (3.5, 0.3)), ((0.0, 1.4), (1.5, 1.4), (3.0, 0.9)),
        ((0.0, 0.9), (1.0, 0.4), (1.5, 0.4), (2.5, 0.4), (3.0, 0.4), (3.5, 0.4)),
    ))  # fmt: skip
    notes = []
    for chord in piece.chords:
        voices = _voicing(chord, 57)
        if strum:
            voices = sorted({*voices, voices[0] + 12, voices[-1] - 12})
        for at, length in rhythm:
            if at < chord.beats:
                down = int(at * 2) % 2 == 0
                order = voices if down else voices[::-1]
                notes += [Note(chord.beat + at + strum * k, min(length, chord.beats - at), pitch,
                          0.3 * (at == 0)) for k, pitch in enumerate(order)]  # fmt: skip
    return notes


def held(piece: Piece, rng: random.Random) -> list[Note]:
    """Plays pads: every tone is held as long as the harmony keeps it, often over several chords."""
    sounding: dict[int, float] = {}
    notes, centre = [], rng.choice((55, 60, 64))
    for chord in [*piece.chords, None]:
        tones = set(_voicing(chord, centre)) if chord else set()
        now = chord.beat if chord else piece.bars[-1].beat + piece.beats
        for pitch in sorted(set(sounding) - tones):
            start = sounding.pop(pitch)
            notes.append(Note(start, now - start, pitch, -0.5))
        for pitch in tones:
            sounding.setdefault(pitch, now)
    return notes


def broken(piece: Piece, rng: random.Random, low: int, step: float) -> list[Note]:
    """Plays broken chords: chord tones over three octaves from `low` up, `step` beats apart."""
    pattern = rng.choice(((0, 1, 2, 3, 4, 3, 2, 1), (0, 2, 1, 2), (0, 2, 4, 5), (5, 4, 3, 2, 1, 0),
                          (0, 0, 2, 2, 4, 4, 2, 2)))  # fmt: skip
    notes = []
    for bar in piece.bars:
        # Quiet sections thin out, the last bar holds its chord.
        pace = piece.beats if bar is piece.bars[-1] else step * (2 if bar.energy < 0.5 else 1)
        for chord in bar.chords:
            ladder = [p for p in range(low, low + 36) if p % 12 in chord.tones]
            for k in range(max(1, int(chord.beats / pace + 0.01))):
                length = pace * rng.choice((0.6, 0.9, 1.6))
                accent = 0.5 * (k == 0)
                pitch = ladder[pattern[k % len(pattern)]]
                notes.append(Note(chord.beat + k * pace, length, pitch, accent))
    return notes


def melody(piece: Piece, rng: random.Random, pitches: tuple[int, int],
            slow: bool = False) -> list[Note]:  # fmt: skip
    """Plays two rhythmic motifs, which return over changing chords, with rests.

    Args:
        pitches: the lowest and the highest.
        slow: play longer notes, as for a second voice.
    """
    low, high = pitches
    lengths = (1.0, 2.0, 3.0, 1.5) if slow else (0.5, 0.5, 0.25, 1.0, 1.5, 0.75, 2.0)
    motifs = []
    for _ in range(2):
        rhythm: list[float] = []
        while sum(rhythm) < piece.beats * 2:
            rhythm.append(rng.choice(lengths))
        moves = [rng.choice((-5, -2, -2, -1, 0, 0, 1, 2, 2, 3, 5)) for _ in rhythm]
        rests = [rng.random() < 0.14 for _ in rhythm]
        motifs.append(list(zip(rhythm, moves, rests, strict=True)))
    legato, pitch = rng.choice((0.7, 0.92, 1.0)), (low + high) / 2
    notes, silent = [], rng.random() < 0.5
    for pair in range(0, len(piece.bars), 2):
        bar = piece.bars[pair]
        if silent and (bar.section % 6 == (3 if slow else 0)):
            continue  # the intro, or the bridge for a second voice, is left to the others
        pitch = (pitch + (low + high) / 2) / 2  # a phrase comes back from where the last one ended
        beat, end = bar.beat, bar.beat + piece.beats * min(2, len(piece.bars) - pair)
        chords = [c for b in piece.bars[pair : pair + 2] for c in b.chords]
        for length, move, rest in motifs[bar.section % 2 if pair % 4 else 0]:
            if beat >= end:
                break
            chord = [c for c in chords if c.beat <= beat][-1]
            strong = beat % 1 == 0 and length >= 0.75
            goal = pitch + move if low <= pitch + move <= high else pitch - move
            pitch = _near(chord.tones if strong else piece.scale, goal, low, high)
            if not rest:
                accent = 0.5 * strong - 0.3 * (length < 0.5)
                notes.append(Note(beat, min(length, end - beat) * legato, int(pitch), accent))
            beat += length
    return notes


def drums(piece: Piece, rng: random.Random) -> list[Note]:
    """Plays one groove in quiet and one in loud bars, fills that close sections, crashes that open them."""
    grooves = rng.sample(WALTZES if piece.beats == 3 else GROOVES, 2)
    notes = []
    for bar in piece.bars[:-1]:
        if bar.first and bar.section:
            notes.append(Note(bar.beat, 0.25, CRASH, 0.8))
        fill_from = piece.beats - rng.choice((1, 1, 2)) if bar.last else piece.beats
        for drum, line in grooves[bar.energy > 0.65].items():
            for k, mark in enumerate(line):
                busy = mark != "o" or rng.random() < bar.energy
                if mark != "." and k / 4 < fill_from and busy:
                    notes.append(Note(bar.beat + k / 4, 0.2, drum, STRENGTH[mark]))
        for k in range(int(fill_from * 4), piece.beats * 4):
            drum = (SNARE, SNARE, HIGH_TOM, MID_TOM, LOW_TOM)[min(4, rng.randrange(6))]
            if rng.random() < 0.75:
                notes.append(Note(bar.beat + k / 4, 0.2, drum, rng.uniform(-0.5, 1)))
    return [*notes, *(Note(piece.bars[-1].beat, 0.25, drum, 0.8) for drum in (KICK, CRASH))]


def by_section(piece: Piece, rng: random.Random, players: Sequence[Player]) -> list[Note]:
    """Draws one of several players for every section, who plays its bars."""
    chosen = {section: rng.choice(players) for section in sorted({b.section for b in piece.bars})}
    notes = []
    for player in dict.fromkeys(chosen.values()):
        for note in player(piece, rng):
            if chosen[piece.bar_at(note.beat).section] is player:
                notes.append(note)
    return notes


def octaves(piece: Piece, rng: random.Random) -> list[Note]:
    """Plays the roots in octaves on every beat, low on a piano."""
    length = rng.choice((0.5, 0.95, 1.5))
    return [
        Note(chord.beat + k, length, root + octave, 0.4 * (k == 0))
        for chord in piece.chords
        for root in [_near(chord.tones[:1], 34, 28, 40)]
        for k in range(int(chord.beats))
        for octave in (0, 12)
    ]


def tremolo(piece: Piece, rng: random.Random) -> list[Note]:
    """Alternates two tones of every chord quickly."""
    step = rng.choice((0.125, 0.25)) if piece.tempo < 100 else 0.25
    notes, centre = [], rng.choice((48, 60))
    for chord in piece.chords:
        pair = rng.sample(_voicing(chord, centre), 2)
        notes += [Note(chord.beat + k * step, step * 1.1, pair[k % 2], -0.6)
                  for k in range(int(chord.beats / step))]  # fmt: skip
    return notes


def repeated(piece: Piece, rng: random.Random) -> list[Note]:
    """Repeats the tones of every chord in eighths or triplets."""
    step, centre = rng.choice((0.5, 1 / 3)), rng.choice((60, 67, 72))
    return [
        Note(chord.beat + k * step, step * 0.7, pitch, 0.3 * (k == 0) - 0.3)
        for chord in piece.chords
        for k in range(int(chord.beats / step + 0.01))
        for pitch in _voicing(chord, centre)
    ]


def figuration(piece: Piece, rng: random.Random, pitches: tuple[int, int]) -> list[Note]:
    """Repeats one figure of chord tones, in which no tone returns, at 3 to 13 notes a second.

    Args:
        pitches: the lowest and the highest; at least two octaves apart.
    """
    low, high = pitches
    rate = rng.uniform(3, 13)
    step = min(STEPS, key=lambda step: abs(piece.tempo / 60 / step - rate))
    n_tones, overlap = rng.choice((3, 4, 6, 6, 8)), rng.choice((0.5, 0.95, 1.0, 1.7))
    figure = rng.sample(range(8), n_tones)
    if rng.random() < 0.6:
        figure.sort(reverse=rng.random() < 0.4)
    notes, place = [], 0
    for chord in piece.chords:
        ladder = [pitch for pitch in range(low, high + 1) if pitch % 12 in chord.tones]
        place = min(max(0, place + rng.choice((-1, 0, 0, 1))), max(0, len(ladder) - 8))
        passing = rng.random() < 0.3
        for k in range(int(chord.beats / step + 0.01)):
            pitch = ladder[min(place + figure[k % n_tones], len(ladder) - 1)]
            if passing and k % 2:
                pitch = _near(piece.scale, pitch + rng.choice((-2, -1, 1, 2)), low, high)
            accent = 0.4 * (k % n_tones == 0) - 0.2
            notes.append(Note(chord.beat + k * step, step * overlap, pitch, accent))
    return notes


def stride(piece: Piece, rng: random.Random) -> list[Note]:
    """Plays a low root, or its octave, and a chord above it on the beats that follow."""
    centre, step, octave = rng.choice((50, 55, 58)), rng.choice((0.5, 1.0, 1.0)), rng.random() < 0.4
    notes = []
    for chord in piece.chords:
        root = _near(chord.tones[:1], 36, 26, 46)
        notes += [Note(chord.beat, step * 0.9, pitch, 0.4) for pitch in {root, root + 12 * octave}]
        for k in range(1, int(chord.beats / step + 0.01)):
            beat = chord.beat + k * step
            notes += [Note(beat, step * 0.6, pitch, -0.4) for pitch in _voicing(chord, centre)]
    return notes


def modulated(
    piece: Piece,
    rng: random.Random,
    parts: Sequence[list[Note]],
    ranges: Sequence[tuple[int, int]],
) -> list[list[Note]]:
    """Transposes every section to a key of its own and alters some notes by a semitone.

    Args:
        parts: the notes of several players, who change keys together.
        ranges: the lowest and the highest pitch of each part, at least an octave apart. Notes
            beyond them move by an octave.
    """
    keys = {section: rng.choice((-5, -4, -3, -2, -1, 0, 0, 0, 1, 2, 3, 4, 5))
            for section in sorted({bar.section for bar in piece.bars})}  # fmt: skip
    altered = rng.choice((0.0, 0.03, 0.1))

    def moved(note: Note, low: int, high: int) -> Note:
        pitch = note.pitch + keys[piece.bar_at(note.beat).section]
        pitch += rng.choice((-1, 1)) if rng.random() < altered else 0
        return note._replace(pitch=pitch + 12 * (pitch < low) - 12 * (pitch > high))

    return [
        [moved(note, *pitches) for note in notes]
        for notes, pitches in zip(parts, ranges, strict=True)
    ]


def without_quick_repeats(piece: Piece, notes: Sequence[Note]) -> list[Note]:
    """Leaves out notes that repeat a pitch within 0.11 s, as no pianist does."""
    last: dict[int, float] = {}
    kept = []
    for note in sorted(notes):
        time = piece.seconds(note.beat)
        if time - last.get(note.pitch, -1.0) >= MIN_REPEAT_SECONDS:
            kept.append(note)
            last[note.pitch] = time
    return kept


def runs(piece: Piece, rng: random.Random) -> list[Note]:
    """Plays scales up and down, some of them chromatic, turning at random."""
    tones = rng.choice((piece.scale, piece.scale, range(12)))
    ladder = [pitch for pitch in range(48, 103) if pitch % 12 in tones]
    step = rng.choice((0.25, 0.25, 1 / 3)) if piece.tempo < 120 else rng.choice((0.5, 1 / 3))
    place, direction, notes = len(ladder) // 2, 1, []
    for bar in piece.bars[:-1]:
        for k in range(int(piece.beats / step + 0.01)):
            notes.append(Note(bar.beat + k * step, step * 0.95, ladder[place], 0.4 * (k == 0)))
            if rng.random() < 0.12 or not 0 <= place + direction < len(ladder):
                direction = -direction
            place += direction
    return notes


def doubled(piece: Piece, rng: random.Random) -> list[Note]:
    """Plays a melody in octaves, in thirds or sixths, or with chord tones below."""
    line, style = melody(piece, rng, (64, 90)), rng.choice(("octaves", "thirds", "chords"))
    notes = list(line)
    for note in line:
        chord = piece.bar_at(note.beat).chords[0]
        if style == "octaves":
            below = [note.pitch - 12]
        elif style == "thirds":
            below = [_near(piece.scale, note.pitch - rng.choice((3, 4, 8, 9)), 40, 100)]
        else:
            below = [p for p in _voicing(chord, note.pitch - 7) if p < note.pitch]
        notes += [note._replace(pitch=pitch, accent=note.accent - 0.4) for pitch in below]
    return notes


def trills(piece: Piece, rng: random.Random) -> list[Note]:
    """Plays a slow melody whose long notes are trills."""
    notes = []
    for note in melody(piece, rng, (62, 92), slow=True):
        if note.length < 0.9:
            notes.append(note)
            continue
        step, upper = 0.09 * piece.tempo / 60, note.pitch + rng.choice((1, 2))
        for k in range(int(note.length / step)):
            pitch = upper if k % 2 else note.pitch
            notes.append(Note(note.beat + k * step, step * 0.9, pitch, note.accent))
    return notes


def chorale_voice(
    piece: Piece, rng: random.Random, pitches: tuple[int, int], legato: float
) -> list[Note]:
    """Plays one voice of a chorale: the nearest chord tones, slurred, often held over chords.

    Args:
        pitches: the lowest and the highest.
        legato: length of a note as a share of the time to the next one.
    """
    low, high = pitches
    pitch, notes = (low + high) / 2 + rng.uniform(-4, 4), list[Note]()
    for chord in piece.chords:
        beats = max(1, int(chord.beats))
        n_notes = rng.choice((1, 2, 2, beats, beats, beats, 2 * beats, 2 * beats))
        length = chord.beats / n_notes
        for k in range(n_notes):
            goal = pitch + rng.choice((-5, -3, -2, -1, 0, 0, 1, 2, 3, 5))
            tones = piece.scale if k % 2 else chord.tones
            tone = _near(tones, goal if low <= goal <= high else (low + high) / 2, low, high)
            beat = chord.beat + k * length
            if notes and notes[-1].pitch == tone and rng.random() < 0.5:  # tied
                notes[-1] = notes[-1]._replace(length=beat - notes[-1].beat + length * legato)
            elif rng.random() > 0.05:
                notes.append(Note(beat, length * legato, tone, -0.2 * (k > 0)))
            pitch = float(tone)
    return notes
