"""Every family in bfloat16: networks run in it, everything else computes in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ipvae.models.registry import FAMILIES
from torch import Tensor


def half(name: str, decoder: str) -> tuple[Any, Tensor]:
    """A small model in bfloat16, and inputs."""
    family = FAMILIES[name]
    model = family(family.config_class(n_inputs=12, n_latents=8, decoder=decoder)).to(torch.bfloat16)
    return model, torch.rand(4, 12, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.mark.parametrize("name", ["poisson", "gaussian", "lca", "hip-vae"])
def test_states_are_those_of_the_numbers_held(name: str) -> None:
    """Where no network rounds: near the states of the same numbers in float32."""
    model, x = half(name, "linear")
    state = model.infer(x, 2, seed=1).state.log_rate
    whole = type(model)(model.config)
    whole.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    expected = whole.infer(x.float(), 2, seed=1).state.log_rate
    torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_all_calls_are_served(name: str, decoder: str) -> None:
    """Results are float32 and finite, and every parameter of a training step has a gradient."""
    if (name, decoder) == ("lca", "mlp"):
        pytest.skip("an LCA has a linear decoder")
    model, x = half(name, decoder)
    result = model(x, seed=1)
    result.loss.backward()
    wanted = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in wanted)
    names = ("log_rate", "counts", "reconstruction", "recon", "squared_error", "spikes", "zeros")
    found = model.infer(x, seed=1, record=names)
    shown = {**found.records, "state": found.state.log_rate, "loss": result.loss, "code": model.encode(x)}
    if name != "lca":  # without a prior
        shown["sample"] = model.generate(3, seed=1)
    for key, value in shown.items():
        assert value.dtype == torch.float32, key
        assert bool(value.isfinite().all()), key
