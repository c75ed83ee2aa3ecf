"""The few functions of note_seq that are used here, imported without the rest of it."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from contextlib import suppress
from functools import lru_cache
from types import SimpleNamespace
from typing import Any


@lru_cache(maxsize=1)
def import_note_seq() -> SimpleNamespace:
    """What of note_seq is used here, without the rest of it.

    Its __init__ imports bokeh, pandas and IPython, which costs every worker 2 s and 125 MB. It is
    left out until somebody asks the package for something else.

    Raises:
        ModuleNotFoundError: note_seq is not installed.
    """
    if "note_seq" not in sys.modules:
        spec = importlib.util.find_spec("note_seq")
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError("No module named 'note_seq'", name="note_seq")
        package, loader = importlib.util.module_from_spec(spec), spec.loader

        def find(name: str) -> Any:
            with suppress(ModuleNotFoundError):  # its modules are asked for in this way too
                return importlib.import_module(f"note_seq.{name}")
            del package.__dict__["__getattr__"]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydub misses ffmpeg, which nothing here uses
                loader.exec_module(package)
            return getattr(package, name)

        package.__dict__["__getattr__"] = find
        sys.modules["note_seq"] = package
    midi_io, sequences_lib, music_pb2 = (
        importlib.import_module(f"note_seq.{name}")
        for name in ("midi_io", "sequences_lib", "protobuf.music_pb2")
    )
    return SimpleNamespace(
        midi_to_note_sequence=midi_io.midi_to_note_sequence,
        MIDIConversionError=midi_io.MIDIConversionError,
        apply_sustain_control_changes=sequences_lib.apply_sustain_control_changes,
        NoteSequence=music_pb2.NoteSequence,
    )
