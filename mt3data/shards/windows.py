"""Cuts a track into windows of frames, with their log-mel or audio, notes and tokens.

One record of a shard holds one window. With 256 frames and right_context "zeros" it is a training example
of MT3, cut and transformed as there. Longer windows are for random crops: a window carries enough
notes for the tokens of any crop in it to equal those that encoding the whole track would give.

A window carries its log-mel, its audio, or both. Audio is int16 at the spectrogram's rate and reaches
as far beyond the last frame as the transform of that frame, so a crop of it can be transformed with
either right_context.

A variant is one seeded cutting of a track. Variant 0 starts at frame 0. Every later variant starts at
a frame drawn from (seed, track, variant), so that its segments lie elsewhere. The frames before it are
in variant 0. Where the config asks for it, later variants also sound in a room each, as if the
instrument stood elsewhere. Labels stay as they are.

Source: mt3/tasks.py (cut, then transform), mt3/preprocessors.py _audio_to_frames, split_tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mt3data.audio.load import to_int16
from mt3data.audio.spectrogram import SpectrogramConfig, log_mel_float16, pad_to_frames
from mt3data.datasets.track import Track
from mt3data.music.fast_tokenizer import EventTable, encode_many
from mt3data.music.notes import Notes
from mt3data.music.tokenizer import FRAMES_PER_SECOND
from mt3data.music.vocabulary import VocabularyConfig

SEGMENT_WINDOWS = (256, 512)  # frames of a segment in MT3 and in the ISMIR 2021 piano model
RIGHT_CONTEXTS = ("zeros", "audio")
SOUND = ("mel", "audio")  # features of a window that come from the audio
ALIGN_MODES = ("measure", "off", "shift", "dtw")
# A crop owns events up to one step before its first frame, plus half a step of rounding: 15 ms at
# 100 steps per second. Twice that serves every vocabulary from 50 steps per second on.
NOTE_MARGIN_SECONDS = 0.03


@dataclass(frozen=True)
class WindowConfig:
    """Settings of how tracks are cut.

    Attributes:
        frames: length of a window, 8 ms each.
        right_context: "zeros" (cut, then transform: zeros follow the window, as in MT3) or "audio" (the
            audio of the track follows the window). "" means "zeros" for windows of SEGMENT_WINDOWS and
            where there is no mel, because any crop of audio can be followed by zeros.
        variants: number of variants of each training track; other splits have one.
        seed: of the phases of later variants, and of the order of tracks.
        align: treatment of labels that are early or late: "off", "measure" (only reported),
            "shift" (a constant lag is removed) or "dtw" (labels are warped to the audio).
        features: "mel", "audio" or both, in the order of SOUND.
        rooms: whether every variant but the first is placed in a random room.
    """

    frames: int = 2048
    right_context: str = ""
    variants: int = 1
    seed: int = 0
    align: str = "measure"
    features: tuple[str, ...] = ("mel",)
    rooms: bool = False
    spectrogram: SpectrogramConfig = field(default_factory=SpectrogramConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)

    def __post_init__(self) -> None:
        if not self.features or set(self.features) - set(SOUND):
            named = ",".join(self.features)
            raise ValueError(f"features={named!r}; expected mel, audio or mel,audio")
        in_order = tuple(feature for feature in SOUND if feature in self.features)
        object.__setattr__(self, "features", in_order)
        if not self.right_context:
            is_exact = self.frames in SEGMENT_WINDOWS or "mel" not in self.features
            object.__setattr__(self, "right_context", "zeros" if is_exact else "audio")
        if self.right_context not in RIGHT_CONTEXTS:
            raise ValueError(f"right_context={self.right_context!r}; expected zeros or audio")
        if self.align not in ALIGN_MODES:
            raise ValueError(f"align={self.align!r}; expected one of {', '.join(ALIGN_MODES)}")
        if self.frames < 1 or self.variants < 1:
            raise ValueError(
                f"window={self.frames}, variants={self.variants}; both must be at least 1"
            )
        if self.rooms and self.variants < 2:
            raise ValueError(
                "rooms are for the variants after the first; expected --variants 2 or more"
            )

    @property
    def schema(self) -> dict[str, dict[str, Any]]:
        """Returns the arrays of a record by name: dtype, and shape with None for variable lengths."""
        spectrogram = self.spectrogram
        n_samples = self.frames * spectrogram.hop + spectrogram.context
        sound = {
            "mel": {"dtype": "float16", "shape": [self.frames, spectrogram.n_mels]},
            "audio": {"dtype": "int16", "shape": [n_samples]},
        }
        return {name: sound[name] for name in self.features} | {
            "tokens": {"dtype": "int16", "shape": [None]},
            "notes": {"dtype": "float64", "shape": [None, 7]},
        }


@dataclass(frozen=True)
class Window:
    """One record.

    Attributes:
        frames: length, padding after the end of the track included.
        sound: the arrays that WindowConfig.features names. "mel": float16 [frames, n_mels], 0.0
            after the end of the track. "audio": int16 [frames * hop + fft_size - hop], full scale
            32767, the samples from start_frame * hop on and 0 after the end of the track.
    """

    variant: int
    start_frame: int
    frames: int
    track_frames: int
    sound: dict[str, np.ndarray]
    tokens: np.ndarray
    notes: Notes

    @property
    def valid_frames(self) -> int:
        """Number of frames of the window inside the track; the rest is padding."""
        return min(self.frames, self.track_frames - self.start_frame)


def n_variants(track: Track, config: WindowConfig) -> int:
    """Returns the number of variants of a track; only training tracks are cut more than once."""
    return len(track.variants) or (config.variants if track.split == "train" else 1)


def window_starts(track_frames: int, variant: int, track: str, config: WindowConfig) -> range:
    """Returns the first frames of the windows of a variant of a track.

    The phase of variant k > 0 is drawn from a hash of (seed, track, k), uniform over one window.
    """
    phase = 0
    if variant:
        text = f"{config.seed}|{track}|{variant}"
        draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        phase = draw % min(config.frames, track_frames)
    return range(phase, track_frames, config.frames)


@dataclass(frozen=True)
class Cut:
    """The audio of one variant of a track and the starts of its windows, without labels.

    Attributes:
        starts: first frame of each window.
        track_frames: length of the track.
        samples: the whole track, float32, padded with zeros to whole frames.
        room: seed of the room into which the windows place the samples; "": none.
    """

    variant: int
    starts: range
    track_frames: int
    samples: np.ndarray
    room: str = ""


def cut(
    samples: np.ndarray, track: str, variant: int, config: WindowConfig, phased: bool = True
) -> Cut:
    """Cuts the audio of one variant of a track.

    Args:
        samples: the whole track, mono, float32 at the spectrogram's sample rate, padded to whole
            frames.
        track: name that seeds the phases.
        variant: its number; 0 starts at frame 0.
        config: see WindowConfig.
        phased: later variants start at a drawn frame; False where variants have other stems.
    """
    track_frames = len(samples) // config.spectrogram.hop
    starts = window_starts(track_frames, variant if phased else 0, track, config)
    room = f"{config.seed}|{track}|{variant}|room" if config.rooms and phased and variant else ""
    return Cut(variant, starts, track_frames, samples, room)


def label(cuts: Iterable[Cut], notes: Notes, config: WindowConfig) -> Iterator[Window]:
    """Yields the windows of cuts with their features, notes and tokens, one at a time.

    Args:
        cuts: of one track.
        notes: labels to be tokenised: sustain applied, aligned and trimmed where asked for.
    Yields:
        Windows variant by variant, in time order.
    """
    events = EventTable.from_notes(notes, config.vocabulary)
    take = {"mel": window_mel, "audio": window_audio}
    for one in cuts:
        samples = one.samples
        if one.room:
            from mt3data.audio.room import in_random_room  # brings scipy.signal, for half a second

            samples = in_random_room(samples, config.spectrogram.sample_rate, one.room)
        starts, track_frames = np.array(one.starts), np.full(len(one.starts), one.track_frames)
        lengths = np.minimum(config.frames, track_frames - starts)
        tokens, n_tokens = encode_many(events, starts, lengths, track_frames)
        for i, (start, n_frames) in enumerate(zip(one.starts, lengths.tolist(), strict=True)):
            yield Window(
                one.variant,
                start,
                config.frames,
                one.track_frames,
                {name: take[name](samples, start, config) for name in config.features},
                tokens[i, : n_tokens[i]],
                window_notes(notes, start, n_frames, one.track_frames),
            )


def windows_of(
    samples: np.ndarray, notes: Notes, track: str, variants: int, config: WindowConfig
) -> Iterator[Window]:
    """Yields all windows of a track: `cut` for each variant, then `label`."""
    samples = pad_to_frames(samples, config.spectrogram.hop)
    return label((cut(samples, track, k, config) for k in range(variants)), notes, config)


def window_mel(samples: np.ndarray, start: int, config: WindowConfig) -> np.ndarray:
    """Computes the log-mel of the window that begins at a frame, with the config's right_context.

    Args:
        samples: the track, padded to whole frames.
        start: first frame.
    Returns:
        float16, shape (frames, n_mels), 0.0 after the end of the track.
    """
    spectrogram = config.spectrogram
    n_frames = min(config.frames, len(samples) // spectrogram.hop - start)
    first, last = start * spectrogram.hop, (start + n_frames) * spectrogram.hop
    if config.right_context == "audio":
        last += spectrogram.context
    mel = log_mel_float16(samples[first:last], n_frames, spectrogram)
    return (
        mel if n_frames == config.frames else np.pad(mel, ((0, config.frames - n_frames), (0, 0)))
    )


def window_audio(samples: np.ndarray, start: int, config: WindowConfig) -> np.ndarray:
    """Returns the audio of the window that begins at a frame, with the context of its last frame.

    Args: as `window_mel`.
    Returns:
        int16, shape (frames * hop + context,), full scale 32767, 0 after the end of the track.
    """
    hop = config.spectrogram.hop
    audio = np.zeros(config.frames * hop + config.spectrogram.context, np.int16)
    there = samples[start * hop : start * hop + len(audio)]
    audio[: len(there)] = to_int16(there)
    return audio


def window_notes(notes: Notes, start: int, n_frames: int, track_frames: int) -> Notes:
    """Returns the notes that a window must carry for exact tokens of any crop in it.

    These are the notes that sound or begin in the window, with a margin for the rounding of times
    to steps; in a track's last window all later notes; and, for each pitch and program, earlier
    notes that end after the earliest of those began: the first note-off ends equal notes that
    overlap, so without them a note would be held that the whole track does not hold.
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
