"""The network of an iteratively amortised model: from a posterior and a gradient to the next posterior."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Updater(nn.Module):
    """Two hidden layers of ELU, the second with a highway connection, and a gated output (arXiv 1807.09356).

    What is given is normalised, each part by itself, since gradients are of any size (there, section 4.1 and
    appendix A.2). The gate g says how much of the posterior stays: what is added to the prior becomes
    g a + (1 - g) f, for a what was added before and f what the network proposes.

    Args:
        n_numbers: of all neurons of an input.
        width: units of a hidden layer.
    """

    def __init__(self, n_numbers: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(n_numbers) for _ in range(3)])
        self.hidden = nn.Linear(3 * n_numbers, width)
        self.second, self.carry = nn.Linear(width, width), nn.Linear(width, width)
        self.proposed = nn.Linear(width, 2 * n_numbers)

    def forward(self, added: Tensor, prior: Tensor, gradient: Tensor) -> Tensor:
        """What is added to the prior from now on, [B, N], of what was, the prior and the gradient, [B, N]."""
        parts = zip(self.norms, (added, prior, gradient), strict=True)
        h = F.elu(self.hidden(torch.cat([norm(part) for norm, part in parts], dim=-1)))
        carried = torch.sigmoid(self.carry(h))
        h = carried * h + (1.0 - carried) * F.elu(self.second(h))
        gate, proposed = self.proposed(h).chunk(2, dim=-1)
        gate = torch.sigmoid(gate)
        kept: Tensor = gate * added + (1.0 - gate) * proposed
        return kept
