"""The tests of the ops once more, with Triton's kernels in its interpreter, which serves CPU tensors.

TRITON_INTERPRET is read when kernels are defined, so that takes a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent


@pytest.mark.parametrize("op", ["poisson", "update", "rollout"])
def test_ops_in_the_interpreter(op: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k"]
    chosen = "triton and not gaussian and not identity and not relu"
    result = subprocess.run(
        [*command, chosen, str(HERE / op)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
