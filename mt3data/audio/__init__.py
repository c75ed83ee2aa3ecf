"""Reads any audio file as mono samples at 16 kHz and computes MT3's log-mel spectrogram.

`load.py` decodes and resamples in blocks, so memory does not grow with the length of a file.
`spectrogram.py` reproduces the numbers of the original.
"""
