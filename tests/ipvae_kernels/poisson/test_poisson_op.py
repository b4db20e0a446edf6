"""The public functions poisson_sample and poisson_rsample: indexing, gradients, errors, torch integration."""

from __future__ import annotations

import cProfile
import math
import pstats
from typing import Any

import pytest
import torch
from torch import Tensor

import ipvae_kernels as ik
from ipvae_kernels.philox import KIND_UPDATE, Stream
from ipvae_kernels.poisson.estimators import ESTIMATORS

DIFFERENTIABLE = [name for name in ESTIMATORS if name not in ("gumbel", "hard")]
FUNCTIONS = [ik.poisson_sample, ik.poisson_rsample]


def rates(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul(1.5).to(dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1), (2, 3, 5), (0, 4), (4, 0), (0,)])
def test_shapes_and_index_order(
    shape: tuple[int, ...], function: Any, backend: str, dtype: torch.dtype
) -> None:
    u = rates(*shape, dtype=dtype)
    z = function(u, seed=3, backend=backend)
    assert z.shape == u.shape
    assert z.dtype == dtype
    neurons = shape[-1] if shape else 1
    rows = u.reshape(math.prod(shape[:-1]), neurons)
    assert torch.equal(function(rows, seed=3, backend=backend).reshape(shape), z)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_batch_splits_are_bit_identical(function: Any, backend: str, dtype: torch.dtype) -> None:
    u = (rates(9, 70, dtype=dtype) + 1.5).clamp(max=3.5)  # some rates beyond 10, none that takes long
    whole = function(u, seed=3, step=5, backend=backend)
    parts = [
        function(u[a:b], seed=3, step=5, sample_offset=a, backend=backend)
        for a, b in [(0, 1), (1, 4), (4, 9)]
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(function(u[:, :13], seed=3, step=5, backend=backend), whole[:, :13])
    for a, b in [(0, 4), (4, 40), (40, 70)]:
        part = function(u[:, a:b], seed=3, step=5, neuron_offset=a, backend=backend)
        assert torch.equal(part, whole[:, a:b])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_threads_do_not_matter(function: Any, backend: str) -> None:
    if backend == "triton":
        pytest.skip("kernels on a GPU know no threads of the host")
    u = rates(65, 130) + 2.0
    two = function(u, seed=3, backend=backend)
    torch.set_num_threads(1)
    assert torch.equal(function(u, seed=3, backend=backend), two)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_seed_step_and_offset_name_the_draw(function: Any, backend: str) -> None:
    u = torch.full((20, 30), 1.0)
    base = function(u, seed=3, backend=backend)
    assert torch.equal(function(u, seed=torch.tensor(3), backend=backend), base)
    changes: list[dict[str, Any]] = [{"seed": 4}, {"seed": 3 + 2**32}, {"seed": -3}, {"step": 1}]
    changes += [{"draw": "update"}, {"draw": "update", "inner": 255}, {"draw": "loss"}]
    changes += [{"sample_offset": 20}, {"neuron_offset": 2**32 - 32}]
    draws = [base] + [function(u, **{"seed": 3, "backend": backend, **change}) for change in changes]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert float((other != one).float().mean()) > 0.3


@pytest.mark.parametrize("function", FUNCTIONS)
def test_without_a_seed_torch_governs(function: Any) -> None:
    u = torch.full((20, 30), 1.0)
    torch.manual_seed(1)
    first, second = function(u), function(u)
    torch.manual_seed(1)
    assert torch.equal(function(u), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_non_contiguous_input(function: Any, backend: str, dtype: torch.dtype) -> None:
    u = rates(12, 10, dtype=dtype)
    for view in (u.T, u[::2, 1::3], u[0].expand(4, 10), u.view(3, 4, 10).transpose(0, 1)):
        assert torch.equal(
            function(view, seed=1, backend=backend), function(view.contiguous(), seed=1, backend=backend)
        )


def test_the_input_is_left_alone(backend: str, dtype: torch.dtype) -> None:
    u = rates(12, 10, dtype=dtype) + 2
    before = u.clone()
    ik.poisson_sample(u, seed=1, backend=backend)
    ik.poisson_rsample(u, seed=1, backend=backend)
    assert torch.equal(u, before)


@pytest.mark.parametrize("n_arrivals", [None, 3])
@pytest.mark.parametrize("estimator", DIFFERENTIABLE)
def test_gradient_by_hand_is_that_of_autograd(estimator: str, n_arrivals: int | None) -> None:
    u = (rates(6, 30, dtype=torch.float64) + 1.0).requires_grad_()
    weight = torch.randn(6, 30, dtype=torch.float64)
    results = []
    for backend in ("eager", "autograd"):
        z = ik.poisson_rsample(
            u, estimator=estimator, temperature=0.2, n_arrivals=n_arrivals, seed=2, backend=backend
        )
        results.append((z.detach(), *torch.autograd.grad((weight * z).sum(), u)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)
    assert bool((results[0][1] != 0).any())


@pytest.mark.parametrize("n_arrivals", [None, 3])
@pytest.mark.parametrize("estimator", DIFFERENTIABLE)
def test_backends_agree(estimator: str, n_arrivals: int | None, backend: str) -> None:
    """Up to draws within rounding of a threshold: at most a share of 1e-3 of the counts may differ."""
    u = rates(100, 100) + 1.0
    if backend == "triton":  # the interpreter takes 20 ms for every four arrivals of the slowest neuron
        u = u[:20].clamp(max=3.0)
    u.requires_grad_()
    results = []
    for name in (backend, "autograd"):
        z = ik.poisson_rsample(
            u, estimator=estimator, temperature=0.1, n_arrivals=n_arrivals, seed=2, backend=name
        )
        results.append((z.detach(), *torch.autograd.grad(z.sum(), u)))
    for ours, reference in zip(*results, strict=True):
        close = torch.isclose(ours, reference, rtol=1e-3, atol=1e-3)
        assert float((~close).float().mean()) < 1e-3
        error = (ours - reference)[close].abs().mean() / reference.abs().mean()
        assert float(error) < 2e-5


@pytest.mark.parametrize("estimator", ["sigmoid", "cubic", "quintic", "cosine", "gumbel"])
@pytest.mark.parametrize("backend", ["eager", "autograd"])
def test_gradcheck(estimator: str, backend: str) -> None:
    """Below a saturated mean of 8 the relaxed count is a smooth function of the log rate on fixed noise."""
    u = rates(3, 4, dtype=torch.float64).clamp(max=1.9).requires_grad_()
    backend = "auto" if estimator == "gumbel" else backend
    assert torch.autograd.gradcheck(
        lambda u: ik.poisson_rsample(
            u, estimator=estimator, temperature=0.5, seed=2, backend=backend, upper_bound=12
        ),
        u,
    )


def test_rsample_without_gradient_is_rsample(backend: str) -> None:
    u = rates(5, 6)
    with_gradient = ik.poisson_rsample(u.clone().requires_grad_(), seed=2, backend=backend)
    assert with_gradient.requires_grad
    assert torch.equal(with_gradient.detach(), ik.poisson_rsample(u, seed=2, backend=backend))
    assert not ik.poisson_sample(u.clone().requires_grad_(), seed=2, backend=backend).requires_grad


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_is_refused(function: Any, value: float, backend: str, dtype: torch.dtype) -> None:
    u = rates(4, 5, dtype=dtype)
    u[2, 3] = value
    with pytest.raises(ValueError, match=r"log_rate: expected finite values, found 1 of 20"):
        function(u, seed=1, backend=backend)


@pytest.mark.parametrize("estimator", DIFFERENTIABLE)
def test_nan_ends_and_stays_where_it_is(estimator: str, backend: str, dtype: torch.dtype) -> None:
    u = rates(4, 5, dtype=dtype)
    clean = ik.poisson_rsample(u, estimator=estimator, seed=1, backend=backend)
    u[2, 3] = math.nan
    z = ik.poisson_rsample(u, estimator=estimator, seed=1, backend=backend, check=False)
    nan = torch.isnan(z)
    assert bool(nan[2, 3])
    assert int(nan.sum()) == 1
    assert torch.equal(z[~nan], clean[~nan])


@pytest.mark.parametrize("name", ["eager", "cpu", "autograd"])
def test_unaffordable_rates_are_refused(name: str) -> None:
    if ik.backends()[name] != "available":
        pytest.skip(ik.backends()[name])
    u = torch.tensor([[1.0, 17.0]])  # 24 million, of which 18 % fall into the window
    with pytest.raises(ValueError, match=r"the result 'counts' is not finite.*2\^21 expected arrivals"):
        ik.poisson_rsample(u, seed=1, backend=name)
    z = ik.poisson_rsample(u, seed=1, backend=name, check=False)
    assert torch.isnan(z).tolist() == [[False, True]]


def test_overflowing_rates_are_refused(backend: str) -> None:
    with pytest.raises(ValueError, match="the result 'counts' is not finite"):
        ik.poisson_sample(torch.tensor([100.0]), seed=1, backend=backend)


BAD = [
    ({"log_rate": [1.0]}, TypeError, r"log_rate: expected a torch\.Tensor, found list"),
    (
        {"log_rate": torch.zeros(3, dtype=torch.int64)},
        TypeError,
        r"log_rate: expected dtype .* found torch\.int64",
    ),
    ({"log_rate": torch.zeros(3).half()}, TypeError, r"log_rate: expected dtype .* found torch\.float16"),
    ({"seed": 1.5}, TypeError, "seed: expected an int, found float"),
    ({"seed": True}, TypeError, "seed: expected an int, found bool"),
    ({"seed": 2**63}, ValueError, "seed: expected an int from"),
    ({"seed": torch.tensor([1])}, TypeError, r"seed: expected torch\.int64 of shape \[\], found .* \[1\]"),
    ({"seed": torch.tensor(1.0)}, TypeError, r"seed: expected torch\.int64"),
    ({"step": -1}, ValueError, "step: expected an int from 0 to 4294967295, found -1"),
    ({"step": 2**32}, ValueError, "step: expected"),
    ({"step": 1.0}, TypeError, "step: expected an int, found float"),
    ({"sample_offset": 2**32 - 2}, ValueError, "sample_offset: expected an int from 0 to 4294967292"),
    ({"neuron_offset": 2**32 - 2}, ValueError, "neuron_offset: expected an int from 0 to 4294967293"),
    ({"neuron_offset": 6}, ValueError, "neuron_offset: expected a multiple of 4, found 6"),
    ({"draw": "fresh"}, ValueError, "draw: expected one of update, loss, alone; found 'fresh'"),
    ({"inner": 256, "draw": "update"}, ValueError, "inner: expected an int from 0 to 255, found 256"),
    ({"inner": 1, "draw": "loss"}, ValueError, "inner: expected 0 with draw='loss'"),
    ({"inner": 1}, ValueError, "inner: expected 0 with draw='alone'"),
    (
        {"backend": "gpu"},
        ValueError,
        "backend: expected one of auto, cpu, cuda, triton, eager, autograd; found 'gpu'",
    ),
    ({"check": 1}, TypeError, "check: expected a bool, found int"),
]
BAD_RELAXED = [
    ({"estimator": "square"}, ValueError, "estimator: expected one of hard, .*; found 'square'"),
    ({"temperature": -0.1}, ValueError, "temperature: expected a finite number of at least 0, found -0.1"),
    ({"temperature": math.nan}, ValueError, "temperature: expected a finite number"),
    ({"temperature": math.inf}, ValueError, "temperature: expected a finite number"),
    ({"temperature": "0.1"}, TypeError, "temperature: expected a number, found str"),
    ({"n_arrivals": -1}, ValueError, "n_arrivals: expected an int from 0"),
    ({"n_arrivals": 2.0}, TypeError, "n_arrivals: expected an int, found float"),
    ({"upper_bound": 0, "estimator": "gumbel"}, ValueError, "upper_bound: expected an int from 1"),
]


@pytest.mark.parametrize(
    ("function", "change", "error", "message"),
    [(function, *case) for function in FUNCTIONS for case in BAD]
    + [(ik.poisson_rsample, *case) for case in BAD_RELAXED],
)
def test_bad_arguments(function: Any, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"log_rate": torch.zeros(4, 3), "seed": 1, **change}
    with pytest.raises(error, match=message):
        function(arguments.pop("log_rate"), **arguments)


def test_gumbel_is_served_by_autograd_alone() -> None:
    with pytest.raises(ik.BackendError, match="gumbel estimator is served by autograd alone"):
        ik.poisson_rsample(torch.zeros(2, 3), estimator="gumbel", backend="cpu")


def test_opcheck(backend: str, dtype: torch.dtype) -> None:
    u, seed, tau = rates(4, 5, dtype=dtype), torch.tensor(3), torch.tensor([0.1], dtype=torch.float64)
    stream = Stream(KIND_UPDATE, 1, 2, 3, 4)
    torch.library.opcheck(torch.ops.ipvae_kernels.poisson_sample.default, (u.T, seed, *stream, backend, True))
    torch.library.opcheck(
        torch.ops.ipvae_kernels.poisson_curvature.default, (u, seed, tau, None, *stream, "cubic", None)
    )
    for estimator, n_arrivals in [("cubic", None), ("sigmoid", 4), ("fini3", None), ("hard", None)]:
        arguments = (u.clone().requires_grad_(), seed, tau, *stream, estimator, n_arrivals, backend, True)
        torch.library.opcheck(torch.ops.ipvae_kernels.poisson_rsample.default, arguments)


@pytest.mark.parametrize("seed", [3, None])
def test_compile_without_graph_breaks(seed: int | None, backend: str) -> None:
    def loss(u: Tensor) -> Tensor:
        hard = ik.poisson_sample(u, seed=seed, backend=backend)
        relaxed = ik.poisson_rsample(u.sin(), seed=seed, temperature=0.2, backend=backend)
        return (hard * relaxed).sum()

    u = rates(4, 5).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    result = compiled(u)
    (gradient,) = torch.autograd.grad(result, u)
    assert bool(torch.isfinite(gradient).all())
    if seed is not None:
        torch.testing.assert_close(result, loss(u))
        torch.testing.assert_close(gradient, *torch.autograd.grad(loss(u), u))


def test_compile_takes_new_seeds_without_recompiling(backend: str) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(
        lambda u, seed: ik.poisson_sample(u, seed=seed, backend=backend), fullgraph=True, backend=counter
    )
    u = rates(4, 50)
    for seed in range(4):
        expected = ik.poisson_sample(u, seed=seed, backend=backend)
        assert torch.equal(compiled(u, torch.tensor(seed)), expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("function", FUNCTIONS)
def test_two_compilations_for_any_constants(function: Any) -> None:
    """One static and one dynamic; results as without, bit for bit. The graph is the same for each backend."""
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda u, how: function(u, **how), fullgraph=True, backend=counter)
    for i in range(6):
        u = rates(3 + i, 8).requires_grad_()
        how: dict[str, Any] = {"seed": torch.tensor(i), "step": 4 * i, "sample_offset": 7 * i, "inner": i}
        how |= {"draw": "update", "neuron_offset": 4 * i}
        if function is ik.poisson_rsample:
            how |= {"temperature": 1.0 / (1 + i), "n_arrivals": 2 + i}
        ours, plain = compiled(u, how), function(u, **how)
        assert torch.equal(ours, plain)
        if function is ik.poisson_rsample:
            gradients = (torch.autograd.grad(z.square().sum(), u)[0] for z in (ours, plain))
            assert torch.equal(*gradients)
    assert counter.frame_count <= 2


@pytest.mark.parametrize(("function", "most"), [(ik.poisson_sample, 90), (ik.poisson_rsample, 130)])
def test_python_calls_of_a_small_draw(function: Any, most: int) -> None:
    """They are what a draw of 64 numbers costs; 74 and 114 when this was written, 161 and 194 before."""
    if ik.backends()["cpu"] != "available":
        pytest.skip(ik.backends()["cpu"])
    u = rates(1, 64)
    function(u, seed=1)
    with cProfile.Profile() as profile:
        function(u, seed=1)
    assert pstats.Stats(profile).total_calls <= most  # type: ignore[attr-defined]


def test_autocast_raises_half_precision(backend: str) -> None:
    u = rates(4, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = ik.poisson_rsample(u, seed=3, backend=backend)
        hard = ik.poisson_sample(u, seed=3, backend=backend)
    assert z.dtype == hard.dtype == torch.float32
    assert torch.equal(z, ik.poisson_rsample(u.float(), seed=3, backend=backend))
    assert torch.equal(hard, ik.poisson_sample(u.float(), seed=3, backend=backend))
