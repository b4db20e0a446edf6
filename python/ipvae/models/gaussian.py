"""Its Gaussian relatives, `IGVAE`: the iG-VAE and the rectified iG-relu-VAE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ipvae_kernels import GaussianParams, checks
from ipvae_kernels.philox import Stream
from ipvae_kernels.poisson.noise import PhiloxNoise

from ..inputs import Inputs
from .config import IGVAEConfig
from .iterative import IterativeVAE
from .layer import Layer


class IGVAE(IterativeVAE):
    """The Gaussian relative, iG-VAE; with ``activation="relu"`` the iG-relu-VAE.

    The released rectified model learns a gain per neuron. Since gain times relu equals relu with that column
    of the dictionary scaled, in the decoder and in its transpose alike, `dictionary` includes the gain and
    the kernels need not know of it.
    """

    config: IGVAEConfig
    config_class = IGVAEConfig
    n_states = 2
    spiking = False
    clamp_init = 1.0

    def _layer(self) -> Layer:
        return Layer(
            self.config, self.n_states, has_gain=self.config.activation == "relu", has_arrivals=False
        )

    def _reset_prior(self, generator: torch.Generator) -> None:
        for u_init in self.layer.u_init:
            u_init.zero_()

    @property
    def dictionary(self) -> Tensor:
        """Phi, [M, K], each column times its gain where the model is rectified."""
        if self.config.activation == "relu":
            return self.layer.phi.weight * self.layer.activation.log_gain.exp()
        return self.layer.phi.weight

    @property
    def params(self) -> GaussianParams:
        """The parameters as `ipvae_kernels` takes them."""
        layer = self.layer
        return GaussianParams(
            dictionary=self.dictionary, log_sigma=self.log_sigma, log_bias=layer.log_bias[0],
            log_lr=torch.cat(list(layer.log_lr)), state_init=torch.cat(list(layer.u_init)),
            activation=self.config.activation,
        )  # fmt: skip

    def _draw_options(self, estimator: str | None, temperature: float | None) -> dict[str, Any]:
        if estimator is not None:
            raise ValueError(
                f"estimator: expected None for an IGVAE, which draws normals, found {estimator!r}"
            )
        return {}

    def rates(self, log_rate: Inputs) -> Tensor:
        """The activated mean, [..., 2, B, K] to [..., B, K]."""
        states = self._taken("log_rate", log_rate)
        if states.ndim < 3 or states.shape[-3] != self.n_states:
            raise ValueError(f"log_rate: expected shape [..., 2, B, K], found {list(states.shape)}")
        mean: Tensor = states.select(-3, 0)
        return mean.relu() if self.config.activation == "relu" else mean

    def _sample_prior(self, n: int, seed: Tensor, sample_offset: int) -> Tensor:
        mean, log_sigma = checks.raised(self.params.state_init)[:, None].expand(-1, n, -1).unbind()
        noise = PhiloxNoise(seed).normal(mean, Stream(sample_offset=sample_offset))
        sample = mean + log_sigma.exp() * noise
        return sample.relu() if self.config.activation == "relu" else sample
