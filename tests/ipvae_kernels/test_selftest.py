"""The self-test: it finds nothing wrong here, and it finds what is made wrong."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import ipvae_kernels as ik
from ipvae_kernels import selftest
from ipvae_kernels.backend import compiled

pytestmark = pytest.mark.skipif(compiled.reason() is not None, reason=str(compiled.reason()))


def test_every_instruction_set_passes_every_op() -> None:
    checks = ik.self_test("cpu")
    sets = compiled.load().instruction_sets()
    before = compiled.load().instruction_set()
    assert {check.schedule for check in checks} >= {f"cpu {name}" for name in sets}
    assert len({check.op for check in checks}) == 7
    failed = [check for check in checks if not check.passed]
    assert not failed
    samples = [check for check in checks if check.op == "poisson_sample"]
    assert all(check.values == 4000 and check.differing <= 2 for check in samples)
    assert compiled.load().instruction_set() == before


def test_what_is_wrong_or_unsteady_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from ipvae_kernels.poisson import cpu

    sample, calls = cpu.sample, []

    def broken(*arguments: Any) -> Tensor:
        calls.append(1)
        counts = sample(*arguments)
        counts[0, : 60 if len(calls) < 3 else 61] += 1
        return counts

    monkeypatch.setattr(cpu, "sample", broken)
    monkeypatch.setattr(selftest, "calls", lambda device: {
        "poisson_sample": lambda backend: [
            ik.poisson_sample(torch.zeros(40, 100), seed=1, backend=backend)
        ]
    })  # fmt: skip
    first, *others = selftest.self_test("cpu")
    assert (first.differing, first.wrong, first.unsteady, first.passed) == (60, 60, 0, False)
    assert all(check.unsteady == 0 for check in others)
    calls.clear()
    calls.append(1)  # the second run of the first schedule now differs from its first
    first, *_ = selftest.self_test("cpu")
    assert first.unsteady == 1


def test_the_command_prints_a_table() -> None:
    """Exit status 0 where all is well."""
    done = subprocess.run(
        [sys.executable, "-m", "ipvae_kernels", "--test"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr + done.stdout
    lines = done.stdout.splitlines()
    assert any(line.split()[:2] == ["op", "schedule"] for line in lines)
    assert sum(line.endswith("ok") for line in lines) == 7 * len(compiled.load().instruction_sets())
