"""The cell of the iterative Poisson VAE in plain PyTorch; in C++: ``csrc/common/cells/poisson.h``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..philox import KIND_UPDATE, Stream
from ..poisson import divergence, noise
from ..poisson import eager as poisson
from ..update import eager as update
from .base import Draw

if TYPE_CHECKING:
    from ..rollout.config import RolloutConfig


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
        """Counts of the log rates; where rates stand in for those of an update, these."""
        if self.cfg.expected and stream.kind == KIND_UPDATE:
            rate = noise.rate_of(state)
            return Draw(rate, rate, torch.exp(state))
        return self.counts(state, stream)

    def counts(self, state: Tensor, stream: Stream) -> Draw:
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
            state, prior, drive, self.log_bias, self.log_lr, cfg.leak, cfg.decay, cfg.clamp_u, cfg.clamp_du
        )

    def kl(self, state: Tensor, prior: Tensor) -> Tensor:
        """See :func:`divergence.kl`."""
        return divergence.kl(state, prior, self.cfg.kl)

    def kl_backward(self, state: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """See :func:`divergence.kl_gradients`."""
        return divergence.kl_gradients(state, prior, self.cfg.kl)

    def update_backward(
        self, grad: Tensor, state: Tensor, prior: Tensor, drive: Tensor, code: Tensor, memo: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The backward of ``log_rate_update``."""
        cfg = self.cfg
        return update.backward(
            grad,
            state,
            prior,
            drive,
            self.log_bias,
            self.log_lr,
            cfg.leak,
            cfg.decay,
            cfg.clamp_u,
            cfg.clamp_du,
        )

    def draw_backward(self, grad_code: Tensor, state: Tensor, code: Tensor, memo: Tensor) -> Tensor:
        """Through the slopes of the counts."""
        return grad_code * memo
