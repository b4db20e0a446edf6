"""elbo: the ladder of backends, the recorded trace, truncation, errors, torch integration."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import ipvae_kernels as ik
from ipvae_kernels.cells import Draw, make_cell
from ipvae_kernels.philox import KIND_LOSS, KIND_UPDATE, Stream
from ipvae_kernels.poisson import noise
from ipvae_kernels.poisson.estimators import COMPILED
from ipvae_kernels.rollout import eager
from ipvae_kernels.rollout.config import RolloutConfig
from ipvae_kernels.rollout.problem import Inputs, Trajectory, Upstream
from ipvae_kernels.rollout.problem import constants as problem_arguments

Problem = Callable[..., tuple[Tensor, Any]]
ESTIMATORS = COMPILED
NAMES = ("x", "dictionary", "log_sigma", "log_bias", "log_lr", "initial state")


@pytest.fixture(params=["", "identity", "relu"], ids=["poisson", "gaussian", "gaussian_relu"])
def gaussian(request: pytest.FixtureRequest) -> str:
    """A kind of model, for ``problem(gaussian=...)``."""
    kind: str = request.param
    return kind


def implementation(backend: str) -> Any:
    return importlib.import_module(f"ipvae_kernels.rollout.{backend}")


def leaves(x: Tensor, params: Any) -> list[Tensor]:
    return [x, *(value for value in vars(params).values() if isinstance(value, Tensor))]


def gradients(x: Tensor, params: Any, result: ik.ElboResult) -> tuple[Tensor, ...]:
    """Of a random function of all that elbo returns: the three upstream gradients differ everywhere."""
    generator = torch.Generator().manual_seed(1)
    parts = [result.recon, result.kl, result.state.log_rate]
    weights = [
        torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part.dtype) for part in parts
    ]
    total = result.loss + sum((weight * part).sum() for weight, part in zip(weights, parts, strict=True))
    return torch.autograd.grad(total, leaves(x, params))


def assert_same(ours: Sequence[Tensor], reference: Sequence[Tensor], tolerance: float) -> None:
    for name, a, b in zip(NAMES[-len(ours) :], ours, reference, strict=True):
        assert a.shape == b.shape
        error = (a.double() - b.double()).abs().max() / (b.double().abs().max() + 1e-12)
        assert float(error) <= tolerance, f"{name}: {float(error):.1e}"


@pytest.mark.parametrize("kl", ["exact", "released"])
@pytest.mark.parametrize("moving", [False, True], ids=["static", "moving"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_inner": 2},
        {"n_inner": 3},
        {"single_draw": True},
        {"drive": "expected", "decay": 0.3},
        {"drive": "sampled", "decay": 0.3, "n_inner": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_backward_by_hand_is_that_of_autograd(
    estimator: str, options: dict[str, Any], moving: bool, kl: str, problem: Problem
) -> None:
    steps = 4
    x, params = problem(moving=steps if moving else 0, grad=True)
    results = []
    for backend in ("eager", "autograd"):
        result = ik.elbo(
            x, params, steps, beta=1.7, estimator=estimator, temperature=0.3, seed=5, beta_inner=0.6,
            clamp_u=3.0, clamp_du=2.5, kl=kl, backend=backend, **options,
        )  # fmt: skip
        results.append((result, gradients(x, params, result)))
    (ours, by_hand), (reference, by_autograd) = results
    torch.testing.assert_close(ours.recon, reference.recon, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.kl, reference.kl, rtol=1e-12, atol=1e-12)
    assert_same(by_hand, by_autograd, 1e-10)
    if estimator != "hard":
        assert all(float(gradient.abs().max()) > 0 for gradient in by_hand)


@pytest.mark.parametrize("moving", [False, True], ids=["static", "moving"])
@pytest.mark.parametrize(("n_inner", "single_draw"), [(1, False), (2, False), (3, False), (1, True)])
@pytest.mark.parametrize("kind", ["identity", "relu"])
def test_gaussian_backward_by_hand_is_that_of_autograd(
    kind: str, n_inner: int, single_draw: bool, moving: bool, problem: Problem
) -> None:
    """Clamps low enough to bend every update."""
    steps = 4
    x, params = problem(moving=steps if moving else 0, grad=True, gaussian=kind)
    results = []
    for backend in ("eager", "autograd"):
        result = ik.elbo(
            x, params, steps, beta=1.7, seed=5, n_inner=n_inner, beta_inner=0.6, clamp_u=(1.5, 0.8),
            clamp_du=(1.2, 0.7), single_draw=single_draw, backend=backend,
        )  # fmt: skip
        results.append((result, gradients(x, params, result)))
    (ours, by_hand), (reference, by_autograd) = results
    torch.testing.assert_close(ours.recon, reference.recon, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.kl, reference.kl, rtol=1e-12, atol=1e-12)
    assert_same(by_hand, by_autograd, 1e-10)
    assert all(float(gradient.abs().max()) > 0 for gradient in by_hand)


@pytest.mark.parametrize("n_arrivals", [None, 2])
@pytest.mark.parametrize("truncate", [None, 1, 2, 3, 9])
def test_truncation(truncate: int | None, n_arrivals: int | None, problem: Problem) -> None:
    """Against the rule as it is written: u0 + stop_gradient(u - u0) after every n steps."""
    steps = 5
    x, params = problem(moving=steps, grad=True)
    arguments = {"temperature": 0.3, "seed": 5, "n_arrivals": n_arrivals}
    whole = ik.elbo(x, params, steps, truncate=truncate, backend="eager", **arguments)
    state, recons, kls = None, [], []
    for t in range(steps):
        part = ik.elbo(x[t], params, 1, state=state, backend="autograd", **arguments)
        u = part.state.log_rate
        if (t + 1) % (truncate or steps) == 0 and t + 1 < steps:
            u0 = params.log_rate_init.expand_as(u)
            u = u0 + (u - u0).detach()
        state = replace(part.state, log_rate=u)
        recons.append(part.recon)
        kls.append(part.kl)
    recon, kl = torch.cat(recons), torch.cat(kls)
    stepwise = ik.ElboResult((recon + kl).mean() * 256 / 7, recon, kl, state, {})
    torch.testing.assert_close(whole.loss, stepwise.loss, rtol=1e-9, atol=0)
    assert_same(gradients(x, params, whole), gradients(x, params, stepwise), 1e-9)


def test_truncation_leaves_the_values_alone(problem: Problem, backend: str, dtype: torch.dtype) -> None:
    x, params = problem(dtype=dtype)
    whole = ik.elbo(x, params, 5, seed=5, backend=backend)
    cut = ik.elbo(x, params, 5, seed=5, truncate=2, backend=backend)
    assert torch.equal(cut.recon, whole.recon)
    assert torch.equal(cut.kl, whole.kl)
    assert torch.equal(cut.state.log_rate, whole.state.log_rate)


CONFIGS = [
    {},
    {"n_inner": 3, "beta_inner": 0.6},
    {"single_draw": True},
    {"kl": "released", "estimator": "sigmoid", "temperature": 0.05},
    {"estimator": "fini3"},
    {"estimator": "hard", "temperature": 0.0},
    {"n_arrivals": 2, "clamp_u": 3.0, "clamp_du": 2.5},
    {"decay": 0.3},
    {"drive": "expected", "decay": 0.3, "n_inner": 2, "estimator": "fini2"},
    {"cell": "gaussian"},
    {"cell": "gaussian_relu", "n_inner": 2, "beta_inner": 0.6},
    {"cell": "gaussian_relu", "single_draw": True, "clamp_u": 1.5, "clamp_xi": 0.8, "clamp_dxi": 0.7},
]


def case(
    problem: Problem, cfg: RolloutConfig, moving: bool, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """x and the parameters for ``cfg``, and a state for each of 17 samples."""
    gaussian = {"poisson": "", "gaussian": "identity", "gaussian_relu": "relu"}[cfg.cell]
    x, params = problem(17, 13, 37, moving=cfg.steps if moving else 0, dtype=dtype, gaussian=gaussian)
    *tensors, start = leaves(x, params)
    shape = (*start.shape[:-1], 17, 37)
    return tensors, (start.unsqueeze(-2) + 0.3 * torch.randn(shape)).to(dtype)


@pytest.mark.parametrize("moving", [False, True], ids=["static", "moving"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_number_of_the_trace_follows_from_the_others(
    config: dict[str, Any], moving: bool, problem: Problem, backend: str, dtype: torch.dtype
) -> None:
    """Each saved tensor is recomputed in float64 from those it depends on: no error hides in a later one."""
    module = implementation(backend)
    cfg = RolloutConfig(
        **{
            "steps": 4,
            "estimator": "cubic",
            "temperature": 0.1,
            "clamp_u": 4.0,
            "step": 3,
            "sample_offset": 2,
            "neuron_offset": 2**32 - 64,
            **config,
        }
    )
    tensors, log_rate = case(problem, cfg, moving, dtype)
    *loss, trajectory = module.elbo(Inputs(*tensors, log_rate), torch.tensor(4), cfg)
    recon, kl, final, path, counts, slopes, errors, drives = (t.double() for t in (*loss, *trajectory))
    x, dictionary, log_sigma, log_bias, log_lr = (tensor.double() for tensor in tensors)
    cell = make_cell(log_bias, log_lr, noise.PhiloxNoise(torch.tensor(4)), cfg)
    frames = (x if moving else x.expand(cfg.steps, *x.shape)).unsqueeze(1)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    n = cfg.n_inner

    def close(name: str, ours: Tensor, expected: Tensor, share: float = 0.0) -> None:
        assert ours.shape == expected.shape, name
        wrong = (ours - expected).abs() > tolerance * (1 + expected.abs().max())
        assert bool(torch.isfinite(ours).all()), name
        assert float(wrong.double().mean()) <= share, name

    assert torch.equal(path[0], log_rate.double())
    assert torch.equal(path[-1], final)
    close("errors", errors, frames - counts @ dictionary.T)
    weighted = errors[:, :n] / torch.exp(2 * log_sigma)
    close("drives", drives, (weighted @ dictionary).flatten(0, 1))
    for i in range(cfg.steps * n):
        drawn = (counts[i // n, i % n], slopes[i // n, i % n])
        new = cell.update(path[i], path[i - i % n], drives[i], Draw(drawn[0], *drawn))
        close(f"path {i + 1}", path[i + 1], new)
    close("recon", recon, eager.reconstruction_loss(errors[:, n], log_sigma))
    divergences = [cell.kl(*states).sum(-1) for states in zip(path[n::n], path[:-1:n], strict=True)]
    close("kl", kl, torch.stack(divergences))
    for t, j in product(range(cfg.steps), range(n + 1)):
        offsets = cfg.sample_offset, cfg.neuron_offset
        stream = Stream(KIND_LOSS if j == n else KIND_UPDATE, j % n if j < n else 0, cfg.step + t, *offsets)
        if cfg.single_draw and j < n:
            stream = Stream(KIND_LOSS, 0, cfg.step + t - 1, *offsets)
        expected = cell.draw(path[t * n + j].to(dtype), stream)
        # Counts within rounding of a threshold; normals have none.
        share = 2e-3 if dtype == torch.float32 and cfg.cell == "poisson" else 0.0
        close(f"counts {t} {j}", counts[t, j], expected.code.double(), share)
        wrong = ~torch.isclose(slopes[t, j], expected.memo.double(), rtol=1e-3, atol=1e-3)
        assert float(wrong.double().mean()) <= share


@pytest.mark.parametrize("moving", [False, True], ids=["static", "moving"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_backward_of_the_same_trace(
    config: dict[str, Any], moving: bool, problem: Problem, backend: str, dtype: torch.dtype
) -> None:
    """A backend's backward of one trace against the eager one in float64: no random numbers take part."""
    module = implementation(backend)
    cfg = RolloutConfig(**{"steps": 4, "estimator": "cubic", "temperature": 0.1, "clamp_u": 4.0, **config})
    tensors, log_rate = case(problem, cfg, moving, dtype)
    inputs = Inputs(*tensors, log_rate)
    *loss, trajectory = module.elbo(inputs, torch.tensor(4), cfg)
    upstream = Upstream(*(torch.randn(part.shape, dtype=torch.float64).to(dtype) for part in loss))
    ours = module.elbo_backward(upstream, inputs, trajectory, cfg)
    exact, single = (
        eager.elbo_backward(
            *(type(part)(*(t.to(kind) for t in part)) for part in (upstream, inputs, trajectory)), cfg
        )
        for kind in (torch.float64, torch.float32)
    )
    # That of log_lr is one sum over everything, whose terms cancel: its measure is the size of what it adds.
    sizes = {"log_lr": sum(share.abs() for share in log_lr_of_rows(upstream, inputs, trajectory, cfg))}
    for name, a, b, c in zip(NAMES, ours, exact, single, strict=True):
        scale = float(sizes.get(name, b).abs().max()) + 1e-12
        error = float((a.double() - b).abs().max()) / scale
        eager_error = float((c.double() - b).abs().max()) / scale
        assert error <= (1e-12 if dtype == torch.float64 else 4 * eager_error + 2e-6), f"{name}: {error:.1e}"


