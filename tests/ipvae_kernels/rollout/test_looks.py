"""Where a look waits for a GPU, inputs are looked at with the results: errors are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ipvae_kernels as ik
from ipvae_kernels import checks

NAMES = ("log_sigma", "log_bias", "log_lr", "dictionary", "log_rate_init")


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors each look was at."""
    seen: list[int] = []
    look = checks.not_finite

    def counted(tensors: Any) -> Any:
        seen.append(len(tensors))
        return look(tensors)

    monkeypatch.setattr(checks, "not_finite", counted)
    monkeypatch.setattr(checks, "LATE", ("cpu",))
    return seen


def problem(**changes: Tensor) -> tuple[Tensor, ik.PoissonParams]:
    generator = torch.Generator().manual_seed(0)
    values = {
        "dictionary": 0.3 * torch.randn(6, 8, generator=generator),
        "log_sigma": torch.zeros(6), "log_bias": torch.full((8,), -3.0), "log_lr": torch.tensor(-1.0),
        "log_rate_init": torch.zeros(8),
    }  # fmt: skip
    return torch.randn(3, 6, generator=generator), ik.PoissonParams(**{**values, **changes})


CALLS: list[Callable[..., Any]] = [
    lambda x, params: ik.infer(x, params, 2, record=("recon",), seed=0),
    lambda x, params: ik.elbo(x, params, 2, seed=0),
]


@pytest.mark.parametrize("call", CALLS, ids=["infer", "elbo"])
@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_named(call: Callable[..., Any], name: str) -> None:
    _, params = problem()
    value = getattr(params, name).clone()
    value.view(-1)[0] = float("nan")
    name_there = "initial state" if name == "log_rate_init" else name
    with pytest.raises(ValueError, match=rf"{name_there}.* found [13] of"):
        call(*problem(**{name: value}))


@pytest.mark.parametrize("call", CALLS, ids=["infer", "elbo"])
def test_results_are_named(call: Callable[..., Any]) -> None:
    huge = torch.full((6, 8), 1e30)
    with pytest.raises(ValueError, match=r"the result .* is not finite: the rollout left the range"):
        call(*problem(dictionary=huge))


def test_what_is_finite_is_looked_at_once(looks: list[int]) -> None:
    x, params = problem()
    params.dictionary.requires_grad_()  # type: ignore[union-attr]
    ik.infer(x, params, 2, seed=0)
    assert looks == [7]
    looks.clear()
    loss = ik.elbo(x, params, 2, seed=0).loss
    assert looks == [9]
    looks.clear()
    loss.backward()
    assert looks == [6]
    for sample in (ik.poisson_sample, ik.poisson_rsample):
        looks.clear()
        sample(torch.zeros(2, 3), seed=0)
        assert looks == [2]
        with pytest.raises(ValueError, match="log_rate: expected finite values, found 1 of 2"):
            sample(torch.tensor([[0.0, float("nan")]]), seed=0)
        with pytest.raises(ValueError, match="the result 'counts' is not finite"):
            sample(torch.tensor([[0.0, 1e30]]), seed=0)
