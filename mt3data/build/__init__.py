"""Turns the tracks of a dataset into a verified build of shards.

`plan.py` decides the content of every shard before any work.
`run.py` builds the shards in parallel, survives crashes, and writes the build manifest last.
"""
