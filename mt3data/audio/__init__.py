"""Reads any audio file as mono samples at 16 kHz and computes MT3's log-mel spectrogram.

`load.py` decodes and resamples in blocks, and `containers.py` finds all streams of a file.
`spectrogram.py` reproduces the numbers of the original.
"""
