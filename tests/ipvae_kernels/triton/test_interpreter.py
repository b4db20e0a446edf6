"""Runs the tests of the Triton backend in Triton's interpreter, which serves a whole process or none of it.

There run the op tests that are parametrised over backends, with "triton", and ``test_kernels.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvae_kernels import _triton

TESTS = Path(__file__).resolve().parents[1]
GROUPS = {
    "poisson": ["poisson/test_poisson_op.py", "update", "triton/test_kernels.py"],
    "elbo": ["rollout/test_elbo.py"],
    "infer": ["rollout/test_infer.py", "rollout/test_limits.py"],
}

CHOSEN = "triton and not gaussian and not identity and not relu"  # no Gaussian models there

pytestmark = [
    pytest.mark.skipif(_triton.interpreted(), reason="this is the interpreter"),
    pytest.mark.skipif(_triton._missing() is not None, reason=str(_triton._missing())),
]


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """One process for each group, all at once."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=12", "-k", CHOSEN]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    started = {
        name: subprocess.Popen(
            [*command, *(str(TESTS / path) for path in paths)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, paths in GROUPS.items()
    }
    yield started
    for process in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("group", list(GROUPS))
def test_in_the_interpreter(group: str, runs: dict[str, subprocess.Popen[str]]) -> None:
    output, _ = runs[group].communicate(timeout=3600)
    assert runs[group].returncode == 0, output
    assert " passed" in output.splitlines()[-1], output
    print(output)
