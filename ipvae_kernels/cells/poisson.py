"""The cell of the iterative Poisson VAE in plain PyTorch; in C++: ``csrc/common/cells/poisson.h``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..philox import Stream
from ..poisson import eager as poisson
from ..poisson import noise
from ..update import eager as update
from .base import Draw

if TYPE_CHECKING:
    from ..rollout.config import RolloutConfig

KLS = ("exact", "released")
"""The formulas of a Poisson KL, in the order of the enumeration in ``csrc/common/cells/poisson.h``."""


class PoissonCell:
    """The iterative Poisson VAE; states are log rates [B, K].

    Args:
        log_bias: [K].
        log_lr: [].
        noise: source of the draws.
        cfg: constants.
        differentiable: draw counts that autograd can differentiate; else counts with their slopes.
    """

    def __init__(
        self,
        log_bias: Tensor,
        log_lr: Tensor,
        noise: noise.Noise,
        cfg: RolloutConfig,
        differentiable: bool = False,
    ) -> None:
        self.log_bias, self.log_lr = log_bias, log_lr
        self.noise, self.cfg, self.differentiable = noise, cfg, differentiable

    def draw(self, state: Tensor, stream: Stream) -> Draw:
        """Counts of the log rates."""
        how = (self.cfg.estimator, self.cfg.temperature, self.cfg.n_arrivals)
        if self.differentiable:
            counts = poisson.differentiable_draw(state, self.noise, stream, *how)
            return Draw(counts, counts, counts)
        counts, slope = poisson.draw(state, self.noise, stream, *how)
        return Draw(counts, counts, slope)

    def update(self, state: Tensor, prior: Tensor, drive: Tensor, draw: Draw) -> Tensor:
        """The pointwise step of ``log_rate_update``."""
        cfg = self.cfg
        return update.forward(
            state, prior, drive, self.log_bias, self.log_lr, cfg.leak, cfg.clamp_u, cfg.clamp_du
        )

    def kl(self, state: Tensor, prior: Tensor) -> Tensor:
        """See :func:`poisson_kl`."""
        return poisson_kl(state, prior, self.cfg.kl)

    def kl_backward(self, state: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """See :func:`poisson_kl_gradients`."""
        return poisson_kl_gradients(state, prior, self.cfg.kl)

    def update_backward(
        self, grad: Tensor, state: Tensor, prior: Tensor, drive: Tensor, code: Tensor, memo: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The backward of ``log_rate_update``."""
        cfg = self.cfg
        return update.backward(
            grad, state, prior, drive, self.log_bias, self.log_lr, cfg.leak, cfg.clamp_u, cfg.clamp_du
        )

    def draw_backward(self, grad_code: Tensor, state: Tensor, code: Tensor, memo: Tensor) -> Tensor:
        """Through the slopes of the counts."""
        return grad_code * memo


def poisson_kl(log_rate: Tensor, prior: Tensor, kind: str) -> Tensor:
    """KL between Poisson distributions of two log rates, elementwise, nats.

    "exact" is KL(Poisson(e^u) || Poisson(e^prior)); "released" is e^(u - prior) times that, as in the
    released code.
    """
    d = log_rate - prior
    # d + (d - 1)(e^d - 1) is 1 + e^d (d - 1) with the ones cancelled by hand.
    return torch.exp(prior if kind == "exact" else log_rate) * (d + (d - 1.0) * torch.expm1(d))


def poisson_kl_gradients(log_rate: Tensor, prior: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Derivatives of :func:`poisson_kl` with respect to the log rate and to the prior."""
    d = log_rate - prior
    if kind == "exact":
        return torch.exp(log_rate) * d, -torch.exp(prior) * torch.expm1(d)
    slope = torch.exp(log_rate + d) * d
    return poisson_kl(log_rate, prior, kind) + slope, -slope
