"""MusicXML scores: every bar is full, and readers find the notes, staves and signatures."""

import xml.etree.ElementTree as ET
from fractions import Fraction

import numpy as np
import pytest

from mt3data.music.beats import GRID, Beats, arrange_bars, constant_beats, parse_step, quantize
from mt3data.music.notes import Notes
from mt3train.transcription.notation import merge_to_chords, musicxml_bytes, split_length

music21 = pytest.importorskip("music21", reason="music21 (extra `notation`) is not installed")


def notes_of(*rows: tuple[float, float, int, int, bool]) -> Notes:
    """Notes from (onset, offset, pitch, program, is_drum)."""
    onset, offset, pitch, program, is_drum = np.array(rows, np.float64).reshape(-1, 5).T
    return Notes(onset, offset, pitch, np.full(len(rows), 90), program, is_drum, program)


def score_of(notes: Notes, beats: Beats, step: str = "1/16") -> ET.Element:
    return ET.fromstring(musicxml_bytes(quantize(notes, beats, parse_step(step)), beats, "A title"))


def bar_lengths(part: ET.Element) -> list[dict[str, Fraction]]:
    """Quarter notes in each bar of a part, by staff."""
    divisions, bars = 1, []
    for measure in part.iter("measure"):
        divisions = int(measure.findtext("attributes/divisions", str(divisions)))
        lengths: dict[str, Fraction] = {}
        for note in measure.iter("note"):
            if note.find("chord") is None:
                staff = note.findtext("staff", "1")
                length = Fraction(int(note.findtext("duration", "0")), divisions)
                lengths[staff] = lengths.get(staff, Fraction(0)) + length
        bars.append(lengths)
    return bars


@pytest.mark.parametrize("step", ["1/16", "1/8", "1/12", "1/24"])
@pytest.mark.parametrize("meter, per_bar", [((4, 4), 4), ((3, 4), 3), ((6, 8), 2), ((7, 8), 7)])
def test_every_bar_of_every_staff_is_full(step, meter, per_bar):
    rng = np.random.default_rng(per_bar)
    times = 0.4 + np.arange(40) * 0.5
    beats = arrange_bars(times, np.arange(40) % per_bar == 2 % per_bar, meter, 20.0)
    onset = np.sort(rng.uniform(0, 19.9, 150))
    notes = Notes(onset, onset + rng.exponential(0.4, 150) + 0.01, rng.integers(36, 84, 150),
                  np.full(150, 90), (program := rng.choice([0, 33, 73], 150)), rng.random(150) < 0.2,
                  program)  # fmt: skip
    root = score_of(notes, beats, step)
    lengths = (beats.numerators * Fraction(4, beats.denominator)).tolist()
    parts = root.findall("part")
    assert [part.findtext("part-name") for part in root.iter("score-part")] == [
        "Acoustic Grand Piano", "Electric Bass (finger)", "Flute", "Drums",
    ]  # fmt: skip
    for part in parts:
        staves = {"1", "2"} if part.find(".//staves") is not None else {"1"}
        found = bar_lengths(part)
        for bar, length in zip(found, lengths, strict=False):
            assert bar == dict.fromkeys(staves, length)
        assert len(found) in (len(lengths), len(lengths) - 1)
    assert parts[0].findtext(".//staves") == "2"
    assert parts[3].findtext(".//clef/sign") == "percussion"


