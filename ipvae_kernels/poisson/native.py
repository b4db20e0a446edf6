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
    args = fill(module.PoissonArgs(), log_rate=log_rate, counts=counts, slopes=slopes)
    # One by one: as arguments of fill the numbers would take a quarter of the Python calls of a small draw.
    args.n_rows, args.n_latents = log_rate.shape
    args.kind, args.inner, args.step, args.sample_offset = stream
    args.estimator, args.temperature, args.n_arrivals = code, temperature, arrival_limit(n_arrivals)
    if on_cuda(log_rate):
        module.cuda_poisson(args, seed.data_ptr(), launch(log_rate))
    else:
        args.seed = unsigned_seed(seed)
        module.poisson(args, torch.get_num_threads())
    return counts, slopes
