"""Draws in plain PyTorch: counts with their slopes, and counts that autograd differentiates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..philox import Stream
from .estimators import ESTIMATORS, half_width, is_hard
from .noise import Noise, PhiloxNoise, hard_counts, rate_of
from .relaxation import (
    INDICATORS,
    FiniCounts,
    fini_curvature,
    fini_slope,
    gumbel_counts,
    gumbel_upper_bound,
    relaxed_counts,
    relaxed_counts_and_slopes,
    relaxed_curvatures,
)


def draw(
    log_rate: Tensor, noise: Noise, stream: Stream, estimator: str, temperature: float, n_arrivals: int | None
) -> tuple[Tensor, Tensor]:
    """Counts z and slopes dz/du of log rates u, all [B, K], without autograd; "gumbel" is not served."""
    rate = rate_of(log_rate)
    if is_hard(estimator, temperature):
        counts = noise.counts(rate, stream)
        return counts, torch.zeros_like(counts)
    if order := ESTIMATORS[estimator].order:
        counts = noise.counts(rate, stream)
        return counts, fini_slope(counts, rate, order)
    saturated, arrivals = noise.arrivals(rate, half_width(estimator), temperature, n_arrivals, stream)
    counts, slope = relaxed_counts_and_slopes(saturated, arrivals, INDICATORS[estimator], temperature)
    return counts, slope * (torch.exp(log_rate) / rate)


def curvature(
    log_rate: Tensor,
    seed: Tensor,
    stream: Stream,
    estimator: str,
    temperature: float,
    n_arrivals: int | None,
    counts: Tensor | None,
) -> Tensor:
    """The second derivative d slope / du of a draw, [B, K].

    Args:
        log_rate: u, [B, K].
        seed: int64, shape [].
        stream: what the draw was for.
        estimator: any but "gumbel".
        temperature: of the relaxation.
        n_arrivals: of the first arrivals that count, None for all.
        counts: what was drawn, [B, K]; needed by "fini2" and "fini3", other draws are made once more.
    """
    if is_hard(estimator, temperature):
        return torch.zeros_like(log_rate)
    rate, growth = rate_of(log_rate), torch.exp(log_rate)
    if order := ESTIMATORS[estimator].order:
        assert counts is not None
        return fini_curvature(counts, rate, growth, order)
    noise, half = PhiloxNoise(seed), half_width(estimator)
    saturated, arrivals = noise.arrivals(rate, half, temperature, n_arrivals, stream)
    first, second = relaxed_curvatures(saturated, arrivals, INDICATORS[estimator], temperature)
    share = growth / rate  # d log(rate) / du, below 1 by the rate's floor
    return second * share.square() + first * share * (1.0 - share)


def differentiable_draw(
    log_rate: Tensor,
    noise: Noise,
    stream: Stream,
    estimator: str,
    temperature: float,
    n_arrivals: int | None,
    upper_bound: int | None = None,
) -> Tensor:
    """Counts [B, K] of log rates [B, K], differentiable by autograd; every estimator."""
    if estimator in INDICATORS and not is_hard(estimator, temperature):
        rate, half = rate_of(log_rate), half_width(estimator)
        saturated, arrivals = noise.arrivals(rate.detach(), half, temperature, n_arrivals, stream)
        return relaxed_counts(rate, saturated, arrivals, INDICATORS[estimator], temperature)
    if estimator == "gumbel" and not is_hard(estimator, temperature):
        n = gumbel_upper_bound(log_rate) if upper_bound is None else upper_bound
        return gumbel_counts(log_rate, noise.gumbel(log_rate, n, stream), temperature)
    counts = noise.counts(rate_of(log_rate.detach()), stream)
    if order := ESTIMATORS[estimator].order:
        fini: Tensor = FiniCounts.apply(log_rate, counts, order)  # type: ignore[no-untyped-call]
        return fini
    return counts + torch.zeros_like(counts) * log_rate  # hard: a gradient, which is zero


def sample(log_rate: Tensor, seed: Tensor, stream: Stream) -> Tensor:
    """Hard counts.

    Args:
        log_rate: [B, K], float32 or float64.
        seed: int64, shape [].
        stream: what the draw is for.

    Returns:
        Counts [B, K] of the same dtype.
    """
    return hard_counts(rate_of(log_rate), seed, stream)


def rsample(
    log_rate: Tensor, seed: Tensor, stream: Stream, estimator: str, temperature: float, n_arrivals: int | None
) -> tuple[Tensor, Tensor]:
    """Counts and their slopes d count / d log_rate, both [B, K]; see :func:`sample` for the other shapes."""
    return draw(log_rate, PhiloxNoise(seed), stream, estimator, temperature, n_arrivals)
