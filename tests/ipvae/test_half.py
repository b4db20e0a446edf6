"""Models whose steps are composed in Python, in bfloat16: they compute in float32, as the fused ones do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ipvae.models.registry import FAMILIES


@pytest.mark.parametrize("name", ["sa-p-vae", "sa-g-vae", "ia-p-vae", "ia-g-vae", "lca", "hip-vae"])
def test_half_precision_is_that_of_its_numbers(name: str) -> None:
    """States are float32, near those of the same numbers in float32, and a loss has gradients."""
    family = FAMILIES[name]
    config = family.config_class(n_inputs=12, n_latents=8, t_train=2)
    model: Any = family(config).to(torch.bfloat16)
    x = torch.rand(4, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    state = model.infer(x, 2, seed=1).state.log_rate
    assert state.dtype == torch.float32
    model(x, 2, seed=1).loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    whole = family(model.config)
    whole.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    if not name.startswith(("sa", "ia")):  # networks round in half precision; the rest computes alike
        torch.testing.assert_close(
            state, whole.infer(x.float(), 2, seed=1).state.log_rate, rtol=1e-5, atol=1e-5
        )
