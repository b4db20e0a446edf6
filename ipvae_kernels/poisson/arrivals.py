"""The authors' rule for the number of arrivals that a relaxed count sums over."""

from __future__ import annotations

import bisect
import math

import torch

from .. import checks

# The quantile of the largest rate at which the released code cuts the arrivals.
N_EXP_TAIL = 1e-3

_RATE_MAX = 2.0**53  # beyond, there are no numbers of arrivals next to each other


def arrivals_quantile(rate: float, tail: float = N_EXP_TAIL) -> int:
    """The smallest n >= 1 with P(Poisson(rate) <= n) >= 1 - tail, the released number of arrivals.

    This n is a number of arrivals, so counts go up to n; the same quantile serves the Gumbel-softmax
    estimator as a support size, where they go up to n - 1.

    Args:
        rate: the largest of those that are drawn from, above 0.
        tail: probability of more arrivals than n, above 0 and below 1.

    Raises:
        TypeError: for what is not a number.
        ValueError: for a rate that is not positive and finite, and a tail that is no such probability.
    """
    rate = checks.number("rate", rate, 0.0, _RATE_MAX, above=True)
    tail = tail_probability("tail", tail)
    x = torch.tensor(rate, dtype=torch.float64, device="cpu")
    highest = math.ceil(rate + 12.0 * math.sqrt(rate) + 24.0)
    return max(
        bisect.bisect_left(
            range(highest), 1.0 - tail, key=lambda n: float(torch.special.gammaincc(x.new_tensor(n + 1.0), x))
        ),
        1,
    )


def tail_probability(name: str, value: object) -> float:
    """A probability that is neither 0 nor 1."""
    tail = checks.number(name, value, 0.0, above=True)
    if tail >= 1.0:
        raise ValueError(f"{name}: expected a probability below 1, found {tail}")
    return tail