def log_lr_of_rows(
    upstream: Upstream, inputs: Inputs, trajectory: Trajectory, cfg: RolloutConfig
) -> list[Tensor]:
    """The share of each row of the batch in the gradient of log_lr, in float64."""

    def of(row: slice) -> Tensor:
        above = Upstream(*(t[:, row].double() for t in upstream[:2]), upstream[2][..., row, :].double())
        given = Inputs(*(t.double() for t in inputs))
        given = given._replace(x=given.x[..., row, :], log_rate=given.log_rate[..., row, :])
        kept = Trajectory(*(t[..., row, :].double() for t in trajectory))
        return eager.elbo_backward(above, given, kept, cfg).log_lr

    return [of(slice(row, row + 1)) for row in range(inputs.x.shape[-2])]


@pytest.mark.parametrize("estimator", ["cubic", "sigmoid", "fini3"])
def test_backends_agree_over_a_short_rollout(estimator: str, problem: Problem, backend: str) -> None:
    """Few steps and rows, and a seed for which no draw lies within rounding of a threshold."""
    x, params = problem(batch=4, dtype=torch.float32, grad=True)
    results = []
    for name in (backend, "autograd"):
        result = ik.elbo(x, params, 2, estimator=estimator, temperature=0.3, seed=5, backend=name)
        results.append((result, gradients(x, params, result)))
    (ours, by_hand), (reference, by_autograd) = results
    torch.testing.assert_close(ours.recon, reference.recon, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.kl, reference.kl, rtol=1e-4, atol=1e-4)
    assert_same(by_hand, by_autograd, 1e-3)


