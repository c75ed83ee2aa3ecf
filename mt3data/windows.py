"""A track becomes windows: stretches of frames with their log-mel, their notes and their tokens.

A window is what one record of a shard holds. With 256 frames and edge "segment" it is a training
example of MT3, cut and transformed as there. Longer windows serve random crops: the notes that a
window carries are chosen so that any crop inside it gets the very tokens that encoding the whole
track would give.

A pass is one cutting of a track. Pass 0 starts at frame 0; every later pass starts at a frame drawn
from (seed, track, pass), so that its segments fall elsewhere. What lies before that frame is in
pass 0.

Source: mt3/tasks.py (cut, then transform), mt3/preprocessors.py _audio_to_frames, split_tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mt3data.notes import Notes
from mt3data.spectrogram import SpectrogramConfig, log_mel, pad_to_frames
from mt3data.tokens import FRAMES_PER_SECOND, EventTable, encode
from mt3data.vocabulary import VocabularyConfig

SEGMENT_WINDOWS = (256, 512)  # frames of a segment in MT3 and in the ISMIR 2021 piano model
EDGES = ("segment", "track")
ALIGN_MODES = ("measure", "off", "shift", "dtw")
# A crop owns events up to one step before its first frame, plus half a step of rounding: 15 ms at
# 100 steps per second. Twice that serves every vocabulary from 50 steps per second on.
NOTE_MARGIN_SECONDS = 0.03


@dataclass(frozen=True)
class WindowConfig:
    """How tracks are cut.

    Attributes:
        frames: length of a window, 8 ms each.
        edge: "segment" (cut, then transform: the last 15 frames see zeros, as in MT3) or "track"
            (frames see the audio that really follows); "" chooses by the length of the window.
        passes: cuttings of each training track; evaluation splits have one.
        seed: of the phases of later passes, and of the order of tracks.
        align: what is done about labels that are early or late: "off", "measure" (only reported),
            "shift" (a constant lag is removed) or "dtw" (labels are warped to the audio).
    """

    frames: int = 2048
    edge: str = ""
    passes: int = 1
    seed: int = 0
    align: str = "measure"
    spectrogram: SpectrogramConfig = field(default_factory=SpectrogramConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)

    def __post_init__(self) -> None:
        if not self.edge:
            by_length = "segment" if self.frames in SEGMENT_WINDOWS else "track"
            object.__setattr__(self, "edge", by_length)
        if self.edge not in EDGES:
            raise ValueError(f"edge={self.edge!r}; expected segment or track")
        if self.align not in ALIGN_MODES:
            raise ValueError(f"align={self.align!r}; expected one of {', '.join(ALIGN_MODES)}")
        if self.frames < 1 or self.passes < 1:
            raise ValueError(f"window={self.frames}, passes={self.passes}; both must be at least 1")


@dataclass(frozen=True)
class Window:
    """One record: `mel` float16 [frames, n_mels], padded with 0.0 behind the end of the track."""

    pass_number: int
    start_frame: int
    track_frames: int
    mel: np.ndarray
    tokens: np.ndarray
    notes: Notes

    @property
    def valid_frames(self) -> int:
        """Frames of the window that lie inside the track; the rest is padding."""
        return min(len(self.mel), self.track_frames - self.start_frame)


def window_starts(track_frames: int, pass_number: int, track: str, config: WindowConfig) -> range:
    """First frames of the windows of one pass.

    The phase of pass k > 0 is drawn from a hash of (seed, track, k), uniform over one window.
    """
    phase = 0
    if pass_number:
        text = f"{config.seed}|{track}|{pass_number}"
        draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        phase = draw % min(config.frames, track_frames)
    return range(phase, track_frames, config.frames)


@dataclass(frozen=True)
class Cut:
    """One pass over the audio of a track: the mel of its windows, without labels.

    Attributes:
        starts: first frame of each window.
        track_frames: length of the track.
        mel: float16, shape (n_windows, frames, n_mels), padded with 0.0 behind the end.
    """

    pass_number: int
    starts: range
    track_frames: int
    mel: np.ndarray

    @property
    def whole(self) -> np.ndarray:
        """The mel of the track from the first window on, shape (n_frames, n_mels); no copy."""
        return self.mel.reshape(-1, self.mel.shape[-1])[: self.track_frames - self.starts[0]]


def cut(
    samples: np.ndarray, track: str, pass_number: int, config: WindowConfig, phased: bool = True
) -> Cut:
    """Cuts the audio of one track and transforms it.

    Args:
        samples: the whole track, mono, float32 at the spectrogram's sample rate, shape (n,).
        track: name that seeds the phases.
        pass_number: which pass; 0 starts at frame 0.
        config: see WindowConfig.
        phased: later passes start at their phase; not where each hears other stems.
    """
    hop = config.spectrogram.hop
    samples = pad_to_frames(samples, hop)
    track_frames = len(samples) // hop
    starts = window_starts(track_frames, pass_number if phased else 0, track, config)
    mel = np.zeros((len(starts), config.frames, config.spectrogram.n_mels), np.float16)
    for window, start in zip(mel, starts, strict=True):
        n_frames = min(config.frames, track_frames - start)
        window[:n_frames] = crop_mel(samples, start, n_frames, config)
    return Cut(pass_number, starts, track_frames, mel)


def label(cuts: Iterable[Cut], notes: Notes, config: WindowConfig) -> Iterator[Window]:
    """Gives the windows of cuts their notes and tokens.

    Args:
        cuts: of one track.
        notes: labels as they are to be tokenised (sustain applied; aligned and trimmed where that
            is wanted).
    Yields:
        Windows pass by pass, in time order.
    """
    events = EventTable.of(notes, config.vocabulary)
    for one in cuts:
        for mel, start in zip(one.mel, one.starts, strict=True):
            n_frames = min(config.frames, one.track_frames - start)
            yield Window(
                one.pass_number,
                start,
                one.track_frames,
                mel,
                encode(events, start, n_frames, one.track_frames),
                window_notes(notes, start, n_frames, one.track_frames),
            )


def windows_of(
    samples: np.ndarray, notes: Notes, track: str, passes: int, config: WindowConfig
) -> Iterator[Window]:
    """All windows of a track: `cut` for so many passes, then `label`."""
    return label((cut(samples, track, k, config) for k in range(passes)), notes, config)


def crop_mel(samples: np.ndarray, start: int, n_frames: int, config: WindowConfig) -> np.ndarray:
    """Log-mel of frames [start, start + n_frames) with the config's edge, float32.

    Args:
        samples: the track, padded to whole frames.
    """
    spectrogram = config.spectrogram
    first, last = start * spectrogram.hop, (start + n_frames) * spectrogram.hop
    if config.edge == "track":  # the last frame reaches fft_size - hop samples further
        last += spectrogram.fft_size - spectrogram.hop
    return log_mel(samples[first:last], spectrogram)[:n_frames]


def window_notes(notes: Notes, start: int, n_frames: int, track_frames: int) -> Notes:
    """The notes that a window must carry for any crop inside it to be tokenised exactly.

    These are the notes that sound or begin in the window, with a margin for the rounding of times
    to steps; in a track's last window all later notes; and, for each pitch and program, earlier
    notes that end after the earliest of those began: the first note-off ends equal notes that
    overlap, so without them a note would count as held when the whole track says it is not.
    """
    begin = start / FRAMES_PER_SECOND - NOTE_MARGIN_SECONDS
    in_window = notes.offset >= begin
    if start + n_frames < track_frames:
        end = (start + n_frames) / FRAMES_PER_SECOND + NOTE_MARGIN_SECONDS
        in_window &= notes.onset <= end
    key = 128 * notes.program + notes.pitch
    earliest = np.full(1 << 14, np.inf)  # onset of the first note in the window, by key
    np.minimum.at(earliest, key[in_window], notes.onset[in_window])
    held_with_it = (notes.onset < begin) & (notes.offset >= earliest[key])
    return notes[in_window | (held_with_it & ~notes.is_drum)]
