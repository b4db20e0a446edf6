"""The laws of the samplers: exact thresholds, chi-square against the pmf, moments, a second evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

import ipvae_kernels as ik
from ipvae_kernels import philox
from ipvae_kernels.philox import KIND_ALONE, Stream
from ipvae_kernels.poisson import eager, noise, relaxation
from ipvae_kernels.poisson.estimators import half_width

COMPACT = ["linear", "cubic", "quintic", "cosine"]
INDICATORS = ["sigmoid", *COMPACT]


def draws(log_rate: float, n: int, backend: str, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return ik.poisson_sample(
        torch.full((n // 100, 100), log_rate, dtype=dtype), seed=seed, backend=backend
    ).flatten()


def log_rate_of(rate: float) -> float:
    return math.log(rate - noise.RATE_FLOOR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_rate", [-8.0, -4.0, 0.0, 2.0])
def test_probability_of_a_spike_is_exact(
    log_rate: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P(z >= 1) is the number of words that give a spike over 2^32; the sampler is monotone in its word."""
    u = torch.full((1, 1), log_rate, dtype=dtype)

    def spikes(word: int) -> bool:
        monkeypatch.setattr(philox, "first_words", lambda *_: torch.tensor([[word]]))
        return bool(eager.sample(u, torch.tensor(0), Stream()) >= 1)

    low, high = 0, 2**32  # spikes(low), not spikes(high)
    assert spikes(0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spikes(middle) else (low, middle)
    expected = -math.expm1(-(math.exp(log_rate) + noise.RATE_FLOOR))
    assert high / 2**32 == pytest.approx(expected, rel=1e-6)


def pool(counts: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Observed and expected numbers in bins of at least 100 expected; the first and last take the tails."""
    n, edges = len(counts), [0]
    for k in range(int(stats.poisson.ppf(1e-7, rate)), int(stats.poisson.isf(1e-7, rate)) + 1):
        if n * (stats.poisson.cdf(k, rate) - stats.poisson.cdf(edges[-1] - 1, rate)) >= 100:
            edges.append(k + 1)
    edges.pop()  # what is left above the last full bin joins it
    cdf = [0.0, *stats.poisson.cdf(np.array(edges[1:]) - 1, rate), 1.0]
    return np.histogram(counts, bins=[*edges, np.inf])[0], n * np.diff(cdf)


@pytest.mark.parametrize("rate", [1e-3, 0.05, 0.7, 3.0, 9.99, 10.0, 10.5, 31.0, 100.0, 1000.0, 22026.0])
def test_hard_counts_follow_the_pmf(rate: float, backend: str) -> None:
    counts = draws(log_rate_of(rate), 200_000, backend, torch.float32).double().numpy()
    assert (counts == np.floor(counts)).all()
    observed, expected = pool(counts, rate)
    assert len(observed) >= 2
    assert expected.min() >= 100
    assert observed.sum() == len(counts)
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("rate", [0.7, 31.0])
def test_hard_counts_follow_the_pmf_in_float64(rate: float) -> None:
    counts = draws(log_rate_of(rate), 200_000, "eager", torch.float64).numpy()
    assert stats.chisquare(*pool(counts, rate)).pvalue > 1e-3


def test_log_pmf_matches_scipy() -> None:
    rate = torch.tensor([10.0, 10.5, 100.0, 22026.0, 1e6, 1e9, 2.0**47], dtype=torch.float64)
    for shift in (-5.0, -1.0, 0.0, 0.5, 4.0):
        k = torch.floor(rate + shift * torch.sqrt(rate)).clamp(min=1.0)
        expected = torch.from_numpy(stats.poisson.logpmf(k.numpy(), rate.numpy()))
        small = rate < 1e7  # scipy loses digits above
        torch.testing.assert_close(noise.log_pmf(k, rate)[small], expected[small], rtol=1e-9, atol=1e-8)
        single = noise.log_pmf(k.float(), rate.float())  # at the float32 neighbours of k and rate
        exact = noise.log_pmf(k.float().double(), rate.float().double())
        torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-5)


def test_extreme_rates_end(backend: str) -> None:
    huge = math.log(2.0**48) + 0.01
    u = torch.tensor([-200.0, -8.0, huge, 60.0, 88.0, 100.0, math.inf, -math.inf, math.nan])
    counts = ik.poisson_sample(u, seed=3, backend=backend, check=False)
    rate = torch.exp(u)
    assert counts[0] == 0
    torch.testing.assert_close(counts[2:5], rate[2:5], rtol=1e-6, atol=0)
    assert bool(torch.isinf(counts[5:7]).all())
    assert counts[7] == 0
    assert bool(torch.isnan(counts[8]))


def test_rates_just_below_the_huge_one_are_centred(backend: str) -> None:
    rate = 2.0**47
    counts = draws(math.log(rate), 2000, backend, torch.float32).double()
    spread = math.sqrt(rate) + 1e-6 * rate  # exp in float32 rounds the rate itself
    assert float((counts - rate).abs().max()) < 8 * spread


@pytest.mark.parametrize("n_arrivals", [None, 6])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.05])
@pytest.mark.parametrize("estimator", INDICATORS)
def test_relaxed_counts_are_the_documented_sums(
    estimator: str, temperature: float, n_arrivals: int | None
) -> None:
    """An evaluation of docs/design/randomness.md neuron by neuron, in plain Python floats."""
    u = torch.linspace(-3.0, 4.0, 24, dtype=torch.float64).view(2, 12)
    seed, stream = torch.tensor(9), Stream(2, 0, 4, 6)
    z, slope = eager.rsample(u, seed, stream, estimator, temperature, n_arrivals)
    for sample in range(2):
        for neuron in range(12):
            expected = one_draw(
                float(u[sample, neuron]), sample, neuron, seed, stream, estimator, temperature, n_arrivals
            )
            got = (float(z[sample, neuron]), float(slope[sample, neuron]))
            assert got == pytest.approx(expected, rel=1e-9, abs=1e-9), (sample, neuron)


FUNCTIONS = {
    "sigmoid": (lambda x: 1 / (1 + math.exp(-x)), lambda x: math.exp(-x) / (1 + math.exp(-x)) ** 2),
    "linear": (lambda w: w, lambda w: 0.5),
    "cubic": (lambda w: 3 * w**2 - 2 * w**3, lambda w: 3 * (w - w**2)),
    "quintic": (lambda w: 6 * w**5 - 15 * w**4 + 10 * w**3, lambda w: 15 * (w**4 - 2 * w**3 + w**2)),
    "cosine": (lambda w: (1 - math.cos(math.pi * w)) / 2, lambda w: math.pi / 4 * math.sin(math.pi * w)),
}


def one_draw(
    u: float,
    sample: int,
    neuron: int,
    seed: Tensor,
    stream: Stream,
    estimator: str,
    tau: float,
    limit: int | None,
) -> tuple[float, float]:
    rate = math.exp(u) + noise.RATE_FLOOR
    width = 17.0 if estimator == "sigmoid" else 1.0
    begin, end = 1 - width * tau, 1 + width * tau
    z, slope, time = 0.0, 0.0, 0.0
    if begin > 0 and rate * begin >= 8:
        rates = torch.full((sample + 1, neuron + 1), rate * begin, dtype=torch.float64)
        z, time = (
            float(noise.hard_counts(rates, seed, stream._replace(kind=stream.kind + 8))[sample, neuron]),
            begin,
        )
    limit = 10**9 if limit is None else limit
    z = min(z, limit)
    left = limit - z
    for gap in gaps(seed, stream, sample, neuron):
        time += gap / rate
        if time > end or left == 0:
            break
        left -= 1
        f, derivative = FUNCTIONS[estimator]
        x = (1 - time) / tau
        if estimator != "sigmoid":
            x = x / 2 + 0.5
            f_x, d_x = (1.0, 0.0) if x >= 1 else (0.0, 0.0) if x <= 0 else (f(x), derivative(x))
        else:
            f_x, d_x = f(x), derivative(x)
        z += f_x
        slope += d_x * time / tau
    return z, slope * math.exp(u) / rate


def gaps(seed: Tensor, stream: Stream, sample: int, neuron: int) -> Iterator[float]:
    for i in range(0, 4096, 64):
        word = philox.words(seed, stream, torch.tensor(sample), torch.tensor(neuron), torch.arange(i, i + 64))
        yield from philox.exponential(word, torch.float64).tolist()


def indicator_integral(estimator: str, tau: float, power: int) -> float:
    value = relaxation.INDICATORS[estimator].value
    width = half_width(estimator)

    def f(t: float) -> float:
        return float(value(torch.tensor((1 - t) / tau, dtype=torch.float64))) ** power

    points = [max(0.0, 1 - width * tau), 1.0, 1 + width * tau]
    return points[0] + sum(integrate.quad(f, a, b, epsabs=1e-10)[0] for a, b in pairwise(points))


@pytest.mark.parametrize("rate", [0.3, 4.0, 40.0, 400.0])
@pytest.mark.parametrize(
    ("estimator", "tau"), [("sigmoid", 0.1), ("sigmoid", 0.02), *((e, 0.2) for e in COMPACT), ("cubic", 1.0)]
)
def test_moments_of_relaxed_counts(estimator: str, tau: float, rate: float, backend: str) -> None:
    """Campbell: a sum over a Poisson process has mean rate int f and variance rate int f^2."""
    n = {0.3: 40_000, 4.0: 20_000, 40.0: 5_000, 400.0: 1_000}[rate]
    u = torch.full((n // 100, 100), log_rate_of(rate), dtype=torch.float32, requires_grad=True)
    z = ik.poisson_rsample(u, estimator=estimator, temperature=tau, seed=8, backend=backend)
    (slope,) = torch.autograd.grad(z.sum(), u)
    z, slope = z.detach().double().flatten(), slope.double().flatten()
    mean, variance = (
        rate * indicator_integral(estimator, tau, 1),
        rate * indicator_integral(estimator, tau, 2),
    )
    if estimator in COMPACT:
        assert mean == pytest.approx(rate, rel=1e-8)  # exact mean for tau <= 1
    error = math.sqrt(variance / n)
    assert abs(float(z.mean()) - mean) < 4.5 * error
    kurtosis_error = variance * math.sqrt((2 + 1 / rate) / n)  # of a sample variance
    assert abs(float(z.var()) - variance) < 5 * kurtosis_error
    assert abs(float(slope.mean()) - mean) < 5 * float(slope.std()) / math.sqrt(n)


@pytest.mark.parametrize("rate", [12.0, 120.0])
def test_skipping_saturated_arrivals_keeps_the_law(rate: float, backend: str) -> None:
    u = torch.full((100, 100), log_rate_of(rate))
    arguments = {"estimator": "cubic", "temperature": 0.1}
    skipping = ik.poisson_rsample(u, seed=1, backend=backend, **arguments)
    every = noise.PhiloxNoise(torch.tensor(2), saturated_min=math.inf)
    plain, _ = eager.draw(u, every, Stream(KIND_ALONE, 0, 0, 0), "cubic", 0.1, None)
    assert not torch.equal(skipping, plain)
    assert stats.ks_2samp(skipping.flatten(), plain.flatten()).pvalue > 1e-3


@pytest.mark.parametrize("estimator", INDICATORS)
def test_low_temperature_gives_the_hard_count(estimator: str, backend: str) -> None:
    u = torch.linspace(-6, 1, 4000).view(40, 100)
    z = ik.poisson_rsample(u, estimator=estimator, temperature=1e-6, seed=4, backend=backend)
    assert float((z - z.round()).abs().max()) < 0.5
    whole = (z - z.round()).abs() < 1e-6
    assert float(whole.float().mean()) > 0.998
    # The first arrival and the hard count share word 0, so that both agree on whether there is a spike.
    hard = ik.poisson_sample(u, seed=4, backend=backend)
    assert torch.equal(hard[whole] > 0, z[whole] > 0.5)


@pytest.mark.parametrize("estimator", ["hard", *INDICATORS, "gumbel"])
def test_temperature_zero_is_hard_with_zero_gradient(estimator: str, backend: str) -> None:
    u = torch.linspace(-4, 4, 60).view(6, 10).requires_grad_()
    where = "auto" if estimator == "gumbel" else backend
    z = ik.poisson_rsample(u, estimator=estimator, temperature=0.0, seed=4, backend=where)
    reference = ik.poisson_sample(u, seed=4, backend="eager" if estimator == "gumbel" else backend)
    assert torch.equal(z, reference)
    (gradient,) = torch.autograd.grad(z.sum(), u)
    assert torch.equal(gradient, torch.zeros_like(u))


@pytest.mark.parametrize("temperature", [1e-30, 1.2e-38, 1e-39, 1e-300])
@pytest.mark.parametrize("estimator", ["sigmoid", "cubic"])
def test_the_least_temperatures_have_finite_slopes(estimator: str, temperature: float, backend: str) -> None:
    """1 / temperature, or its product with a rate, overflows float32."""
    u = torch.tensor([[-8.0, 0.0, 1.0, 3.0, 10.0, 20.0, 50.0]], requires_grad=True)
    z = ik.poisson_rsample(u, estimator=estimator, temperature=temperature, seed=3, backend=backend)
    (slope,) = torch.autograd.grad(z.sum(), u)
    assert bool(torch.isfinite(z).all() and torch.isfinite(slope).all())


@pytest.mark.parametrize(
    ("name", "degree"), [("fini2", 1), ("fini2", 2), ("fini3", 1), ("fini3", 2), ("fini3", 3)]
)
@pytest.mark.parametrize("rate", [0.01, 0.5, 3.0, 12.0])
def test_fini_is_unbiased_for_polynomials(name: str, degree: int, rate: float) -> None:
    """E[p'(z) dz/du] = d/du E[p(z)], both by exact sums over the pmf."""
    k = torch.arange(0, 120, dtype=torch.float64)
    pmf = torch.from_numpy(stats.poisson.pmf(k.numpy(), rate))
    slope = relaxation.fini_slope(k, torch.full_like(k, rate), int(name[-1]))
    estimate = float((pmf * degree * k ** (degree - 1) * slope).sum())
    exact = float((pmf * (k - rate) * k**degree).sum())  # the score: d log pmf / du = k - rate
    assert estimate == pytest.approx(exact, rel=1e-9)


def test_fini2_is_biased_for_cubes() -> None:
    k, rate = torch.arange(0, 120, dtype=torch.float64), 1.0
    pmf = torch.from_numpy(stats.poisson.pmf(k.numpy(), rate))
    estimate = (pmf * 3 * k**2 * relaxation.fini_slope(k, torch.full_like(k, rate), 2)).sum()
    assert abs(float(estimate - (pmf * (k - rate) * k**3).sum())) > 0.1


def test_gumbel_mean_approaches_the_rate_as_temperature_falls() -> None:
    u = torch.full((200, 100), 0.5, dtype=torch.float64)
    z = ik.poisson_rsample(u, estimator="gumbel", temperature=0.02, upper_bound=30, seed=2)
    rate = math.exp(0.5)
    assert abs(float(z.mean()) - rate) < 4.5 * math.sqrt(rate / z.numel())


@pytest.mark.parametrize(("rate", "expected"), [(1e-4, 1), (1.0, 5), (3.0, 10), (50.0, 73)])
def test_gumbel_support_is_the_released_quantile(rate: float, expected: int) -> None:
    assert (
        relaxation.gumbel_upper_bound(torch.tensor([[math.log(rate), -5.0]]))
        == expected
        == max(1, stats.poisson.ppf(0.999, rate))
    )


@pytest.mark.parametrize("log_rate", [16.0, 18.0, 20.0, 20.6])
def test_a_narrow_window_at_a_large_rate(log_rate: float, backend: str, dtype: torch.dtype) -> None:
    # Gaps of 10^-9 in a window of 2 10^-3: lost, and without end, if added to a float32 time near 1.
    if dtype == torch.float64 and log_rate > 18:
        pytest.skip("takes seconds, and float64 loses none of them")
    u = torch.full((1, 1), log_rate, dtype=dtype)
    z = ik.poisson_rsample(u, temperature=1e-3, seed=0, backend=backend)
    rate = torch.exp(u.double())
    assert ((z.double() - rate).abs() < 6 * rate.sqrt() + 1e-6 * rate).all()


def window_of(estimator: str, arrivals: float) -> tuple[float, float]:
    """A temperature whose window is [0.9, 1.1], and the log rate that has so many arrivals in it."""
    return 0.1 / half_width(estimator), math.log(arrivals / 0.2)


def exact_window(
    rate: float, saturated: Tensor, estimator: str, tau: float, seed: int
) -> tuple[float, float]:
    """Count and slope of neuron 0 of sample 0 in float64, from all words of the draw at once."""
    indicator, stream, key = relaxation.INDICATORS[estimator], Stream(), torch.tensor(seed)
    zero, half = torch.tensor([0]), half_width(estimator) * tau
    blocks = min(int(0.26 * half * 2 * rate) + 50, philox.BLOCKS - 1)
    first, own = (
        philox.first_words(key, stream, (1, 1)),
        philox.own_words(key, stream, zero, zero, 1, blocks),
    )
    early = half - philox.exponential(torch.cat([first, own], 1), torch.float64).cumsum(1) / rate
    assert float(early[0, -1]) < -half
    early = early[early >= -half]
    x = early / tau
    slope = (indicator.derivative(x) * (1.0 - early) / tau).sum()
    return float(saturated.double() + indicator.value(x).sum()), float(slope)


@pytest.mark.parametrize("arrivals", [2e3, 2.5e5, 2.09e6])
@pytest.mark.parametrize("estimator", INDICATORS)
def test_many_arrivals_lose_nothing(estimator: str, arrivals: float, backend: str) -> None:
    """One draw against its words in float64: gaps and shares must not drown in the sums of the others."""
    if backend != "cpu" and (arrivals > 1e6 or (arrivals > 1e5 and estimator != "cubic")):
        pytest.skip("takes seconds; the law is the same text for every estimator")
    tau, log_rate = window_of(estimator, arrivals)
    u = torch.full((1, 1), log_rate, requires_grad=True)
    z = ik.poisson_rsample(u, estimator=estimator, temperature=tau, seed=3, backend=backend)
    (slope,) = torch.autograd.grad(z.sum(), u)
    rate = float(noise.rate_of(u.detach()))
    saturated = noise.hard_counts(noise.rate_of(u.detach()) * 0.9, torch.tensor(3), Stream().saturated())
    count, exact_slope = exact_window(rate, saturated, estimator, tau, 3)
    # 2^-24 of the count is the rounding of the result; sums that lose shares were off by 100 times as much.
    assert abs(z.item() - count) < 0.01 + 5e-7 * rate
    assert float(slope) == pytest.approx(exact_slope, rel=1e-5)


@pytest.mark.parametrize("arrivals", [2e2, 9e2, 4.3e3, 2e4, 9.3e4, 4.4e5, 2.09e6])
@pytest.mark.parametrize("estimator", INDICATORS)
def test_the_mean_holds_up_to_the_limit_of_arrivals(estimator: str, arrivals: float) -> None:
    """Campbell's formula for what the window adds to the saturated counts, whose own noise is left out."""
    tau, log_rate = window_of(estimator, arrivals)
    n = 64
    u = torch.full((1, n), log_rate, requires_grad=True)
    z = ik.poisson_rsample(u, estimator=estimator, temperature=tau, seed=6, backend="cpu")
    (slope,) = torch.autograd.grad(z.sum(), u)
    rate = noise.rate_of(u.detach())
    saturated = noise.hard_counts(rate * 0.9, torch.tensor(6), Stream().saturated())
    window = z.detach().double() - saturated.double()
    exact = float(rate[0, 0].double())
    mean = exact * (indicator_integral(estimator, tau, 1) - 0.9)
    variance = exact * (indicator_integral(estimator, tau, 2) - 0.9)
    assert abs(float(window.mean()) - mean) < 4.5 * math.sqrt(variance / n)
    assert abs(float(slope.double().mean()) - exact) < 5 * float(slope.std()) / math.sqrt(n)
