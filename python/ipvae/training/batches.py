"""What of a run is a function of the optimizer step: the seeds of its noise and its batches."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from ..data.batches import epoch_order

NOISE, N_EXP, FRAMES = range(3)


def mix(seed: int, purpose: int, index: int) -> int:
    """A 64-bit seed, a pure and well-mixed function of a seed, what it is for, and a step or epoch."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, purpose, index), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class Batches:
    """Batches of a data set in memory; the order of an epoch is a pure function of (seed, epoch).

    An iteration starts where `step` says training is, so a run resumes within an epoch. The last, incomplete
    batch of an epoch is left out, as in the released code; a data set smaller than a batch is one batch.

    Args:
        x: [N, M].
        batch_size: over all devices.
        seed: of the order.
        step: tells the optimizer step of the next batch.
        rank, world: this device's share is rows rank * B/world and on of every batch.
    """

    def __init__(
        self, x: Tensor, batch_size: int, seed: int, step: Callable[[], int], rank: int = 0, world: int = 1
    ) -> None:
        self.x, self.seed, self.step = x, seed, step
        self.batch_size = min(batch_size, len(x))
        self._rows = share(self.batch_size, rank, world)

    def __len__(self) -> int:
        return len(self.x) // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        epoch, first = divmod(self.step(), len(self))
        order = epoch_order(len(self.x), self.seed, epoch).to(self.x.device)
        for i in range(first, len(self)):
            yield self.x[order[i * self.batch_size : (i + 1) * self.batch_size][self._rows]]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the step says it all. Tells Lightning that these batches resume within an epoch."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""


def share(n: int, rank: int, world: int) -> slice:
    """The rows of a batch of n that belong to one of several devices."""
    share = n // world
    return slice(rank * share, (rank + 1) * share)
