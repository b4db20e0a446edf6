"""Numbers as Python floats, NumPy scalars or tensors of shape [], outside and inside of traced graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import ipvae_kernels as ik
from ipvae_kernels import checks

Problem = Callable[..., tuple[Tensor, Any]]
RATES = torch.linspace(-2.0, 2.0, 12).view(3, 4)

KINDS: dict[str, Callable[[float], Any]] = {
    "numpy float64": np.float64,
    "numpy float32": np.float32,
    "array of shape []": np.array,
    "tensor": torch.tensor,
    "tensor of float64": lambda value: torch.tensor(value, dtype=torch.float64),
    "tensor of bfloat16": lambda value: torch.tensor(value, dtype=torch.bfloat16),
}


def rollout(x: Tensor, params: Any, number: Callable[[float], Any]) -> list[Tensor]:
    """Every number of the two rollouts and the step; all of them are numbers of bfloat16 too."""
    shared: dict[str, Any] = {
        "n_inner": 2, "beta_inner": number(0.25), "clamp_u": number(5.0), "clamp_du": number(4.0), "seed": 1,
    }  # fmt: skip
    relaxed: dict[str, Any] = {"temperature": number(0.5)}
    loss = ik.elbo(x, params, 2, beta=number(1.5), **relaxed, **shared).loss
    state = ik.infer(x, params, 2, **shared).state.log_rate
    return [loss, state, ik.step(x, params, **relaxed, **shared).recon]


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_is_a_number(kind: str, problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    number = KINDS[kind]
    ours, expected = (rollout(x, params, given) for given in (number, float))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    draws = [ik.poisson_rsample(RATES, temperature=given(0.5), seed=2) for given in (number, float)]
    assert torch.equal(*draws)
    updates = [
        ik.log_rate_update(
            RATES, RATES + 0.5, RATES, problem(neurons=4, dtype=torch.float32)[1], leak=given(0.5)
        )
        for given in (number, float)
    ]
    assert torch.equal(*updates)


@pytest.mark.parametrize("name", ["beta", "temperature", "clamp_u", "clamp_du", "beta_inner"])
def test_a_tensor_that_wants_a_gradient_is_refused(name: str, problem: Problem) -> None:
    """Where it got none, without a word; a parameter whose value is wanted alone passes."""
    x, params = problem(dtype=torch.float32)
    given = {name: torch.tensor(5.0, requires_grad=True)}
    message = rf"{name}: expected a number, which has no gradient; .* {name}\.detach\(\) passes its value"
    with pytest.raises(TypeError, match=message):
        ik.elbo(x, params, 2, n_inner=2, **given)
    with pytest.raises(TypeError, match=message):
        torch.func.grad(lambda value: ik.elbo(x, params, 2, n_inner=2, **{name: value}).loss)(
            torch.tensor(5.0)
        )
    with pytest.raises(TypeError, match=message):
        torch.compile(lambda value: ik.elbo(x, params, 2, n_inner=2, **{name: value}).loss, backend="eager")(
            given[name]
        )
    with torch.no_grad():
        assert ik.elbo(x, params, 2, n_inner=2, **given).loss.isfinite()


class OnGpu(Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True


def test_a_captured_number_is_one_of_python(monkeypatch: pytest.MonkeyPatch, problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    beta = torch.tensor(0.5).as_subclass(OnGpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert ik.elbo(x, params, 2, seed=1, beta=beta).loss == ik.elbo(x, params, 2, seed=1, beta=0.5).loss
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(TypeError, match="beta: expected a number of Python while a CUDA graph is captured"):
        ik.elbo(x, params, 2, seed=1, beta=beta)


@pytest.mark.parametrize("name", ["beta", "temperature"])
def test_one_number_for_each_row_of_vmap_is_refused(name: str, problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    numbers = torch.tensor([0.5, 1.0])
    for run in (
        lambda value: ik.elbo(x, params, 2, seed=1, **{name: value}).loss,
        lambda value: torch.func.grad(lambda y: ik.elbo(y, params, 2, seed=1, **{name: value}).loss)(x),
    ):
        with pytest.raises(RuntimeError, match=f"{name}: expected one number for all rows of torch.vmap"):
            torch.vmap(run, randomness="same")(numbers)


@pytest.mark.parametrize("kind", ["tensor", "tensor of float64", "numpy float32"])
def test_one_graph_for_all_numbers(kind: str, problem: Problem) -> None:
    """A training in which everything that is annealed comes as a tensor is compiled once."""
    x, params = problem(dtype=torch.float32, grad=True)
    number = KINDS[kind]

    def loss(x: Tensor, seed: Tensor, numbers: dict[str, Any]) -> Tensor:
        return ik.elbo(x, params, 2, seed=seed, n_inner=2, **numbers).loss

    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for i in range(4):
        numbers = {
            "beta": 0.1 + 0.1 * i, "temperature": 1.0 / (1 + i), "beta_inner": 0.2 * i, "clamp_u": 5.0 + i,
            "clamp_du": 4.0 + 0.5 * i,
        }  # fmt: skip
        seed = torch.tensor(i)
        ours = compiled(x, seed, {name: number(value) for name, value in numbers.items()})
        expected = loss(x, seed, {name: float(number(value)) for name, value in numbers.items()})
        assert torch.equal(ours, expected)
        gradients = [torch.autograd.grad(value, params.dictionary)[0] for value in (ours, expected)]
        assert torch.equal(*gradients)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_graph_looks_at_its_numbers_when_it_runs(problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    compiled = torch.compile(
        lambda x, beta: ik.elbo(x, params, 2, seed=1, beta=beta).loss, fullgraph=True, backend="aot_eager"
    )
    assert compiled(x, torch.tensor(0.5)).isfinite()
    for bad in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"beta: expected a finite number of at least 0, found"):
            compiled(x, torch.tensor(bad))
    with pytest.raises(TypeError, match=r"beta: expected a number, found Tensor of shape \[2\]"):
        torch.compile(lambda beta: ik.elbo(x, params, 2, beta=beta).loss, backend="eager")(torch.zeros(2))


def test_the_op_of_a_number_is_one() -> None:
    arguments = (torch.tensor(0.5), "beta", 0.0, 1.0, False)
    torch.library.opcheck(checks._number, arguments)
    mapped = torch.vmap(lambda value: checks._number(value, *arguments[1:]))(torch.tensor([0.25, 0.5]))
    assert mapped.tolist() == [0.25, 0.5]
