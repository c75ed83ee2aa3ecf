"""Transcribes a recording: segments, decoding with a cache, notes.

`transcribe.py` holds the whole path.
`decode.py` emits tokens for many segments at once.
"""
