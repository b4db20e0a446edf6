"""The cells: what tells them apart, in one table, and their equations in plain PyTorch.

A cell is the model without its decoder and without the loop over time. To add one, see
``docs/design/extending.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from .. import checks
from ..params import GaussianParams, PoissonParams
from ..poisson.noise import Noise
from .base import Cell, Draw
from .gaussian import GaussianCell
from .poisson import PoissonCell

if TYPE_CHECKING:
    from ..rollout.config import RolloutConfig

__all__ = [
    "CELLS",
    "Cell",
    "Draw",
    "GaussianCell",
    "PoissonCell",
    "code",
    "make_cell",
    "name_of",
]


class CellSpec(NamedTuple):
    """What tells a cell apart, but for its equations.

    Attributes:
        states: the S numbers that make the state of a neuron. States are [B, K] where S = 1, else [S, B, K].
        counts: whether counts are drawn, by an estimator; else normals, always the same number of them.
        clamp_u: default ceilings of the numbers of a state.
        clamp_du: default ceilings of their updates.
        start: the field of the parameters that holds the initial state.
    """

    states: tuple[str, ...]
    counts: bool
    clamp_u: tuple[float, ...]
    clamp_du: tuple[float, ...]
    start: str


_GAUSSIAN = CellSpec(
    states=("mean", "log_sigma"), counts=False, clamp_u=(7.0, 2.0), clamp_du=(7.0, 3.0), start="state_init"
)
CELLS = {
    "poisson": CellSpec(
        states=("log_rate",), counts=True, clamp_u=(10.0,), clamp_du=(10.0,), start="log_rate_init"
    ),
    "gaussian": _GAUSSIAN,
    "gaussian_relu": _GAUSSIAN,  # rectifies the latents before the decoder
}
"""In the order of the enumeration in ``csrc/common/cells/cell.h``."""


def code(cell: str) -> int:
    """The number of a cell in the kernels."""
    return tuple(CELLS).index(cell)


def name_of(params: PoissonParams | GaussianParams) -> str:
    """The cell whose parameters these are."""
    if isinstance(params, PoissonParams):
        return "poisson"
    if isinstance(params, GaussianParams):
        by_activation = {"identity": "gaussian", "relu": "gaussian_relu"}
        return by_activation[checks.choice("params.activation", params.activation, by_activation)]
    raise TypeError(f"params: expected PoissonParams or GaussianParams, found {type(params).__name__}")


def make_cell(
    log_bias: Tensor, log_lr: Tensor, noise: Noise, cfg: RolloutConfig, differentiable: bool = False
) -> Cell:
    """The cell that ``cfg`` names; ``differentiable`` as in :class:`PoissonCell`."""
    match cfg.cell:
        case "poisson":
            return PoissonCell(log_bias, log_lr, noise, cfg, differentiable)
        case "gaussian" | "gaussian_relu":
            return GaussianCell(log_bias, log_lr, noise, cfg)
    raise ValueError(f"cell: expected one of {', '.join(CELLS)}, found {cfg.cell!r}")
