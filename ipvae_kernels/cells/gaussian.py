"""The cells of the Gaussian relatives in plain PyTorch; in C++: ``csrc/common/cells/gaussian.h``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..philox import Stream
from ..poisson.noise import Noise
from .base import Draw

if TYPE_CHECKING:
    from ..rollout.config import RolloutConfig


class GaussianCell:
    """The iterative Gaussian VAE (iG-VAE, iG-relu-VAE); states are mean and xi = log sigma, [2, B, K].

    With act the identity or relu, z = mean + sigma eps, e = drive act'(z), r = (sigma / sigma_prior)^2, and
    C(v, c) = c tanh(v / c):

        mean <- C(mean + C(lr_0 (sigma^2 e - leak r (mean - mean_prior) - exp(log_bias)), clamp_du), clamp_u)
        xi <- C(xi + C(lr_1 (e eps sigma - leak (r - 1)) / 2, clamp_dxi), clamp_xi)

    Args:
        log_bias: [K].
        log_lr: [2], of mean and xi.
        noise: source of the draws.
        cfg: constants.
    """

    def __init__(self, log_bias: Tensor, log_lr: Tensor, noise: Noise, cfg: RolloutConfig) -> None:
        self.log_bias, self.log_lr = log_bias, log_lr
        self.noise, self.cfg, self.relu = noise, cfg, cfg.cell == "gaussian_relu"

    def draw(self, state: Tensor, stream: Stream) -> Draw:
        """Latents mean + sigma eps, and eps."""
        mean, xi = state.unbind()
        eps = self.noise.normal(mean, stream)
        sample = mean + torch.exp(xi) * eps
        return Draw(sample, torch.relu(sample) if self.relu else sample, eps)

    def update(self, state: Tensor, prior: Tensor, drive: Tensor, draw: Draw) -> Tensor:
        """A natural-gradient step of mean and log sigma."""
        moves, *_ = self._moves(state, prior, self._activated(drive, draw.code), draw.memo)
        moved = state + _tanh_clamp(moves, self._ceilings(moves, self.cfg.clamp_du, self.cfg.clamp_dxi))
        return _tanh_clamp(moved, self._ceilings(moved, self.cfg.clamp_u, self.cfg.clamp_xi))

    def kl(self, state: Tensor, prior: Tensor) -> Tensor:
        """See :func:`kl`."""
        return kl(state, prior)

    def kl_backward(self, state: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of :meth:`kl`."""
        inverse = torch.exp(-prior[1])
        distance = (state[0] - prior[0]) * inverse
        to_mean, to_xi = distance * inverse, torch.expm1(2.0 * (state[1] - prior[1]))
        return torch.stack([to_mean, to_xi]), torch.stack([-to_mean, -distance.square() - to_xi])

    def update_backward(
        self, grad: Tensor, state: Tensor, prior: Tensor, drive: Tensor, code: Tensor, memo: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gradients of :meth:`update`; the normals are held constant."""
        cfg, eps = self.cfg, memo
        moves, toward, toward_xi, pull = self._moves(state, prior, self._activated(drive, code), eps)
        ceilings_du = self._ceilings(moves, cfg.clamp_du, cfg.clamp_dxi)
        moved = state + _tanh_clamp(moves, ceilings_du)
        grad_moved = grad * _tanh_clamp_slope(moved, self._ceilings(moved, cfg.clamp_u, cfg.clamp_xi))
        grad_moves = grad_moved * _tanh_clamp_slope(moves, ceilings_du)
        lr, sigma = torch.exp(self.log_lr), torch.exp(state[1])
        to_mean, to_xi = lr[0] * grad_moves[0], 0.5 * lr[1] * grad_moves[1]
        grad_drive = self._activated(to_mean * sigma.square() + to_xi * eps * sigma, code)
        prior_mean = to_mean * pull
        prior_xi = 2.0 * pull * (to_mean * (state[0] - prior[0]) + to_xi)
        through_xi = 2.0 * to_mean * toward + to_xi * (toward_xi - 2.0 * pull)
        return (
            grad_moved + torch.stack([-prior_mean, through_xi]),
            torch.stack([prior_mean, prior_xi]),
            grad_drive,
            -torch.exp(self.log_bias) * to_mean.sum(0),
            (grad_moves * moves).sum((1, 2)),
        )

    def draw_backward(self, grad_code: Tensor, state: Tensor, code: Tensor, memo: Tensor) -> Tensor:
        """Through mean + sigma eps."""
        grad = self._activated(grad_code, code)
        return torch.stack([grad, grad * memo * torch.exp(state[1])])

    def _activated(self, grad_code: Tensor, code: Tensor) -> Tensor:
        """A gradient times the activation's derivative, which is 0 at 0."""
        return grad_code * (code > 0.0) if self.relu else grad_code

    def _moves(
        self, state: Tensor, prior: Tensor, drive: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The updates of mean and xi before their clamps, [2, B, K], and what their derivatives need.

        That is, [B, K] each, with e = ``drive``: sigma^2 e - leak r (mean - mean_prior), e eps sigma, leak r.
        """
        mean, xi = state.unbind()
        sigma, lr = torch.exp(xi), torch.exp(self.log_lr)
        toward, toward_xi, pull = sigma.square() * drive, drive * eps * sigma, torch.zeros_like(xi)
        along_xi = toward_xi
        if self.cfg.leak:
            log_ratio = 2.0 * (xi - prior[1])
            pull = self.cfg.leak * torch.exp(log_ratio)
            toward = toward - pull * (mean - prior[0])
            along_xi = toward_xi - self.cfg.leak * torch.expm1(log_ratio)
        moves = torch.stack([lr[0] * (toward - torch.exp(self.log_bias)), 0.5 * lr[1] * along_xi])
        return moves, toward, toward_xi, pull

    @staticmethod
    def _ceilings(like: Tensor, mean: float, xi: float) -> Tensor:
        return torch.stack([like.new_full((1, 1), mean), like.new_full((1, 1), xi)])


def kl(state: Tensor, prior: Tensor) -> Tensor:
    """KL between normal distributions, nats [..., K], of mean and log sigma, [2, ..., K] each."""
    distance = (state[0] - prior[0]) / torch.exp(prior[1])
    log_ratio = state[1] - prior[1]
    return 0.5 * (distance.square() + torch.expm1(2.0 * log_ratio)) - log_ratio


def _tanh_clamp(value: Tensor, ceiling: Tensor) -> Tensor:
    return ceiling * torch.tanh(value / ceiling)


def _tanh_clamp_slope(value: Tensor, ceiling: Tensor) -> Tensor:
    return torch.cosh(value / ceiling).square().reciprocal()
