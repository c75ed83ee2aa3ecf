"""Holds the parts of the trainer that `train.py` calls.

These are the loss, the optimizers, resuming, the run's folder, several processes, and logging.
The training loop itself is in `mt3train/train.py`.
"""
