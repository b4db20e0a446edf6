"""The divergence of Poisson laws; in C++: ``csrc/common/cells/poisson.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from .rates import log_rate_from

KLS = ("exact", "released")
"""The formulas of a Poisson KL, in the order of the enumeration in ``csrc/common/cells/poisson.h``."""


def poisson_kl(
    log_rate: Tensor | None = None,
    log_rate_prior: Tensor | None = None,
    *,
    kind: str = "exact",
    rate: Tensor | None = None,
    rate_prior: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """KL(Poisson(e^u) || Poisson(e^u_prior)) of each neuron.

    With d = u - u_prior it is e^u_prior (1 + e^d (d - 1)), written so that the ones cancel by hand: two laws
    that are close keep their digits.

    Args:
        log_rate: u, any shape that broadcasts with the other, float32 or float64.
        log_rate_prior: u of the second law.
        kind: "exact", or "released": the formula of the released code, exp(u - u_prior) times the exact one.
        rate: the rates themselves, >= 0, in place of ``log_rate``.
        rate_prior: those of the second law, in place of ``log_rate_prior``; as 0 counts all below 1e-15.
        check: raise where a rate is negative, and what is given or the result not finite; a pass over each.

    Returns:
        Nats, of the shape to which both broadcast; differentiable to any order.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    kind, check = checks.choice("kind", kind, KLS), checks.flag("check", check)
    first = log_rate_from(log_rate, rate, check, floor=0.0)
    second = log_rate_from(log_rate_prior, rate_prior, check, floor=0.0, suffix="_prior")
    first, second = checks.full_precision(log_rate=first, log_rate_prior=second)
    try:
        torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ValueError(
            f"log_rate_prior: expected a shape that broadcasts with {list(first.shape)}, that of log_rate; "
            f"found {list(second.shape)}"
        ) from None
    check = check and not torch.compiler.is_compiling()
    if check:
        checks.finite(log_rate=first, log_rate_prior=second)
    nats = kl(first, second, kind)
    if check:
        checks.finite_result("rates overflow, or their quotient does", poisson_kl=nats)
    return nats


def kl(log_rate: Tensor, prior: Tensor, kind: str) -> Tensor:
    """KL between Poisson distributions of two log rates, elementwise, nats; see :func:`poisson_kl`."""
    d = log_rate - prior
    # d + (d - 1)(e^d - 1) is 1 + e^d (d - 1) with the ones cancelled by hand.
    return torch.exp(prior if kind == "exact" else log_rate) * (d + (d - 1.0) * torch.expm1(d))


def kl_gradients(log_rate: Tensor, prior: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Derivatives of :func:`kl` with respect to the log rate and to the prior."""
    d = log_rate - prior
    if kind == "exact":
        return torch.exp(log_rate) * d, -torch.exp(prior) * torch.expm1(d)
    slope = torch.exp(log_rate + d) * d
    return kl(log_rate, prior, kind) + slope, -slope
