"""The CUDA kernels compile for Hopper without spills; bench/results has the table for every architecture."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import cuda_resources
import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
@pytest.mark.parametrize("source", cuda_resources.SOURCES)
def test_no_kernel_spills(source: str, tmp_path: Path) -> None:
    """For sm_90a; the build compiles sm_80, sm_90 and sm_100, and the table below is made of all."""
    kernels = cuda_resources.compile_kernels(ROOT / "csrc" / "cuda" / f"{source}.cu", "sm_90a", tmp_path)
    assert kernels
    for kernel in kernels:
        assert (kernel.spills, kernel.stack) == (0, 0), kernel


def test_the_table_lists_every_kernel_without_spills() -> None:
    rows = re.findall(
        r"^\| (sm_\S+) \| (.+) \|$", (ROOT / "bench/results/cuda_resources.md").read_text(), re.M
    )
    assert {architecture for architecture, _ in rows} == set(cuda_resources.ARCHITECTURES)
    assert len(rows) == 11 * len(cuda_resources.ARCHITECTURES)
    for _, row in rows:
        *_, stack, spills, _occupancy = row.split(" | ")
        assert (stack, spills) == ("0", "0")


def test_the_log_of_ptxas_is_read() -> None:
    log = (
        "ptxas info    : Compiling entry function '_ZN5ipvae4cuda14rollout_kernelINS0_12PoissonLanesELi8EEEv'"
        " for 'sm_90a'\nptxas info    : Function properties for x\n"
        "    8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 189 registers, used 1 barriers, 4128 bytes smem\n"
    )
    (kernel,) = cuda_resources.parse(log)
    assert kernel == ("sm_90a", "rollout, Poisson, 8 rows", 189, 4128, 8, 16)
    assert kernel.occupancy(0) == 1 / 8
