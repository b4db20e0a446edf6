"""What drives an update: the closed forms, their derivatives, their laws, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ipvae_kernels as ik
from ipvae_kernels.rollout import decoders
from ipvae_kernels.rollout.decoders import LinearDecoder

Problem = Callable[..., tuple[Tensor, Any]]
# Ceilings so far away that an update is learning rate times drive, to 1e-9.
WIDE = {"clamp_u": 30.0, "clamp_du": 30.0}


def expected_reconstruction(x: Tensor, params: ik.PoissonParams, rate: Tensor) -> Tensor:
    """E over counts z ~ Poisson(rate) of sum_m (x - Phi z)^2 / (2 var), [B]."""
    precision = torch.exp(-2.0 * params.log_sigma)
    spread = rate @ params.dictionary.square().T
    return 0.5 * (((x - rate @ params.dictionary.T).square() + spread) * precision).sum(-1)


def natural_gradient(x: Tensor, params: ik.PoissonParams, log_rate: Tensor) -> Tensor:
    """That of the expectation in the log rate, by central differences: its gradient over the rate."""
    step, found = 1e-5, []
    for k in range(log_rate.shape[-1]):
        moved = torch.zeros_like(log_rate)
        moved[..., k] = step
        above, below = (
            expected_reconstruction(x, params, torch.exp(log_rate + sign * moved)) for sign in (1, -1)
        )
        found.append((above - below) / (2 * step) / torch.exp(log_rate[..., k]))
    return torch.stack(found, -1)


def test_the_expected_drive_is_the_natural_gradient_by_finite_differences(problem: Problem) -> None:
    x, params = problem(4, 7, 9)
    u = params.log_rate_init.expand(4, -1)
    found = ik.infer(x, params, 1, drive="expected", backend="eager", **WIDE).state.log_rate
    expected = ik.log_rate_update(u, u, -natural_gradient(x, params, u), params, backend="eager", **WIDE)
    # The rate that is drawn from, and stands in for counts, is 1.2e-7 above exp(u).
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    paper = ik.infer(x, params, 1, seed=1, backend="eager", **WIDE).state.log_rate
    assert float((paper - expected).abs().max()) > 0.05


def test_the_sampled_drive_has_the_expected_one_as_its_mean(problem: Problem, backend: str) -> None:
    """Means of 20,000 draws, within 5 standard errors; the published drive lies 20 and more away."""
    x, params = problem(1, 7, 9, dtype=torch.float32)
    x = x.expand(20_000, -1)
    means = {}
    for drive in ("paper", "sampled"):
        u = ik.infer(x, params, 1, seed=2, drive=drive, backend=backend, **WIDE).state.log_rate
        means[drive] = (u.mean(0), u.std(0) / len(u) ** 0.5)
    target = ik.infer(x[:1], params, 1, drive="expected", backend=backend, **WIDE).state.log_rate[0]
    away = {name: (mean - target).abs() / error for name, (mean, error) in means.items()}
    assert float(away["sampled"].max()) < 5.0
    assert float(away["paper"].max()) > 20.0


@pytest.mark.parametrize(("drive", "decay"), [("expected", 0.0), ("expected", 0.4), ("paper", 0.4)])
def test_gradients_by_finite_differences(drive: str, decay: float, problem: Problem) -> None:
    """Relaxed counts of fixed noise are smooth in everything; two steps, so that gradients pass an update."""
    x, params = problem(2, 3, 4, grad=True)

    def loss(*tensors: Tensor) -> Tensor:
        return ik.elbo(
            tensors[0], ik.PoissonParams(*tensors[1:]), 2, beta=1.3, estimator="sigmoid", temperature=0.5,
            seed=3, drive=drive, decay=decay, clamp_u=3.0, clamp_du=2.5, backend="eager",
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, (x, *vars(params).values()), eps=1e-6, atol=1e-6, rtol=1e-5)


def test_expected_updates_draw_nothing(problem: Problem, backend: str) -> None:
    x, params = problem(dtype=torch.float32)
    one, other = (
        ik.infer(x, params, 6, seed=seed, drive="expected", record=("counts",), backend=backend)
        for seed in (1, 2)
    )
    assert torch.equal(one.state.log_rate, other.state.log_rate)
    assert not torch.equal(one.records["counts"], other.records["counts"])
    assert torch.equal(one.records["counts"], one.records["counts"].round())


@pytest.mark.parametrize("options", [{"drive": "expected"}, {"drive": "sampled", "decay": 0.2}], ids=str)
def test_sequences_and_batches_may_be_cut(options: dict[str, Any], problem: Problem, backend: str) -> None:
    x, params = problem(6, 20, 70, dtype=torch.float32)
    how = {"seed": 3, "record": ("counts", "log_rate"), "backend": backend, **options}
    whole = ik.infer(x, params, 5, **how)
    first = ik.infer(x, params, 2, **how)
    rest = ik.infer(x, params, 3, **{**how, "state": first.state, "seed": None})
    assert torch.equal(whole.records["log_rate"][2:], rest.records["log_rate"])
    assert torch.equal(whole.records["counts"][2:], rest.records["counts"])
    rows = ik.infer(x[4:], params, 5, sample_offset=4, **how).records["log_rate"]
    torch.testing.assert_close(rows, whole.records["log_rate"][:, 4:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("drive", ["sampled", "expected"])
def test_steps_one_by_one_are_those_of_a_rollout(drive: str, problem: Problem, backend: str) -> None:
    x, params = problem(dtype=torch.float32, grad=True)
    how = {"drive": drive, "decay": 0.2, "estimator": "fini2", "seed": 4, "backend": backend}
    whole, state, losses = ik.elbo(x, params, 3, beta=1.0, **how), None, []
    for _ in range(3):
        state, *_, recon, kl = ik.step(x, params, state=state, **how)
        losses.append(recon + kl)
    loss = torch.stack(losses).mean() * (256 / x.shape[-1])
    inputs = [x, *vars(params).values()]
    torch.testing.assert_close(loss, whole.loss, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(whole.loss, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)


def test_a_leaky_membrane_comes_to_rest(problem: Problem, backend: str) -> None:
    """Without a drive (a dictionary of zeros) at -exp(log_bias) / decay; without decay it goes on falling."""
    x, params = problem(dtype=torch.float32)
    silent = dataclasses.replace(
        params, dictionary=torch.zeros_like(params.dictionary), log_lr=torch.tensor(0.0)
    )
    rest = -torch.exp(params.log_bias) / 0.25
    found = ik.infer(x, silent, 60, decay=0.25, seed=1, backend=backend, **WIDE).state.log_rate
    torch.testing.assert_close(found, rest.expand_as(found), rtol=1e-3, atol=1e-3)
    fallen = ik.infer(x, silent, 60, seed=1, backend=backend, **WIDE).state.log_rate
    assert bool((fallen < 2.0 * rest).all())


def test_decay_is_the_leak_towards_a_prior_of_zero(problem: Problem, backend: str) -> None:
    _, params = problem(dtype=torch.float32)
    u, drive = torch.randn(5, 9), torch.randn(5, 9)
    how = {"backend": backend, "clamp_u": 3.0, "clamp_du": 2.0}
    decayed = ik.log_rate_update(u, torch.randn(5, 9), drive, params, decay=0.3, **how)
    leaked = ik.log_rate_update(u, torch.zeros(5, 9), drive, params, leak=0.3, **how)
    torch.testing.assert_close(decayed, leaked, rtol=1e-6, atol=1e-6)


def test_half_the_diagonal_of_a_wide_dictionary_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    phi, log_sigma = torch.randn(13, 11, dtype=torch.float64), torch.randn(13, dtype=torch.float64)
    monkeypatch.setattr(decoders, "_ENTRIES", 44)
    gram = phi.T @ torch.diag(torch.exp(-2.0 * log_sigma)) @ phi
    torch.testing.assert_close(LinearDecoder(phi).half_diagonal(log_sigma), 0.5 * gram.diagonal())


@pytest.mark.parametrize("options", [{"drive": "sampled"}, {"drive": "expected"}, {"decay": 0.1}], ids=str)
def test_gaussian_models_have_neither(options: dict[str, Any], problem: Problem) -> None:
    x, params = problem(gaussian="relu")
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}: expected .* for a Gaussian model, found"):
        ik.infer(x, params, 2, **options)


def test_another_decoder_has_no_closed_form(problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    beside = dataclasses.replace(params, dictionary=None)
    module = nn.Linear(9, 7)
    for call in (ik.infer, ik.elbo):
        with pytest.raises(ValueError, match="drive: expected 'paper' beside a decoder, found 'expected'"):
            call(x, beside, 2, decoder=module, drive="expected")
    decayed = ik.infer(x, beside, 2, decoder=module, decay=0.3, seed=1).state.log_rate
    assert not torch.equal(decayed, ik.infer(x, beside, 2, decoder=module, seed=1).state.log_rate)
