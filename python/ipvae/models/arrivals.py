"""The released rule for the number of arrivals that a relaxed count sums over."""

from __future__ import annotations

import bisect
import math

import torch

# The quantile of the largest rate at which the released code cuts the arrivals.
N_EXP_TAIL = 1e-3


def arrivals_quantile(rate: float, tail: float = N_EXP_TAIL) -> int:
    """The smallest n >= 1 with P(Poisson(rate) <= n) >= 1 - tail, the released number of arrivals.

    This n is a number of arrivals, so counts go up to n; the same quantile serves `gumbel_upper_bound` of
    `ipvae_kernels.poisson.relaxation` as a support size, where they go up to n - 1.

    Raises:
        ValueError: for a rate that is not positive and finite.
    """
    if not 0.0 < rate < math.inf:
        raise ValueError(f"rate: expected a positive, finite number, found {rate}")
    x = torch.tensor(rate, dtype=torch.float64, device="cpu")
    highest = math.ceil(rate + 12.0 * math.sqrt(rate) + 24.0)
    return max(
        bisect.bisect_left(
            range(highest), 1.0 - tail, key=lambda n: float(torch.special.gammaincc(x.new_tensor(n + 1.0), x))
        ),
        1,
    )
