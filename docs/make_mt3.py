"""Makes the numbers, tables and pictures of docs/mt3.md with the code that the page explains.

    python docs/make_mt3.py

replaces the text between `<!-- made: NAME -->` and `<!-- end -->` and writes the pictures beside the
page. It needs the extra `synth` (a synthesizer). tests/repository/test_docs_mt3.py compares the page with the result.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from math import isnan
from pathlib import Path

import numpy as np
import pretty_midi
import toy_mt3

from mt3data.audio.load import AudioInfo, audio_info, read_audio
from mt3data.audio.spectrogram import log_mel, pad_to_frames
from mt3data.datasets.adapters import slakh
from mt3data.datasets.manifest import load
from mt3data.music.detokenizer import decode_segments
from mt3data.music.fast_tokenizer import NONE, EventTable, encode_many
from mt3data.music.midi import midi_bytes, read_midi
from mt3data.music.notes import Notes, shift_times
from mt3data.music.tokenizer import FRAMES_PER_SECOND, segment_start
from mt3data.music.vocabulary import describe_tokens, get_codec, num_embeddings
from mt3data.shards.windows import Window, WindowConfig, windows_of
from mt3data.synth import render
from mt3data.synth.compose import compose
from mt3train.evaluation.metrics import transcription_scores

PAGE = Path(__file__).with_name("mt3.md")
# onset s, offset s, pitch, velocity, program, is_drum, instrument. The first note sounds across the
# border of two segments at 2.048 s; the last bass note begins in the time step of that border.
PIECE = (
    (0.5, 3.0, 69, 80, 48, 0, 0),
    (0.2, 0.75, 33, 95, 33, 0, 1),
    (1.1, 1.75, 40, 95, 33, 0, 1),
    (2.043, 2.7, 33, 95, 33, 0, 1),
    (0.2, 0.3, 36, 100, 0, 1, 9),
    (1.1, 1.2, 38, 100, 0, 1, 9),
)
CONFIG = WindowConfig(256)  # MT3's: segments, cut and then transformed


@dataclass(frozen=True)
class Walk:
    """The piece: its labels, its audio file and its samples."""

    notes: Notes
    audio: AudioInfo
    path: Path
    samples: np.ndarray

    @cached_property
    def windows(self) -> list[Window]:
        """Returns the segments of the piece as training examples."""
        return list(windows_of(self.samples, self.notes, "piece", 1, CONFIG))

    @property
    def segments(self) -> list[tuple[float, np.ndarray]]:
        """Returns (start in seconds, tokens) of each segment."""
        return [(segment_start(w.start_frame, CONFIG.vocabulary), w.tokens) for w in self.windows]


def walk(folder: Path) -> Walk:
    """Renders the piece into a folder, as `mt3data synth --midi` does, and reads it back."""
    notes = Notes.from_array(np.array(PIECE, float))
    midi = pretty_midi.PrettyMIDI(BytesIO(midi_bytes(notes)))
    render.write_track(
        midi, folder / "train" / "Track00001", render.default_soundfont(),
        track="Track00001", source="docs/make_mt3.py",
    )  # fmt: skip
    (track,) = slakh.tracks(folder, load("demo"))
    return Walk(track.load_notes(), audio_info(track.audio), track.audio, read_audio(track.audio))


def made(piece: Walk, toy: toy_mt3.Toy) -> dict[str, str]:
    """Returns all made parts of the page by name, as Markdown."""
    return {
        "piece": table(["instrument", "from (s)", "to (s)", "pitch", "velocity"], _notes(piece)),
        "words": table(["event", "values", "tokens"], _words()),
        "events": table(["time (s)", "time step", "segment", "event"], _events(piece)),
        "first": table(["place", "token", "name", "meaning"], _tokens(piece.windows[0])),
        "second": table(["place", "token", "name", "meaning"], _tokens(piece.windows[1])),
        "third": f"`{' '.join(describe_tokens(piece.windows[2].tokens, CONFIG.vocabulary))}`",
        "back": table(["instrument", "from (s)", "to (s)", "pitch"], _back(piece)),
        "ties": table(["decoded", "notes", "A4", "invalid events"], _ties(piece)),
        "sound": _sound(piece),
        "edges": table(["frames", "largest difference (nat)"], _edges(piece)),
        "example": table(["array", "type", "shape", "bytes"], _example(piece)),
        "shapes": table(["what", "shape", "numbers"], toy_mt3.shapes(piece.windows[0])),
        "sizes": table(["part", "parameters"], toy_mt3.sizes()),
        "lengths": table(["music", "segments", "tokens, median", "tokens, longest"], _lengths(piece)),
        "learning": table(["updates", "loss per token", "tokens right"], toy.learning),
        "says": table(["target", "probability before", "after"], toy.says),
        "scores": table(
            ["estimate", "onset", "onset and offset", "and program", "drums", "leakage"],
            _scores(piece, toy),
        ),
    }  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Formats a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def instrument(program: int, is_drum: bool) -> str:
    """Returns the name of an instrument."""
    return "drums" if is_drum else pretty_midi.program_to_instrument_name(program)


def pitch_name(pitch: int, is_drum: bool) -> str:
    """Returns the name of a pitch or of a drum."""
    name = pretty_midi.note_number_to_drum_name if is_drum else pretty_midi.note_number_to_name
    return name(int(pitch))


def _rows(notes: Notes) -> Iterator[list[object]]:
    for on, off, pitch, velocity, program, is_drum, _ in notes.sorted().to_array().tolist():
        named = f"{pitch_name(pitch, is_drum)} ({pitch:.0f})"
        yield [instrument(int(program), bool(is_drum)), f"{on:.3f}", f"{off:.3f}", named, f"{velocity:.0f}"]  # fmt: skip


def _notes(piece: Walk) -> Iterator[list[object]]:
    return _rows(piece.notes)


def _words() -> Iterator[list[object]]:
    yield ["PAD, EOS, UNK", "", "0, 1, 2"]
    codec = get_codec(CONFIG.vocabulary)
    for kind, low, high in codec.ranges:
        first, last = (i + 3 for i in codec.type_range(kind))
        yield [kind, f"{low} to {high}" if high else "", f"{first} to {last}" if high else first]
    yield ["none", "", f"{last + 1} to {num_embeddings(CONFIG.vocabulary) - 1}"]


def _events(piece: Walk) -> Iterator[list[object]]:
    events, codec = (
        EventTable.from_notes(piece.notes, CONFIG.vocabulary),
        get_codec(CONFIG.vocabulary),
    )
    starts = [round(start * 100) for start, _ in piece.segments]
    columns = (events.time_step, events.program, events.velocity_bin, events.pitch_id)
    for step, program, velocity_bin, word in zip(*(c.tolist() for c in columns), strict=True):
        is_drum = program == NONE
        what = f"{instrument(program, is_drum)}: {pitch_name(codec.decode(word).value, is_drum)} "
        what += "is hit" if is_drum else "begins" if velocity_bin else "ends"
        segment = int(np.searchsorted(starts, step, side="right"))
        yield [f"{step / 100:.2f}", step, segment, what]


def _tokens(window: Window) -> Iterator[list[object]]:
    """Yields the tokens of a target with their meaning."""
    start = segment_start(window.start_frame, CONFIG.vocabulary)
    doing = "is held"
    for place, token in enumerate(window.tokens.tolist()):
        (word,) = describe_tokens(np.array([token]), CONFIG.vocabulary)
        kind, value = word.split(" ")[0], int(word.split(" ")[-1]) if " " in word else 0
        if kind == "velocity":
            doing = "begin" if value else "end"
        yield [place, token, f"`{word}`", _meaning(kind, value, doing, start)]


def _meaning(kind: str, value: int, doing: str, start: float) -> str:
    match kind:
        case "shift":
            return f"at {start + value / 100:.2f} s, {value} time steps after {start:.2f} s"
        case "program":
            return f"the instrument is {instrument(value, False)}"
        case "velocity":
            return f"the following notes {doing}"
        case "pitch":
            return f"{pitch_name(value, False)} {doing if doing == 'is held' else doing + 's'}"
        case "drum":
            return f"{pitch_name(value, True)} is hit"
    return {"tie": "end of the tie section", "EOS": "end of the segment"}[kind]


def _back(piece: Walk) -> Iterator[list[object]]:
    for row in _rows(decode_segments(piece.segments, CONFIG.vocabulary).notes):
        yield row[:4]


def without_ties(piece: Walk) -> list[tuple[float, np.ndarray]]:
    """Returns the segments. The tie section of the second one is emptied."""
    (first, (start, tokens), *rest) = piece.segments
    tie = describe_tokens(tokens, CONFIG.vocabulary).index("tie")
    return [first, (start, tokens[tie:]), *rest]


def _ties(piece: Walk) -> Iterator[list[object]]:
    for name, segments in (
        ("all three segments", piece.segments),
        ("the same, with the second tie section emptied", without_ties(piece)),
        ("the second segment alone", piece.segments[1:2]),
    ):
        found = decode_segments(segments, CONFIG.vocabulary)
        held = found.notes[found.notes.pitch == 69]
        spans = [f"{a:.2f} to {b:.2f} s" for a, b in zip(held.onset, held.offset, strict=True)]
        yield [name, len(found.notes), spans[0] if spans else "missing", found.invalid]


def _sound(piece: Walk) -> str:
    frames = piece.windows[0].track_frames
    return (
        f"- the file: {piece.audio.n_samples:,} samples at {piece.audio.rate:,} Hz, "
        f"{piece.audio.seconds:.2f} s, with the sound after the last note\n"
        f"- resampled: {len(piece.samples):,} samples at 16,000 Hz, the largest "
        f"{np.abs(piece.samples).max():.2f}\n"
        f"- in frames of 128 samples: {frames}, so {len(piece.windows)} segments of 256 frames, "
        f"the last one with {piece.windows[-1].valid_frames} and {256 - piece.windows[-1].valid_frames} of padding"
    )


def whole_mel(piece: Walk) -> np.ndarray:
    """Computes the spectrogram of the whole piece, with right_context "audio"."""
    return log_mel(pad_to_frames(piece.samples), CONFIG.spectrogram)


def _edges(piece: Walk) -> Iterator[list[object]]:
    size = 256 * CONFIG.spectrogram.hop
    difference = np.abs(log_mel(piece.samples[:size]) - whole_mel(piece)[:256]).max(axis=1)
    yield ["0 to 240", f"{difference[:241].max():.1f}"]
    yield ["241 to 250", f"{difference[241:251].max():.1f}"]
    yield ["251 to 255", f"{difference[251:].max():.1f}"]


def _example(piece: Walk) -> Iterator[list[object]]:
    window = piece.windows[0]
    for name, array in (
        ("mel", window.sound["mel"]), ("tokens", window.tokens), ("notes", window.notes.to_array()),
    ):  # fmt: skip
        yield [f"`{name}`", array.dtype, list(array.shape), f"{array.nbytes:,}"]


def _lengths(piece: Walk) -> Iterator[list[object]]:
    """Yields the lengths of targets, of the piece and of pieces that `mt3data synth` composes."""
    composed = list[int]()
    for seed in range(4):
        notes, _ = read_midi(_bytes(compose(seed, 40.0)))
        frames = int(notes.offset.max() * FRAMES_PER_SECOND) + 1
        starts = np.arange(0, frames, CONFIG.frames)
        events = EventTable.from_notes(notes, CONFIG.vocabulary)
        n_frames = np.full(len(starts), CONFIG.frames)
        composed += encode_many(events, starts, n_frames, np.full(len(starts), frames))[1].tolist()
    ours = [len(window.tokens) for window in piece.windows]
    for name, lengths in (("this piece", ours), ("four composed pieces of 40 s", composed)):
        yield [name, len(lengths), int(np.median(lengths)), max(lengths)]


def _bytes(midi: pretty_midi.PrettyMIDI) -> bytes:
    buffer = BytesIO()
    midi.write(buffer)
    return buffer.getvalue()


def _scores(piece: Walk, toy: toy_mt3.Toy) -> Iterator[list[object]]:
    reference, vocabulary = piece.notes, CONFIG.vocabulary
    decoded = decode_segments(piece.segments, vocabulary).notes
    as_piano = Notes.from_array(reference.to_array() * [1, 1, 1, 1, 0, 1, 1])
    for name, estimate in (
        ("its own tokens, decoded", decoded),
        (
            "the same without the tie section",
            decode_segments(without_ties(piece), vocabulary).notes,
        ),
        ("all notes 60 ms late", shift_times(reference, 0.06)),
        ("all notes as piano notes", as_piano),
        ("the toy model's transcription", toy.transcribe(piece.path).notes),
    ):
        scores = transcription_scores(reference, estimate)
        named = ("onset_f1", "onset_offset_f1", "nondrum_full_f1", "drum_f1", "leakage")
        yield [name, *("-" if isnan(scores[key]) else f"{scores[key]:.2f}" for key in named)]


def fill(page: str, texts: dict[str, str]) -> str:
    """Returns the page with its made parts replaced.

    Raises:
        ValueError: the page has other parts than `texts`.
    """
    places = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    found = [match[2] for match in places.finditer(page)]
    if sorted(found) != sorted(texts):
        raise ValueError(f"the page has the parts {sorted(found)}; expected {sorted(texts)}")
    return places.sub(lambda match: f"{match[1]}{texts[match[2]]}\n{match[3]}", page)


def main() -> None:
    """Writes the page and its pictures."""
    import draw_mt3

    with tempfile.TemporaryDirectory() as folder, toy_mt3.one_thread():
        piece = walk(Path(folder))
        toy = toy_mt3.learn(piece.windows)
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), made(piece, toy)), encoding="utf-8")
        draw_mt3.draw(piece, toy, PAGE.parent)


if __name__ == "__main__":
    main()
