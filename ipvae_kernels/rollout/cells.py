"""The cells of the eager driver: how a state is drawn from, updated and compared with its prior.

The decoder and the loop over time belong to the driver (``rollout/eager.py``).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..philox import Stream
from ..poisson import eager as poisson
from ..update import eager as update
from .config import RolloutConfig


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
    """What the driver asks of a model."""

    def draw(self, state: Tensor, stream: Stream) -> Draw:
        """A draw from the posterior ``state``."""

    def update(self, state: Tensor, prior: Tensor, drive: Tensor, draw: Draw) -> Tensor:
        """The state after one natural-gradient step; ``drive`` = Phi^T((x - Phi code) / var), [B, K]."""

    def kl(self, state: Tensor, prior: Tensor) -> Tensor:
        """KL(state || prior) per neuron, [B, K], nats."""


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
        noise: poisson.Noise,
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


class GaussianCell:
    """The iterative Gaussian VAE (iG-VAE, iG-relu-VAE); states are means and log sigmas, [2, B, K].

    Args:
        log_bias: [K].
        log_lr: [2].
        activation: "identity" or "relu".
        noise: source of the draws.
        leak: weight of the pull towards the prior in the update.
        clamp_u, clamp_du: ceilings of mean and log sigma, and of their updates.
    """

    def __init__(
        self,
        log_bias: Tensor,
        log_lr: Tensor,
        activation: str,
        noise: poisson.Noise,
        leak: float,
        clamp_u: tuple[float, float],
        clamp_du: tuple[float, float],
    ) -> None:
        self.log_bias, self.log_lr, self.relu = log_bias, log_lr, activation == "relu"
        self.noise, self.leak, self.clamp_u, self.clamp_du = noise, leak, clamp_u, clamp_du

    def draw(self, state: Tensor, stream: Stream) -> Draw:
        """Latents mean + sigma eps."""
        mean, log_sigma = state.unbind()
        eps = self.noise.normal(mean, stream)
        sample = mean + torch.exp(log_sigma) * eps
        return Draw(sample, torch.relu(sample) if self.relu else sample, eps)

    def update(self, state: Tensor, prior: Tensor, drive: Tensor, draw: Draw) -> Tensor:
        """A natural-gradient step of mean and log sigma."""
        mean, log_sigma = state.unbind()
        mean_prior, log_sigma_prior = prior.unbind()
        sigma = torch.exp(log_sigma)
        grad_mean = -drive * (draw.sample > 0.0) if self.relu else -drive
        grad_log_sigma = grad_mean * draw.memo * sigma
        if self.leak:
            grad_mean = grad_mean + self.leak * (mean - mean_prior) / torch.exp(2.0 * log_sigma_prior)
            grad_log_sigma = grad_log_sigma + self.leak * torch.expm1(2.0 * (log_sigma - log_sigma_prior))
        steps = torch.exp(self.log_lr)
        moves = (
            -steps[0] * (sigma.square() * grad_mean + torch.exp(self.log_bias)),
            -steps[1] * 0.5 * grad_log_sigma,
        )
        moved = [
            _tanh_clamp(value + _tanh_clamp(move, ceiling_du), ceiling_u)
            for value, move, ceiling_u, ceiling_du in zip(
                state, moves, self.clamp_u, self.clamp_du, strict=True
            )
        ]
        return torch.stack(moved)

    def kl(self, state: Tensor, prior: Tensor) -> Tensor:
        """KL between normal distributions."""
        distance = (state[0] - prior[0]) / torch.exp(prior[1])
        log_ratio = state[1] - prior[1]
        return 0.5 * (distance.square() + torch.expm1(2.0 * log_ratio)) - log_ratio


def _tanh_clamp(value: Tensor, ceiling: float) -> Tensor:
    return ceiling * torch.tanh(value / ceiling)
