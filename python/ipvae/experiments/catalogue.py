"""The experiments of ``ipvae reproduce``, by name."""

from __future__ import annotations

from .convergence import CONVERGENCE
from .horizon import HORIZON
from .mnist import MNIST
from .rate_distortion import RATE_DISTORTION
from .reproduce import Experiment

EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in (MNIST, CONVERGENCE, RATE_DISTORTION, HORIZON)}
