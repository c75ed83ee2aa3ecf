"""Stores, finds and converts model weights.

`checkpoint.py` defines our file format, safetensors with the settings of the model.
`convert.py` reads the original's T5X checkpoints and their PyTorch copies.
`published.py` downloads the weights that the authors of MT3 published.
"""
