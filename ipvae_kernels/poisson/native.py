"""Poisson counts through the compiled kernels, CPU and CUDA; shapes as in ``eager.py``, float32."""

from __future__ import annotations

import torch
from torch import Tensor

from .._native import arrival_limit, estimator_code, fill, launch, load, on_cuda, unsigned_seed
from ..philox import Stream


def sample(log_rate: Tensor, seed: Tensor, stream: Stream) -> Tensor:
    """Hard counts [B, K]."""
    counts, _ = _draw(log_rate, seed, stream, "hard", 0.0, None)
    return counts


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
    code = estimator_code(estimator, temperature)
    counts = torch.empty_like(log_rate)
    slopes = torch.empty_like(log_rate) if code else None
    args = fill(
        module.PoissonArgs(),
        n_rows=log_rate.shape[0],
        n_latents=log_rate.shape[1],
        kind=stream.kind,
        inner=stream.inner,
        step=stream.step,
        sample_offset=stream.sample_offset,
        estimator=code,
        temperature=temperature,
        n_arrivals=arrival_limit(n_arrivals),
        log_rate=log_rate,
        counts=counts,
        slopes=slopes,
    )
    if on_cuda(log_rate):
        module.cuda_poisson(args, seed.data_ptr(), launch(log_rate))
    else:
        module.poisson(fill(args, seed=unsigned_seed(seed)), torch.get_num_threads())
    return counts, slopes
