"""Figures from plain arrays; no pyplot, no global state.

Every function returns a `Figure`, which the caller saves with ``figure.savefig(path)``; no display is needed.
"""

from .canvas import is_image
from .curves import convergence, training_curves
from .images import features, reconstructions
from .spikes import raster

__all__ = ["convergence", "features", "is_image", "raster", "reconstructions", "training_curves"]
