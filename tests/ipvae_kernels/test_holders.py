"""What calls take and return, as pytrees of torch; its copies and files; what torch.vmap does with it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

import ipvae_kernels as ik

Problem = Callable[..., tuple[Tensor, Any]]


def results(x: Tensor, params: Any) -> dict[str, Any]:
    """What can be held, copied and sent."""
    return {
        "params": params,
        "state": ik.State(torch.zeros(3, 9), 4, torch.tensor(5), 2),
        "infer": ik.infer(x, params, 2, seed=1, record=("kl",)),
        "elbo": ik.elbo(x, params, 2, seed=1),
        "step": ik.step(x, params, seed=1),
    }


def equal(a: Any, b: Any) -> bool:
    leaves, others = _pytree.tree_leaves(a), _pytree.tree_leaves(b)
    pairs = zip(leaves, others, strict=True)
    return all(torch.equal(u, v) if isinstance(u, Tensor) else u == v for u, v in pairs)


@pytest.mark.parametrize("gaussian", ["", "relu"])
@pytest.mark.parametrize("name", ["params", "state", "infer", "elbo", "step"])
def test_holders_are_pytrees_that_are_copied(name: str, gaussian: str, problem: Problem) -> None:
    x, params = problem(dtype=torch.float32, gaussian=gaussian)
    value = results(x, params)[name]
    doubled = _pytree.tree_map_only(Tensor, lambda tensor: tensor + tensor, value)
    assert type(doubled) is type(value)
    assert not equal(doubled, value)
    leaves, spec = _pytree.tree_flatten(value)
    assert equal(_pytree.tree_unflatten(leaves, spec), value)
    assert _pytree.treespec_loads(_pytree.treespec_dumps(spec)) == spec  # as torch.export.save writes it
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    for other in (copy.deepcopy(value), pickle.loads(pickle.dumps(value)), torch.load(file)):
        assert type(other) is type(value)
        assert equal(other, value)


def test_vmap_takes_states_apart(problem: Problem) -> None:
    """Which of its fields are mapped over is written as a state; None is a field too."""
    x, params = problem(batch=4, dtype=torch.float32)
    whole = ik.infer(x, params, 2, seed=5).state

    def go_on(x: Tensor, state: ik.State) -> Tensor:
        state = replace(state, log_rate=state.log_rate[None])
        return ik.infer(x[None], params, 2, state=state).state.log_rate[0]

    for state in (whole, replace(whole, seed=None)):
        assert _pytree.tree_structure(state) == _pytree.tree_structure(whole)
    in_dims = (0, ik.State(0, None, None, None))  # type: ignore[arg-type]
    ours = torch.vmap(go_on, in_dims, randomness="different")(x, whole)
    assert torch.equal(ours, ik.infer(x, params, 2, state=whole).state.log_rate)


@pytest.mark.parametrize("half", [False, True])
def test_copies_of_prepared_parameters_are_prepared(half: bool, problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    if half:
        params = replace(params, dictionary=params.dictionary.bfloat16())
    ready = ik.prepare(params, pack=False)
    expected = ik.infer(x, ready, 3, seed=1).state.log_rate
    for other in (copy.deepcopy(ready), pickle.loads(pickle.dumps(ready))):
        assert torch.equal(ik.infer(x, other, 3, seed=1).state.log_rate, expected)
        assert (other.packed is None) == (ready.packed is None)
        assert other.bytes == ready.bytes
        assert other.params.dictionary.data_ptr() != params.dictionary.data_ptr()
    params.log_bias.add_(1.0)
    with pytest.raises(ValueError, match="expected log_bias as it was when prepared"):
        copy.deepcopy(ready)


def test_rows_of_vmap_draw_for_themselves_in_a_step(problem: Problem) -> None:
    """From the initial state, which all rows share, too."""
    x, params = problem(batch=4, dtype=torch.float32)
    x = x[:1].expand(4, -1)
    ours = torch.vmap(lambda row: ik.step(row[None], params, seed=1).recon[0], randomness="different")(x)
    torch.testing.assert_close(ours, ik.step(x, params, seed=1).recon)
    assert len(set(ours.tolist())) == 4
    dictionaries = params.dictionary.expand(4, -1, -1)
    ours = torch.vmap(
        lambda dictionary: ik.step(x[:1], replace(params, dictionary=dictionary), seed=1).recon[0],
        randomness="different",
    )(dictionaries)
    torch.testing.assert_close(ours, ik.step(x, params, seed=1).recon)
    with pytest.raises(RuntimeError, match="one seed for all rows"):
        torch.vmap(lambda row: ik.step(row[None], params, seed=1).recon)(x)
