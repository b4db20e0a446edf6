"""Amortised models, `PVAE` and `GVAE`: an encoder gives the posterior in one step.

From "Poisson variational autoencoder" (arXiv 2405.14473) and its released code. For an input x, the prior
u_0 that is learned, and the encoder's e(x):

    u   = C(u_0 + C(e(x), clamp_du), clamp_u)             C(v, c) = c - softplus(c - v)
    z   ~ Poisson(exp(u)), by an estimator of `ipvae_kernels.poisson_rsample`
    kl  = sum_k KL(Poisson(exp(u)) || Poisson(exp(u_0))), exact

and for normal latents mean = mean_0 + e_1(x), log sigma = c tanh((log sigma_0 + e_2(x)) / c), with the log
sigma of the prior clamped likewise. Reconstruction term and loss are those of iterative models of one step.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ipvae_kernels
from ipvae_kernels import ElboResult, InferResult, State, checks
from ipvae_kernels.cells import Draw, gaussian
from ipvae_kernels.philox import KIND_LOSS, Stream
from ipvae_kernels.rollout.eager import RECORDS, Step, reconstruction_loss

from ..inputs import Inputs, whole
from .base import SIGMA_CLAMP, VAE, check_own, soft_log_sigma
from .config import OWN, AmortisedConfig, GVAEConfig, PVAEConfig
from .decoders import refuse_unfit, reset_network
from .encoders import make_encoder
from .latents import GaussianLatents, PoissonLatents


class AmortisedVAE(VAE):
    """What the amortised models share; make one with `PVAE`, `GVAE` or `build_model`.

    Args:
        config: of the family.
        decoder: as in `VAE`.
        encoder: with ``config.encoder = "module"``: from images ``[B, *input_shape]`` to [B, S K]: S = 1
            number for each neuron of a P-VAE (log rates), 2 of a G-VAE (all means, then all log sigmas). Each
            row by itself; its weights stay as they are given, and are trained with the model.

    Attributes:
        encoder: as given, or as the configuration says.
        phi: [M, K], the dictionary of a linear decoder; else None.
        free_log_sigma: [M], `log_sigma` before its soft clamp.
        free_prior: [S, K], the prior, log sigmas before their soft clamp.
        temp: the temperature of relaxed counts, [].
    """

    config: AmortisedConfig
    iterative = False
    encoder: nn.Module
    phi: nn.Parameter | None
    temp: Tensor

    def __init__(
        self, config: AmortisedConfig, *, decoder: nn.Module | None = None, encoder: nn.Module | None = None
    ) -> None:
        super().__init__(config, decoder=decoder)
        check_own(config, "encoder", encoder)
        outputs = self.n_states * config.n_latents
        if encoder is not None:
            refuse_unfit("encoder", encoder, config.shape, (outputs,))
        self.encoder = make_encoder(config, outputs) if encoder is None else encoder

        def parameter(fit: bool, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=torch.float32), requires_grad=fit)

        phi = parameter(True, config.n_inputs, config.n_latents) if self.decoder is None else None
        self.register_parameter("phi", phi)
        self.free_log_sigma = parameter(config.fit_sigma, config.n_inputs)
        self.free_prior = parameter(config.fit_prior, self.n_states, config.n_latents)
        self.register_buffer("temp", torch.ones((), dtype=torch.float32))
        self.reset_parameters()

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
        if config.encoder != OWN:
            reset_network(self.encoder, generator, config.init_scale)
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
        return soft_log_sigma(self.free_log_sigma)

    @property
    def temperature(self) -> float:
        """Of the relaxed counts, in force where `forward` is given none; 1 in a `GVAE`, which has none."""
        return float(self.temp)

    def posterior(self, x: Inputs) -> Tensor:
        """What the encoder and the prior make of inputs [B, M]: log rates [B, K], or [2, B, K]."""
        return self._residual(self.encoder(self._still(x).reshape(-1, *self.config.shape)).flatten(1))

    def _residual(self, encoded: Tensor) -> Tensor:
        """The posterior, from what the encoder returns, [B, S K]."""
        raise NotImplementedError

    def _draw(
        self, state: Tensor, seed: Tensor, offset: int, backend: str, check: bool, **options: Any
    ) -> Tensor:
        """Latents as the decoder takes them, [B, K]; hard where there are no options."""
        raise NotImplementedError

    def kl(self, state: Tensor, prior: Tensor) -> Tensor:
        """KL of each neuron, nats, [B, K]: of states to a prior [K] or [S, K], or to states."""
        raise NotImplementedError

    def _still(self, x: Inputs) -> Tensor:
        x = self.flatten(x)
        if x.ndim != 2:
            raise ValueError(
                f"x: expected still inputs [B, {self.config.n_inputs}], which an encoder takes, found "
                f"{list(x.shape)}"
            )
        return x

    def _step(self, x: Tensor, seed: Tensor, offset: int, backend: str, check: bool, **options: Any) -> Step:
        """What an iterative model would call its only step."""
        if check:
            checks.finite(x=x)
        state = self.posterior(x)
        code = self._draw(state, seed, offset, backend, check, **options)
        return Step([self.prior, state], [Draw(code, code, code)], [x - self._mean(code)], [])

    def forward(
        self,
        x: Inputs,
        steps: int | None = None,
        *,
        beta: float = 1.0,
        temperature: float | None = None,
        estimator: str | None = None,
        truncate: int | None = None,
        seed: int | Tensor | None = None,
        sample_offset: int | None = None,
        backend: str = "auto",
        check: bool = True,
    ) -> ElboResult:
        """The training loss, differentiable; as that of an iterative model of one step.

        Args:
            x: [B, M], pixels unflattened if you like.
            steps: None or 1.
            beta: weight of the KL.
            temperature: of the relaxed counts; None: the attribute. A `GVAE` has none and ignores it.
            estimator: of d(counts)/d(log rate); None: the configuration's. A `GVAE` has none.
            truncate: None; there is no sequence to cut.
            seed: of the noise; None: drawn from torch's generator.
            sample_offset: global index of the first row; None: 0.
            backend: of `ipvae_kernels`, for the counts.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            loss [], recon [1, B] and kl [1, B] in nats, and the posterior as a state.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        _one_step(steps)
        if truncate is not None:
            raise ValueError(
                f"truncate: expected None for a {self.cell}, which has no steps, found {truncate}"
            )
        x, beta = self._still(x), checks.number("beta", beta, 0.0)
        seed, offset = self._noise(x, seed, sample_offset)
        step = self._step(x, seed, offset, backend, check, **self._relaxed(estimator, temperature))
        recon = reconstruction_loss(step.errors[0], self.log_sigma)
        kl = self.kl(step.states[1], step.states[0]).sum(-1)
        loss = (recon + beta * kl).sum() * (256.0 / (x.shape[-1] * max(len(x), 1)))
        if check:
            checks.finite_result("the encoder, the decoder or the rates diverged", recon=recon, kl=kl)
        return ElboResult(loss, recon[None], kl[None], State(step.states[1], 1, seed, offset), {})

    @torch.no_grad()
    def infer(
        self,
        x: Inputs,
        steps: int | None = None,
        *,
        record: tuple[str, ...] = (),
        record_every: int = 1,
        state: State | None = None,
        seed: int | Tensor | None = None,
        sample_offset: int | None = None,
        backend: str = "auto",
        check: bool = True,
    ) -> InferResult:
        """Encodes and draws once, counts hard, no gradient; as one step of an iterative model.

        Args:
            x: [B, M], pixels unflattened if you like.
            steps: None or 1.
            record: names out of log_rate, counts, reconstruction, recon, kl, squared_error, spikes, zeros.
            record_every: 1.
            state: None; an encoder continues nothing.
            seed: of the noise; None: drawn from torch's generator.
            sample_offset: global index of the first row; None: 0.
            backend: of `ipvae_kernels`, for the counts.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            The posterior as a state, and the records, [1, B, ...] each.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        _one_step(steps)
        checks.integer("record_every", record_every, 1, 1)
        if state is not None:
            raise ValueError(f"state: expected None for a {self.cell}, whose encoder continues nothing")
        names = [checks.choice("record", name, RECORDS) for name in record]
        x = self._still(x)
        seed, offset = self._noise(x, seed, sample_offset)
        step = self._step(x, seed, offset, backend, check)
        # Of a cell, records want its divergence alone.
        records = {name: RECORDS[name](step, cast(Any, self), x, self.log_sigma)[None] for name in names}
        if check:
            checks.finite_result("the encoder, the decoder or the rates diverged", **records)
        return InferResult(State(step.states[1], 1, seed, offset), records)

    def _noise(self, x: Tensor, seed: int | Tensor | None, sample_offset: int | None) -> tuple[Tensor, int]:
        _, offset = checks.stream(0, 1, sample_offset or 0, len(x))
        return checks.seed(seed, x.device), offset

    def _relaxed(self, estimator: str | None, temperature: float | None) -> dict[str, Any]:
        """How latents are drawn and differentiated in training."""
        raise NotImplementedError


def _one_step(steps: int | None) -> None:
    if steps is not None and whole("steps", steps) != 1:
        raise ValueError(f"steps: expected None or 1, an encoder infers in one, found {steps}")


def _soft_ceiling(value: Tensor, ceiling: float) -> Tensor:
    return ceiling - F.softplus(ceiling - value)


class PVAE(PoissonLatents, AmortisedVAE):
    """The amortised Poisson VAE (arXiv 2405.14473), with every estimator of the package.

    Example:
        >>> model = PVAE(PVAEConfig(n_inputs=784, input_shape=(1, 28, 28), encoder="conv"))
        >>> loss = model(torch.rand(8, 1, 28, 28), beta=1.0).loss
    """

    config: PVAEConfig
    config_class = PVAEConfig

    def _reset_prior(self, generator: torch.Generator) -> None:
        draw = torch.empty(self.free_prior.shape, dtype=torch.float32, device="cpu")
        self.free_prior.copy_(draw.uniform_(*self.config.init_log_rate, generator=generator))

    @property
    def prior(self) -> Tensor:
        """Log rates of the prior, [K]."""
        return self.free_prior[0]

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

    def _draw(
        self, state: Tensor, seed: Tensor, offset: int, backend: str, check: bool, **options: Any
    ) -> Tensor:
        draw = ipvae_kernels.poisson_rsample if options else ipvae_kernels.poisson_sample
        return draw(
            state, seed=seed, draw="loss", sample_offset=offset, backend=backend, check=check, **options
        )

    def kl(self, state: Tensor, prior: Tensor) -> Tensor:
        """KL of each neuron, exact, nats: log rates [B, K] to those of a prior [K]."""
        return ipvae_kernels.poisson_kl(state, prior, check=False)


class GVAE(GaussianLatents, AmortisedVAE):
    """The ordinary VAE, with a residual posterior; with ``activation="relu"`` its latents are rectified."""

    config: GVAEConfig
    config_class = GVAEConfig

    def _clamped(self, state: Tensor) -> Tensor:
        mean, log_sigma = state.unbind()
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
            raise ValueError(f"estimator: expected None for a GVAE, which draws normals, found {estimator!r}")
        return {}

    def _draw(
        self, state: Tensor, seed: Tensor, offset: int, backend: str, check: bool, **options: Any
    ) -> Tensor:
        return self._activated(self._normal(state, seed, Stream(KIND_LOSS, sample_offset=offset)))

    def kl(self, state: Tensor, prior: Tensor) -> Tensor:
        """KL of each neuron, nats: states [2, B, K] to a prior [2, K]."""
        return gaussian.kl(state, prior[:, None] if prior.ndim == 2 else prior)
