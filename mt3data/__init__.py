"""mt3data turns MT3's datasets, from their public downloads, into ready-to-train shards.

The names below are imported when they are first used, so `import mt3data` is fast and loads no library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mt3data.audio.load import read_audio, read_blocks
    from mt3data.audio.spectrogram import SpectrogramConfig, log_mel
    from mt3data.build.plan import BuildConfig, make_plan
    from mt3data.errors import UserError
    from mt3data.music.detokenizer import decode_segments
    from mt3data.music.fast_tokenizer import encode_notes
    from mt3data.music.midi import read_midi, write_midi
    from mt3data.music.notes import Notes
    from mt3data.music.vocabulary import VocabularyConfig
    from mt3data.shards.format import find_builds
    from mt3data.shards.reader import IndexedShards
    from mt3data.shards.stream import stream
    from mt3data.synth.additive import write_invented_soundfont
    from mt3data.synth.compose import compose
    from mt3data.synth.render import write_stems, write_track
    from mt3data.synth.sampled import write_soundfont

__version__ = "0.1.0"
__all__ = [
    "BuildConfig",
    "IndexedShards",
    "Notes",
    "SpectrogramConfig",
    "UserError",
    "VocabularyConfig",
    "compose",
    "decode_segments",
    "encode_notes",
    "find_builds",
    "log_mel",
    "make_plan",
    "read_audio",
    "read_blocks",
    "read_midi",
    "stream",
    "write_invented_soundfont",
    "write_midi",
    "write_soundfont",
    "write_stems",
    "write_track",
]
_MODULES = {
    "audio.load": "read_audio read_blocks",
    "audio.spectrogram": "SpectrogramConfig log_mel",
    "build.plan": "BuildConfig make_plan",
    "errors": "UserError",
    "music.detokenizer": "decode_segments",
    "music.fast_tokenizer": "encode_notes",
    "music.midi": "read_midi write_midi",
    "music.notes": "Notes",
    "music.vocabulary": "VocabularyConfig",
    "shards.format": "find_builds",
    "shards.reader": "IndexedShards",
    "shards.stream": "stream",
    "synth.additive": "write_invented_soundfont",
    "synth.compose": "compose",
    "synth.render": "write_stems write_track",
    "synth.sampled": "write_soundfont",
}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports a public name when it is first used."""
        for module, names in _MODULES.items():
            if name in names.split():
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
