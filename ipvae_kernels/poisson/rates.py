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
    """The log rate, of which one form is given.

    Args:
        log_rate: u, or None.
        rate: the rate, or None.
        check: look for rates that are none.
        floor: what the rate is above exp(u).
        suffix: of both names for the caller.

    Raises:
        TypeError: see :func:`one_form`.
        ValueError: a rate is negative, NaN or infinite, as far as the numbers can be looked at.
    """
    form, given = one_form(log_rate, rate, suffix)
    if rate is None:
        return given
    if check and not torch.compiler.is_compiling():
        checks.finite(**{form: given})
        checks.not_negative(form, given)
    return log_rate_of(given, floor)


def one_form(log_rate: Tensor | None, rate: Tensor | None, suffix: str = "") -> tuple[str, Tensor]:
    """The name and the tensor of the one that is given.

    Raises:
        TypeError: neither is given, or both, or not a tensor of float32 or float64.
    """
    of_log, of_rate = f"log_rate{suffix}", f"rate{suffix}"
    if log_rate is None and rate is None:
        raise TypeError(f"{of_log}: expected a torch.Tensor, or {of_rate} in its place; found neither")
    if log_rate is not None and rate is not None:
        raise TypeError(f"{of_rate}: expected None beside {of_log}, found both")
    form, given = (of_log, log_rate) if rate is None else (of_rate, rate)
    assert given is not None
    (given,) = checks.full_precision(**{form: given})
    return form, given
