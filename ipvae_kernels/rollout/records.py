"""The memory that records take, and refusals of what does not fit before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import memory
from . import sparse
from .config import RolloutConfig
from .eager import record_shapes


def step_bytes(x: Tensor, log_rate: Tensor, names: Sequence[str]) -> int:
    """Bytes of the dense records of one step."""
    sizes = torch.Size((x.shape[-1], log_rate.shape[-1]))
    shapes = record_shapes(x.shape[-2], sizes, log_rate.shape)
    return int(x.element_size() * sum(math.prod(shapes[name]) for name in names))


def check(x: Tensor, log_rate: Tensor, cfg: RolloutConfig, names: Sequence[str], record_every: int) -> None:
    """Refuses records that do not fit into memory.

    Raises:
        MemoryError: with what would fit.
    """
    recorded = (cfg.step + cfg.steps) // record_every - cfg.step // record_every
    each = step_bytes(x, log_rate, names)
    if recorded * each < memory.SMALL:
        return
    left = memory.available(x.device)
    if left is None or recorded * each <= left:
        return
    fit = left // each
    advice = f"{fit:,} recorded steps fit"
    if fit:
        advice += f": steps={fit * record_every:,}, or record_every={math.ceil(cfg.steps / fit):,}"
    if "counts" in names:
        advice += f"; {sparse.NAME!r} holds what is not 0"
    raise MemoryError(
        f"record: {', '.join(names)} of {recorded:,} steps take {memory.size(recorded * each)}, "
        f"{memory.size(left)} are available; {advice}"
    )
