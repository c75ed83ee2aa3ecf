"""Summarises a build as tables, plots and one HTML page.

`statistics.py` computes the figures.
`page.py` writes the page and `plot_record.py` draws one record.
"""
