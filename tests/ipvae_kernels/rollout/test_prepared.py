"""Prepared parameters: the same numbers, no stale ones, refusals that name what is wrong."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
import torch

import ipvae_kernels as ik
from ipvae_kernels.backend import compiled

Problem = Any
RECORDS = ("log_rate", "counts", "reconstruction", "recon", "kl", "squared_error", "spikes", "zeros")


def same(ours: ik.InferResult, theirs: ik.InferResult) -> bool:
    pairs = [(ours.records[name], theirs.records[name]) for name in theirs.records]
    return all(torch.equal(a, b) for a, b in [(ours.state.log_rate, theirs.state.log_rate), *pairs])


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("gaussian", ["", "relu"])
@pytest.mark.parametrize("moving", [0, 5])
def test_prepared_parameters_give_the_same_numbers(
    moving: int, gaussian: str, backend: str, problem: Problem
) -> None:
    x, params = problem(moving=moving, dtype=torch.float32, gaussian=gaussian)
    ready = ik.prepare(params)
    assert ready.bytes > 0
    for arguments in ({}, {"n_inner": 2, "beta_inner": 0.5}, {"single_draw": True, "check": False}):
        results = [
            ik.infer(x, given, 5, seed=3, record=RECORDS, record_every=2, backend=backend, **arguments)
            for given in (params, ready)
        ]
        assert same(*results)
        continued = [
            ik.infer(x, given, 5, state=results[0].state, backend=backend) for given in (params, ready)
        ]
        assert same(*continued)
        assert continued[1].state.step == 10


@pytest.mark.parametrize("drive", ["sampled", "expected"])
@pytest.mark.parametrize("half", [False, True])
def test_parameters_are_prepared_for_a_drive(half: bool, drive: str, problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    if half:
        params = dataclasses.replace(params, dictionary=params.dictionary.to(torch.bfloat16))
    ready = ik.prepare(params, drive=drive)
    rounded = dataclasses.replace(params, dictionary=params.dictionary.float())
    arguments = {"seed": 3, "record": RECORDS, "drive": drive}
    assert same(*(ik.infer(x, given, 5, **arguments) for given in (rounded, ready)))
    assert same(*(ik.infer(x, given, 5, **arguments) for given in (ready, pickle.loads(pickle.dumps(ready)))))
    with pytest.raises(
        ValueError, match=f"drive: expected '{drive}', which the parameters were prepared for"
    ):
        ik.infer(x, ready, 5)
    with pytest.raises(ValueError, match=rf"found '{drive}'; prepare\(params, drive='{drive}'\) makes"):
        ik.infer(x, ik.prepare(params), 5, drive=drive)


def test_gradients_reach_prepared_parameters(problem: Problem) -> None:
    x, params = problem(dtype=torch.float32, grad=True)
    ready = ik.prepare(params)
    ours, theirs = (
        torch.autograd.grad(ik.elbo(x, given, 3, seed=1).loss, params.dictionary) for given in (ready, params)
    )
    assert torch.equal(ours[0], theirs[0])
    assert bool(ours[0].abs().sum() > 0)


@pytest.mark.parametrize("field", ["dictionary", "log_sigma", "log_bias", "log_lr", "log_rate_init"])
def test_a_changed_parameter_is_refused_by_name(field: str, problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    ready = ik.prepare(params)
    getattr(params, field).mul_(1.5)
    for call in (ik.infer, ik.elbo):
        with pytest.raises(ValueError, match=f"params: expected {field} as it was when prepared"):
            call(x, ready, 2, seed=1)
    assert same(ik.infer(x, ik.prepare(params), 2, seed=1), ik.infer(x, params, 2, seed=1))


def test_an_optimiser_is_seen(problem: Problem) -> None:
    x, params = problem(dtype=torch.float32, grad=True)
    ready = ik.prepare(params)
    optimizer = torch.optim.Adamax([params.dictionary])
    ik.elbo(x, ready, 2, seed=1).loss.backward()
    optimizer.step()
    with pytest.raises(ValueError, match="found it changed"):
        ik.infer(x, ready, 2)


def test_another_instruction_set_is_refused(problem: Problem) -> None:
    module = compiled.load()
    if len(module.instruction_sets()) < 2:
        pytest.skip("one instruction set")
    x, params = problem(dtype=torch.float32)
    ready, before = ik.prepare(params), module.instruction_set()
    try:
        module.set_instruction_set(next(name for name in module.instruction_sets() if name != before))
        with pytest.raises(ValueError, match="prepared parameters: expected those of this model"):
            ik.infer(x, ready, 2, seed=1)
    finally:
        module.set_instruction_set(before)
    assert same(ik.infer(x, ready, 2, seed=1), ik.infer(x, params, 2, seed=1))


def test_what_cannot_be_prepared_is_named(problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"params\.dictionary: expected a tensor, found None"):
        ik.prepare(dataclasses.replace(params, dictionary=None))
    with pytest.raises(ValueError, match=r"params\.log_bias: expected shape"):
        ik.prepare(dataclasses.replace(params, log_bias=params.log_bias[:-1]))
    with pytest.raises(ValueError, match=r"params\.log_lr: expected finite values"):
        ik.prepare(dataclasses.replace(params, log_lr=torch.tensor(float("nan"))))
    with pytest.raises(TypeError, match="expected PoissonParams or GaussianParams"):
        ik.prepare(x)
    with torch.inference_mode():
        made = dataclasses.replace(params, log_lr=torch.zeros(()))
    with pytest.raises(TypeError, match=r"params\.log_lr: expected .* inference mode"):
        ik.prepare(made)
    ready = ik.prepare(params)
    for wrong, message in (
        (x[:, :-1], "x: expected last dimension M"),
        (x.double(), "x: expected dtype torch.float32"),
        (x[0], "x: expected shape"),
        (x * float("inf"), "x: expected finite"),
        ("x", "x: expected a torch.Tensor"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            ik.infer(wrong, ready, 2)
    with pytest.raises(ValueError, match=r"state\.log_rate: expected shape"):
        ik.infer(x, ready, 2, state=ik.State(torch.zeros(1, 2)))


def test_transforms_are_served_without_the_packed_copy(problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    ready = ik.prepare(params)

    def final(x: torch.Tensor, given: Any) -> torch.Tensor:
        return ik.infer(x, given, 3, seed=1).state.log_rate

    rows = torch.stack([x, x + 1])
    ours, theirs = (
        torch.vmap(lambda x, given=given: final(x, given), randomness="same")(rows)
        for given in (ready, params)
    )
    assert torch.equal(ours, theirs)
    traced = torch.compile(lambda x: final(x, ready), backend="eager")
    assert torch.equal(traced(x), final(x, params))


def test_double_precision_is_prepared_without_packing(problem: Problem) -> None:
    x, params = problem(dtype=torch.float64)
    ready = ik.prepare(params)
    assert ready.bytes == 0
    assert same(
        ik.infer(x, ready, 2, seed=1, backend="eager"), ik.infer(x, params, 2, seed=1, backend="eager")
    )


def test_an_option_that_is_written_to_is_seen(problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    ready, clamp = ik.prepare(params), torch.tensor(10.0)
    before = ik.infer(x, ready, 3, seed=1, clamp_du=clamp)
    clamp.fill_(0.01)
    after = ik.infer(x, ready, 3, seed=1, clamp_du=clamp)
    assert same(after, ik.infer(x, params, 3, seed=1, clamp_du=0.01))
    assert not same(after, before)
    assert ik.infer(x, ready, 1, seed=1).state.step == 1
    with pytest.raises(TypeError, match="steps: expected"):
        ik.infer(x, ready, True, seed=1)
