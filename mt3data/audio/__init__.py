"""Reads any audio file as mono samples at 16 kHz and computes MT3's log-mel spectrogram.

`load.py` decodes and resamples in blocks. `containers.py` finds all streams of a file, and `ffmpeg.py`
decodes what libsndfile does not read.
`spectrogram.py` reproduces the numbers of the original.
"""
