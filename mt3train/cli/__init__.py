"""Defines the command `mt3train`.

`main.py` holds the command group.
Each group of commands has a module of its own.
"""
