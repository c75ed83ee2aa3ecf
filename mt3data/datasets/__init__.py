"""Describes every dataset of MT3 as tracks with audio, labels and splits.

Facts that publishers state are data in `manifests/`; `manifest.py` reads them.
Each module of `adapters/` lists the tracks of one dataset.
"""
