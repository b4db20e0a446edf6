"""The holders of parameters and states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ipvae_kernels as ik

Problem = Callable[..., tuple[Tensor, Any]]


def test_a_detached_state_ends_the_graph(problem: Problem) -> None:
    """Windows of truncated training, one backward each; the values go on as in one sequence."""
    x, params = problem(grad=True)
    state, rates = None, []
    for _ in range(2):
        result = ik.elbo(x, params, 2, state=state, seed=1, backend="eager")
        result.loss.backward()
        state = result.state.detach()
        assert not state.log_rate.requires_grad
        rates.append(state.log_rate)
    whole = ik.elbo(x, params, 4, seed=1, backend="eager").state
    assert torch.equal(rates[-1], whole.log_rate)
    assert (state.step, int(state.seed), state.sample_offset) == (4, 1, 0)
    assert ik.State(torch.zeros(1, 2), 3, 4, 5).detach().seed == 4


@pytest.mark.parametrize("gaussian", ["", "relu"])
def test_torch_load_takes_what_torch_save_wrote(gaussian: str, problem: Problem, tmp_path: Path) -> None:
    """Without weights_only=False."""
    x, params = problem(gaussian=gaussian)
    inferred = ik.infer(x, params, 2, seed=1, record=["kl"], backend="eager")
    trained = ik.elbo(x, params, 2, seed=1, backend="eager")
    torch.save([params, inferred.state, inferred, trained], tmp_path / "run.pt")
    again, state, found, loss = torch.load(tmp_path / "run.pt")
    assert isinstance(found, ik.InferResult)
    assert torch.equal(found.records["kl"], inferred.records["kl"])
    assert torch.equal(loss.loss, trained.loss)
    ours = ik.infer(x, again, 2, state=state, backend="eager").state
    expected = ik.infer(x, params, 2, state=inferred.state, backend="eager").state
    assert torch.equal(ours.log_rate, expected.log_rate)
