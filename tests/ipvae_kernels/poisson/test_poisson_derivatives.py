"""Derivatives of poisson_rsample beyond the first backward: second ones, torch.func, forward mode, vmap."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

import ipvae_kernels as ik
from ipvae_kernels.poisson import noise, relaxation

INDICATORS = list(relaxation.INDICATORS)
DIFFERENTIABLE = [*INDICATORS, "fini2", "fini3"]
SETTINGS = [*((name, None) for name in DIFFERENTIABLE), ("cubic", 3), ("sigmoid", 3)]


def log_rates(*shape: int, seed: int = 3) -> Tensor:
    """Float64, -2 to 2."""
    generator = torch.Generator().manual_seed(seed)
    return 4.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 2.0


def sliced(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    """torch.vmap, with draws of its own for every slice."""
    return vmap(function, randomness="different", **how)


def draw(u: Tensor, backend: str, estimator: str = "cubic", n_arrivals: int | None = None) -> Tensor:
    return ik.poisson_rsample(
        u, estimator=estimator, n_arrivals=n_arrivals, temperature=0.5, seed=2, backend=backend
    )


def curved(u: Tensor, backend: str, estimator: str, n_arrivals: int | None = None) -> Tensor:
    """A scalar in which counts of different neurons meet."""
    z = draw(u, backend, estimator, n_arrivals)
    return (z.square() * z.roll(1, -1)).sum() / 100.0


def penalty_gradient(u: Tensor, *how: Any) -> Tensor:
    """The gradient of a gradient penalty."""
    u = u.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(curved(u, *how), u, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), u)[0]


@pytest.mark.parametrize(("estimator", "n_arrivals"), SETTINGS)
def test_second_derivatives_are_those_of_autograd(estimator: str, n_arrivals: int | None) -> None:
    u = log_rates(3, 5)
    ours, reference = (penalty_gradient(u, name, estimator, n_arrivals) for name in ("eager", "autograd"))
    assert bool((reference != 0).any())
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("estimator", DIFFERENTIABLE)
def test_second_derivatives_of_backends(estimator: str, backend: str) -> None:
    u = log_rates(4, 30).float()
    ours, reference = (penalty_gradient(u, name, estimator) for name in (backend, "autograd"))
    torch.testing.assert_close(ours, reference, rtol=2e-3, atol=1e-3 * float(reference.abs().mean()))


@pytest.mark.parametrize("floor", [noise.RATE_FLOOR, 0.5])
@pytest.mark.parametrize(("estimator", "n_arrivals"), [*((name, None) for name in INDICATORS), ("cubic", 3)])
def test_second_derivatives_by_finite_differences(
    estimator: str, n_arrivals: int | None, floor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A floor of the rates as large as the rates shows whether its derivatives are there."""
    monkeypatch.setattr(noise, "RATE_FLOOR", floor)
    u = log_rates(2, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda u: draw(u, "eager", estimator, n_arrivals), u)


@pytest.mark.parametrize("estimator", ["fini2", "fini3"])
def test_fini_second_derivatives_with_a_floor(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "RATE_FLOOR", 0.5)
    u = log_rates(3, 5)
    ours, reference = (penalty_gradient(u, name, estimator) for name in ("eager", "autograd"))
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("rate", [0.01, 0.5, 3.0, 12.0])
def test_fini_second_derivatives_are_unbiased_up_to_squares(order: int, rate: float) -> None:
    """E[p''(z) slope^2 + p'(z) curvature] = d^2/du^2 E[p(z)], by exact sums over the pmf; E z^2 = r + r^2."""
    k = torch.arange(0, 120, dtype=torch.float64)
    pmf, rates = torch.from_numpy(stats.poisson.pmf(k.numpy(), rate)), torch.full_like(k, rate)
    slope = relaxation.fini_slope(k, rates, order)
    curvature = relaxation.fini_curvature(k, rates, rates, order)
    assert float((pmf * curvature).sum()) == pytest.approx(rate, rel=1e-9)
    squares = float((pmf * (2.0 * slope.square() + 2.0 * k * curvature)).sum())
    assert squares == pytest.approx(rate + 4.0 * rate**2, rel=1e-9)