@pytest.mark.parametrize("config", CONFIGS[:3], ids=str)
def test_gradcheck_of_the_state_alone(config: dict[str, Any], problem: Problem) -> None:
    """Finite differences through the whole op; one neuron set of low rates keeps the draws smooth."""
    x, params = problem(batch=2, pixels=3, neurons=4, grad=True)

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, *rest = tensors
        result = ik.elbo(
            x,
            ik.PoissonParams(*rest),
            2,
            seed=2,
            backend="eager",
            **{"temperature": 0.8, "estimator": "sigmoid", **config},
        )
        return result.recon, result.kl, result.state.log_rate

    assert torch.autograd.gradcheck(run, leaves(x, params), atol=1e-5, rtol=1e-4)


def test_loss_is_the_documented_mean(
    gaussian: str, problem: Problem, backend: str, dtype: torch.dtype
) -> None:
    x, params = problem(dtype=dtype, gaussian=gaussian)
    result = ik.elbo(x, params, 3, beta=2.5, seed=1, backend=backend)
    assert result.recon.shape == result.kl.shape == (3, 3)
    expected = (result.recon + 2.5 * result.kl).mean() * 256 / 7
    torch.testing.assert_close(result.loss, expected, rtol=1e-6, atol=0)
    assert (result.state.step, int(result.state.seed), result.state.sample_offset) == (3, 1, 0)


