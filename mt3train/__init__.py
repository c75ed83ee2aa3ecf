"""mt3train trains and runs the MT3 model in plain PyTorch, on shards that mt3data built.

The names below are imported when they are first used, so `import mt3train` is fast and loads no
library. `mt3train.train` is the module of the training loop.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from mt3data import __version__ as __version__

if TYPE_CHECKING:
    from mt3train.config import Config, load_config
    from mt3train.evaluation.evaluate import evaluate
    from mt3train.model import MT3, ModelConfig
    from mt3train.transcription.transcribe import Transcriber, transcribe
    from mt3train.weights.checkpoint import load_model

__all__ = [
    "MT3",
    "ModelConfig",
    "Transcriber",
    "Config",
    "evaluate",
    "load_config",
    "load_model",
    "transcribe",
]
_MODULES = {
    "config": "Config load_config",
    "evaluation.evaluate": "evaluate",
    "model": "MT3 ModelConfig",
    "transcription.transcribe": "Transcriber transcribe",
    "weights.checkpoint": "load_model",
}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports a public name when it is first used."""
        for module, names in _MODULES.items():
            if name in names.split():
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
