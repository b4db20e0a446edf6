"""Autotuning over a small set of configurations, kept on disk.

What is tuned (warps, pipeline stages, tiles of independent rows and columns) never changes the order of a sum
over neurons or pixels. The table of sets is in ``docs/decisions.md``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import triton

from . import interpreted


def config(num_warps: int, num_stages: int = 2, **blocks: int) -> Any:
    """One configuration; ``blocks`` are constexpr arguments of the kernel."""
    return triton.Config(blocks, num_warps=num_warps, num_stages=num_stages)


def autotune(configs: Sequence[Any], key: Sequence[str]) -> Callable[[Any], Any]:
    """``triton.autotune``; the first configuration is the default.

    The interpreter, whose cost is per program, takes the last, which has the largest tile.

    Args:
        configs: the set.
        key: names of the arguments by which results are kept.
    """
    disk = {"cache_results": True} if "cache_results" in inspect.signature(triton.autotune).parameters else {}
    wrap: Callable[[Any], Any] = triton.autotune(
        configs=list(configs[-1:] if interpreted() else configs), key=list(key), **disk
    )
    return wrap
