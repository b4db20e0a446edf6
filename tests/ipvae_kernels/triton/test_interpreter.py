"""Runs the tests of the Triton backend in Triton's interpreter, which serves a whole process or none of it.

There run the op tests that are parametrised over backends, with "triton", and ``test_kernels.py``; those of
``LEFT_OUT``, which meet the same kernels once more, only with ``make triton-interpreter``, which runs all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipvae_kernels.backend import triton as triton_backend

TESTS = Path(__file__).resolve().parents[1]
GROUPS = {
    "poisson": ["poisson/test_poisson_op.py", "update", "triton/test_kernels.py"],
    "elbo": ["rollout/test_elbo.py"],
    "infer": [
        "rollout/test_composition.py",
        "rollout/test_drive.py",
        "rollout/test_infer.py",
        "rollout/test_limits.py",
    ],
}

LEFT_OUT = (
    "every_number and moving",
    "same_trace and static",
    "checkpoints and (config1 or config2 or config3 or True)",
    "opcheck and inner",
    "compile_without_graph_breaks",
    "time_splits and not static",
    "record_every_counts and (identity or relu)",
    "drivers_agree and static",
    "sampled_drive_has_the_expected",
)
CHOSEN = f"triton and not ({' or '.join(f'({words})' for words in LEFT_OUT)})"

pytestmark = [
    pytest.mark.skipif(triton_backend.interpreted(), reason="this is the interpreter"),
    pytest.mark.skipif(triton_backend.missing() is not None, reason=str(triton_backend.missing())),
]


@pytest.mark.parametrize("group", list(GROUPS))
def test_in_the_interpreter(group: str) -> None:
    """A process for each group; where the suite runs in several processes, they run side by side."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=12", "-k", CHOSEN]
    ended = subprocess.run(
        [*command, *(str(TESTS / path) for path in GROUPS[group])],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout.splitlines()[-1], ended.stdout
    print(ended.stdout)
