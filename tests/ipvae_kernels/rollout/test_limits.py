"""The far ends: the last step of the counter, overflowing updates, memory over many steps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ipvae_kernels
from ipvae_kernels import State

Problem = Callable[..., tuple[Tensor, Any]]


@pytest.mark.parametrize("record_every", [1, 2, 3])
def test_the_last_steps_of_the_counter(
    record_every: int, problem: Problem, backend: str, dtype: torch.dtype
) -> None:
    x, params = problem(dtype=dtype)
    state = State(params.log_rate_init.expand(3, -1), step=2**32 - 4, seed=1)
    result = ipvae_kernels.infer(
        x, params, 4, state=state, record=("recon",), record_every=record_every, backend=backend
    )
    assert result.state.step == 2**32
    expected = [t for t in range(2**32 - 4, 2**32) if (t + 1) % record_every == 0]
    assert result.records["recon"].shape == (len(expected), 3)
    loss = ipvae_kernels.elbo(x, params, 4, state=state, backend=backend)
    assert loss.recon.isfinite().all()
    with pytest.raises(ValueError, match="step: expected"):
        ipvae_kernels.infer(x, params, 5, state=state, backend=backend)


def test_an_infinite_update_meets_the_clamps(backend: str, dtype: torch.dtype) -> None:
    params = ipvae_kernels.PoissonParams(
        dictionary=torch.zeros(1, 3, dtype=dtype),
        log_sigma=torch.zeros(1, dtype=dtype),
        log_bias=torch.zeros(3, dtype=dtype),
        log_lr=torch.tensor(80.0, dtype=dtype),
        log_rate_init=torch.zeros(3, dtype=dtype),
    )
    drive = torch.tensor([[1e30, -1e30, 0.0]], dtype=dtype)
    u = torch.zeros(1, 3, dtype=dtype)
    new = ipvae_kernels.log_rate_update(u, u, drive, params, backend=backend)
    # An update of 10, its clamp, then softclamp(10, 10) = 10 - log 2; the floors are at -8.
    torch.testing.assert_close(
        new, torch.tensor([[10 - 0.6931472, -8.0, -8.0]], dtype=dtype), rtol=1e-6, atol=1e-6
    )


_PEAK_INFER = """
import resource, torch, ipvae_kernels
torch.manual_seed(0)
x = torch.zeros(40, 64)
params = ipvae_kernels.PoissonParams(
    0.1 * torch.randn(64, 128), torch.zeros(64), torch.zeros(128), torch.tensor(-2.0), torch.zeros(128)
)
ipvae_kernels.infer(x, params, 16, seed=0, backend="cpu")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ipvae_kernels.infer(x, params, 10_000, seed=0, backend="cpu")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


_PEAK_TRAIN = """
import resource, torch, ipvae_kernels
torch.manual_seed(0)
x = torch.zeros(200, 64)
params = ipvae_kernels.PoissonParams(
    (0.1 * torch.randn(64, 128)).requires_grad_(), *(torch.zeros(n) for n in (64, 128)), torch.tensor(-2.0),
    torch.zeros(128),
)
def peak(steps):
    ipvae_kernels.elbo(x, params, steps, seed=0, backend="cpu").loss.backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak(200)
print(peak(1200) - before)
"""


def _growth(program: str) -> int:
    """What the program prints, KiB of peak memory."""
    state = ipvae_kernels.backends()["cpu"]
    if state != "available":
        pytest.skip(f"backend cpu: {state}")
    # Blocks that are freed go back at once: what the allocator keeps between them differs from run to run (38
    # to 300 MB in the training below on a busy machine).
    own = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=own
    )
    return int(result.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="resource is not there")
def test_memory_of_inference_does_not_grow_with_the_steps() -> None:
    # One step's log rates are 20 KiB: kept, they would be 200 MiB.
    assert _growth(_PEAK_INFER) < 1024


@pytest.mark.skipif(sys.platform == "win32", reason="resource is not there")
def test_memory_of_training_grows_by_checkpoints_alone() -> None:
    # A step's trajectory is 700 KiB: 1,000 steps more, kept, would be 700 MB. A window of 64 MiB is there
    # before and after; what grows are a state of 100 KiB for each window and the loss terms of each step.
    assert _growth(_PEAK_TRAIN) < 8 * 1024
