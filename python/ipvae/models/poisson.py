"""The iterative Poisson VAE, `IPVAE`: spikes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ipvae_kernels import PoissonParams, checks

from .. import checkpoint
from ..interop.parameters import poisson_params
from .config import IPVAEConfig
from .iterative import IterativeVAE
from .latents import PoissonLatents
from .layer import Layer


class IPVAE(PoissonLatents, IterativeVAE):
    """The iterative Poisson VAE: spikes, and log rates as membrane potentials (arXiv 2410.19315).

    Example:
        >>> model = IPVAE(IPVAEConfig(n_inputs=784, n_latents=512))
        >>> loss = model(torch.rand(8, 784), beta=24.0).loss
        >>> spikes = model.infer(torch.rand(8, 784), 100, record=("spikes",)).records["spikes"]
    """

    config: IPVAEConfig
    config_class = IPVAEConfig
    clamp_init = 2.0

    def _layer(self) -> Layer:
        return Layer(self.config, self.n_states, has_gain=False, has_arrivals=True)

    def _reset_prior(self, generator: torch.Generator) -> None:
        low, high = self.config.init_log_rate
        shape = (1, self.config.n_latents)
        draw = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
        self.layer.u_init[0].copy_(low + (high - low) * draw)

    @property
    def prior(self) -> Tensor:
        """Log rates before the first step, [K]."""
        prior: Tensor = self.layer.u_init[0][0]
        return prior

    @property
    def params(self) -> PoissonParams:
        """The parameters as `ipvae_kernels` takes them."""
        return poisson_params(self.layer, self._fused(), self.log_sigma)

    @property
    def n_arrivals(self) -> int | None:
        """The cut of the arrivals in force in training, None for no cut."""
        value = self.config.n_arrivals
        return int(self.layer.read("n_exp")) if value == "released" else value

    def set_n_arrivals(self, n: int) -> None:
        """Sets the cut used with ``n_arrivals="released"``, that is, the buffer that is saved.

        Raises:
            TypeError, ValueError: for what is not a number of arrivals.
        """
        self.layer.write("n_exp", checks.integer("n", n, 0, checkpoint.ARRIVALS_MAX))

    def _update_rule(self) -> dict[str, Any]:
        return {"drive": self.config.drive, "decay": self.config.decay}

    def _draw_options(self, estimator: str | None, temperature: float | None) -> dict[str, Any]:
        return {
            "estimator": self.config.estimator if estimator is None else estimator,
            "temperature": self.temperature if temperature is None else temperature,
            "n_arrivals": self.n_arrivals,
        }
