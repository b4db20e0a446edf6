"""Log rates from rates, for those who have the latter."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import checks
from .noise import RATE_FLOOR

# A rate that counts as 0: below a rounding of the floor, and its reciprocal's square is a number of float32.
_NOTHING = 1e-15


def log_rate_of(rate: Tensor, floor: float = RATE_FLOOR) -> Tensor:
    """The log rate u with exp(u) + floor = rate; NaN for what is no rate, differentiable.

    At and below the floor u stays where exp(u) is nothing beside it, and has no gradient.
    """
    return torch.where(rate >= 0.0, (rate - floor).clamp(min=_NOTHING), math.nan).log()


def log_rate_from(
    log_rate: Tensor | None, rate: Tensor | None, check: bool, floor: float = RATE_FLOOR, suffix: str = ""
) -> Tensor:
    """The log rate, of which one form is given; ``suffix`` ends the names of both for the caller.

    Raises:
        TypeError: neither is given, or both, or not a tensor of float32 or float64.
        ValueError: a rate is negative, NaN or infinite, as far as the numbers can be looked at.
    """
    of_log, of_rate = f"log_rate{suffix}", f"rate{suffix}"
    if rate is None:
        if log_rate is None:
            raise TypeError(f"{of_log}: expected a torch.Tensor, or {of_rate} in its place; found neither")
        (log_rate,) = checks.full_precision(**{of_log: log_rate})
        return log_rate
    if log_rate is not None:
        raise TypeError(f"{of_rate}: expected None beside {of_log}, found both")
    (rate,) = checks.full_precision(**{of_rate: rate})
    if check and not torch.compiler.is_compiling():
        checks.finite(**{of_rate: rate})
        checks.not_negative(of_rate, rate)
    return log_rate_of(rate, floor)
