"""Represents music as MT3 does: notes, MIDI files, the vocabulary, and the tokens of a segment.

Read `vocabulary.py`, `notes.py`, `tokenizer.py` and `detokenizer.py` first, in this order.
`fast_tokenizer.py` gives the tokens of `tokenizer.py` for many segments at once.
"""
