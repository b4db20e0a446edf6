"""Poisson laws as `torch.distributions` has them: laws, moments, gradients, shapes, and what is refused."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, distributions
from torch.distributions import constraints, kl_divergence

import ipvae_kernels as ik
from ipvae_kernels.distributions import EATPoisson, GumbelSoftmaxPoisson, Poisson
from ipvae_kernels.poisson.relaxation import INDICATORS
from ipvae_kernels.replay import RecordedNoise

RECORDED = Path(__file__).parent / "recorded" / "poisson_estimators.npz"
FLOOR = 1.1920929e-07
LAWS = [EATPoisson, GumbelSoftmaxPoisson]
CASES = json.loads(str(np.load(RECORDED)["cases"]))
N = 200_000


def log_rates(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linspace(-2.0, 2.5, math.prod(shape), dtype=dtype).view(shape)


class Recorded(RecordedNoise):
    """The arrivals and Gumbels of the recorded draws, one row of neurons."""

    def __init__(self, golden: dict[str, Tensor]) -> None:
        super().__init__(exponentials=golden["exp_noise"][None, None, :, None])
        self.gumbels = -torch.log(golden["gsm_exponential"])[None]

    def gumbel(self, like: Tensor, n: int, stream: Any) -> Tensor:
        assert n == self.gumbels.shape[-1]
        return self.gumbels


@pytest.fixture
def golden(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The recorded draws, which every draw takes its noise from."""
    arrays = np.load(RECORDED)
    golden = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "cases"}
    for module in ("poisson.op.noise", "distributions.gumbel"):
        monkeypatch.setattr(f"ipvae_kernels.{module}.PhiloxNoise", lambda seed: Recorded(golden))
    return golden