def test_another_reader_finds_the_notes_where_they_are():
    beats = constant_beats(120, 0.5, (4, 4), 8.0)
    notes = notes_of((0.5, 1.0, 60, 73, 0), (1.0, 2.0, 64, 73, 0), (1.0, 2.0, 67, 73, 0),
                     (2.0, 3.5, 66, 73, 0), (3.75, 4.0, 62, 73, 0))  # fmt: skip
    data = musicxml_bytes(quantize(notes, beats, parse_step("1/8")), beats, "A title", "a comment")
    score = music21.converter.parseData(data.decode(), format="musicxml")
    assert score.metadata.bestTitle == "A title" and b"<!-- a comment -->" in data
    played = [
        (float(note.offset), float(note.quarterLength), tuple(p.midi for p in note.pitches))
        for note in score.parts[0].stripTies().flatten().notes
    ]
    assert played == [
        (1.0, 1.0, (60,)), (2.0, 2.0, (64, 67)), (4.0, 3.5, (66,)), (7.5, 0.5, (62,)),
    ]  # fmt: skip
    measures = list(score.parts[0].getElementsByClass("Measure"))
    assert [m.number for m in measures[:3]] == [0, 1, 2]  # 0: a pickup
    marks = list(score.flatten().getElementsByClass("MetronomeMark"))
    assert [mark.number for mark in marks] == [120]


def test_the_same_notes_give_the_same_bytes():
    beats = constant_beats(90, 0.0, (3, 4), 6.0)
    notes = notes_of((0, 1, 60, 0, 0), (1, 2, 40, 0, 0), (2, 2.1, 38, 0, 1))
    first, second = (musicxml_bytes(notes, beats, "a") for _ in range(2))
    assert first == second and b"encoding-date" not in first


@pytest.mark.parametrize("tonic, sharps, names", [
    (60, 0, {"C4", "D4", "E4", "F4", "G4", "A4", "B4"}),
    (63, -3, {"E-4", "F4", "G4", "A-4", "B-4", "C5", "D5"}),
    (66, 6, {"F#4", "G#4", "A#4", "B4", "C#5", "D#5", "E#5"}),
])  # fmt: skip
def test_scales_get_their_key_signature_and_spelling(tonic, sharps, names):
    beats = constant_beats(60, 0.0, (4, 4), 16.0)
    degrees = [0, 2, 4, 5, 7, 9, 11, 0, 4, 7, 0]
    notes = notes_of(*((k, k + 1, tonic + d, 73, 0) for k, d in enumerate(degrees)))
    data = musicxml_bytes(quantize(notes, beats, 12), beats, "a").decode()
    score = music21.converter.parseData(data, format="musicxml")
    assert score.flatten().getElementsByClass("KeySignature")[0].sharps == sharps
    found = {p.nameWithOctave for note in score.flatten().notes for p in note.pitches}
    assert found == names


def test_no_notes_are_a_bar_of_rest():
    root = score_of(Notes.empty(), constant_beats(60, 0.0, (4, 4), 8.0))
    (part,) = root.findall("part")
    assert bar_lengths(part)[0] == {"1": 4, "2": 4} and part.find(".//pitch") is None


def test_chords_end_at_the_next_one_and_short_gaps_are_closed():
    lines = np.array([0, 192, 384])
    begin = np.array([0, 0, 48, 96, 144, 192, 288])
    end = np.array([40, 90, 90, 108, 192, 200, 300])
    chords = merge_to_chords(begin, end, np.array([60, 64, 62, 65, 67, 69, 70]), lines)
    assert chords == [(0, 48, (60, 64)), (48, 96, (62,)), (96, 120, (65,)), (144, 192, (67,)),
                      (192, 200, (69,)), (288, 312, (70,))]  # fmt: skip


@pytest.mark.parametrize("begin, end, beat, parts", [
    (0, 192, 48, [192]), (0, 144, 48, [144]), (48, 192, 48, [144]), (24, 72, 48, [48]),
    (36, 96, 48, [12, 48]), (0, 60, 48, [48, 12]), (12, 48, 48, [36]), (0, 16, 48, [16]),
    (16, 48, 48, [32]), (0, 72, 72, [72]), (24, 96, 72, [48, 24]),
])  # fmt: skip
def test_lengths_are_split_at_beats(begin, end, beat, parts):
    assert [b - a for a, b in split_length(begin, end, 0, beat)] == parts
    assert sum(parts) == end - begin and GRID == 48
