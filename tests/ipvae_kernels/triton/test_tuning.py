"""Which schedules serve which GPU, and what a capture meets: nothing here needs one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ipvae_kernels as ik
from ipvae_kernels.backend import triton as triton_backend

if triton_backend.interpreted() or triton_backend.missing():
    pytest.skip(triton_backend.missing() or "the interpreter tunes nothing", allow_module_level=True)

from ipvae_kernels.backend.triton import tuning
from ipvae_kernels.poisson import triton as poisson
from ipvae_kernels.rollout.triton import resident, resident_kernels, stepped_kernels
from ipvae_kernels.update import triton as update

TUNED = [
    kernel
    for module in (poisson, update, resident_kernels, stepped_kernels)
    for kernel in vars(module).values()
    if hasattr(kernel, "configs")
]


GPUS = [((8, 0), (3, 3)), ((9, 0), (3, 7)), ((10, 0), (3, 7)), ((12, 0), (3, 3)), ((10, 0), (3, 8))]


@pytest.fixture(params=GPUS, ids=str)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, bool]:
    """Major compute capability of a made-up GPU, and whether 8 warps race on it."""
    capability, version = request.param
    monkeypatch.setattr(triton_backend, "version", lambda: version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return capability[0], capability[0] >= 10 and version < (3, 8)


def test_no_program_of_8_warps_where_its_products_race(gpu: tuple[int, bool]) -> None:
    """Asked as Triton asks, at the first call of a kind; every kernel keeps a schedule."""
    assert len(TUNED) == 9
    for kernel in TUNED:
        candidates = kernel.early_config_prune(kernel.configs, {})
        warps = {config.num_warps for config in candidates}
        assert warps
        assert (8 in warps) == (not gpu[1] and any(config.num_warps == 8 for config in kernel.configs))


def test_tiles_in_registers_shrink_with_the_warps(gpu: tuple[int, bool]) -> None:
    major, races = gpu
    if races:
        assert resident.pixels_max(major, "float32") == resident.PIXELS_MAX_OLD
        assert tuning.serving(resident_kernels.FORWARD_CONFIGS, major)[0].num_warps == 4


def test_a_capture_of_what_is_not_tuned_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is timed or launched."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for kernel in TUNED:
        with pytest.raises(ik.BackendError, match=r"a CUDA graph is captured; call ipvae_kernels\.warmup"):
            kernel.run(*(1 for _ in kernel.arg_names))


def test_warmup_calls() -> None:
    calls: list[Any] = []
    ik.warmup(lambda: calls.append(1))
    assert calls
    with pytest.raises(TypeError, match=r"call: expected a function .* or sizes .*; found Tensor"):
        ik.warmup(torch.zeros(()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"call: expected sizes .* beside options, found a function"):
        ik.warmup(lambda: None, backend="eager")
