"""Where draws come from: hard counts, arrivals, normals and Gumbels, in plain PyTorch, float32 and float64.

``docs/design/randomness.md`` specifies every draw. Rates are ``exp(log_rate) + RATE_FLOOR`` as in the code
released with "Brain-like variational inference" (arXiv 2410.19315).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from .. import philox
from ..philox import Stream

RATE_FLOOR = 1.1920929e-07  # the released code adds float32's epsilon in every dtype

_INVERSION_MAX = 10.0  # PTRS is valid from here on
_INVERSION_STEPS = 64  # P(count > 64 | rate 10) is below 1e-29
_TRIALS = 64
_HUGE_RATE = 2.0**48  # the standard deviation is below one rounding of float32
SATURATED_MIN = 8.0  # mean saturated count from which they are drawn at once
ARRIVALS_MAX = 2.0**21  # expected arrivals of one draw; half of what its words allow
_BLOCKS_MAX = 16  # Philox blocks of arrivals evaluated at once: bounds memory

Arrivals = Iterable[tuple[Tensor, Tensor]]
"""Chunks of arrivals: flat indices of the counts they belong to (int64 [n]), and 1 minus their times [n]."""


def rate_of(log_rate: Tensor) -> Tensor:
    """The rate of a log rate, floored as in the released code."""
    return torch.exp(log_rate) + RATE_FLOOR


class Noise(Protocol):
    """Where draws come from: Philox, or numbers recorded elsewhere. Shapes are those of a batch, [B, K]."""

    def counts(self, rate: Tensor, stream: Stream) -> Tensor:
        """Hard counts of rates [B, K]."""

    def arrivals(
        self, rate: Tensor, half_width: float, temperature: float, n_arrivals: int | None, stream: Stream
    ) -> tuple[Tensor, Arrivals]:
        """Counts taken at once [B, K], and the arrivals that follow them, in order within each count."""

    def normal(self, like: Tensor, stream: Stream) -> Tensor:
        """Standard normals, [B, K]."""

    def gumbel(self, like: Tensor, n: int, stream: Stream) -> Tensor:
        """Standard Gumbels, [B, K, n]."""


class PhiloxNoise:
    """Draws that are pure functions of the seed (int64, shape []) and the stream; a :class:`Noise`.

    ``saturated_min`` is the mean saturated count from which they are drawn at once; inf: never.
    """

    def __init__(self, seed: Tensor, saturated_min: float = SATURATED_MIN) -> None:
        self.seed, self.saturated_min = seed, saturated_min

    def counts(self, rate: Tensor, stream: Stream) -> Tensor:
        """Hard counts."""
        return hard_counts(rate, self.seed, stream)

    def arrivals(
        self, rate: Tensor, half_width: float, temperature: float, n_arrivals: int | None, stream: Stream
    ) -> tuple[Tensor, Arrivals]:
        """Saturated counts, and the arrivals in the window where the indicator is neither 0 nor 1."""
        half = half_width * temperature
        saturated = torch.zeros_like(rate)
        lead = torch.ones_like(rate)
        if half < 1.0:
            busy = rate * (1.0 - half) >= self.saturated_min
            # Rates that skip nothing are replaced by the floor: their draw is thrown away.
            means = torch.where(busy, rate * (1.0 - half), RATE_FLOOR)
            many = hard_counts(means, self.seed, stream.saturated())
            saturated = torch.where(busy, many, saturated)
            lead = torch.where(busy, half, lead)
        if n_arrivals is not None:
            saturated = saturated.clamp(max=float(n_arrivals))
        affordable = rate * (lead + half) <= ARRIVALS_MAX
        saturated = torch.where(affordable, saturated, math.nan)
        lead = torch.where(affordable, lead, math.nan)
        return saturated, self._follow(rate, lead, half, saturated, n_arrivals, stream)

    def _follow(
        self, rate: Tensor, lead: Tensor, half: float, done: Tensor, n_arrivals: int | None, stream: Stream
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Arrivals from ``lead`` before time 1 (NaN: none) to ``half`` after it; n_arrivals - done at most.

        Time is kept as what is left until time 1, ``lead``, and what has elapsed since the last chunk: at a
        rate of 10^8 in a window of 10^-3, gaps vanish in the float32 rounding of a time near 1, and those of
        a million arrivals in that of a time within the window.
        """
        neurons = rate.shape[-1]
        left = math.inf if n_arrivals is None else n_arrivals - done.flatten()
        flat_rate, lead = rate.flatten(), lead.flatten()
        first = philox.exponential(philox.first_words(self.seed, stream, rate.shape), rate.dtype)
        elapsed = first.flatten() / flat_rate
        rows = ((elapsed <= lead + half) & (left > 0)).nonzero().squeeze(-1)
        lead = lead[rows] - elapsed[rows]
        yield rows, lead
        block, count, so_far = 1, 1, 1
        while len(rows):
            if block + count > philox.BLOCKS:  # ARRIVALS_MAX keeps draws far from here
                yield rows, torch.full_like(lead, math.nan)
                return
            own = philox.own_words(self.seed, stream, rows // neurons, rows % neurons, block, count)
            gaps = philox.exponential(own, rate.dtype) / flat_rate[rows].unsqueeze(-1)
            early = lead.unsqueeze(-1) - gaps.cumsum(-1)
            live = early >= -half
            if n_arrivals is not None:
                index = torch.arange(so_far, so_far + 4 * count, device=rate.device)
                live &= index < (n_arrivals - done.flatten()[rows]).unsqueeze(-1)
            yield rows.unsqueeze(-1).expand_as(early)[live], early[live]
            rows, lead = rows[live[:, -1]], early[live[:, -1], -1]
            block, so_far = block + count, so_far + 4 * count
            count = min(
                2 * count, _BLOCKS_MAX
            )  # a fixed schedule, so that rounding does not depend on the batch

    def normal(self, like: Tensor, stream: Stream) -> Tensor:
        """Standard normals."""
        return philox.normal(philox.first_words(self.seed, stream, like.shape), like.dtype)

    def gumbel(self, like: Tensor, n: int, stream: Stream) -> Tensor:
        """Standard Gumbels: the k-th from word k."""
        sample = torch.arange(like.shape[0], device=like.device)[:, None, None]
        neuron = torch.arange(like.shape[1], device=like.device)[:, None]
        word = philox.words(self.seed, stream, sample, neuron, torch.arange(n, device=like.device))
        return -torch.log(philox.exponential(word, like.dtype))


def hard_counts(rate: Tensor, seed: Tensor, stream: Stream) -> Tensor:
    """Poisson counts of rates [B, K], as floats. NaN gives NaN, and the loops end for any rate."""
    word = philox.first_words(seed, stream, rate.shape)
    counts = torch.where(rate < _HUGE_RATE, 0.0, rate).flatten()
    flat_rate = rate.flatten()
    small = flat_rate < _INVERSION_MAX
    value = philox.uniform(word, rate.dtype).flatten()
    rows = (small & (value < -torch.expm1(-flat_rate))).nonzero().squeeze(-1)
    counts[rows] = _invert(flat_rate[rows], value[rows])
    rows = (~small & (flat_rate < _HUGE_RATE)).nonzero().squeeze(-1)
    counts[rows] = _reject(flat_rate[rows], rows, rate.shape[-1], seed, stream)
    return counts.view_as(rate)


def _invert(rate: Tensor, value: Tensor) -> Tensor:
    """Inversion on the survival side, rates < 10, [n]: the number of k with value < P(count > k)."""
    count = torch.zeros_like(rate)
    p, survival = torch.exp(-rate), -torch.expm1(-rate)
    for k in range(1, _INVERSION_STEPS + 1):
        more = value < survival
        if not more.any():
            break
        count += more
        p = p * (rate / k)
        survival = survival - p
    return count


def log_pmf(k: Tensor, rate: Tensor) -> Tensor:
    """The logarithm of P(count = k), k >= 1.

    In the form of Loader ("Fast and accurate computation of binomial probabilities", 2000) no term is larger
    than the result, so float32 stays accurate at large counts.
    """
    difference = k - rate
    v = difference / (k + rate)
    q = v.square()
    series = torch.zeros_like(q)
    for j in range(8, 0, -1):
        series = q * (1.0 / (2 * j + 1) + series)
    near = difference * v + 2.0 * k * v * series
    deviance = torch.where(v.abs() < 0.1, near, k * torch.log(k / rate) - difference)
    i = 1.0 / k
    series = i * (1 / 12 - i**2 * (1 / 360 - i**2 * (1 / 1260)))
    stirling = torch.where(
        k < 8, torch.lgamma(k + 1) - (k + 0.5) * torch.log(k) + k - 0.5 * math.log(2 * math.pi), series
    )
    return -deviance - stirling - 0.5 * torch.log(2 * math.pi * k)


def _reject(rate: Tensor, rows: Tensor, neurons: int, seed: Tensor, stream: Stream) -> Tensor:
    """Hoermann's transformed rejection PTRS (1993), rates >= 10, [n]; ``rows`` are their flat indices."""
    count = torch.floor(rate)
    b = 0.931 + 2.53 * torch.sqrt(rate)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    squeeze = 0.9277 - 3.6224 / (b - 2.0)
    left = torch.arange(len(rate), device=rate.device)
    for trial in range(_TRIALS):
        if not len(left):
            break
        where = rows[left]
        block = philox.own_words(seed, stream, where // neurons, where % neurons, 1 + trial // 2, 1)
        word_u, word_v = block[:, 2 * (trial % 2)], block[:, 2 * (trial % 2) + 1]
        low, high = philox.uniform(word_u, rate.dtype), philox.uniform(~word_u, rate.dtype)
        v = philox.uniform(word_v, rate.dtype)
        a_, b_, rate_ = a[left], b[left], rate[left]
        us = torch.minimum(low, high)
        k = torch.floor((2.0 * a_ / us + b_) * (low - 0.5) + rate_ + 0.43)
        log_p = torch.where(k < 1.0, -rate_, log_pmf(k.clamp(min=1.0), rate_))
        log_v = torch.log(v * inverse_alpha[left] / (a_ / us.square() + b_))
        accept = (us >= 0.07) & (v <= squeeze[left])
        accept |= (k >= 0.0) & ~((us < 0.013) & (v > us)) & (log_v <= log_p)
        count[left[accept]] = k[accept]
        left = left[~accept]
    return count
