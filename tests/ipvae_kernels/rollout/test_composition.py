"""A step composed from the public ops equals ``infer`` and ``elbo`` at the same seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from itertools import pairwise, repeat
from typing import Any

import pytest
import torch
from torch import Tensor

import ipvae_kernels as ik

STEPS = 4
HOW: dict[str, Any] = {"seed": 11, "sample_offset": 3, "neuron_offset": 2**31 + 8}
ESTIMATORS = [("hard", 0.0), ("sigmoid", 0.5), ("cubic", 0.2), ("fini2", 0.0)]
SCHEDULES = [(1, False), (3, False), (1, True)]
Draw = Callable[..., Tensor]


def exact_problem(dtype: torch.dtype, grad: bool = False) -> tuple[Tensor, ik.PoissonParams]:
    """Every sum of a product has one term that is not 0, a power of two times a code: any order is exact."""
    inputs, latents, batch = 12, 10, 5
    generator = torch.Generator().manual_seed(2)
    dictionary = torch.zeros(inputs, latents)
    signs = torch.randint(2, (latents,), generator=generator) - 0.5
    dictionary[torch.randperm(inputs, generator=generator)[:latents], torch.arange(latents)] = signs
    tensors = [
        dictionary,
        torch.zeros(inputs),
        torch.randn(latents, generator=generator) * 0.2 - 2.0,
        torch.tensor(-0.7),
        torch.randn(latents, generator=generator) * 0.5,
    ]
    x = torch.randint(-4, 5, (batch, inputs), generator=generator).to(dtype) / 4
    x, *tensors = (tensor.to(dtype).requires_grad_(grad) for tensor in (x, *tensors))
    return x, ik.PoissonParams(*tensors)


def composed(
    x: Tensor, params: ik.PoissonParams, draw: Draw, n_inner: int, single: bool, backend: str
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Fresh counts, recon and kl of each step, and the last log rate."""
    precision = torch.exp(-2.0 * params.log_sigma)
    u = params.log_rate_init.expand(len(x), -1)
    counts, recon, kl = [], [], []
    for t in range(STEPS):
        prior = u
        for j in range(n_inner):
            reused = single and t > 0
            z = counts[-1] if reused else draw(u, draw="update", inner=j, step=t)
            drive = ((x - z @ params.dictionary.T) * precision) @ params.dictionary
            u = ik.log_rate_update(u, prior, drive, params, leak=0.5 if n_inner > 1 else 0.0, backend=backend)
        counts.append(draw(u, draw="loss", step=t))
        scaled = (x - counts[-1] @ params.dictionary.T) * torch.exp(-params.log_sigma)
        recon.append(0.5 * (scaled.square() + math.log(2 * math.pi)).sum(-1) + params.log_sigma.sum())
        kl.append(ik.poisson_kl(u, prior).sum(-1))
    return counts, recon, kl, u


@pytest.mark.parametrize(("n_inner", "single"), SCHEDULES)
def test_infer_equals_its_composition(n_inner: int, single: bool, backend: str, dtype: torch.dtype) -> None:
    x, params = exact_problem(dtype)

    def draw(u: Tensor, **which: Any) -> Tensor:
        return ik.poisson_sample(u, backend=backend, **HOW, **which)

    counts, recon, kl, u = composed(x, params, draw, n_inner, single, backend)
    state, records = ik.infer(
        x, params, STEPS, n_inner=n_inner, beta_inner=0.5, single_draw=single,
        record=("counts", "recon", "kl"), backend=backend, **HOW,
    )  # fmt: skip
    assert torch.equal(records["counts"], torch.stack(counts))
    assert float(records["counts"].max()) > 1
    for ours, ops in ((state.log_rate, u), (records["recon"], recon), (records["kl"], kl)):
        ops = ops if isinstance(ops, Tensor) else torch.stack(ops)
        torch.testing.assert_close(ours, ops, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize(("n_inner", "single"), SCHEDULES)
@pytest.mark.parametrize(("estimator", "temperature"), ESTIMATORS)
def test_elbo_equals_its_composition(
    estimator: str, temperature: float, n_inner: int, single: bool, backend: str, dtype: torch.dtype
) -> None:
    """Values, and the gradients through all steps: each op's backward by hand, chained by autograd."""
    how = {"estimator": estimator, "temperature": temperature, "backend": backend, **HOW}
    x, params = exact_problem(dtype, grad=True)
    inputs = [x, *vars(params).values()]

    def draw(u: Tensor, **which: Any) -> Tensor:
        return ik.poisson_rsample(u, **how, **which)

    _, recon, kl, u = composed(x, params, draw, n_inner, single, backend)
    ours = ik.elbo(x, params, STEPS, n_inner=n_inner, beta_inner=0.5, single_draw=single, beta=2.0, **how)
    loss = (torch.stack(recon) + 2.0 * torch.stack(kl)).mean() * (256 / x.shape[-1])
    results = [
        [value, rec, divergence, last, *torch.autograd.grad(value, inputs)]
        for value, rec, divergence, last in (
            (ours.loss, ours.recon, ours.kl, ours.state.log_rate),
            (loss, torch.stack(recon), torch.stack(kl), u),
        )
    ]
    exact = dtype == torch.float64
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10 if exact else 2e-5, atol=1e-10 if exact else 2e-5)


