"""Spikes: on disk while inference runs, read in pieces, in the formats of other tools, as lists of events.

Names are imported when first used: lists of events need no extra, and the others pyarrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .convert import to_nwb, to_pynapple, to_sonata
    from .events import Events, from_events, to_events
    from .reader import SpikeRecord
    from .writer import SpikeWriter

__all__ = [
    "Events",
    "SpikeRecord",
    "SpikeWriter",
    "from_events",
    "to_events",
    "to_nwb",
    "to_pynapple",
    "to_sonata",
]

_HOME = {
    **dict.fromkeys(("to_nwb", "to_pynapple", "to_sonata"), "convert"),
    **dict.fromkeys(("Events", "from_events", "to_events"), "events"),
    "SpikeRecord": "reader",
    "SpikeWriter": "writer",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
