"""The estimators in plain PyTorch: relaxed counts of arrivals, finite-order slopes, Gumbel-softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _transforms
from .arrivals import arrivals_quantile
from .noise import ARRIVALS_MAX, RATE_FLOOR, Arrivals, rate_of


class Indicator(NamedTuple):
    """A soft indicator of x > 0.

    Attributes:
        value: f(x).
        derivative: f'(x).
        curvature: f''(x); what holds between its kinks.
    """

    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor]


def _ramp(x: Tensor) -> Tensor:
    return (0.5 * x + 0.5).clamp(0.0, 1.0)


def _cubic_slope(x: Tensor) -> Tensor:
    w = _ramp(x)
    return 3.0 * w * (1.0 - w)


def _quintic_slope(x: Tensor) -> Tensor:
    w = _ramp(x)
    return 15.0 * (w * (1.0 - w)).square()


def _cosine_slope(x: Tensor) -> Tensor:
    w = _ramp(x)
    return 0.25 * math.pi * torch.sin(math.pi * torch.minimum(w, 1.0 - w))  # exactly 0 at both ends


def _sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _sigmoid_curvature(x: Tensor) -> Tensor:
    return _sigmoid_slope(x) * (1.0 - 2.0 * torch.sigmoid(x))


def _inside(x: Tensor) -> Tensor:
    """1 where the ramp rises, 0 elsewhere."""
    return (x.abs() < 1.0).to(x.dtype)


def _quintic_curvature(x: Tensor) -> Tensor:
    w = _ramp(x)
    return 15.0 * w * (1.0 - w) * (1.0 - 2.0 * w)


INDICATORS: dict[str, Indicator] = {
    "sigmoid": Indicator(torch.sigmoid, _sigmoid_slope, _sigmoid_curvature),
    "linear": Indicator(_ramp, lambda x: 0.5 * _inside(x), torch.zeros_like),
    "cubic": Indicator(
        lambda x: _ramp(x).square() * (3.0 - 2.0 * _ramp(x)),
        _cubic_slope,
        lambda x: -1.5 * x * _inside(x),
    ),
    "quintic": Indicator(
        lambda x: _ramp(x).pow(3) * (_ramp(x) * (6.0 * _ramp(x) - 15.0) + 10.0),
        _quintic_slope,
        _quintic_curvature,
    ),
    "cosine": Indicator(
        lambda x: 0.5 * (1.0 - torch.cos(math.pi * _ramp(x))),
        _cosine_slope,
        lambda x: 0.125 * math.pi**2 * torch.cos(math.pi * _ramp(x)) * _inside(x),
    ),
}


def relaxed_counts(
    rate: Tensor, saturated: Tensor, arrivals: Arrivals, indicator: Indicator, tau: float
) -> Tensor:
    """Relaxed counts [B, K], differentiable with respect to ``rate`` by autograd.

    An arrival time is a standard Gamma variable over the rate: t = S / rate, with S held constant.
    """
    flat_rate = rate.flatten()
    z = torch.zeros_like(flat_rate)
    for rows, early in arrivals:
        later = (1.0 - early) * (
            flat_rate.detach()[rows] / flat_rate[rows] - 1.0
        )  # 0, with the derivative of t
        z = z + torch.zeros_like(z).index_add(0, rows, indicator.value((early - later) / tau))
    return saturated + z.view_as(rate)


def relaxed_counts_and_slopes(
    saturated: Tensor, arrivals: Arrivals, indicator: Indicator, tau: float
) -> tuple[Tensor, Tensor]:
    """Relaxed counts z [B, K] and dz / d log(rate) [B, K], in one pass over the arrivals."""
    # Saturated counts apart, and each chunk by itself: one by one, shares are lost in a large count.
    z = torch.zeros_like(saturated).flatten()
    slope = 0.0 * saturated.flatten()  # keeps the NaN of what could not be drawn
    for rows, early in arrivals:
        x = early / tau
        z += torch.zeros_like(z).index_add_(0, rows, indicator.value(x))
        slope += torch.zeros_like(z).index_add_(0, rows, indicator.derivative(x) * (1.0 - early) / tau)
    return saturated + z.view_as(saturated), slope.view_as(saturated)


def relaxed_curvatures(
    saturated: Tensor, arrivals: Arrivals, indicator: Indicator, tau: float
) -> tuple[Tensor, Tensor]:
    """First and second derivatives of relaxed counts with respect to log(rate), [B, K] each.

    With t = S / rate: dt / d log(rate) = -t, so x = (1 - t) / tau has the derivatives t / tau and -t / tau.
    """
    first = 0.0 * saturated.flatten()
    second = first
    for rows, early in arrivals:
        x, speed = early / tau, (1.0 - early) / tau
        along = indicator.derivative(x) * speed
        first = first.index_add(0, rows, along)
        second = second.index_add(0, rows, indicator.curvature(x) * speed.square() - along)
    return first.view_as(saturated), second.view_as(saturated)


def fini_slope(counts: Tensor, rate: Tensor, order: int) -> Tensor:
    """dz/du of a hard count, unbiased for polynomials up to ``order`` (2 or 3).

    He and Wu, "Extending pathwise gradients to discrete random variables via finite-order relaxation".
    """
    if order == 2:
        return 0.5 * (counts + rate)
    return (5.0 * rate + counts * ((8.0 * rate + 1.0 - counts) / rate)) / 12.0


def fini_curvature(counts: Tensor, rate: Tensor, growth: Tensor, order: int) -> Tensor:
    """The derivative of :func:`fini_slope` by u, in which the count too follows u, with that slope.

    Args:
        counts: hard counts z, [...].
        rate: their rate, [...].
        growth: d rate / du, [...].
        order: 2 or 3.
    """
    slope = fini_slope(counts, rate, order)
    if order == 2:
        return 0.5 * (slope + growth)
    along_counts = (8.0 + (1.0 - 2.0 * counts) / rate) / 12.0
    return along_counts * slope + (5.0 * growth + counts * ((counts - 1.0) / rate) * (growth / rate)) / 12.0


class FiniCounts(torch.autograd.Function):
    """Hard counts whose derivative is :func:`fini_slope`, of every order, for autograd.

    The slope is differentiated through the rate and through the count itself (``docs/design/numerics.md``).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(log_rate: Tensor, counts: Tensor, order: int) -> Tensor:
        """The counts."""
        return counts.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        """Keeps the log rate and the result, which is differentiable."""
        ctx.order = inputs[2]
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the log rate."""
        log_rate, counts = ctx.saved_tensors
        return grad * _fini_slope_at(log_rate, counts, ctx.order), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        """The tangent of the counts."""
        return _transforms.forward_product(tangent, _fini_slope_at, *ctx.saved_tensors, ctx.order)


def _fini_slope_at(log_rate: Tensor, counts: Tensor, order: int) -> Tensor:
    return fini_slope(counts, rate_of(log_rate), order)


def gumbel_counts(log_rate: Tensor, gumbel: Tensor, tau: float) -> Tensor:
    """Gumbel-softmax relaxation over the counts 0..n-1, differentiable by autograd.

    Args:
        log_rate: [...].
        gumbel: standard Gumbels, [..., n].
        tau: temperature > 0.
    """
    shares = torch.softmax((count_logits(log_rate, gumbel.shape[-1]) + gumbel) / tau, dim=-1)
    return (shares * torch.arange(gumbel.shape[-1], dtype=log_rate.dtype, device=log_rate.device)).sum(-1)


def count_logits(log_rate: Tensor, n: int) -> Tensor:
    """Log probabilities of the counts 0..n-1, up to a constant: [...] to [..., n]."""
    k = torch.arange(n, dtype=log_rate.dtype, device=log_rate.device)
    return k * log_rate.unsqueeze(-1) - torch.lgamma(k + 1.0)


def gumbel_upper_bound(log_rate: Tensor) -> int:
    """The released code's support size: the 1 - 1e-3 quantile at the largest rate, at least 1."""
    rate = float(torch.exp(log_rate.detach()).amax()) if log_rate.numel() else 0.0
    if not rate < ARRIVALS_MAX:
        raise ValueError(
            f"upper_bound: expected to be given for rates above {ARRIVALS_MAX:.0f}, found {rate}"
        )
    return arrivals_quantile(max(rate, RATE_FLOOR))
