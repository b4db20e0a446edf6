"""The linear decoder of neurons that several processes have, by products of torch and sums between them."""

from __future__ import annotations

from torch import Tensor
from torch.distributed import ProcessGroup

from ..rollout.decoders import Decoded, LinearDecoder
from .collectives import decoded, encoded, shared


class ShardedDecoder(LinearDecoder):
    """Phi z, where each process has some columns of Phi and the same numbers of z.

    Args:
        dictionary: columns of this process, [M, K_local].
        group: of the processes.
        overlap: compute half of a batch while the other half's sum is on its way.
    """

    def __init__(self, dictionary: Tensor, group: ProcessGroup, overlap: bool = False) -> None:
        super().__init__(dictionary)
        self.group, self.overlap = group, overlap

    def __call__(self, code: Tensor) -> Decoded:
        """The mean of all, and the drive of this process's neurons."""
        mean = decoded(code, self.dictionary, self.group, self.overlap)
        return Decoded(mean, lambda weighted: encoded(weighted, self.dictionary, self.group))

    def half_diagonal(self, log_sigma: Tensor) -> Tensor:
        """Of this process's neurons."""
        return super().half_diagonal(shared(log_sigma, self.group))
