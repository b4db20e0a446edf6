"""tools/gpu.sh as far as it goes without a GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from ipvae_bench.cases import CASES

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "gpu.sh"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60)


def test_every_part_is_planned_within_its_limit(tmp_path: Path) -> None:
    result = run("--dry-run", "--reference", str(tmp_path))
    assert result.returncode == 0, result.stderr
    parts = dict(line.split(" (", 1) for line in result.stdout.splitlines() if " s): " in line)
    prefixes = ("bench-", "triton-train", "triton-infer", "compiled-")
    benches = {name for name in parts if name.startswith(prefixes)}
    assert {name.split("-", 1)[1] for name in benches} <= set(CASES)
    assert len(benches) == 11
    tests = {"tests-cuda", "tests-triton", "tests-wrapper", "train", "self-test", "poisson-correlation"}
    checks = {"cuda-memcheck", "cuda-racecheck", "cuda-synccheck", "triton-memcheck"}
    others = {"tools", "build", "limits", "profile-cuda", "profile-triton", "ncu", "report"}
    assert set(parts) == tests | checks | others | benches
    assert all(f"--reference {tmp_path}" in parts[name] for name in benches)
    assert "authors' code: skipped" in run("--dry-run").stdout
    assert "built.whl" in run("--dry-run", "--wheel", str(tmp_path / "built.whl"), "--only", "none").stdout
    chosen = [line.split(" (")[0] for line in run("--dry-run", "--only", "^cuda|ncu").stdout.splitlines()]
    assert chosen[:-2] == ["tools", "build", "cuda-memcheck", "cuda-racecheck", "cuda-synccheck", "ncu"]


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine may have a GPU")
def test_without_a_gpu_it_says_so() -> None:
    result = run()
    assert result.returncode == 2
    assert "no NVIDIA GPU" in result.stderr


def test_an_unknown_option_shows_the_usage() -> None:
    result = run("--zebra")
    assert result.returncode == 2
    assert "--reference CHECKOUT" in result.stdout