def test_learning_through_an_inference_step_written_with_autograd() -> None:
    """d loss / d u, where the step itself is a gradient through the counts and a small nonlinear decoder."""
    generator = torch.Generator().manual_seed(1)
    x, inner, outer = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 6), (4, 5), (5, 6))
    )

    def loss(u: Tensor) -> Tensor:
        recon = (x - torch.tanh(draw(u, "eager") @ inner) @ outer).square().sum()
        (step,) = torch.autograd.grad(recon, u, create_graph=True)
        return (u - 0.1 * step).square().sum()

    u = log_rates(2, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(u), u)
    for i in range(4):
        at = torch.zeros_like(u)
        at[0, i] = 1e-6
        difference = float((loss(u + at) - loss(u - at)).detach()) / 2e-6
        assert float(gradient[0, i]) == pytest.approx(difference, rel=1e-6, abs=1e-6)


def test_hard_counts_have_no_second_derivative(backend: str) -> None:
    assert float(penalty_gradient(log_rates(2, 3).float(), backend, "hard").abs().max()) == 0.0


@pytest.mark.parametrize("nested", [jacrev, jacfwd])
def test_third_derivatives_are_refused_and_left_to_autograd(
    nested: Callable[..., Any], backend: str, dtype: torch.dtype
) -> None:
    u = log_rates(2).to(dtype)

    def third(name: str) -> Tensor:
        result: Tensor = nested(nested(nested(lambda u: curved(u, name, "fini2"))))(u)
        return result

    with pytest.raises(NotImplementedError, match=r"first and a second derivative; .* backend='autograd'"):
        third(backend)
    assert bool(torch.isfinite(third("autograd")).all())


