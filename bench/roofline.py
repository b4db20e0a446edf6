"""What the machine could do at best: measured, not read from a data sheet."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypedDict

import torch
from ipvae.experiments.turns import elapsed

from .cases import Case

MATRIX = {"cpu": 1536, "cuda": 8192}
COPIED = {"cpu": 2**26, "cuda": 2**28}
REPEATS = 8


class Peaks(TypedDict):
    """Attributes of a machine.

    Attributes:
        flops: float32 operations per second: of one core in a square matrix product of PyTorch's BLAS, which
            comes within some percent of what the FMA units can do; of a GPU, all of it, without TF32.
        bytes: per second, read plus written, in a copy far larger than the caches, on all threads.
    """

    flops: float
    bytes: float


def measure(device: str) -> Peaks:
    """Best of `REPEATS`; takes about two seconds."""
    n = MATRIX[device]
    a = torch.randn(n, n, device=device)
    product = torch.empty_like(a)
    source = torch.zeros(COPIED[device], device=device)
    target = torch.empty_like(source)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        flops = 2.0 * n**3 / _best(lambda: torch.mm(a, a, out=product), device)
    finally:
        torch.set_num_threads(threads)
    return Peaks(flops=flops, bytes=2.0 * 4.0 * len(source) / _best(lambda: target.copy_(source), device))


def fraction(case: Case, nonzero: float, seconds: float, peaks: Peaks, device: str, threads: int) -> float:
    """The least time this machine could need for the case, by operations and by bytes, over the time taken.

    Args:
        case: gives both.
        nonzero: share of counts that are not 0.
        seconds: taken.
        peaks: of the machine.
        device: "cpu" or "cuda".
        threads: of the CPU; no more cores than there are count.
    """
    cores = min(threads, os.cpu_count() or 1) if device == "cpu" else 1
    return max(case.operations(nonzero) / (peaks["flops"] * cores), case.bytes() / peaks["bytes"]) / seconds


def _best(function: Callable[[], object], device: str) -> float:
    return min(elapsed(function, device) for _ in range(REPEATS))
