"""Spikes on disk: written while inference runs, read in pieces, converted to what other tools load."""

from .convert import to_nwb, to_pynapple, to_sonata
from .reader import SpikeRecord
from .writer import SpikeWriter

__all__ = ["SpikeRecord", "SpikeWriter", "to_nwb", "to_pynapple", "to_sonata"]
