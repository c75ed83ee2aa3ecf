"""Writes a transcription as one HTML page with a piano roll and the recording.

The page needs no network.
Templates and scripts are beside `page.py`.
"""
