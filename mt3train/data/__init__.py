"""Turns shards into batches for training.

`builds.py` opens the builds of a run and `loader.py` makes the batches.
`merge_targets.py` and `mixing.py` mix several recordings into one training example.
"""
