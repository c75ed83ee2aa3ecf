"""Defines the command `mt3data`.

`main.py` holds the command group.
The commands for datasets and for builds are in `datasets.py` and `builds.py`.
"""