@pytest.mark.parametrize("estimator", ["cubic", "fini3", "hard"])
def test_torch_func(estimator: str, backend: str, dtype: torch.dtype) -> None:
    u = log_rates(2, 3).to(dtype)
    tangent = log_rates(2, 3, seed=4).to(dtype)

    def results(name: str) -> list[Tensor]:
        def f(u: Tensor) -> Tensor:
            return curved(u, name, estimator)

        firsts = [transform(f)(u) for transform in (grad, jacrev, jacfwd)]
        seconds = [hessian(f)(u), *(a(b(f))(u) for a in (jacrev, jacfwd) for b in (jacrev, jacfwd))]
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(f(forward_ad.make_dual(u, tangent))).tangent
        along = jvp(f, (u,), (tangent,))[1]
        return [*firsts, *seconds, along, torch.zeros_like(along) if dual is None else dual]

    torch.testing.assert_close(results(backend), results("autograd"), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("function", [ik.poisson_sample, ik.poisson_rsample])
def test_vmap_is_the_call_on_the_stacked_tensor(function: Any, backend: str, dtype: torch.dtype) -> None:
    """Where it is told that the draws of slices differ."""
    u = torch.full((3, 4, 2, 5), 1.0, dtype=dtype)

    def one(u: Tensor) -> Tensor:
        result: Tensor = function(u, seed=2, step=3, sample_offset=7, backend=backend)
        return result

    whole = one(u)
    assert not torch.equal(whole[0], whole[1])
    assert torch.equal(sliced(one)(u), whole)
    assert torch.equal(sliced(sliced(one))(u), whole)
    assert torch.equal(sliced(sliced(sliced(one)))(u), whole)
    assert torch.equal(sliced(one, in_dims=1, out_dims=1)(u), one(u.movedim(1, 0)).movedim(0, 1))
    assert torch.equal(sliced(one)(u[:, :0]), whole[:, :0])


@pytest.mark.parametrize("function", [ik.poisson_sample, ik.poisson_rsample])
def test_vmap_shares_one_draw_where_it_is_told_to(function: Any, backend: str, dtype: torch.dtype) -> None:
    u = torch.full((3, 2, 4), 1.0, dtype=dtype)

    def one(u: Tensor, seed: int | Tensor = 2) -> Tensor:
        result: Tensor = function(u, seed=seed, sample_offset=7, backend=backend)
        return result

    assert torch.equal(vmap(one, randomness="same")(u), one(u[0]).expand(3, 2, 4))
    rows_alone = vmap(sliced(one), randomness="same")(u)
    assert torch.equal(rows_alone, one(u[0]).expand(3, 2, 4))
    assert torch.equal(sliced(vmap(one, randomness="same"))(u), one(u[:, 0]).unsqueeze(1).expand(3, 2, 4))
    seeds = torch.tensor([5, 6, 5])
    for randomness in ("error", "different", "same"):
        ours = vmap(one, randomness=randomness)(u, seeds)
        assert torch.equal(ours, torch.stack([one(row, seed) for row, seed in zip(u, seeds, strict=True)]))
    torch.manual_seed(3)
    drawn = sliced(lambda u: function(u, backend=backend))(u)
    assert not torch.equal(drawn[0], drawn[1])


def test_gradients_under_vmap_are_those_of_the_stacked_tensor(backend: str, dtype: torch.dtype) -> None:
    u = log_rates(3, 4).to(dtype)
    stacked = u.clone().requires_grad_()
    (expected,) = torch.autograd.grad(curved(stacked, backend, "fini2"), stacked)
    assert torch.equal(sliced(grad(lambda u: curved(u, backend, "fini2")))(u), expected)
    whole = hessian(lambda u: curved(u, backend, "cubic"))(u)
    blocks = torch.stack([whole[i, :, i] for i in range(3)])
    torch.testing.assert_close(sliced(hessian(lambda u: curved(u, backend, "cubic")))(u), blocks)
    alone = torch.stack([hessian(lambda u: curved(u, backend, "cubic"))(row) for row in u])
    shared = vmap(hessian(lambda u: curved(u, backend, "cubic")), randomness="same")(u)
    torch.testing.assert_close(shared, alone)


def test_vmap_refuses_what_would_repeat_noise(backend: str, dtype: torch.dtype) -> None:
    u = torch.zeros(3, 4, dtype=dtype)
    for function in (ik.poisson_sample, ik.poisson_rsample):
        message = f"{function.__name__}: one seed for all rows of torch.vmap.*randomness='different'"
        with pytest.raises(RuntimeError, match=message):
            vmap(lambda u, function=function: function(u, seed=1, backend=backend))(u)
    with pytest.raises(ValueError, match="sample_offset: expected an int from 0 to 4294967293"):
        sliced(lambda u: ik.poisson_sample(u, seed=1, sample_offset=2**32 - 2, backend=backend))(u)
    for estimator, name in (("cubic", "autograd"), ("fini2", "autograd"), ("gumbel", "auto")):
        with pytest.raises(ik.BackendError, match=r"autograd' cannot give rows .* in poisson_rsample"):
            sliced(lambda u, e=estimator, n=name: draw(u, n, e))(u)
        with pytest.raises(ik.BackendError, match="sizes that depend on what is drawn; call it on the whole"):
            vmap(lambda u, e=estimator, n=name: draw(u, n, e), randomness="same")(u)


def test_vmap_over_nothing(backend: str, dtype: torch.dtype) -> None:
    u = torch.zeros(0, 3, 4, dtype=dtype)
    for randomness in ("same", "different"):
        for function in (ik.poisson_sample, ik.poisson_rsample):
            run = functools.partial(function, seed=1, backend=backend)
            assert vmap(run, randomness=randomness)(u).shape == u.shape


def test_checkpointing_without_reentry(backend: str, dtype: torch.dtype) -> None:
    u = log_rates(3, 4).to(dtype).requires_grad_()
    (expected,) = torch.autograd.grad(curved(u, backend, "fini2"), u)
    again = checkpoint(lambda u: curved(u, backend, "fini2"), u, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again, u)[0], expected)


def test_compiled_second_derivatives(backend: str) -> None:
    """Through Dynamo alone; AOTAutograd has none, and says so."""
    u = log_rates(2, 3).float()
    compiled = torch.compile(lambda u: curved(u, backend, "cubic"), fullgraph=True, backend="eager")
    u.requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(u), u, create_graph=True)
    expected = penalty_gradient(u.detach(), backend, "cubic")
    assert torch.equal(torch.autograd.grad(gradient.square().sum(), u)[0], expected)
