"""Lists the tracks of each dataset, one module per dataset.

Every module has a function `tracks()` that yields `Track` objects.
`csv_tracks.py` serves the datasets whose tracks are listed in a table beside the manifest.
"""
