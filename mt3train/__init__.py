"""mt3train trains and runs the MT3 model in plain PyTorch, on shards that mt3data built."""

from mt3data import __version__ as __version__
