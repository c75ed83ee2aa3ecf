"""Represents music as MT3 does: notes, MIDI files, the vocabulary, and the tokens of a segment.

Read this room first: `vocabulary.py`, `notes.py`, the tokenizer, `detokenizer.py`.
Nothing here reads audio or trains a model.
"""
