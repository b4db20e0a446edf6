"""Poisson counts through the compiled kernels for CUDA; shapes as in ``eager.py``, float32."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend.cuda import launch, module
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
    kernels, log_rate = module(), log_rate.contiguous()
    args, counts, slopes = structs.draw(kernels, log_rate, stream, estimator, temperature, n_arrivals)
    kernels.cuda_poisson(args, seed.data_ptr(), launch(log_rate))
    return counts, slopes
