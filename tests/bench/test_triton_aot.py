"""Every Triton kernel compiles for three architectures, spills nothing and fits; needs no GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ipvae_kernels import _triton

PATH = Path(__file__).resolve().parents[2] / "bench" / "triton_aot.py"


@pytest.fixture(scope="module")
def aot() -> ModuleType:
    if _triton.interpreted() or _triton._missing():
        pytest.skip(_triton._missing() or "the interpreter compiles nothing")
    spec = importlib.util.spec_from_file_location("triton_aot", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["triton_aot"] = module
    spec.loader.exec_module(module)
    if not module.CUOBJDUMP.exists():
        pytest.skip(f"{module.CUOBJDUMP} is missing from this Triton")
    return module


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_default_configurations(arch: int, aot: ModuleType) -> None:
    cases = aot.cases(False, arch)
    kernels = {case.kernel.fn.__name__ for case in cases}
    assert kernels == {
        "draw_kernel", "forward_kernel", "backward_kernel", "residual_kernel", "update_kernel", "pull_kernel",
        "push_kernel",
    }  # fmt: skip
    faults = [(case.name, aot.fault(case, aot.compile_case(case, arch), arch)) for case in cases]
    assert not [(name, text) for name, text in faults if text]