def test_a_static_input_is_a_constant_movie(problem: Problem, backend: str, dtype: torch.dtype) -> None:
    x, params = problem(dtype=dtype, grad=True)
    movie = x.detach().expand(3, *x.shape).clone().requires_grad_()
    static = ik.elbo(x, params, 3, seed=1, backend=backend)
    moving = ik.elbo(movie, params, 3, seed=1, backend=backend)
    assert torch.equal(static.recon, moving.recon)
    ours, reference = gradients(x, params, static), gradients(movie, params, moving)
    assert_same(ours[1:], reference[1:], 1e-5)
    torch.testing.assert_close(ours[0], reference[0].sum(0), rtol=1e-4, atol=1e-4)


def test_batch_splits_are_bit_identical(
    gaussian: str, problem: Problem, backend: str, dtype: torch.dtype
) -> None:
    x, params = problem(batch=7, dtype=dtype, gaussian=gaussian)
    whole = ik.elbo(x, params, 3, seed=1, backend=backend)
    parts = [
        ik.elbo(x[a:b], params, 3, seed=1, sample_offset=a, backend=backend)
        for a, b in [(0, 1), (1, 5), (5, 7)]
    ]
    # Elsewhere the BLAS may sum in another order: some roundings of a number of the dtype.
    tolerance = 0.0 if backend == "cpu" else 1e-10 if dtype == torch.float64 else 2e-6
    for name in ("recon", "kl"):
        joined = torch.cat([getattr(part, name) for part in parts], 1)
        torch.testing.assert_close(joined, getattr(whole, name), rtol=tolerance, atol=tolerance)


