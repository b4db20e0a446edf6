"""The registry through pytest-benchmark: ``pytest --pyargs ipvae_bench.test_bench -k quick``.

For those who compare runs with that tool; `ipvae bench` measures in turns and says more.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from . import check
from .cases import CASES
from .contestants import prepare
from .problem import Settings, Unavailable, make

CONTESTANTS = ("cpu", "baseline", "compiled", "jax_scan")


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("case", CASES)
def test_case(benchmark: Any, case: str, contestant: str) -> None:
    """Checks a contestant, then times it."""
    settings = Settings(threads=torch.get_num_threads())
    problem = make(CASES[case], settings)
    try:
        prepared = prepare(contestant, problem, settings)
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert (found := check.run(prepared, contestant, "cpu"))["ok"], found
    benchmark.extra_info.update(problem.case.sizes, nonzero=problem.nonzero, rate=problem.rate)
    benchmark.pedantic(prepared.run, rounds=5)