@pytest.mark.parametrize(("n_inner", "single"), SCHEDULES)
@pytest.mark.parametrize(("estimator", "temperature"), ESTIMATORS)
def test_steps_one_by_one_equal_elbo_and_infer(
    estimator: str, temperature: float, n_inner: int, single: bool, backend: str, dtype: torch.dtype
) -> None:
    how = {"n_inner": n_inner, "beta_inner": 0.5, "single_draw": single, "backend": backend, **HOW}
    drawn = {"estimator": estimator, "temperature": temperature}
    x, params = exact_problem(dtype, grad=True)
    inputs = [x, *vars(params).values()]
    state, taken = None, []
    for _ in range(STEPS):
        taken.append(ik.step(x, params, state=state, **drawn, **how))
        state = taken[-1].state
    recon, kl = torch.stack([one.recon for one in taken]), torch.stack([one.kl for one in taken])
    loss = (recon + 2.0 * kl).mean() * (256 / x.shape[-1])
    whole = ik.elbo(x, params, STEPS, beta=2.0, **drawn, **how)
    ours = [loss, recon, kl, state.log_rate, *torch.autograd.grad(loss, inputs)]
    theirs = [
        whole.loss,
        whole.recon,
        whole.kl,
        whole.state.log_rate,
        *torch.autograd.grad(whole.loss, inputs),
    ]
    exact = dtype == torch.float64
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10 if exact else 2e-5, atol=1e-10 if exact else 2e-5)
    assert (state.step, state.sample_offset, int(state.seed)) == (STEPS, 3, 11)
    if estimator in ("hard", "fini2"):  # whole counts are those of inference
        records = ik.infer(x, params, STEPS, record=("counts", "reconstruction"), **how).records
        for name, rows in records.items():
            torch.testing.assert_close(torch.stack([getattr(one, name) for one in taken]), rows)


class Part:
    """The decoder of some neurons; the means of the others are given, draw by draw.

    Args:
        dictionary: of these neurons, [M, k].
        others: what the other neurons add to the mean of each draw, [B, M].
    """

    def __init__(self, dictionary: Tensor, others: Iterator[Tensor]) -> None:
        self.linear, self.others, self.codes = ik.LinearDecoder(dictionary), others, list[Tensor]()

    def __call__(self, code: Tensor) -> ik.Decoded:
        """The sum over all neurons, as processes that share them would form it."""
        self.codes.append(code)
        own = self.linear(code)
        return own._replace(mean=own.mean + next(self.others))


@pytest.mark.parametrize("parts", [(0, 4, 10), (0, 8, 10)], ids=str)
def test_parts_of_the_neurons_draw_and_move_as_in_the_whole(
    parts: tuple[int, ...], backend: str, dtype: torch.dtype
) -> None:
    """All that a process with some of the neurons needs of the others is their share of each mean."""
    x, params = exact_problem(dtype)
    assert params.dictionary is not None
    how: dict[str, Any] = {"n_inner": 2, "seed": 5, "record": ["counts"], "backend": backend}
    whole = Part(params.dictionary, repeat(torch.zeros_like(x)))
    bare = dataclasses.replace(params, dictionary=None)
    state, records = ik.infer(x, bare, STEPS, decoder=whole, **how)
    assert torch.equal(records["counts"], ik.infer(x, params, STEPS, **how).records["counts"])
    for begin, end in pairwise(parts):
        left_out = params.dictionary.clone()
        left_out[:, begin:end] = 0
        part = Part(params.dictionary[:, begin:end], (code @ left_out.T for code in whole.codes))
        own = dataclasses.replace(
            bare, log_bias=params.log_bias[begin:end], log_rate_init=params.log_rate_init[begin:end]
        )
        ours = ik.infer(x, own, STEPS, decoder=part, neuron_offset=begin, **how)
        assert torch.equal(ours.records["counts"], records["counts"][..., begin:end])
        assert torch.equal(ours.state.log_rate, state.log_rate[:, begin:end])
