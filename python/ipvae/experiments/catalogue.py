"""The experiments of ``ipvae reproduce``, by name."""

from __future__ import annotations

from .activations import ACTIVATIONS
from .convergence import CONVERGENCE
from .cost import COST
from .estimators import ESTIMATORS_COMPARED
from .horizon import HORIZON
from .mnist import MNIST
from .moving import MOVING
from .ood import OOD
from .rate_distortion import RATE_DISTORTION
from .reproduce import Experiment
from .transfer import TRANSFER
from .wide import WIDE

_ALL = (
    MNIST, CONVERGENCE, RATE_DISTORTION, OOD, HORIZON, MOVING, TRANSFER, ESTIMATORS_COMPARED, COST, WIDE,
    ACTIVATIONS,
)  # fmt: skip
EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in _ALL}
