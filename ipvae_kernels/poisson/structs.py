"""What the compiled kernels take of a draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend.compiled import arrival_limit, fill
from ..philox import Stream
from .estimators import code


def draw(
    module: Any, log_rate: Tensor, stream: Stream, estimator: str, temperature: float, n_arrivals: int | None
) -> tuple[Any, Tensor, Tensor | None]:
    """Arguments for contiguous log rates; the counts and slopes to be written, None where they are zero."""
    number = code(estimator, temperature)
    counts = torch.empty_like(log_rate)
    slopes = torch.empty_like(log_rate) if number else None
    args = fill(module.PoissonArgs(), log_rate=log_rate, counts=counts, slopes=slopes)
    # One by one: as arguments of fill the numbers would take a quarter of the Python calls of a small draw.
    args.n_rows, args.n_latents = log_rate.shape
    args.kind, args.inner, args.step, args.sample_offset, args.neuron_offset = stream
    args.estimator, args.temperature, args.n_arrivals = number, temperature, arrival_limit(n_arrivals)
    return args, counts, slopes
