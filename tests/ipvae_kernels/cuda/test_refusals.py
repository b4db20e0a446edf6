"""CUDA tensors where CUDA was not compiled in, where there is no device, and on the wrong ones."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import ipvae_kernels as ik
from ipvae_kernels import checks
from ipvae_kernels.backend import choice, compiled, cuda
from ipvae_kernels.info import info


@pytest.fixture
def on_a_device() -> list[Tensor]:
    """Tensors that say they are on CUDA devices, with no data behind them."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return [torch.empty(2, 3, device="cuda:0"), torch.empty(2, 3, device="cuda:1")]


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "reason", lambda: None)
    monkeypatch.setattr(compiled, "load", lambda: SimpleNamespace(cuda=None))
    choice.forget_warnings()


@pytest.mark.usefixtures("without_cuda")
def test_cuda_was_not_compiled_in(on_a_device: list[Tensor]) -> None:
    with pytest.raises(ik.BackendError, match="CUDA was not compiled in; put nvcc on the PATH and install"):
        choice.resolve("cuda", on_a_device[:1])
    with pytest.warns(ik.BackendWarning, match="CUDA was not compiled in"):
        assert choice.resolve("auto", on_a_device[:1]) == "eager"
    assert choice.resolve("auto", [torch.zeros(2)]) == "cpu"  # the CPU is served all the same


def test_with_cuda_compiled_in_it_serves(on_a_device: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "reason", lambda: None)
    monkeypatch.setattr(compiled, "load", lambda: SimpleNamespace(cuda="13.0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choice.resolve("auto", on_a_device[:1]) == "cuda"
    doubled = [tensor.double() for tensor in on_a_device[:1]]
    with pytest.raises(ik.BackendError, match=r"it computes in torch\.float32"):
        choice.resolve("cuda", doubled)
    with pytest.raises(ik.BackendError, match="it computes on CUDA devices, the tensors are on cpu"):
        choice.resolve("cuda", [torch.zeros(2)])


def test_other_devices_are_refused(on_a_device: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "reason", lambda: None)
    for tensor in (torch.empty(2, device="meta"), on_a_device[0]):
        with pytest.raises(ik.BackendError, match=f"it computes on CPUs, the tensors are on {tensor.device}"):
            choice.resolve("cpu", [tensor])


def test_mixed_devices_are_refused(on_a_device: list[Tensor]) -> None:
    first, second = on_a_device
    with pytest.raises(ValueError, match="b: expected device cuda:0 as that of a, found cuda:1"):
        checks.full_precision(a=first, b=second)
    with pytest.raises(ValueError, match="b: expected device cpu as that of a, found cuda:0"):
        checks.full_precision(a=torch.zeros(2), b=first)
    with pytest.raises(ValueError, match="seed: expected device cuda:0, found cpu"):
        checks.seed(torch.zeros((), dtype=torch.int64), first.device)


def _module() -> ModuleType:
    if compiled.reason() is not None:
        pytest.skip(str(compiled.reason()))
    return compiled.load()


def test_without_a_device_the_runtime_says_so() -> None:
    module = _module()
    if module.cuda is None:
        pytest.skip(str(cuda.reason()))
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(RuntimeError, match="CUDA: asking for the current device: "):
        module.cuda_limits(0)
    args = module.PoissonArgs()
    args.n_rows = args.n_latents = 4
    with pytest.raises(RuntimeError, match="CUDA: "):
        module.cuda_poisson(args, 0, module.Launch())


def test_without_nvcc_the_launchers_refuse() -> None:
    module = _module()
    if module.cuda is not None:
        pytest.skip(f"CUDA {module.cuda} is compiled in")
    with pytest.raises(RuntimeError, match="CUDA was not compiled in"):
        module.cuda_limits(0)


def test_info_names_the_toolkit() -> None:
    module = _module()
    assert info()["CUDA kernels"] == (module.cuda or "not built")
