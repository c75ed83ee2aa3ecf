"""Composes short pieces and renders them with a SoundFont.

The result is a dataset in Slakh's layout, with exact labels.
The demo and the package's own weights are made from it.
"""