def test_continuing_from_a_state_is_bit_identical(
    gaussian: str, problem: Problem, backend: str, dtype: torch.dtype
) -> None:
    x, params = problem(dtype=dtype, gaussian=gaussian)
    for single_draw in (False, True):
        whole = ik.elbo(x, params, 5, seed=1, single_draw=single_draw, backend=backend)
        first = ik.elbo(x, params, 2, seed=1, single_draw=single_draw, backend=backend)
        second = ik.elbo(x, params, 3, state=first.state, single_draw=single_draw, backend=backend)
        assert torch.equal(torch.cat([first.recon, second.recon]), whole.recon)
        assert torch.equal(second.state.log_rate, whole.state.log_rate)


def test_gradient_reaches_the_state(gaussian: str, problem: Problem) -> None:
    x, params = problem(gaussian=gaussian)
    start = torch.randn(*((2,) if gaussian else ()), 3, 9, dtype=torch.float64, requires_grad=True)
    for backend in ("eager", "autograd"):
        result = ik.elbo(x, params, 2, state=ik.State(start, 4, 7, 3), backend=backend)
        (gradient,) = torch.autograd.grad(result.loss, start)
        assert bool((gradient != 0).all())
        if backend == "eager":
            expected = gradient
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 5, 1), (2, 1, 6), (0, 4, 5)], ids=str)
def test_smallest_sizes(
    sizes: tuple[int, int, int], gaussian: str, problem: Problem, backend: str, dtype: torch.dtype
) -> None:
    x, params = problem(*sizes, dtype=dtype, grad=True, gaussian=gaussian)
    result = ik.elbo(x, params, 2, seed=1, backend=backend)
    assert result.recon.shape == (2, sizes[0])
    assert result.state.log_rate.shape == (*((2,) if gaussian else ()), sizes[0], sizes[2])
    grads = gradients(x, params, result)
    assert [g.shape for g in grads] == [leaf.shape for leaf in leaves(x, params)]
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    if sizes[0] == 0:
        assert float(result.loss.detach()) == 0
        assert all(float(g.abs().sum()) == 0 for g in grads)


