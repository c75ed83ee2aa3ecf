"""mt3data turns MT3's datasets, from their public downloads, into ready-to-train shards."""

__version__ = "0.1.0"
