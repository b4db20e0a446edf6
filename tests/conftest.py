"""Fixtures of all tests. Uninitialised memory is NaN throughout the suite, so that nothing can rely on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ipvae_kernels
from ipvae_kernels.backend import triton as triton_backend

# The suite asks torch for deterministic algorithms; cuBLAS then wants a workspace of fixed size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    # 100 are some 20 s.
    parser.addoption("--calls", type=int, default=100, help="random calls of each function in the sweep")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Triton's interpreter first, which takes minutes: at the end one process would wait for the other."""
    items.sort(key=lambda item: "test_in_the_interpreter" not in item.nodeid)


@pytest.fixture(autouse=True)
def _strict_torch() -> Iterator[None]:
    """NaN in uninitialised memory, a fixed default generator, at most two threads, the default backend."""
    fill, deterministic = (
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.are_deterministic_algorithms_enabled(),
    )
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(min(2, threads))
    torch.manual_seed(0)
    with ipvae_kernels.use_backend("auto"):
        yield
    torch.set_num_threads(threads)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own for every test, so that nothing that one writes lands in the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], list[Any]]:
    """Runs a test file as a script, `FILE RANK WORLD FOLDER`, in so many processes; what each saved.

    Interpreters of their own: what the tests before have started (threads of Ray, of OpenMP) harms no fork.
    """

    def run(file: str, world: int) -> list[Any]:
        folder = tmp_path_factory.mktemp("ranks")
        ranks = [
            subprocess.Popen([sys.executable, "-W", "ignore", file, str(rank), str(world), str(folder)],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for rank in range(world)
        ]  # fmt: skip
        try:
            said = [rank.communicate(timeout=240)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        assert not any(rank.returncode for rank in ranks), "\n".join(said)
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]

    return run


@pytest.fixture(params=["eager", "cpu", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend with a hand-written backward; those not available here skip with their reason.

    "triton" runs in the processes that ``ipvae_kernels/triton/test_interpreter.py`` starts.
    """
    name: str = request.param
    if name == "triton" and not triton_backend.interpreted():
        pytest.skip(
            "backend triton: served by the interpreter in a process of its own; test_gpu.py has the GPU"
        )
    state = ipvae_kernels.backends()[name]
    if state != "available":
        pytest.skip(f"backend {name}: {state}")
    return name


@pytest.fixture
def dtype(backend: str) -> torch.dtype:
    """The most precise dtype that the backend serves."""
    return torch.float64 if backend == "eager" else torch.float32


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """Finds a file or folder of the data that lie beside a checkout, or skips."""

    def find(name: str) -> Path:
        path = ROOT.parent / "shared" / name
        if not path.exists():
            pytest.skip(f"shared/{name} does not lie beside this checkout")
        return path

    return find


@pytest.fixture
def problem() -> Callable[..., tuple[Tensor, Any]]:
    """Makes an input and parameters of chosen sizes; rates are moderate, drives have both signs."""

    def make(
        batch: int = 3,
        pixels: int = 7,
        neurons: int = 9,
        *,
        moving: int = 0,
        dtype: torch.dtype = torch.float64,
        grad: bool = False,
        gaussian: str = "",
        seed: int = 0,
    ) -> tuple[Tensor, Any]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        x = normal(moving, batch, pixels) if moving else normal(batch, pixels)
        dictionary, log_sigma = 1.2 * neurons**-0.5 * normal(pixels, neurons), 0.2 * normal(pixels)
        log_bias = 0.2 * normal(neurons) - 2.0
        lead, states = ((2,), (2, neurons)) if gaussian else ((), (neurons,))
        log_lr, start = 0.1 * normal(*lead) - 1.5, 0.5 * normal(*states) - (0.0 if gaussian else 0.5)
        tensors = [t.to(dtype) for t in (x, dictionary, log_sigma, log_bias, log_lr, start)]
        if grad:
            tensors = [tensor.requires_grad_() for tensor in tensors]
        if gaussian:
            return tensors[0], ipvae_kernels.GaussianParams(*tensors[1:], activation=gaussian)
        return tensors[0], ipvae_kernels.PoissonParams(*tensors[1:])

    return make