def test_non_contiguous_inputs(problem: Problem, backend: str, dtype: torch.dtype) -> None:
    x, params = problem(batch=4, moving=2, dtype=dtype, grad=True)
    expected = ik.elbo(x, params, 2, seed=1, backend=backend)
    odd_x = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    odd = ik.PoissonParams(
        params.dictionary.detach().T.contiguous().T.requires_grad_(),
        params.log_sigma.detach().repeat_interleave(2)[::2].requires_grad_(),
        *(leaf.detach().clone().requires_grad_() for leaf in leaves(x, params)[3:]),
    )
    assert not odd_x.is_contiguous()
    assert not odd.dictionary.is_contiguous()
    assert not odd.log_sigma.is_contiguous()
    result = ik.elbo(odd_x, odd, 2, seed=1, backend=backend)
    torch.testing.assert_close(result.recon, expected.recon, rtol=1e-6, atol=1e-6)
    assert_same(gradients(odd_x, odd, result), gradients(x, params, expected), 1e-5)


def test_inputs_are_left_alone(gaussian: str, problem: Problem, backend: str, dtype: torch.dtype) -> None:
    x, params = problem(dtype=dtype, grad=True, gaussian=gaussian)
    before = [leaf.detach().clone() for leaf in leaves(x, params)]
    ik.elbo(x, params, 3, seed=1, backend=backend).loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(leaves(x, params), before, strict=True))


def test_backward_twice(gaussian: str, problem: Problem, backend: str, dtype: torch.dtype) -> None:
    """Saved tensors are never overwritten."""
    x, params = problem(dtype=dtype, grad=True, gaussian=gaussian)
    loss = ik.elbo(x, params, 3, seed=1, backend=backend).loss
    first = torch.autograd.grad(loss, leaves(x, params), retain_graph=True)
    second = torch.autograd.grad(loss, leaves(x, params))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["eager", "cpu", "autograd"])
def test_a_diverging_rollout_is_refused(name: str, gaussian: str, problem: Problem) -> None:
    if ik.backends()[name] != "available":
        pytest.skip(ik.backends()[name])
    x, params = problem(dtype=torch.float32, gaussian=gaussian)
    with pytest.raises(ValueError, match="not finite: the rollout left the range"):
        ik.elbo(x * 1e25, params, 2, seed=1, backend=name)


@pytest.mark.parametrize("where", NAMES)
def test_not_finite_is_refused_and_nan_ends(
    where: str, gaussian: str, problem: Problem, backend: str, dtype: torch.dtype
) -> None:
    x, params = problem(dtype=dtype, gaussian=gaussian)
    leaves(x, params)[NAMES.index(where)].view(-1)[0] = math.nan
    with pytest.raises(ValueError, match=f"{where}.*: expected finite values"):
        ik.elbo(x, params, 2, seed=1, backend=backend)
    result = ik.elbo(x, params, 2, seed=1, backend=backend, check=False)
    assert bool(torch.isnan(result.loss))


