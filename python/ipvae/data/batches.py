"""The order of the samples of an epoch, a function of (seed, epoch)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_MASK64 = 2**64 - 1


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The permutation of 0..n-1 of an epoch, int64. Neighbouring (seed, epoch) are unrelated."""
    state = np.random.SeedSequence((seed & _MASK64, epoch)).generate_state(1, np.uint64)
    return torch.randperm(n, generator=torch.Generator().manual_seed(int(state[0])), device="cpu")
