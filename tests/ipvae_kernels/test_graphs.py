"""What ``warmup`` runs for sizes; for a function, and within a capture: triton/test_tuning.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ipvae_kernels as ik
from ipvae_kernels.backend import choice


@pytest.mark.parametrize("cell", ["poisson", "gaussian", "gaussian_relu"])
def test_warmup_runs_every_op_at_these_sizes(
    cell: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, by the backend that is asked for."""
    seen: set[tuple[str, str, int]] = set()
    implementation = choice.implementation

    def watched(package: str, name: str, *tensors: torch.Tensor) -> Any:
        seen.add((package.rpartition(".")[2], name, tensors[0].shape[-1]))
        return implementation(package, name, *tensors)

    monkeypatch.setattr(choice, "implementation", watched)
    before = torch.random.get_rng_state()
    ik.warmup([(3, 12, 7), (2, 8, 5)], cell=cell, device="cpu", estimator="fini2", backend=backend)
    assert torch.equal(before, torch.random.get_rng_state())
    assert {("rollout", backend, 7), ("rollout", backend, 5)} <= seen
    ops = {("poisson", backend, 12), ("poisson", backend, 8), ("update", backend, 12), ("update", backend, 8)}
    assert ops <= seen if cell == "poisson" else not ops & seen


@pytest.mark.parametrize(
    ("sizes", "options", "error", "message"),
    [
        ([(3, 12)], {}, ValueError, r"call: expected sizes \(B, K, M\), found \(3, 12\)"),
        ([(3, 12, 0)], {}, ValueError, "call: expected an int from 1 to .*, found 0"),
        (
            [(3, 12, 7)],
            {"cell": "tanh"},
            ValueError,
            "cell: expected one of poisson, gaussian, gaussian_relu",
        ),
        ([(3, 12, 7)], {"record": "counts"}, TypeError, "record: expected a collection of names"),
        ([(3, 12, 7)], {"record": ["spike"]}, ValueError, "record: expected one of"),
        ([(3, 12, 7)], {"estimator": "cubics"}, ValueError, "estimator: expected one of"),
        ([(3, 12, 7)], {"speed": 1}, TypeError, "speed"),
    ],
)
def test_what_is_not_described_is_named(
    sizes: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ik.warmup(sizes, device="cpu", **options)
