"""One differentiable step: gradients of counts, decoders, families, refusals."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ipvae_kernels as ik

Problem = Any
STEPS = 3


def steps(x: Tensor, params: Any, **options: Any) -> list[ik.StepResult]:
    """Several, each from the state of the one before."""
    taken: list[ik.StepResult] = []
    for _ in range(STEPS):
        taken.append(ik.step(x, params, state=taken[-1].state if taken else None, seed=4, **options))
    return taken


@pytest.mark.parametrize("estimator", ["cubic", "fini3"])
def test_a_loss_of_counts_is_differentiated_through_all_steps(estimator: str, problem: Problem) -> None:
    """By the ops' own derivatives as by plain autograd."""
    x, params = problem(grad=True)
    inputs = [x, *vars(params).values()]
    results = []
    for backend in ("eager", "autograd"):
        taken = steps(x, params, estimator=estimator, temperature=0.5, backend=backend)
        loss = torch.stack([one.counts.square().sum() + one.reconstruction.sum() for one in taken]).sum()
        results.append([loss, *torch.autograd.grad(loss, inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        assert bool((ours != 0).any())


def test_a_detached_state_truncates_the_gradient(problem: Problem) -> None:
    x, params = problem(grad=True)
    first = ik.step(x, params, seed=4, temperature=0.5)
    second = ik.step(x, params, state=first.state.detach(), temperature=0.5)
    (gradient,) = torch.autograd.grad(second.kl.sum(), params.log_rate_init, allow_unused=True)
    assert gradient is None
    whole = ik.step(x, params, state=first.state, temperature=0.5)
    assert torch.equal(whole.kl, second.kl)
    (gradient,) = torch.autograd.grad(whole.kl.sum(), params.log_rate_init)
    assert bool((gradient != 0).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_with_a_decoder_are_those_of_elbo_to_the_bit(dtype: torch.dtype, problem: Problem) -> None:
    x, params = problem(dtype=dtype)
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 7)).to(dtype)
    bare = dataclasses.replace(params, dictionary=None)
    how: dict[str, Any] = {"decoder": network, "temperature": 0.5, "backend": "eager"}
    taken = steps(x, bare, **how)
    whole = ik.elbo(x, bare, STEPS, seed=4, **how)
    assert torch.equal(torch.stack([one.recon for one in taken]), whole.recon)
    assert torch.equal(torch.stack([one.kl for one in taken]), whole.kl)
    assert torch.equal(taken[-1].state.log_rate, whole.state.log_rate)
    of_steps = torch.autograd.grad(sum(one.recon.sum() for one in taken), list(network.parameters()))
    of_whole = torch.autograd.grad(whole.recon.sum(), list(network.parameters()))
    for ours, theirs in zip(of_steps, of_whole, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert bool((ours != 0).any())


@pytest.mark.parametrize("gaussian", ["identity", "relu"])
def test_gaussian_steps_are_those_of_elbo(gaussian: str, problem: Problem) -> None:
    x, params = problem(gaussian=gaussian, grad=True)
    taken = steps(x, params, backend="eager")
    whole = ik.elbo(x, params, STEPS, seed=4, backend="eager")
    torch.testing.assert_close(torch.stack([one.recon for one in taken]), whole.recon)
    torch.testing.assert_close(taken[-1].state.log_rate, whole.state.log_rate)
    gradients = [
        torch.autograd.grad(value.sum(), params.dictionary)[0]
        for value in (torch.stack([one.kl for one in taken]), whole.kl)
    ]
    torch.testing.assert_close(*gradients)


def test_prepared_parameters_and_autocast_are_served(problem: Problem) -> None:
    x, params = problem(dtype=torch.float32, grad=True)
    plain = ik.step(x, params, seed=1)
    for given in (ik.prepare(params), params):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours = ik.step(x, given, seed=1)
        assert torch.equal(ours.state.log_rate, plain.state.log_rate)
        assert torch.equal(ours.recon, plain.recon)


def test_gumbel_is_served_by_autograd(problem: Problem) -> None:
    x, params = problem(grad=True)
    taken = steps(x, params, estimator="gumbel", temperature=0.5)
    (gradient,) = torch.autograd.grad(taken[-1].recon.sum(), params.dictionary)
    assert bool((gradient != 0).any())
    with pytest.raises(ik.BackendError, match="gumbel estimator is served by autograd alone"):
        ik.step(x, params, estimator="gumbel", backend="cpu")


def test_what_is_no_step_is_refused(problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    for options, message in (
        ({"x": x.expand(2, *x.shape)}, r"x: expected one frame, shape \[B, M\], found \[2, 3, 7\]"),
        ({"x": x[0]}, "x: expected one frame"),
        ({"x": x.numpy()}, "x: expected a torch.Tensor, found ndarray"),
        ({"x": x[:, 1:]}, "x: expected last dimension M = 7"),
        ({"x": x * math.nan}, "x: expected finite values"),
        ({"estimator": "best"}, "estimator: expected one of"),
        ({"temperature": -1.0}, "temperature: expected"),
        ({"n_inner": 2, "single_draw": True}, "single_draw: expected n_inner = 1"),
        ({"state": ik.State(torch.zeros(2, 9))}, r"state\.log_rate: expected shape"),
        ({"decoder": nn.Linear(9, 7)}, r"params\.dictionary: expected None beside a decoder"),
        ({"params": 3}, "params: expected PoissonParams or GaussianParams"),
        ({"clamp_u": -9.0}, "clamp_u: expected"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            ik.step(**{"x": x, "params": params, **options})
    ready = ik.prepare(params)
    params.log_lr.add_(0.1)
    with pytest.raises(ValueError, match="params: expected log_lr as it was when prepared"):
        ik.step(x, ready)
    huge = dataclasses.replace(params, log_sigma=torch.full((7,), -60.0))
    with pytest.raises(ValueError, match="not finite"):
        ik.step(x, huge, seed=1)
