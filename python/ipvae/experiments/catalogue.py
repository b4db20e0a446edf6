"""The experiments of ``ipvae reproduce``, by name."""

from __future__ import annotations

from .convergence import CONVERGENCE
from .estimators import ESTIMATORS_COMPARED
from .horizon import HORIZON
from .mnist import MNIST
from .ood import OOD
from .rate_distortion import RATE_DISTORTION
from .reproduce import Experiment

_ALL = (MNIST, CONVERGENCE, RATE_DISTORTION, OOD, HORIZON, ESTIMATORS_COMPARED)
EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in _ALL}
