"""Writes a transcription as one HTML page: a piano roll and the recording, played in sync.

The page is a single file that loads nothing. It contains the notes, the recording as MP3, and the
MIDI file as a download. Its content security policy allows its own script and style sheet, by their
digests, and nothing else. The name of a recording can therefore run or load nothing. The same
recording and notes give the same bytes.

Every browser plays MP3. The bit rate is constant, because browsers only estimate positions in files
of variable bit rate, and playback would be out of sync after a jump. The recording is mono, like the
input of the model. It is read, encoded and written in blocks, so memory does not grow with its
length.

The original has no such page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import soundfile
from jinja2 import PackageLoader

from mt3data import __version__
from mt3data.audio.load import read_blocks
from mt3data.errors import UserError
from mt3data.files import is_device, mark, write_output
from mt3data.music.beats import Beats
from mt3data.music.midi import DRUMS, instrument_name, midi_bytes
from mt3data.music.notes import Notes
from mt3data.report.page import style_sheet, templates
from mt3data.terminal import plural

COMMAND = "mt3train transcribe"
RATE = 44100  # Hz, of the recording in the page
KBPS = 96  # its bit rate
COMPRESSION = 0.78  # what libsndfile calls 96 kbit/s of mono at this rate
CHUNK = 3 << 16  # bytes of the recording in one element; a multiple of 3 needs no padding
DRUMS_LAST = 128  # means drums, after all programs
COLOURS = 10  # of instruments, in page.css; the eleventh is hollow
AUDIO_HERE = "<!--audio-->"  # no text can hold it, for "<" is escaped
SCRIPTS = ("page_roll.js", "page_sound.js", "page.js")


def page_bytes(seconds: float) -> int:
    """Estimates the size of the page of a recording of `seconds`, without its notes."""
    return round(seconds * KBPS * 1000 / 8 * 4 / 3)


def write_page(
    path: Path, recording: Path, notes: Notes, seconds: float, about: str, has_velocity: bool,
    on_seconds: Callable[[float], object] = lambda seconds: None, force: bool = False,
    beats: Beats | None = None,
) -> None:  # fmt: skip
    """Writes the page of one recording. It appears when it is complete.

    Args:
        path: the file of the page; an earlier page is replaced.
        recording: any audio file, see mt3data.audio.load.
        notes: its notes, in any order.
        seconds: its length.
        about: a line about the model.
        has_velocity: whether the model transcribes velocities. If not, none are shown.
        on_seconds: called with the length of each block of the recording that was encoded.
        force: replace any file.
        beats: beats and bars of the MIDI file in the page; None: a nominal tempo without bars.
    Raises:
        UserError: the recording is missing, unreadable or empty, or path is another file.
        OSError: the page cannot be written.
    """
    name = os.fsencode(recording.name).decode(errors="replace")  # names need not be UTF-8
    document = _document(name, notes.sorted(), seconds, about, has_velocity, beats)
    before, after = document.split(AUDIO_HERE)

    def pieces() -> Iterator[bytes]:
        yield before.encode()
        with TemporaryFile(dir=None if is_device(path) else path.parent) as mp3:
            _encode(recording, mp3, on_seconds)
            mp3.seek(0)
            while chunk := mp3.read(CHUNK):
                held = base64.b64encode(chunk)
                yield b'<script type="text/plain" class="audio">' + held + b"</script>\n"
        yield after.encode()

    write_output(path, pieces(), COMMAND, force)


def note_data(notes: Notes, seconds: float, has_velocity: bool) -> dict[str, Any]:
    """Returns the data of the page's script, in types that JSON holds.

    Args:
        notes: in order of onset.
        seconds: length of the recording.
        has_velocity: whether to include velocities.
    Returns:
        `voices`: instruments in order of program, drums last. `drums`: names of the drums that are
        hit. Columns with an entry for each note: `onset` and `length` in ms, as in our MIDI files,
        `pitch`, `voice` (index in `voices`), and `velocity` if included.
    """
    number = np.where(notes.is_drum, DRUMS_LAST, notes.program)
    programs, voice = np.unique(number, return_inverse=True)
    onset = np.rint(1000 * notes.onset).astype(np.int64)
    length = np.maximum(np.rint(1000 * notes.offset).astype(np.int64) - onset, 1)
    columns = {"onset": onset, "length": length, "pitch": notes.pitch, "voice": voice}
    if has_velocity:
        columns["velocity"] = notes.velocity
    hit = np.unique(notes.pitch[notes.is_drum]).tolist()
    return {
        "seconds": round(seconds, 3),
        "voices": [
            {"name": instrument_name(DRUMS), "program": None}
            if p == DRUMS_LAST
            else {"name": instrument_name(p), "program": p}
            for p in programs.tolist()
        ],
        "drums": {pitch: drum_name(pitch) for pitch in hit},
        **{name: column.tolist() for name, column in columns.items()},
    }


def drum_name(pitch: int) -> str:
    """Returns the General MIDI name of a drum: 38 is "Acoustic Snare"."""
    import pretty_midi

    return pretty_midi.note_number_to_drum_name(pitch) or f"Drum {pitch}"


def clock(seconds: float) -> str:
    """Formats a duration in seconds: "3:25", "1:02:03"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


# --- the parts of the page -----------------------------------------------------------------------


def _document(
    name: str, notes: Notes, seconds: float, about: str, has_velocity: bool, beats: Beats | None
) -> str:
    """Returns the whole page without the recording, whose place is marked."""
    files = resources.files("mt3train.page")
    data = note_data(notes, seconds, has_velocity)
    style = style_sheet(files / "page.css")
    script = "".join((files / file).read_text("utf-8") for file in SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "media-src blob:; base-uri 'none'; form-action 'none'"
    )
    counts = np.bincount(data["voice"], minlength=len(data["voices"])).tolist()
    voices = [
        {"name": v["name"], "colour": colour_class(n, v["program"]), "notes": f"{counts[n]:,}"}
        for n, v in enumerate(data["voices"])
    ]
    found = f"{plural(len(notes), 'note')} of {plural(len(voices), 'instrument')}"
    return templates(PackageLoader("mt3train.page", "")).get_template("page.html").render(
        title=f"{name} · notes", name=name, about=about, version=__version__, policy=policy, style=style,
        script=script, mark=mark(COMMAND), voices=voices,
        facts=f"{clock(seconds)} · {found if len(notes) else 'no notes were found'}",
        midi=base64.b64encode(midi_bytes(notes, mark(COMMAND), seconds, beats)).decode(),
        has_beats=beats is not None,
        midi_name=Path(name).with_suffix(".mid").name,
        # "<" could end the element that holds it
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )  # fmt: skip


def colour_class(number: int, program: int | None) -> str:
    """Returns the class in page.css that colours an instrument, by its number on the page."""
    if program is None:
        return "drums"
    return f"voice{number % COLOURS}" + (" hollow" if number // COLOURS % 2 else "")


def _encode(recording: Path, mp3: IO[bytes], on_seconds: Callable[[float], object]) -> None:
    """Writes a recording as MP3."""
    try:
        with soundfile.SoundFile(
            mp3, "w", RATE, 1, "MPEG_LAYER_III", format="MP3",
            bitrate_mode="CONSTANT", compression_level=COMPRESSION,
        ) as file:  # fmt: skip
            for block in read_blocks(recording, RATE):
                file.write(block)
                on_seconds(len(block) / RATE)
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"{recording}: cannot be put into a page as MP3 ({error.error_string.strip()}); make "
            "room on the disk, or leave the page out"
        ) from error


def _digest(text: str) -> str:
    """Returns the digest of a script or style sheet for a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
