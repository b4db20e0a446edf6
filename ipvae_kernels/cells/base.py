"""What a cell is: how a state is drawn from, updated and compared with its prior.

The decoder and the loop over time belong to the drivers of ``rollout``.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from ..philox import Stream


class Draw(NamedTuple):
    """One draw from a state.

    Attributes:
        sample: [B, K].
        code: what the decoder sees, [B, K].
        memo: what else is needed, [B, K]. Poisson: d sample / d log rate; Gaussian: the standard normals.
    """

    sample: Tensor
    code: Tensor
    memo: Tensor


class Cell(Protocol):
    """What a driver asks of a model."""

    def draw(self, state: Tensor, stream: Stream) -> Draw:
        """A draw from the posterior ``state``."""

    def update(self, state: Tensor, prior: Tensor, drive: Tensor, draw: Draw) -> Tensor:
        """The state after one natural-gradient step; ``drive`` = Phi^T((x - Phi code) / var), [B, K]."""

    def kl(self, state: Tensor, prior: Tensor) -> Tensor:
        """KL(state || prior) per neuron, [B, K], nats."""

    def kl_backward(self, state: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of :meth:`kl` with respect to the state and to the prior."""

    def update_backward(
        self, grad: Tensor, state: Tensor, prior: Tensor, drive: Tensor, code: Tensor, memo: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gradients of state, prior, drive, log_bias and log_lr, given that of the result of an update."""

    def draw_backward(self, grad_code: Tensor, state: Tensor, code: Tensor, memo: Tensor) -> Tensor:
        """The gradient of the state, given that of the code of a :meth:`draw`."""
