"""The CUDA kernels without a GPU: their bodies compiled for the host, in place of the compiled module."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ipvae_kernels.backend import cuda

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


@pytest.fixture(scope="session")
def emulated_module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The emulation, compiled with the host's C++ compiler and the pybind11 headers that come with torch."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    include = sysconfig.get_paths()["include"]
    if compiler is None or not Path(include, "Python.h").exists():
        pytest.skip("no C++ compiler, or no Python.h")
    library = tmp_path_factory.mktemp("emulation") / "emulated.so"
    sources = [HERE / "emulation.cpp", ROOT / "csrc" / "cuda" / "plan.cpp"]
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    flags += ["-ffp-contract=off"]  # products and sums round the same on every host
    folders = [f"-I{include}", "-isystem", str(Path(torch.__file__).parent / "include")]
    command = [compiler, *flags, *folders, *map(str, sources), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loader = importlib.machinery.ExtensionFileLoader("emulated", str(library))
    spec = importlib.util.spec_from_file_location("emulated", library, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def emulated(emulated_module: ModuleType) -> Iterator[ModuleType]:
    """Backend "cuda" serves CPU tensors by the emulation of an H100."""
    emulated_module.set_order(0)
    with cuda.emulation(emulated_module):
        yield emulated_module


@pytest.fixture
def layout() -> Iterator[Callable[..., None]]:
    """Insists on a kind of team, its blocks and its rows."""
    with contextlib.ExitStack() as stack:
        yield lambda kind, team, rows: stack.enter_context(cuda.layout(kind, team, rows))


@pytest.fixture
def limits(emulated_module: ModuleType) -> Callable[..., Any]:
    """The limits of a device."""

    def make(sms: int = 132, shared: int = 232_448, max_cluster: int = 16) -> Any:
        made = emulated_module.DeviceLimits()
        made.sms, made.shared, made.max_cluster = sms, shared, max_cluster
        return made

    return make
