"""Defines the shard format, and writes and reads it.

`format.py` and `windows.py` define what a record holds.
`reader.py` reads random crops by (seed, step), `stream.py` reads shards in order.
"""
