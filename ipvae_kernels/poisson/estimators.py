"""The estimators of a differentiable Poisson count: the one table that every backend takes them from.

Their formulas are in ``csrc/common/estimators.h`` and, in plain PyTorch, in ``relaxation.py``.
"""

from __future__ import annotations

from typing import NamedTuple


class Estimator(NamedTuple):
    """One way to draw a count with a derivative.

    Attributes:
        half_width: of a relaxed count, z = sum_i f((1 - t_i) / temperature) over arrival times t_i: f is 1
            above it and 0 below minus it, to float32 rounding. None: the count is not made of arrivals.
        order: of a hard count with a surrogate slope: the degree of polynomials for which the slope is
            unbiased. 0: no such slope.
        compiled: whether the kernels draw it; else only autograd does.
    """

    half_width: float | None = None
    order: int = 0
    compiled: bool = True


ESTIMATORS = {
    # Relaxed: "A hitchhiker's guide to Poisson gradient estimation"; "sigmoid" is that of the iP-VAE's code.
    "hard": Estimator(),
    "sigmoid": Estimator(half_width=17.0),
    "linear": Estimator(half_width=1.0),
    "cubic": Estimator(half_width=1.0),
    "quintic": Estimator(half_width=1.0),
    "cosine": Estimator(half_width=1.0),
    # He and Wu, "Extending pathwise gradients to discrete random variables via finite-order relaxation".
    "fini2": Estimator(order=2),
    "fini3": Estimator(order=3),
    # Gumbel-softmax over the counts below a bound, as in the Poisson VAE's code.
    "gumbel": Estimator(compiled=False),
}
COMPILED = tuple(name for name, estimator in ESTIMATORS.items() if estimator.compiled)
"""Those of the kernels, by their number there; ``csrc/common/estimators.h`` has the same order."""


def is_hard(estimator: str, temperature: float) -> bool:
    """Whether the draw is a hard count without a gradient; `checks.number` made the least temperatures 0."""
    return estimator == "hard" or (temperature == 0.0 and not ESTIMATORS[estimator].order)


def code(estimator: str, temperature: float) -> int:
    """The number of an estimator in the kernels; at temperature 0 the relaxed ones are hard."""
    return COMPILED.index("hard" if is_hard(estimator, temperature) else estimator)


def half_width(estimator: str) -> float:
    """That of an estimator made of arrivals."""
    half = ESTIMATORS[estimator].half_width
    if half is None:
        raise AssertionError(f"{estimator} is not made of arrivals")
    return half
