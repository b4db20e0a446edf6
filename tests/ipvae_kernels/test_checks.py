"""What is looked at before and after a call."""

from __future__ import annotations

import math

import pytest
import torch

from ipvae_kernels import checks


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_finite_tensors_of_a_gpu_are_looked_at_together(bad: float) -> None:
    tensors = {
        "a": torch.randn(3, 4),
        "empty": torch.zeros(0),
        "b": torch.full((2,), 3e38),
        "c": torch.zeros(()),
    }
    assert checks.norms_are_finite(list(tensors.values()))
    assert checks.norms_are_finite([])
    tensors["b"][1] = bad
    assert not checks.norms_are_finite(list(tensors.values()))
    assert not checks.is_finite(*tensors.values())
    assert checks.not_finite(tensors) == ["b"]
    with pytest.raises(ValueError, match="b: expected finite values, found 1 of 2 NaN or infinite"):
        checks.finite(**tensors)
