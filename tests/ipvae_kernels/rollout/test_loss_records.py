"""Records of a loss and a cut of the arrivals for each step: values, and gradients against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ipvae_kernels as ik
from ipvae_kernels.rollout.op import LOSS_RECORDS

CELLS = ("poisson", "gaussian", "relu")
CUTS = [3, 3, 0, 2, 2]
STEPS = len(CUTS)


def problem(cell: str, dtype: torch.dtype) -> tuple[Tensor, Any, list[Tensor]]:
    """Input, parameters, and both as leaves."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift
        return drawn.to(dtype).requires_grad_()

    x, shared = (
        normal(6, 9),
        (normal(9, 20, scale=0.3), normal(9, scale=0.1), normal(20, scale=0.1, shift=-3.0)),
    )
    if cell == "poisson":
        poisson = ik.PoissonParams(*shared, normal(scale=0.0, shift=-1.0), normal(20, scale=0.3, shift=-0.5))
        return x, poisson, [x, *vars(poisson).values()]
    start = normal(2, scale=0.1, shift=-1.0), normal(2, 20, scale=0.2)
    gaussian = ik.GaussianParams(*shared, *start, activation="relu" if cell == "relu" else "identity")
    return x, gaussian, [x, *(v for v in vars(gaussian).values() if isinstance(v, Tensor))]


def run(cell: str, dtype: torch.dtype, **options: Any) -> tuple[ik.ElboResult, list[Tensor]]:
    x, params, leaves = problem(cell, dtype)
    how = {"n_arrivals": CUTS, "temperature": 0.5} if cell == "poisson" else {}
    return ik.elbo(x, params, STEPS, seed=3, kl="released", **how, **options), leaves


def weighted(records: dict[str, Tensor]) -> Tensor:
    """A sum whose weights differ everywhere."""
    generator = torch.Generator().manual_seed(7)
    total = torch.zeros(())
    for value in records.values():
        total = total + (value * torch.randn(value.shape, generator=generator, dtype=torch.float64)).sum()
    return total


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"n_inner": 3}, {"single_draw": True}], ids=str)
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [("cpu", torch.float32, 2e-5), ("eager", torch.float64, 1e-13)],
    ids=["cpu", "eager"],
)
def test_records_and_their_gradients_are_those_of_autograd(
    cell: str, options: dict[str, Any], backend: str, dtype: torch.dtype, tolerance: float
) -> None:
    found = []
    for name in (backend, "autograd"):
        result, leaves = run(cell, dtype, record=LOSS_RECORDS, backend=name, **options)
        gradients = torch.autograd.grad(result.loss + weighted(result.records), leaves)
        found.append([*result.records.values(), *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("cell", CELLS)
def test_a_sum_over_neurons_takes_the_fused_backward(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, leaves = run(cell, torch.float32)
    expected = torch.autograd.grad(plain.recon.sum() + 2.0 * plain.kl.sum(), leaves)
    monkeypatch.setattr("ipvae_kernels.rollout.eager.elbo_backward", None)
    for summed in (lambda kl: kl.sum(), lambda kl: sum(step.sum(-1).sum() for step in kl.unbind())):
        result, leaves = run(cell, torch.float32, record=["kl_per_neuron"])
        torch.testing.assert_close(result.records["kl_per_neuron"].sum(-1), plain.kl)
        found = torch.autograd.grad(
            result.recon.sum() + 2.0 * summed(result.records["kl_per_neuron"]), leaves
        )
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


def test_records_go_through_truncation_and_name_their_steps() -> None:
    whole, _ = run("poisson", torch.float32, record=("counts", "log_rate"))
    cut, _ = run("poisson", torch.float32, record=("log_rate", "counts"), truncate=2)
    assert list(cut.records) == ["log_rate", "counts"]
    for name, value in whole.records.items():
        assert torch.equal(value, cut.records[name])
    assert torch.equal(whole.records["log_rate"][-1], whole.state.log_rate)
    assert bool((whole.records["counts"][2] == 0.0).all())  # a cut of 0
    assert float(whole.records["counts"].max()) > 1.0


def test_a_cut_for_each_step_is_that_of_each_step() -> None:
    x, params, _ = problem("poisson", torch.float32)
    result, _ = run("poisson", torch.float32)
    state = None
    for t, n in enumerate(CUTS):
        how = {"temperature": 0.5, "kl": "released", "seed": 3}
        step = ik.elbo(x, params, 1, state=state, n_arrivals=torch.tensor([n]), **how)  # type: ignore[arg-type]
        assert torch.equal(step.recon[0], result.recon[t])
        state = step.state


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_arrivals": [3, 3]}, ValueError, "n_arrivals: expected one for each of 5 steps, found 2"),
        ({"n_arrivals": []}, ValueError, "n_arrivals: expected a number or one for each step, found none"),
        ({"n_arrivals": [1, 2, 3, -4, 5]}, ValueError, "n_arrivals: expected an int from 0"),
        ({"n_arrivals": "34567"}, TypeError, "n_arrivals: expected an int"),
        ({"record": "counts"}, TypeError, "record: expected a collection of names"),
        ({"record": ["spikes"]}, ValueError, "record: expected one of log_rate, counts"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    x, params, _ = problem("poisson", torch.float32)
    with pytest.raises(error, match=message):
        ik.elbo(x, params, STEPS, **options)