@pytest.mark.parametrize(
    ("config", "checkpoint"),
    [(CONFIGS[0], 2), (CONFIGS[1], 2), (CONFIGS[1], 1), (CONFIGS[-2], 2), (CONFIGS[-2], 1)],
    ids=str,
)
def test_opcheck(
    config: dict[str, Any], checkpoint: int, problem: Problem, backend: str, dtype: torch.dtype
) -> None:
    seed = torch.tensor(3)
    cfg = RolloutConfig(**{"steps": 2, "estimator": "cubic", "temperature": 0.3, **config})
    gaussian = "relu" if cfg.cell == "gaussian_relu" else ""
    x, params = problem(batch=2, dtype=dtype, gaussian=gaussian)
    *tensors, start = leaves(x, params)
    tensors.append(start.unsqueeze(-2).repeat_interleave(2, -2))
    constants = (*problem_arguments(seed, cfg), checkpoint, backend, True)
    forward = torch.ops.ipvae_kernels.elbo.default
    torch.library.opcheck(forward, (*tensors, *constants))
    outputs = forward(*tensors, *constants)
    upstream = [torch.randn_like(part) for part in outputs[:3]]
    backward = torch.ops.ipvae_kernels.elbo_backward.default
    torch.library.opcheck(backward, (*upstream, *tensors, *outputs[3:], *constants))


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("gaussian", ["", "relu"])
@pytest.mark.parametrize("config", [{}, {"n_inner": 2}, {"single_draw": True}, {"truncate": 5}])
def test_checkpoints_change_no_value(
    config: dict[str, Any], gaussian: str, moving: bool, problem: Problem, backend: str, dtype: torch.dtype
) -> None:
    x, params = problem(batch=6, moving=7 if moving else 0, dtype=dtype, grad=True, gaussian=gaussian)
    results = []
    for checkpoint in (7, 3, 1):
        result = ik.elbo(x, params, 7, seed=1, checkpoint=checkpoint, backend=backend, **config)
        gradients = torch.autograd.grad(result.loss + result.state.log_rate.sum(), leaves(x, params))
        results.append((result, gradients))
    (whole, expected), *others = results
    for result, gradients in others:
        assert torch.equal(result.recon, whole.recon)
        assert torch.equal(result.kl, whole.kl)
        assert torch.equal(result.state.log_rate, whole.state.log_rate)
        # Only the order differs in which steps are summed.
        assert_same(gradients, expected, 2e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("truncate", [None, 2])
def test_compile_without_graph_breaks(
    truncate: int | None, gaussian: str, problem: Problem, backend: str
) -> None:
    x, params = problem(dtype=torch.float32, grad=True, gaussian=gaussian)

    def loss(x: Tensor, params: Any, seed: Tensor) -> Tensor:
        return ik.elbo(x, params, 3, seed=seed, truncate=truncate, backend=backend).loss

    seed = torch.tensor(5)
    torch.compiler.reset()  # or the cases of this test together reach the limit of recompilations
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(x, params, seed), leaves(x, params))
    reference = torch.autograd.grad(loss(x, params, seed), leaves(x, params))
    assert_same(ours, reference, 1e-5)


def test_autocast_computes_in_float32(problem: Problem, backend: str) -> None:
    x, params = problem(dtype=torch.float32, grad=True)
    for name in (backend, "autograd"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = ik.elbo(x.bfloat16(), params, 3, seed=5, backend=name)
        outside = ik.elbo(x.bfloat16().float(), params, 3, seed=5, backend=name)
        assert inside.recon.dtype == inside.state.log_rate.dtype == torch.float32
        assert torch.equal(inside.recon, outside.recon)


def test_gumbel_is_served_by_autograd(problem: Problem) -> None:
    x, params = problem(grad=True)
    result = ik.elbo(x, params, 2, estimator="gumbel", temperature=0.5, seed=1)
    assert all(float(g.abs().max()) > 0 for g in gradients(x, params, result))
    with pytest.raises(ik.BackendError, match="gumbel estimator is served by autograd alone"):
        ik.elbo(x, params, 2, estimator="gumbel", backend="cpu")
    x, params = problem(gaussian="relu", dtype=torch.float32)  # which draws no counts
    ik.elbo(x, params, 2, estimator="gumbel", backend="cpu")


BAD = [
    ({"beta": -1.0}, ValueError, "beta: expected a finite number of at least 0, found -1"),
    ({"beta": None}, TypeError, "beta: expected a number, found NoneType"),
    ({"estimator": "eat"}, ValueError, "estimator: expected one of"),
    ({"temperature": -1.0}, ValueError, "temperature: expected"),
    ({"n_arrivals": -1}, ValueError, "n_arrivals: expected"),
    ({"truncate": 0}, ValueError, "truncate: expected an int from 1"),
    ({"truncate": 1.5}, TypeError, "truncate: expected an int, found float"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(
    arguments: dict[str, Any], error: type[Exception], message: str, problem: Problem
) -> None:
    x, params = problem()
    with pytest.raises(error, match=message):
        ik.elbo(x, params, 2, **arguments)
