"""Its Gaussian relatives, `IGVAE`: the iG-VAE and the rectified iG-relu-VAE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ipvae_kernels import GaussianParams

from ..interop.parameters import gaussian_params
from .config import IGVAEConfig
from .iterative import IterativeVAE
from .latents import GaussianLatents
from .layer import Layer


class IGVAE(GaussianLatents, IterativeVAE):
    """The Gaussian relative, iG-VAE; with ``activation="relu"`` the iG-relu-VAE.

    The released rectified model learns a gain per neuron. Since gain times relu equals relu with that column
    of the dictionary scaled, in the decoder and in its transpose alike, `dictionary` includes the gain and
    the kernels need not know of it. Other decoders have no gain: their first layer has it.
    """

    config: IGVAEConfig
    config_class = IGVAEConfig
    clamp_init = 1.0

    def _layer(self) -> Layer:
        gain = self.config.activation == "relu" and self.decoder is None
        return Layer(self.config, self.n_states, has_gain=gain, has_arrivals=False)

    def _reset_prior(self, generator: torch.Generator) -> None:
        for u_init in self.layer.u_init:
            u_init.zero_()

    def _linear(self) -> Tensor:
        """Phi, [M, K], each column times its gain where the model is rectified."""
        if self.config.activation == "relu":
            return self.layer.phi.weight * self.layer.activation.log_gain.exp()
        return self.layer.phi.weight

    @property
    def prior(self) -> Tensor:
        """Mean and log sigma before the first step, [2, K]."""
        return torch.cat(list(self.layer.u_init))

    @property
    def params(self) -> GaussianParams:
        """The parameters as `ipvae_kernels` takes them."""
        return gaussian_params(self.layer, self._fused(), self.log_sigma, self.config.activation)

    def _draw_options(self, estimator: str | None, temperature: float | None) -> dict[str, Any]:
        if estimator is not None:
            raise ValueError(
                f"estimator: expected None for an IGVAE, which draws normals, found {estimator!r}"
            )
        return {}
