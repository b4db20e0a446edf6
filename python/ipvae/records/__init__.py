"""Spikes on disk: written while inference runs, read in pieces."""

from .reader import SpikeRecord
from .writer import SpikeWriter

__all__ = ["SpikeRecord", "SpikeWriter"]
