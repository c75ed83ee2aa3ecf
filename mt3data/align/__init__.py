"""Measures how much later the audio of a track is than its labels, and corrects it.

`lag.py` finds one constant shift per track.
`warp.py` finds a time map for recordings that were played at a varying tempo.
"""
