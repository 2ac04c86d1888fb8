"""Sweep runner: trains grids of model size x data size and records their losses. See README.md for the map of the house."""

__version__ = "0.1.0"
