"""Poisson counts from log rates in plain PyTorch: the readable truth, float32 and float64, noise injectable.

``docs/design/randomness.md`` specifies every draw. Rates are ``exp(log_rate) + RATE_FLOOR`` as in the code
released with "Brain-like variational inference" (arXiv 2410.19315).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import _transforms, philox
from ..philox import Stream
from .estimators import ESTIMATORS, half_width, is_hard

RATE_FLOOR = 1.1920929e-07  # the released code adds float32's epsilon in every dtype

_INVERSION_MAX = 10.0  # PTRS is valid from here on
_INVERSION_STEPS = 64  # P(count > 64 | rate 10) is below 1e-29
_TRIALS = 64
_HUGE_RATE = 2.0**48  # the standard deviation is below one rounding of float32
SATURATED_MIN = 8.0  # mean saturated count from which they are drawn at once
_ARRIVALS_MAX = 2.0**21  # expected arrivals of one draw; half of what its words allow
_BLOCKS_MAX = 16  # Philox blocks of arrivals evaluated at once: bounds memory

Arrivals = Iterable[tuple[Tensor, Tensor]]
"""Chunks of arrivals: flat indices of the counts they belong to (int64 [n]), and 1 minus their times [n]."""


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
        return _hard_counts(rate, self.seed, stream)

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
            many = _hard_counts(means, self.seed, stream.saturated())
            saturated = torch.where(busy, many, saturated)
            lead = torch.where(busy, half, lead)
        if n_arrivals is not None:
            saturated = saturated.clamp(max=float(n_arrivals))
        affordable = rate * (lead + half) <= _ARRIVALS_MAX
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
            if block + count > philox.BLOCKS:  # _ARRIVALS_MAX keeps draws far from here
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


def _hard_counts(rate: Tensor, seed: Tensor, stream: Stream) -> Tensor:
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


def _log_pmf(k: Tensor, rate: Tensor) -> Tensor:
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
        log_p = torch.where(k < 1.0, -rate_, _log_pmf(k.clamp(min=1.0), rate_))
        log_v = torch.log(v * inverse_alpha[left] / (a_ / us.square() + b_))
        accept = (us >= 0.07) & (v <= squeeze[left])
        accept |= (k >= 0.0) & ~((us < 0.013) & (v > us)) & (log_v <= log_p)
        count[left[accept]] = k[accept]
        left = left[~accept]
    return count


def rate_of(log_rate: Tensor) -> Tensor:
    """The rate of a log rate, floored as in the released code."""
    return torch.exp(log_rate) + RATE_FLOOR


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
    k = torch.arange(gumbel.shape[-1], dtype=log_rate.dtype, device=log_rate.device)
    logits = k * log_rate.unsqueeze(-1) - torch.lgamma(k + 1.0)
    return (torch.softmax((logits + gumbel) / tau, dim=-1) * k).sum(-1)


def gumbel_upper_bound(log_rate: Tensor) -> int:
    """The released code's support size: the 1 - 1e-3 quantile at the largest rate, at least 1."""
    rate = float(torch.exp(log_rate.detach()).amax()) if log_rate.numel() else 0.0
    if not rate < _ARRIVALS_MAX:
        raise ValueError(
            f"upper_bound: expected to be given for rates above {_ARRIVALS_MAX:.0f}, found {rate}"
        )
    k = torch.arange(math.ceil(rate + 10.0 * math.sqrt(rate) + 20.0), dtype=torch.float64, device="cpu")
    below = torch.special.gammaincc(k + 1.0, torch.full_like(k, rate)) < 1.0 - 1e-3
    return max(1, int(below.sum()))


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
    return _hard_counts(rate_of(log_rate), seed, stream)


def rsample(
    log_rate: Tensor, seed: Tensor, stream: Stream, estimator: str, temperature: float, n_arrivals: int | None
) -> tuple[Tensor, Tensor]:
    """Counts and their slopes d count / d log_rate, both [B, K]; see :func:`sample` for the other shapes."""
    return draw(log_rate, PhiloxNoise(seed), stream, estimator, temperature, n_arrivals)
