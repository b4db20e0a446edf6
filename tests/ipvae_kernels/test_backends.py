"""The choice of a backend, and the report of what is installed."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable
from inspect import isfunction, signature
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ipvae_kernels as ik
from ipvae_kernels.backend import choice, compiled, cuda, triton
from ipvae_kernels.info import info

REASON = "the compiled module is missing (test)"


@pytest.fixture
def no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "reason", lambda: REASON)
    choice.forget_warnings()


def test_backends_are_listed() -> None:
    states = ik.backends()
    assert list(states) == ["cpu", "cuda", "triton", "eager", "autograd"]
    assert states["eager"] == states["autograd"] == "available"
    assert states["cpu"] == (compiled.reason() or "available")


@pytest.mark.usefixtures("no_module")
@pytest.mark.filterwarnings("always::ipvae_kernels.BackendWarning")
def test_without_the_module_auto_falls_back_and_warns_once() -> None:
    assert ik.backends()["cpu"] == REASON
    u = torch.zeros(2, 3)
    with pytest.warns(ik.BackendWarning) as caught:
        results = [ik.poisson_sample(u, seed=1) for _ in range(3)]
    assert torch.equal(results[0], ik.poisson_sample(u, seed=1, backend="eager"))
    (warning,) = caught
    assert str(warning.message).startswith(f"backend 'eager' serves where 'cpu' cannot: {REASON}")
    assert warning.filename == __file__  # the line of the caller, not one of torch


@pytest.mark.usefixtures("no_module")
def test_where_warnings_are_errors_every_fallback_is_one() -> None:
    u = torch.zeros(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(ik.BackendWarning, match="eager"):
                ik.poisson_sample(u, seed=1)
        ik.poisson_sample(u, seed=1, backend="eager")


@pytest.mark.filterwarnings("ignore::ipvae_kernels.BackendWarning")
@pytest.mark.usefixtures("no_module")
def test_without_the_module_a_named_backend_is_refused() -> None:
    u = torch.zeros(2, 3)
    message = r"backend 'cpu' cannot serve: the compiled module is missing \(test\)\. Choose"
    with pytest.raises(ik.BackendError, match=message):
        ik.poisson_sample(u, seed=1, backend="cpu")
    with pytest.raises(ik.BackendError, match=message):
        ik.use_backend("cpu")
    assert ik.poisson_sample(u, seed=1).shape == (2, 3)


def test_cpu_refuses_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "reason", lambda: None)
    with pytest.raises(
        ik.BackendError, match=r"it computes in torch\.float32, the tensors are torch\.float64"
    ):
        ik.poisson_sample(torch.zeros(2, dtype=torch.float64), seed=1, backend="cpu")


@pytest.fixture
def triton_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for Triton again, as in a process that is not the interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(triton, "missing", triton.missing.__wrapped__)


@pytest.mark.usefixtures("triton_cache")
def test_triton_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    u = torch.zeros(2, 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ik.BackendError, match=r"'triton' cannot serve: Triton is missing .*pip install"):
        ik.poisson_sample(u, seed=1, backend="triton")
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.2.0"))
    with pytest.raises(ik.BackendError, match=r"Triton 3\.2\.0 is too old; install it with"):
        ik.use_backend("triton")
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.10.1"))
    assert ik.backends()["triton"].startswith("it needs an NVIDIA GPU")
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert ik.backends()["triton"] == "it is made for NVIDIA GPUs, this torch is built for ROCm"


@pytest.mark.usefixtures("triton_cache")
def test_triton_says_that_it_wants_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none, and no driver that was built before."""
    pytest.importorskip("triton")

    class Broken:
        def get_current_device(self) -> int:
            raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(triton, "no_driver", triton.no_driver.__wrapped__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    driver = SimpleNamespace(active=Broken())
    monkeypatch.setitem(sys.modules, "triton.runtime", SimpleNamespace(driver=driver))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    assert re.match(r"Triton .* finds no Python.h in /nowhere .*python3-dev", ik.backends()["triton"])
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ik.BackendError, match=r"builds its driver .* finds no C compiler .*Failed to find C"):
        ik.poisson_sample(torch.zeros(2), seed=1, backend="triton")
    driver.active = SimpleNamespace(get_current_device=lambda: 0)
    assert ik.backends()["triton"] == "available"  # it lies in Triton's cache


@pytest.mark.usefixtures("triton_cache")
def test_triton_refuses_what_it_cannot_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "reason", lambda: None)
    for device, dtype, message in [
        ("cpu", torch.float32, r"on NVIDIA GPUs, the tensors are on cpu; move them with \.to\('cuda'\)"),
        ("meta", torch.float32, "on NVIDIA GPUs, the tensors are on meta"),
        ("cpu", torch.float64, r"in torch\.float32, the tensors are torch\.float64"),
    ]:
        with pytest.raises(ik.BackendError, match=message):
            choice.resolve("triton", [torch.zeros(2, device=device, dtype=dtype)])
    old = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    with pytest.raises(ik.BackendError, match=r"it needs compute capability 8\.0, T4 has less"):
        choice.resolve("triton", [old])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choice.resolve("triton", [old]) == "triton"


@pytest.mark.parametrize(("reason", "serves"), [(None, "cuda"), ("CUDA was not compiled in", "triton")])
def test_auto_on_a_gpu(reason: str | None, serves: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "reason", lambda: None)
    monkeypatch.setattr(cuda, "reason", lambda: reason)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    tensor: Any = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda", 0))
    assert choice.resolve("auto", [tensor]) == serves


