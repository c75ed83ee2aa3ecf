"""Scores transcriptions against references, as the MT3 paper does.

`metrics.py` defines the scores.
`evaluate.py` applies them to the tracks of a split and `tables.py` prints them.
"""
