"""The two kinds of latents: spike counts of a Poisson law, and numbers of a normal one."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

import ipvae_kernels
from ipvae_kernels import checks
from ipvae_kernels.philox import Stream
from ipvae_kernels.poisson.noise import PhiloxNoise

from ..inputs import Inputs
from .base import VAE


class PoissonLatents(VAE):
    """Counts; states are log rates [B, K]."""

    n_states = 1
    spiking = True

    def rates(self, log_rate: Inputs) -> Tensor:
        """exp(u), of the shape of the log rates."""
        return self._taken("log_rate", log_rate).exp()

    def _sample_prior(self, n: int, seed: Tensor, sample_offset: int) -> Tensor:
        log_rate = checks.raised(self.prior).expand(n, -1)
        return ipvae_kernels.poisson_sample(log_rate, seed=seed, sample_offset=sample_offset)


class GaussianLatents(VAE):
    """Normals through an activation; states are mean and log sigma [2, B, K]."""

    n_states = 2
    spiking = False

    @property
    def activation(self) -> str:
        """Of the latents, "identity" or "relu"."""
        return str(cast(Any, self.config).activation)  # that of either configuration

    def rates(self, log_rate: Inputs) -> Tensor:
        """The activated mean, [..., 2, B, K] to [..., B, K]."""
        states = self._taken("log_rate", log_rate)
        if states.ndim < 3 or states.shape[-3] != self.n_states:
            raise ValueError(f"log_rate: expected shape [..., 2, B, K], found {list(states.shape)}")
        return self._activated(states.select(-3, 0))

    def _activated(self, latents: Tensor) -> Tensor:
        return latents.relu() if self.activation == "relu" else latents

    def _normal(self, state: Tensor, seed: Tensor, stream: Stream) -> Tensor:
        """A draw from states [2, B, K], before the activation: [B, K]."""
        mean, log_sigma = state.unbind()
        return mean + log_sigma.exp() * PhiloxNoise(seed).normal(mean, stream)

    def _sample_prior(self, n: int, seed: Tensor, sample_offset: int) -> Tensor:
        state = checks.raised(self.prior)[:, None].expand(-1, n, -1)
        return self._activated(self._normal(state, seed, Stream(sample_offset=sample_offset)))