def test_a_grid_beyond_the_device_is_refused() -> None:
    assert triton.check_grid(2**31 - 1) == 2**31 - 1
    with pytest.raises(ValueError, match=r"the batch: expected at most 2147483647 tiles.*sample_offset"):
        triton.check_grid(2**31)


@pytest.mark.filterwarnings("ignore::ipvae_kernels.BackendWarning")
def test_auto_takes_the_kernels_for_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "reason", lambda: None)
    assert choice.resolve("auto", [torch.zeros(2)]) == "cpu"
    assert choice.resolve("auto", [torch.zeros(2), torch.zeros(2).double()]) == "eager"
    assert choice.resolve("auto", [torch.zeros(2, device="meta")]) == "eager"
    assert choice.resolve("eager", [torch.zeros(2)]) == "eager"


def test_use_backend_as_setter_and_context() -> None:
    assert choice.select("auto") == "auto"
    with ik.use_backend("eager"):
        assert choice.select("auto") == "eager"
        with ik.use_backend("autograd"):
            assert choice.select("auto") == "autograd"
            assert choice.select("eager") == "eager"  # an argument wins
        assert choice.select("auto") == "eager"
    assert choice.select("auto") == "auto"
    ik.use_backend("autograd")
    assert choice.select("auto") == "autograd"
    ik.use_backend("auto")
    with pytest.raises(
        ValueError, match="backend: expected one of auto, cpu, cuda, triton, eager, autograd; found 'gpu'"
    ):
        ik.use_backend("gpu")


def test_use_backend_of_two_threads() -> None:
    """Which enter and leave in turns: none sees the other's, and none leaves its own behind."""
    entered, left = threading.Event(), threading.Event()
    seen: dict[str, str] = {}

    def other() -> None:
        seen["start"] = choice.select("auto")
        with ik.use_backend("eager"):
            entered.set()
            left.wait(10)
            seen["inside"] = choice.select("auto")
        seen["after"] = choice.select("auto")

    thread = threading.Thread(target=other)
    with ik.use_backend("autograd"):
        thread.start()
        assert entered.wait(10)
        assert choice.select("auto") == "autograd"
    left.set()
    thread.join()
    assert seen == {"start": "auto", "inside": "eager", "after": "auto"}
    assert choice.select("auto") == "auto"


def test_use_backend_ends_with_an_error() -> None:
    with pytest.raises(KeyError), ik.use_backend("eager"):
        raise KeyError
    assert choice.select("auto") == "auto"


PROBLEM = ik.PoissonParams(*(torch.zeros(shape) for shape in ((4, 3), (4,), (3,), (), (3,))))
CALLS: dict[str, Callable[[str], Any]] = {
    "poisson_sample": lambda name: ik.poisson_sample(torch.zeros(2, 3), seed=1, backend=name),
    "poisson_rsample": lambda name: ik.poisson_rsample(torch.zeros(2, 3), seed=1, backend=name),
    "log_rate_update": lambda name: ik.log_rate_update(
        *(torch.full((2, 3), value) for value in (0.0, 0.1, 0.2)), PROBLEM, backend=name
    ),
    "infer": lambda name: ik.infer(torch.ones(2, 4), PROBLEM, 2, seed=1, backend=name).state.log_rate,
    "elbo": lambda name: ik.elbo(torch.ones(2, 4), PROBLEM, 2, seed=1, backend=name).loss,
    "step": lambda name: ik.step(torch.ones(2, 4), PROBLEM, seed=1, backend=name).recon,
}


def test_every_function_with_a_backend_is_called() -> None:
    functions = {name: getattr(ik, name) for name in ik.__all__ if isfunction(getattr(ik, name))}
    taking = {name for name, function in functions.items() if "backend" in signature(function).parameters}
    assert taking == set(CALLS)


@pytest.mark.parametrize("name", choice.NAMES)
@pytest.mark.parametrize("function", CALLS)
def test_every_function_with_every_backend(function: str, name: str) -> None:
    """As an argument and as the default: served, or refused by name."""
    call = CALLS[function]
    if ik.backends().get(name, "available") != "available":
        with pytest.raises(ik.BackendError, match=f"backend '{name}' cannot serve"):
            call(name)
        return
    expected = call("eager")
    torch.testing.assert_close(call(name), expected)
    with ik.use_backend(name):
        torch.testing.assert_close(call("auto"), expected)


def test_info_names_versions_and_backends() -> None:
    facts = info()
    assert facts["torch"] == torch.__version__
    assert facts["random numbers"] == "version 1"
    assert {f"backend {name}": state for name, state in ik.backends().items()}.items() <= facts.items()
    assert ("CPU kernels" in facts) == (ik.backends()["cpu"] == "available")


def test_report_on_the_command_line() -> None:
    command = [sys.executable, "-m", "ipvae_kernels"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "backend eager" in done.stdout
    assert torch.__version__ in done.stdout


def test_import_builds_and_probes_nothing() -> None:
    code = (
        "import sys, ipvae_kernels\n"
        "assert 'ipvae_kernels._C' not in sys.modules\n"
        "assert 'triton' not in sys.modules and 'ipvae_kernels.backend.triton.math' not in sys.modules\n"
        "ops = [f'ipvae_kernels.{op}.{of}' for op in ('poisson', 'rollout') for of in ('cpu', 'cuda')]\n"
        "assert not sys.modules.keys() & set(ops)\n"
        "import torch; assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_everything_exported_exists_and_is_documented() -> None:
    for name in ik.__all__:
        assert getattr(ik, name).__doc__, name
