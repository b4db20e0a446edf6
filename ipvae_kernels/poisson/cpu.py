"""Poisson counts through the compiled kernels for the CPU; shapes as in ``eager.py``, float32."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend.compiled import load
from ..backend.cpu import unsigned_seed
from ..philox import Stream
from . import structs


def sample(log_rate: Tensor, seed: Tensor, stream: Stream) -> Tensor:
    """Hard counts [B, K]."""
    return _draw(log_rate, seed, stream, "hard", 0.0, None)[0]


def rsample(
    log_rate: Tensor, seed: Tensor, stream: Stream, estimator: str, temperature: float, n_arrivals: int | None
) -> tuple[Tensor, Tensor]:
    """Counts and their slopes d count / d log_rate, both [B, K]."""
    counts, slopes = _draw(log_rate, seed, stream, estimator, temperature, n_arrivals)
    return counts, torch.zeros_like(counts) if slopes is None else slopes


def _draw(
    log_rate: Tensor, seed: Tensor, stream: Stream, estimator: str, temperature: float, n_arrivals: int | None
) -> tuple[Tensor, Tensor | None]:
    module, log_rate = load(), log_rate.contiguous()
    args, counts, slopes = structs.draw(module, log_rate, stream, estimator, temperature, n_arrivals)
    args.seed = unsigned_seed(seed)
    module.poisson(args, torch.get_num_threads())
    return counts, slopes
