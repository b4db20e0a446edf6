"""What models share whose prior is one for all steps, `FixedPriorVAE`: the amortised ones and the hybrids."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ipvae_kernels
from ipvae_kernels import checks
from ipvae_kernels.cells import gaussian

from ..inputs import Inputs
from .base import SIGMA_CLAMP, VAE, check_own, soft_log_sigma
from .config import OWN, AmortisedConfig, CountsConfig, FixedPriorConfig, NormalsConfig
from .decoders import refuse_unfit, reset_network
from .encoders import make_encoder
from .latents import GaussianLatents, PoissonLatents


class FixedPriorVAE(VAE):
    """A decoder, a learned prior, and networks that infer; make one of a family, such as `PVAE`.

    Args:
        config: of the family.
        decoder: as in `VAE`.
        networks: those of the user's that the family takes.

    Attributes:
        phi: [M, K], the dictionary of a linear decoder; else None.
        free_log_sigma: [M], `log_sigma` before its soft clamp.
        free_prior: [P, K], the prior, log sigmas before their soft clamp.
        temp: the temperature of relaxed counts, [].
        n_numbers: P, numbers that a neuron's posterior has: 1, its log rate, or 2, mean and log sigma.
    """

    config: FixedPriorConfig
    n_numbers: ClassVar[int]
    phi: nn.Parameter | None
    temp: Tensor

    def __init__(
        self, config: FixedPriorConfig, *, decoder: nn.Module | None = None, **networks: nn.Module | None
    ) -> None:
        super().__init__(config, decoder=decoder)
        self._add_networks(**networks)

        def parameter(fit: bool, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=torch.float32), requires_grad=fit)

        phi = parameter(True, config.n_inputs, config.n_latents) if self.decoder is None else None
        self.register_parameter("phi", phi)
        self.free_log_sigma = parameter(config.fit_sigma, config.n_inputs)
        self.free_prior = parameter(config.fit_prior, self.n_numbers, config.n_latents)
        self.register_buffer("temp", torch.ones((), dtype=torch.float32))
        self.reset_parameters()

    def _add_networks(self) -> None:
        """Makes what infers, or takes it from the user."""
        raise NotImplementedError

    def _reset_networks(self, generator: torch.Generator) -> None:
        """Draws the weights of what infers."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Brings every parameter and buffer back to what a new model of this configuration holds.

        All is drawn from the configuration's seed alone, as in `IterativeVAE.reset_parameters`; modules that
        the model was given keep their weights.
        """
        config = self.config
        if self.free_prior.is_meta:
            return
        self.temp.fill_(1.0)
        self.free_log_sigma.fill_(SIGMA_CLAMP * math.atanh(config.init_log_sigma / SIGMA_CLAMP))
        generator = torch.Generator("cpu").manual_seed(config.seed)
        if self.phi is not None:
            draw = torch.empty(self.phi.shape, dtype=torch.float32, device="cpu")
            self.phi.copy_(draw.normal_(0.0, config.init_scale, generator=generator))
        elif config.decoder != OWN:
            reset_network(cast(nn.Module, self.decoder), generator, config.init_scale)
        self._reset_networks(generator)
        self._reset_prior(generator)

    def _reset_prior(self, generator: torch.Generator) -> None:
        self.free_prior.zero_()

    def _linear(self) -> Tensor:
        return cast(Tensor, self.phi)

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device that inputs take."""
        return self.free_log_sigma

    @property
    def log_sigma(self) -> Tensor:
        """Log standard deviation of the pixels, [M], soft-clamped to within 3.45."""
        return soft_log_sigma(checks.raised(self.free_log_sigma))

    @property
    def temperature(self) -> float:
        """Of the relaxed counts, in force where `forward` is given none; 1 of normal latents, without one."""
        return float(self.temp)

    def _still(self, x: Inputs) -> Tensor:
        x = self.flatten(x)
        if x.ndim != 2:
            raise ValueError(
                f"x: expected still inputs [B, {self.config.n_inputs}] for a {self.cell}, found "
                f"{list(x.shape)}"
            )
        return x

    def _noise(self, x: Tensor, seed: int | Tensor | None, sample_offset: int | None) -> tuple[Tensor, int]:
        _, offset = checks.stream(0, 1, sample_offset or 0, len(x))
        return checks.seed(seed, x.device), offset

    def _relaxed(self, estimator: str | None, temperature: float | None) -> dict[str, Any]:
        """How latents are drawn and differentiated in training."""
        raise NotImplementedError

    def kl(self, state: Tensor, prior: Tensor) -> Tensor:
        """KL of each neuron, nats, [B, K]: of posteriors to a prior [K] or [P, K], or to posteriors."""
        raise NotImplementedError

    def _residual(self, added: Tensor) -> Tensor:
        """A posterior, from what is added to the prior: [B, P K], all numbers of one kind after another."""
        raise NotImplementedError


