"""Rates in place of log rates, seeds of a torch.Generator, the cut of the arrivals, divergences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import special, stats
from torch import Tensor

import ipvae_kernels as ik

FUNCTIONS = [ik.poisson_sample, ik.poisson_rsample]
RATES = [0.0, 1e-7, 3e-4, 0.2, 1.0, 7.0, 60.0]


def rates(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(RATES, dtype=dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_rate_draws_what_its_log_rate_draws(function: Any, backend: str, dtype: torch.dtype) -> None:
    u = torch.linspace(-6.0, 4.0, 4000, dtype=dtype).view(40, 100)
    how = {"seed": 3, "backend": backend}
    ours, theirs = function(rate=u.exp() + 1.1920929e-07, **how), function(u, **how)
    assert float((ours - theirs).abs().gt(1e-3).float().mean()) < 1e-3  # near a threshold alone
    assert float(ours.mean()) > 1.0


def test_the_gradient_of_a_rate_is_that_of_its_logarithm() -> None:
    rate = torch.linspace(0.01, 5.0, 50, dtype=torch.float64).requires_grad_()
    how: dict[str, Any] = {"temperature": 0.5, "seed": 3, "backend": "eager"}
    (of_rate,) = torch.autograd.grad(ik.poisson_rsample(rate=rate, **how).sum(), rate)
    u = (rate - 1.1920929e-07).log().detach().requires_grad_()
    (of_log,) = torch.autograd.grad(ik.poisson_rsample(u, **how).sum(), u)
    torch.testing.assert_close(of_rate, of_log / u.exp(), rtol=1e-10, atol=0.0)
    assert float(of_rate.min()) >= 0.0
    assert float(of_rate.max()) > 0.1


def test_a_rate_of_zero_is_the_floor_and_has_no_gradient() -> None:
    rate = torch.zeros(2, 3).requires_grad_()
    z = ik.poisson_rsample(rate=rate, seed=1)
    assert torch.equal(z, torch.zeros(2, 3))
    (first,) = torch.autograd.grad(z.sum(), rate, create_graph=True)
    assert torch.equal(first, torch.zeros(2, 3))
    many = ik.poisson_sample(rate=torch.zeros(1000, 1000), seed=1)
    assert float(many.sum()) <= 3  # 10^6 draws of rate 1.2e-7: more is an event of probability 6e-6


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_no_rate_is_refused(function: Any) -> None:
    good = torch.ones(2, 3)
    for wrong, message in (
        ({}, "log_rate: expected a torch.Tensor, or rate in its place; found neither"),
        ({"log_rate": good, "rate": good}, "rate: expected None beside log_rate, found both"),
        ({"rate": torch.tensor([1.0, -0.5])}, "rate: expected values of at least 0, found 1 of 2 below"),
        ({"rate": torch.tensor([1.0, math.nan])}, "rate: expected finite values"),
        ({"rate": torch.tensor([1.0, math.inf])}, "rate: expected finite values"),
        ({"rate": torch.ones(2, dtype=torch.int64)}, "rate: expected dtype torch.float32"),
        ({"rate": [1.0]}, "rate: expected a torch.Tensor, found list"),
        ({"rate": good, "generator": 3}, "generator: expected a torch.Generator, found int"),
        ({"rate": good, "generator": torch.Generator(), "seed": 1}, "generator: expected None beside a seed"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            function(**wrong)


def test_a_negative_rate_is_not_drawn_from_unchecked() -> None:
    counts = ik.poisson_sample(rate=torch.tensor([1.0, -1.0]), check=False, seed=1)
    assert counts.isnan().tolist() == [False, True]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_generator_gives_the_seed(function: Any) -> None:
    u = torch.full((20, 30), 1.0)
    generator = torch.Generator().manual_seed(7)
    before = torch.random.get_rng_state()
    first, second = function(u, generator=generator), function(u, generator=generator)
    assert torch.equal(torch.random.get_rng_state(), before)
    generator.manual_seed(7)
    assert torch.equal(function(u, generator=generator), first)
    assert not torch.equal(first, second)
    seed = torch.randint(2**63 - 1, (), generator=torch.Generator().manual_seed(7))
    assert torch.equal(function(u, seed=seed), first)


def test_rates_compile_in_one_graph() -> None:
    def drawn(rate: Tensor) -> Tensor:
        return ik.poisson_rsample(rate=rate, seed=3)

    rate = torch.rand(4, 6) + 0.1
    assert torch.equal(torch.compile(drawn, backend="eager", fullgraph=True)(rate), drawn(rate))


@pytest.mark.parametrize("tail", [1e-3, 1e-5, 0.3])
@pytest.mark.parametrize("rate", [1e-9, 1e-3, 0.5, 3.0, 100.0, 22_026.0])
def test_the_cut_of_the_arrivals_is_the_quantile(rate: float, tail: float) -> None:
    assert ik.arrivals_quantile(rate, tail) == max(1, stats.poisson(rate).ppf(1.0 - tail))


@pytest.mark.parametrize(
    ("rate", "tail"), [(0.0, 0.1), (-1.0, 0.1), (math.nan, 0.1), (math.inf, 0.1), (1e30, 0.1)]
)
def test_no_cut_without_a_rate(rate: float, tail: float) -> None:
    with pytest.raises(ValueError, match="rate: expected a finite number above 0"):
        ik.arrivals_quantile(rate, tail)


@pytest.mark.parametrize("tail", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_no_cut_without_a_tail(tail: float) -> None:
    with pytest.raises(ValueError, match="tail: expected"):
        ik.arrivals_quantile(1.0, tail)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
def test_divergence_of_rates_is_the_closed_form(dtype: torch.dtype, rtol: float) -> None:
    first, second = rates(dtype), rates(dtype)[1:, None]
    ours = ik.poisson_kl(rate=first, rate_prior=second)
    # a log(a / b) - a + b, right to the rounding of its terms; a rate of 0 stands for 1e-15.
    expected = torch.from_numpy(special.kl_div(first.double().numpy(), second.double().numpy()))
    terms = torch.maximum(expected, torch.maximum(first, second).double())
    assert ours.shape == (6, 7)
    assert bool(((ours.double() - expected).abs() < rtol * terms + 1e-13).all())
    from_logs = ik.poisson_kl(first[1:].log(), second.log())
    torch.testing.assert_close(from_logs, ours[:, 1:], rtol=0.0, atol=0.0)


def test_divergence_is_the_sum_over_counts() -> None:
    """KL = sum_n p(n) (log p(n) - log q(n)), of which a formula shared by mistake knows nothing."""
    n = torch.arange(400, dtype=torch.float64).numpy()
    for p, q in ((0.2, 3.0), (7.0, 0.3), (60.0, 61.0)):
        log_p, log_q = stats.poisson(p).logpmf(n), stats.poisson(q).logpmf(n)
        expected = float((stats.poisson(p).pmf(n) * (log_p - log_q)).sum())
        u, prior = (torch.tensor(math.log(rate), dtype=torch.float64) for rate in (p, q))
        assert float(ik.poisson_kl(u, prior)) == pytest.approx(expected, rel=1e-9)
        released = float(ik.poisson_kl(u, prior, kind="released"))
        assert released == pytest.approx(expected * p / q, rel=1e-9)


@pytest.mark.parametrize("kind", ["exact", "released"])
def test_divergence_has_all_derivatives(kind: str) -> None:
    u = torch.linspace(-3.0, 2.0, 6, dtype=torch.float64).requires_grad_()
    prior = torch.linspace(1.0, -2.0, 6, dtype=torch.float64).requires_grad_()

    def of_logs(u: Tensor, prior: Tensor) -> Tensor:
        return ik.poisson_kl(u, prior, kind=kind)

    def of_rates(u: Tensor, prior: Tensor) -> Tensor:
        return ik.poisson_kl(rate=u.exp(), rate_prior=prior.exp(), kind=kind)

    for function in (of_logs, of_rates):
        assert torch.autograd.gradcheck(function, (u, prior))
        assert torch.autograd.gradgradcheck(function, (u, prior))


def test_what_has_no_divergence_is_refused() -> None:
    u = torch.zeros(3)
    for wrong, message in (
        ({"log_rate": u}, "log_rate_prior: expected a torch.Tensor, or rate_prior in its place"),
        ({"log_rate": u, "log_rate_prior": u, "rate_prior": u}, "rate_prior: expected None beside"),
        ({"log_rate": u, "rate_prior": -u - 1}, "rate_prior: expected values of at least 0"),
        ({"log_rate": u, "log_rate_prior": torch.zeros(2)}, r"broadcasts with \[3\].*found \[2\]"),
        ({"log_rate": u, "log_rate_prior": u.double()}, "log_rate_prior: expected dtype torch.float32"),
        ({"log_rate": u * math.nan, "log_rate_prior": u}, "log_rate: expected finite"),
        ({"log_rate": u + 60.0, "log_rate_prior": u - 60.0}, "'poisson_kl' is not finite: rates overflow"),
        ({"log_rate": u, "log_rate_prior": u, "kind": "best"}, "kind: expected one of exact, released"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            ik.poisson_kl(**wrong)