@pytest.mark.parametrize("case", CASES)
def test_samples_and_gradients_are_those_of_the_authors_classes(case: str, golden: dict[str, Tensor]) -> None:
    family, name, temperature = case.split("/")
    u = golden["log_rate"].clone().requires_grad_()
    q: EATPoisson | GumbelSoftmaxPoisson
    with ik.use_backend("autograd"):
        if family == "eat":
            # Their rates are floored by a maximum, ours by a sum: the rate itself is what both share.
            rate = torch.exp(u).clamp(min=torch.finfo(torch.float64).eps)
            q = EATPoisson(None, float(temperature), name, n_exp=int(golden["n_exp"]), rate=rate)
            z = q.rsample()
        else:
            q = GumbelSoftmaxPoisson(u, float(temperature), "fixed", int(name))
            z = q.aggregate_samples(q.rsample())
    (slope,) = torch.autograd.grad(z.sum(), u)
    torch.testing.assert_close(z, golden[f"{case}/z"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope, golden[f"{case}/dz_dlog_rate"], rtol=1e-8, atol=1e-10)


def test_poisson_is_that_of_arrival_times() -> None:
    assert Poisson is EATPoisson


@pytest.mark.parametrize("law", LAWS)
def test_hard_counts_have_the_law_of_scipy(law: Any) -> None:
    """Chi-squared over counts expected at least five times; moments within 4.5 standard errors."""
    for rate in (0.05, 1.0, 4.0, 30.0):
        q = law(torch.tensor([[math.log(rate)]]), generator=torch.Generator().manual_seed(3))
        z = q.sample((N,))
        assert z.shape == (N, 1, 1)
        variance_of_variance = (rate + 3 * rate**2 - rate**2) / N  # fourth central moment less variance^2
        assert abs(float(z.mean()) - float(q.mean)) < 4.5 * math.sqrt(rate / N)
        assert abs(float(z.var()) - float(q.variance)) < 4.5 * math.sqrt(variance_of_variance)
        kept = np.flatnonzero(N * stats.poisson(rate).pmf(np.arange(200)) >= 5.0)
        seen = np.bincount(z.flatten().int().numpy(), minlength=200)[kept]
        expected = N * stats.poisson(rate).pmf(kept)
        rest = (N - seen.sum(), N - expected.sum())
        chi = float(
            (((seen - expected) ** 2) / expected).sum() + (rest[0] - rest[1]) ** 2 / max(rest[1], 1.0)
        )
        assert stats.chi2(len(kept)).sf(chi) > 1e-4


@pytest.mark.parametrize("indicator", ["linear", "cubic", "quintic", "cosine"])
@pytest.mark.parametrize("temp", [0.1, 1.0])
def test_relaxed_counts_have_the_moments_of_their_process(indicator: str, temp: float) -> None:
    """By Campbell's theorem: mean rate int f dt, variance rate int f^2 dt, over times t >= 0."""
    rate = 3.0
    t = torch.linspace(0.0, 3.0, 300_001, dtype=torch.float64)
    f = INDICATORS[indicator].value((1.0 - t) / temp)
    mean, variance = (rate * float(torch.trapezoid(values, t)) for values in (f, f.square()))
    assert mean == pytest.approx(rate, rel=1e-8)
    u = torch.full((N // 100, 100), math.log(rate))
    z = EATPoisson(u, temp, indicator, None, generator=torch.Generator().manual_seed(5)).rsample()
    kurtosis = rate * float(torch.trapezoid(f**4, t)) + 2 * variance**2
    assert abs(float(z.mean()) - mean) < 4.5 * math.sqrt(variance / N)
    assert abs(float(z.var()) - variance) < 4.5 * math.sqrt(kurtosis / N)
    assert variance < rate


def test_the_gradient_of_the_mean_is_that_of_the_rate() -> None:
    """d E[z] / du = rate for indicators of compact support, and its standard error from the sample itself."""
    u = torch.full((2000, 100), 0.7).requires_grad_()
    q = EATPoisson(u, 0.5, n_exp=None, generator=torch.Generator().manual_seed(2))
    (slopes,) = torch.autograd.grad(q.rsample().sum(), u)
    assert abs(float(slopes.mean()) - math.exp(0.7)) < 4.5 * float(slopes.std()) / math.sqrt(slopes.numel())


def test_arrivals_beyond_n_exp_are_cut() -> None:
    u = torch.full((500, 40), math.log(20.0))
    for n_exp in (3, torch.tensor(3)):
        q = EATPoisson(u, 0.1, n_exp=n_exp)
        assert q.n_exp == 3
        assert float(q.rsample().max()) <= 3.0
    inferred = EATPoisson(u, 0.1, n_exp_p=1e-2)
    assert inferred.n_exp == stats.poisson(20.0).ppf(0.99)
    assert float(inferred.rsample().max()) <= float(inferred.n_exp)
    assert EATPoisson(torch.zeros(0, 4)).n_exp == 1
    assert EATPoisson(u, n_exp=None).n_exp is None


def test_draws_are_those_of_the_op() -> None:
    u = log_rates(6, 5)
    seeds = torch.Generator().manual_seed(4)
    hard, relaxed, weights = (torch.randint(2**63 - 1, (), generator=seeds) for _ in range(3))
    generator = torch.Generator().manual_seed(4)
    q = EATPoisson(u, 0.3, "cosine", generator=generator)
    assert torch.equal(q.sample(), ik.poisson_sample(u, seed=hard))
    how: dict[str, Any] = {"estimator": "cosine", "temperature": 0.3, "n_arrivals": q.n_exp}
    assert torch.equal(q.rsample(), ik.poisson_rsample(u, seed=relaxed, **how))
    g = GumbelSoftmaxPoisson(u, 0.3, generator=generator)
    how = {"estimator": "gumbel", "temperature": 0.3, "upper_bound": g.upperbound}
    counts = ik.poisson_rsample(u, seed=weights, **how)
    torch.testing.assert_close(g.aggregate_samples(g.rsample()), counts, rtol=1e-6, atol=1e-6)


def test_without_a_generator_torch_governs() -> None:
    q = EATPoisson(log_rates(6, 5), 0.2)
    torch.manual_seed(1)
    first, second = q.rsample(), q.rsample()
    torch.manual_seed(1)
    assert torch.equal(q.rsample(), first)
    assert not torch.equal(first, second)


def test_at_temperature_0_samples_are_hard() -> None:
    u = log_rates(6, 5).requires_grad_()
    z = EATPoisson(u).rsample((3,))
    assert torch.equal(z, z.round())
    assert not z.requires_grad
    g = GumbelSoftmaxPoisson(u, 0.0)
    one_hot = g.rsample()
    assert torch.equal(one_hot.sum(-1), torch.ones(6, 5))
    assert set(one_hot.unique().tolist()) == {0.0, 1.0}
    nearly = GumbelSoftmaxPoisson(u, 1e-4, generator=torch.Generator().manual_seed(1)).rsample()
    exactly = GumbelSoftmaxPoisson(u, 0.0, generator=torch.Generator().manual_seed(1)).rsample()
    torch.testing.assert_close(nearly, exactly, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_probabilities_are_those_of_torch(dtype: torch.dtype) -> None:
    u = log_rates(4, 5, dtype=dtype).requires_grad_()
    q, reference = EATPoisson(u, 0.1), distributions.Poisson(u.exp() + FLOOR)
    value = torch.arange(20, dtype=dtype).view(4, 5)
    torch.testing.assert_close(q.log_prob(value), reference.log_prob(value))
    ours, theirs = (torch.autograd.grad(p.log_prob(value).sum(), u) for p in (q, reference))
    torch.testing.assert_close(ours, theirs)


def test_log_density_of_weights_is_that_of_torch() -> None:
    u = log_rates(2, 3, dtype=torch.float64).requires_grad_()
    q = GumbelSoftmaxPoisson(u, 0.4, "fixed", 6)
    reference = distributions.RelaxedOneHotCategorical(
        torch.tensor(0.4, dtype=torch.float64), logits=q.logit_pi
    )
    x = q.rsample().detach().clamp(min=1e-8)  # their floor
    x = x / x.sum(-1, keepdim=True)
    torch.testing.assert_close(q.log_prob(x), reference.log_prob(x))
    ours, theirs = (torch.autograd.grad(p.log_prob(x).sum(), u, retain_graph=True) for p in (q, reference))
    torch.testing.assert_close(ours, theirs)
    assert bool(torch.isfinite(q.log_prob(torch.eye(6, dtype=torch.float64)[0].expand(2, 3, 6))).all())


@pytest.mark.parametrize(
    ("method", "param", "expected"),
    [("fixed", 7, 7), ("std_ratio", 5, 10), ("quantile", 1e-3, 11), ("fixed", 0.5, 1), ("std_ratio", 0.1, 1)],
)
def test_upper_bounds_follow_the_method(method: str, param: float, expected: int) -> None:
    q = GumbelSoftmaxPoisson(torch.tensor([0.0, math.log(4.0)]), 0.5, method, param)
    assert q.upperbound == expected
    assert stats.poisson(4.0).ppf(1 - 1e-3) == 11
    assert q.rsample().shape == (2, expected)


@pytest.mark.parametrize("law", LAWS)
def test_divergences_are_the_closed_form(law: Any) -> None:
    u, prior = log_rates(3, 4, dtype=torch.float64), log_rates(3, 4, dtype=torch.float64).flip(0)
    p, q = u.exp() + FLOOR, prior.exp() + FLOOR
    expected = p * (p / q).log() - p + q
    torch.testing.assert_close(kl_divergence(law(u), EATPoisson(prior)), expected)
    torch.testing.assert_close(kl_divergence(law(u), GumbelSoftmaxPoisson(prior)), expected)
    torch.testing.assert_close(kl_divergence(law(rate=p), distributions.Poisson(q)), expected)
    torch.testing.assert_close(kl_divergence(distributions.Poisson(p), law(rate=q)), expected)
    torch.testing.assert_close(ik.poisson_kl(u, prior), expected, rtol=1e-5, atol=1e-6)
    zero = distributions.Poisson(torch.zeros(3, 4, dtype=torch.float64))
    torch.testing.assert_close(kl_divergence(zero, law(rate=q)), q)


def test_divergences_have_gradients() -> None:
    u = log_rates(3, 4, dtype=torch.float64).requires_grad_()
    prior = torch.zeros(3, 4, dtype=torch.float64).requires_grad_()

    def divergence(u: Tensor, prior: Tensor) -> Tensor:
        return kl_divergence(EATPoisson(u), EATPoisson(prior))

    assert torch.autograd.gradcheck(divergence, (u, prior))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("shape", [(), (5,), (4, 5), (2, 4, 5), (0, 5), (5, 0)])
def test_shapes_follow_torch(law: Any, shape: tuple[int, ...]) -> None:
    q = law(log_rates(*shape), 0.5)
    event = () if law is EATPoisson else (q.upperbound,)
    assert (q.batch_shape, q.event_shape) == (shape, event)
    assert q.mean.shape == q.variance.shape == shape
    for asked in ((), (3,), (2, 3), torch.Size([3])):
        assert q.sample(asked).shape == (*asked, *shape)
        assert q.rsample(asked).shape == (*asked, *shape, *event)
        assert q.log_prob(q.rsample(asked)).shape == (*asked, *shape)
    assert q.sample(3).shape == q.sample(n_samples=3).shape == (3, *shape)
    samples = q.sample((2,)).flatten()
    assert len(samples) < 10 or not torch.equal(*samples.view(2, -1))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("form", ["log_rate", "rate"])
def test_expanded_laws_draw_each_element_anew(law: Any, form: str) -> None:
    given = log_rates(3, 4)
    given = (given if form == "log_rate" else given.exp()).requires_grad_()
    q = law(**{form: given}, temp=0.5, generator=torch.Generator().manual_seed(1), validate_args=True)
    n = q.n_exp if law is EATPoisson else q.upperbound
    wide = q.expand((50, 3, 4))
    assert isinstance(wide, law)
    assert (wide.batch_shape, wide.event_shape) == ((50, 3, 4), q.event_shape)
    assert wide.rate.shape == wide.log_rate.shape == wide.mean.shape == (50, 3, 4)
    assert (wide.n_exp if law is EATPoisson else wide.upperbound) == n
    assert (wide.temp, wide.generator, wide._validate_args) == (0.5, q.generator, True)
    z = wide.rsample()
    assert not torch.equal(z[0], z[1])
    (slope,) = torch.autograd.grad(z.square().sum(), given)
    assert slope.shape == (3, 4)
    assert bool((slope != 0).any())
    torch.testing.assert_close(wide.log_prob(z)[0], q.log_prob(z[0]))
    joint = distributions.Independent(wide, 2)
    assert joint.log_prob(z).shape == (50,)


def test_supports_are_what_is_drawn() -> None:
    u = log_rates(6, 5)
    for temp, expected in ((0.0, constraints.nonnegative_integer), (0.2, constraints.nonnegative)):
        q = EATPoisson(u, temp)
        assert q.support is expected
        assert bool(q.support.check(q.rsample()).all())
        assert bool(q.support.check(q.sample()).all())
    g = GumbelSoftmaxPoisson(u, 0.2)
    assert bool(g.support.check(g.rsample()).all())


@pytest.mark.parametrize("law", LAWS)
def test_laws_are_copied_and_pickled(law: Any) -> None:
    q = law(log_rates(3, 4), 0.5)
    for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        torch.manual_seed(3)
        ours = q.rsample()
        torch.manual_seed(3)
        assert torch.equal(other.rsample(), ours)


def test_the_clamp_is_the_authors() -> None:
    u = torch.linspace(-5.0, 12.0, 30).requires_grad_()
    q = EATPoisson(u, clamp=3.0)
    expected = 3.0 - torch.nn.functional.softplus(3.0 - u)
    torch.testing.assert_close(q.log_rate, expected)
    torch.testing.assert_close(q.rate, expected.exp() + FLOOR)
    ours, theirs = (torch.autograd.grad(v.sum(), u)[0] for v in (q.log_rate, expected))
    torch.testing.assert_close(ours, theirs)


def test_the_calls_of_the_poisson_vae() -> None:
    """As its `infer` makes them: a temperature and a number of arrivals in buffers, no validation."""
    temp, n_exp = torch.tensor(1.0), torch.tensor(262)
    log_rate = log_rates(8, 5).requires_grad_()
    q = Poisson(log_rate=log_rate, indicator_approx="sigmoid", n_exp=n_exp, n_exp_p=1e-3, temp=temp)
    z = q.rsample()
    z.sum().backward()
    assert log_rate.grad is not None
    assert float(log_rate.grad.min()) >= 0.0  # as 262 arrivals are not few
    assert float(log_rate.grad.mean()) > 1.0
    assert q.temp.item() == 1.0
    assert q.rate.max().item() == pytest.approx(math.exp(2.5))
    with torch.inference_mode():
        hard = Poisson(log_rate=log_rate, temp=0.0, n_exp=n_exp, indicator_approx="cubic").rsample()
    assert torch.equal(hard, hard.round())


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: EATPoisson(), "log_rate: expected a torch.Tensor, or rate in its place; found neither"),
    (lambda: EATPoisson(torch.zeros(2), rate=torch.ones(2)), "rate: expected None beside log_rate"),
    (lambda: EATPoisson([0.0]), "log_rate: expected a torch.Tensor, found list"),
    (lambda: EATPoisson(torch.zeros(2, dtype=torch.int64)), "log_rate: expected dtype torch.float32"),
    (lambda: EATPoisson(torch.tensor([math.nan])), "parameter log_rate"),
    (lambda: EATPoisson(rate=torch.tensor([-1.0])), "parameter rate"),
    (lambda: EATPoisson(torch.zeros(2), -1.0), "temp: expected a finite number of at least 0"),
    (lambda: EATPoisson(torch.zeros(2), torch.ones(2)), "temp: expected a number, found Tensor"),
    (lambda: EATPoisson(torch.zeros(2), 0.1, "fini2"), "indicator_approx: expected one of sigmoid"),
    (lambda: EATPoisson(torch.zeros(2), n_exp="all"), "n_exp: expected one of infer"),
    (lambda: EATPoisson(torch.zeros(2), n_exp=0), "n_exp: expected an int from 1"),
    (lambda: EATPoisson(torch.zeros(2), n_exp_p=0.0), "n_exp_p: expected a finite number above 0"),
    (lambda: EATPoisson(torch.zeros(2), n_exp_p=1.0), "n_exp_p: expected a probability below 1"),
    (lambda: EATPoisson(rate=torch.ones(2), clamp=1.0), "clamp: expected None beside rate"),
    (lambda: EATPoisson(torch.zeros(2), generator=1), "generator: expected a torch.Generator or None"),
    (lambda: EATPoisson(torch.tensor([20.0]), 0.1).rsample(), "n_exp: expected an int from 1"),
    (lambda: EATPoisson(torch.zeros(2)).sample(-1), "sample_shape: expected an int from 0"),
    (lambda: EATPoisson(torch.zeros(2)).sample((2,), n_samples=2), "n_samples: expected None beside"),
    (lambda: EATPoisson(torch.zeros(2)).log_prob(torch.tensor([0.5, 1.0])), "within the support"),
    (lambda: EATPoisson(torch.tensor([math.inf])).sample(), "log_rate: expected finite values"),
    (
        lambda: GumbelSoftmaxPoisson(torch.zeros(2), upperbound_method="max"),
        "upperbound_method: expected one",
    ),
    (lambda: GumbelSoftmaxPoisson(torch.zeros(2), upperbound_param=0.0), "upperbound_param: expected"),
    (lambda: GumbelSoftmaxPoisson(torch.zeros(2), 1.0, "quantile", 2), "tail: expected a probability"),
    (lambda: GumbelSoftmaxPoisson(torch.zeros(2), 1.0, "fixed", 2**23), "upperbound: expected an int from 1"),
    (
        lambda: GumbelSoftmaxPoisson(torch.zeros(2)).aggregate_samples(torch.zeros(2, 3)),
        r"gumbel_samples: expected shape \[..., 5\], found \[2, 3\]",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_bad_input_is_named(call: Callable[[], Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions.Distribution, "_validate_args", True)  # torch.compile turns it off
    with pytest.raises((TypeError, ValueError), match=message):
        call()