class EncoderVAE(FixedPriorVAE):
    """What an encoder gives the posterior of, or a first one.

    Args:
        config: of the family.
        decoder: as in `VAE`.
        encoder: with ``config.encoder = "module"``: from images ``[B, *input_shape]`` to [B, P K]: P = 1
            number for each neuron with counts (log rates), 2 with normals (all means, then all log sigmas).
            Each row by itself; its weights stay as they are given, and are trained with the model.

    Attributes:
        encoder: as given, or as the configuration says.
    """

    config: AmortisedConfig
    encoder: nn.Module

    def __init__(
        self, config: AmortisedConfig, *, decoder: nn.Module | None = None, encoder: nn.Module | None = None
    ) -> None:
        super().__init__(config, decoder=decoder, encoder=encoder)

    def _add_networks(self, encoder: nn.Module | None = None) -> None:
        config, outputs = self.config, self.n_numbers * self.config.n_latents
        check_own(config, "encoder", encoder)
        if encoder is not None:
            refuse_unfit("encoder", encoder, config.shape, (outputs,))
        self.encoder = make_encoder(config, outputs) if encoder is None else encoder

    def _reset_networks(self, generator: torch.Generator) -> None:
        if self.config.encoder != OWN:
            reset_network(self.encoder, generator, self.config.init_scale)

    def posterior(self, x: Inputs) -> Tensor:
        """What the encoder and the prior make of inputs [B, M]: log rates [B, K], or [2, B, K]."""
        encoded = self.encoder(self._still(x).reshape(-1, *self.config.shape)).flatten(1)
        return self._residual(checks.raised(encoded))


class PoissonPosterior(PoissonLatents, FixedPriorVAE):
    """Counts, whose prior and posterior have log rates."""

    config: CountsConfig
    n_numbers = 1

    def _reset_prior(self, generator: torch.Generator) -> None:
        draw = torch.empty(self.free_prior.shape, dtype=torch.float32, device="cpu")
        self.free_prior.copy_(draw.uniform_(*self.config.init_log_rate, generator=generator))

    @property
    def prior(self) -> Tensor:
        """Log rates of the prior, [K]."""
        return checks.raised(self.free_prior[0])

    def set_annealing(self, *, temperature: float | None = None, eps: float | None = None) -> None:
        """Sets the temperature; there are no clamps to open, so `eps` changes nothing."""
        if temperature is not None:
            self.temp.fill_(checks.number("temperature", temperature, 0.0))

    def _residual(self, encoded: Tensor) -> Tensor:
        config = self.config
        return _soft_ceiling(self.prior + _soft_ceiling(encoded, config.clamp_du), config.clamp_u)

    def _relaxed(self, estimator: str | None, temperature: float | None) -> dict[str, Any]:
        return {
            "estimator": self.config.estimator if estimator is None else estimator,
            "temperature": self.temperature if temperature is None else temperature,
            "n_arrivals": self.config.n_arrivals,
        }

    def kl(self, state: Tensor, prior: Tensor) -> Tensor:
        """KL of each neuron, exact, nats: log rates [B, K] to those of a prior [K]."""
        return ipvae_kernels.poisson_kl(state, prior, check=False)


class GaussianPosterior(GaussianLatents, FixedPriorVAE):
    """Normals, whose prior and posterior have means and log sigmas."""

    config: NormalsConfig
    n_numbers = 2

    def _clamped(self, state: Tensor) -> Tensor:
        mean, log_sigma = checks.raised(state).unbind()
        c = self.config.clamp_log_sigma
        return torch.stack([mean, c * torch.tanh(log_sigma / c)])

    @property
    def prior(self) -> Tensor:
        """Mean and log sigma of the prior, [2, K]."""
        return self._clamped(self.free_prior)

    def set_annealing(self, *, temperature: float | None = None, eps: float | None = None) -> None:
        """Nothing to set: there are no relaxed counts, and no clamps that open."""

    def _residual(self, encoded: Tensor) -> Tensor:
        added = torch.stack(encoded.chunk(2, dim=1))
        return self._clamped(self.free_prior[:, None] + added)

    def _relaxed(self, estimator: str | None, temperature: float | None) -> dict[str, Any]:
        if estimator is not None:
            raise ValueError(
                f"estimator: expected None for a {self.cell}, which draws normals, found {estimator!r}"
            )
        return {}

    def kl(self, state: Tensor, prior: Tensor) -> Tensor:
        """KL of each neuron, nats: states [2, B, K] to a prior [2, K]."""
        return gaussian.kl(state, prior[:, None] if prior.ndim == 2 else prior)


def _soft_ceiling(value: Tensor, ceiling: float) -> Tensor:
    return ceiling - F.softplus(ceiling - value)
