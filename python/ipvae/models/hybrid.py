"""Hybrids between amortised and iterative inference: `SAPVAE`, `SAGVAE`, `IAPVAE` and `IAGVAE`.

Their prior is learned and fixed; iterations refine a posterior q towards less free energy,

    F(q) = E_q[recon] + KL(q || prior),   recon = sum_m (x - f(z))^2 / (2 var) + log sigma + log(2 pi) / 2

with one draw z of the posterior for each gradient, and a fresh one for the loss of the iteration.

*Semi-amortised* (after "Semi-amortized variational autoencoders", arXiv 1802.02550): an encoder gives the
first posterior, gradient descent with momentum the next ones, and gradients of training run through both. The
step is that of the iterative models, the natural gradient with their soft clamps; in log rates

    v   = u + momentum (u - u_before)                        the point looked at, Nesterov's form
    u'  = log_rate_update(v, u_prior, J(z)^T (x - f(z)) / var, leak = beta_inner),   z ~ Poisson(exp(v))

where the leak is the natural gradient of the KL to the prior. The loss is that of the last iteration.

*Iteratively amortised* (after "Iterative amortized inference", arXiv 1807.09356): no encoder; from the prior
on, a network (`ipvae.models.updaters`) maps what the posterior adds to the prior, the prior, and the gradient
to what it adds next. The gradient is an input like others: none passes through it. The loss is the mean over
the iterations, so that each learns to descend.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ipvae_kernels import checks
from ipvae_kernels.backend import choice
from ipvae_kernels.cells import CELLS, Cell, Draw, make_cell
from ipvae_kernels.philox import KIND_LOSS, KIND_UPDATE, Stream
from ipvae_kernels.poisson.noise import PhiloxNoise
from ipvae_kernels.rollout import composed
from ipvae_kernels.rollout.config import RolloutConfig
from ipvae_kernels.rollout.eager import residual

from ..inputs import Inputs
from .cell import NO_BIAS
from .config_hybrid import (
    IAGVAEConfig,
    IAPVAEConfig,
    IterativelyAmortisedConfig,
    SAGVAEConfig,
    SAPVAEConfig,
    SemiAmortisedConfig,
)
from .decoders import reset_network
from .fixed_prior import EncoderVAE, FixedPriorVAE, GaussianPosterior, PoissonPosterior
from .stepped import Start, SteppedVAE, Taken
from .updaters import Updater


class HybridVAE(SteppedVAE, FixedPriorVAE):
    """What the hybrids share; make one with its class or `build_model`."""

    through_gradients: ClassVar[bool]
    """Whether training differentiates the gradient that an iteration takes."""

    def _cell_config(self) -> dict[str, Any]:
        """The cell and its clamps, as `RolloutConfig` has them."""
        raise NotImplementedError

    def _looked_at(self, state: Tensor) -> Tensor:
        """The posterior whose gradient an iteration takes."""
        return state

    def _posterior(self, state: Tensor) -> Tensor:
        """The posterior of a state."""
        return state

    def _next(self, state: Tensor, prior: Tensor, drive: Tensor, draw: Draw, cell: Cell) -> Tensor:
        """The state after an iteration; ``drive`` is that at ``draw``, the prior that of each row."""
        raise NotImplementedError

    def _log_lr(self) -> Tensor:
        """Log step sizes of a cell's update, [] or [2]."""
        return self.free_log_sigma.new_zeros(() if self.n_numbers == 1 else (self.n_numbers,))

    def _draw_options(self, estimator: str | None, temperature: float | None) -> dict[str, Any]:
        return self._relaxed(estimator, temperature)

    def _prior_of(self, x: Tensor) -> Tensor:
        """The prior of each row, [B, K] or [2, B, K]."""
        prior = checks.raised(self.prior)
        return prior.unsqueeze(-2).expand(*prior.shape[:-1], len(x), prior.shape[-1])

    def _cell(self, start: Start, backend: str, **draws: Any) -> Cell:
        backend = choice.select(backend)
        # The leak is in force from two updates a step on.
        cfg = RolloutConfig(1, n_inner=2, sample_offset=start.offset, **self._cell_config(), **draws)
        log_bias = start.x.new_full((self.config.n_latents,), NO_BIAS)
        parts = (log_bias, checks.raised(self._log_lr()))
        if not CELLS[cfg.cell].counts:
            choice.refuse_compiled(backend, f"a {self.cell} runs in plain PyTorch")
        if CELLS[cfg.cell].counts and not composed.by_autograd(backend, cfg):
            return composed.cell_of(*parts, start.seed, cfg, backend)
        return make_cell(*parts, PhiloxNoise(start.seed), cfg, differentiable=True)

    def _walk(
        self,
        start: Start,
        steps: int,
        backend: str,
        *,
        fresh: bool,
        truncate: int | None = None,
        **draws: Any,
    ) -> Iterator[Taken]:
        x, state, prior = start.x, start.state, self._prior_of(start.x)
        cell, decoder = self._cell(start, backend, **draws), self._decoder()
        precision = self._precision()
        for t in range(start.first, start.first + steps):
            with nullcontext() if self.through_gradients else torch.no_grad():
                draw = cell.draw(self._looked_at(state), Stream(KIND_UPDATE, 0, t, start.offset))
                decoded = decoder(draw.code)
                drive = decoded.drive(residual(x, decoded) * precision)
            state = self._next(state, prior, drive, draw, cell)
            posterior = self._posterior(state)
            taken = Taken(state, cell.kl(posterior, prior).sum(-1))
            if fresh:
                code = cell.draw(posterior, Stream(KIND_LOSS, 0, t, start.offset)).code
                taken = taken._replace(code=code, error=residual(x, decoder(code)))
            yield taken


class SemiAmortisedVAE(EncoderVAE, HybridVAE):
    """What the semi-amortised models share.

    Args:
        config: of the family.
        decoder: as in `VAE`.
        encoder: as in `EncoderVAE`.

    Attributes:
        log_lr: log step sizes, learned, [] or [2] (mean and log sigma).
    """

    config: SemiAmortisedConfig
    through_gradients = True
    last_alone = True
    log_lr: nn.Parameter

    @property
    def t_train(self) -> int:
        """Iterations of a training update."""
        return self.config.t_train

    def _add_networks(self, encoder: nn.Module | None = None) -> None:
        super()._add_networks(encoder)
        shape = () if self.n_numbers == 1 else (self.n_numbers,)
        self.log_lr = nn.Parameter(torch.zeros(shape, dtype=torch.float32))

    def _reset_networks(self, generator: torch.Generator) -> None:
        super()._reset_networks(generator)
        self.log_lr.fill_(math.log(self.config.step_size))

    def _log_lr(self) -> Tensor:
        return self.log_lr

    # A state is the posterior, and the one before, which the momentum needs.
    def _first(self, x: Tensor) -> Tensor:
        posterior = self._numbers(checks.raised(self.posterior(x)))
        return torch.cat([posterior, posterior])

    def _numbers(self, posterior: Tensor) -> Tensor:
        """A posterior as [P, B, K]."""
        return posterior[None] if self.n_numbers == 1 else posterior

    def _posterior(self, state: Tensor) -> Tensor:
        now = state[: self.n_numbers]
        return now[0] if self.n_numbers == 1 else now

    def _looked_at(self, state: Tensor) -> Tensor:
        now, before = state.chunk(2)
        return self._posterior(now + self.config.momentum * (now - before))

    def _next(self, state: Tensor, prior: Tensor, drive: Tensor, draw: Draw, cell: Cell) -> Tensor:
        new = cell.update(self._looked_at(state), prior, drive, draw)
        return torch.cat([self._numbers(new), state[: self.n_numbers]])


class IterativelyAmortisedVAE(HybridVAE):
    """What the iteratively amortised models share.

    Args:
        config: of the family.
        decoder: as in `VAE`.

    Attributes:
        updater: the network that updates.
    """

    config: IterativelyAmortisedConfig
    through_gradients = False
    last_alone = False
    updater: Updater

    @property
    def t_train(self) -> int:
        """Iterations of a training update."""
        return self.config.t_train

    def _add_networks(self) -> None:
        self.updater = Updater(self.n_numbers * self.config.n_latents, self.config.updater_width)

    def _reset_networks(self, generator: torch.Generator) -> None:
        reset_network(self.updater, generator, self.config.init_scale)
        for norm in self.updater.norms:
            cast(nn.LayerNorm, norm).reset_parameters()

    def _gradient(self, posterior: Tensor, prior: Tensor, drive: Tensor, draw: Draw) -> Tensor:
        """Minus the gradient of the free energy, of the posterior's shape."""
        raise NotImplementedError

    def _first(self, x: Tensor) -> Tensor:
        return self._prior_of(x)

    def _next(self, state: Tensor, prior: Tensor, drive: Tensor, draw: Draw, cell: Cell) -> Tensor:
        with torch.no_grad():
            gradient = self._gradient(state, prior, drive, draw)
        own = self.like.dtype
        rows = (_by_row(part).to(own) for part in (state - prior, prior, gradient))
        return checks.raised(self._residual(self.updater(*rows)))


def _by_row(numbers: Tensor) -> Tensor:
    """Numbers [B, K] or [P, B, K] as [B, P K]."""
    return numbers if numbers.ndim == 2 else numbers.movedim(0, 1).flatten(1)


class _Counts(PoissonPosterior, HybridVAE):
    """Log rates that iterations refine."""

    def _cell_config(self) -> dict[str, Any]:
        config = self.config
        return {"cell": "poisson", "clamp_u": config.clamp_u, "clamp_du": config.clamp_du}


class _Normals(GaussianPosterior, HybridVAE):
    """Means and log sigmas that iterations refine, with the clamps of the iterative Gaussian models."""

    def _cell_config(self) -> dict[str, Any]:
        cell = "gaussian_relu" if self.activation == "relu" else "gaussian"
        (clamp_u, clamp_xi), (clamp_du, clamp_dxi) = CELLS[cell].clamp_u, CELLS[cell].clamp_du
        clamps = {"clamp_u": clamp_u, "clamp_du": clamp_du, "clamp_xi": clamp_xi, "clamp_dxi": clamp_dxi}
        return {"cell": cell, **clamps}


class SAPVAE(_Counts, SemiAmortisedVAE):
    """A semi-amortised Poisson VAE: an encoder's log rates, refined by natural-gradient steps.

    Example:
        >>> model = SAPVAE(SAPVAEConfig(n_inputs=784, input_shape=(1, 28, 28), n_latents=512))
        >>> loss = model(torch.rand(8, 784)).loss
    """

    config: SAPVAEConfig
    config_class = SAPVAEConfig
    n_states = 2

    def rates(self, log_rate: Inputs) -> Tensor:
        """exp(u) of states [..., 2, B, K]: [..., B, K]."""
        states = self._taken("log_rate", log_rate)
        if states.ndim < 3 or states.shape[-3] != self.n_states:
            raise ValueError(f"log_rate: expected shape [..., 2, B, K], found {list(states.shape)}")
        return states.select(-3, 0).exp()

    def _cell_config(self) -> dict[str, Any]:
        return {**super()._cell_config(), "beta_inner": self.config.beta_inner}


class SAGVAE(_Normals, SemiAmortisedVAE):
    """The semi-amortised VAE: an encoder's means and log sigmas, refined by natural-gradient steps."""

    config: SAGVAEConfig
    config_class = SAGVAEConfig
    n_states = 4

    def _cell_config(self) -> dict[str, Any]:
        return {**super()._cell_config(), "beta_inner": self.config.beta_inner}


class IAPVAE(_Counts, IterativelyAmortisedVAE):
    """An iteratively amortised Poisson VAE: a network makes updates of log rates from their gradients."""

    config: IAPVAEConfig
    config_class = IAPVAEConfig

    def _gradient(self, posterior: Tensor, prior: Tensor, drive: Tensor, draw: Draw) -> Tensor:
        return drive - (posterior - prior)  # the natural one


class IAGVAE(_Normals, IterativelyAmortisedVAE):
    """The iteratively amortised VAE: a network makes updates of means and log sigmas from their gradients."""

    config: IAGVAEConfig
    config_class = IAGVAEConfig

    def _gradient(self, posterior: Tensor, prior: Tensor, drive: Tensor, draw: Draw) -> Tensor:
        if self.activation == "relu":
            drive = drive * (draw.code > 0.0)
        mean, log_sigma = posterior.unbind()
        of_mean = drive - (mean - prior[0]) * torch.exp(-2.0 * prior[1])
        of_log_sigma = drive * draw.memo * log_sigma.exp() - torch.expm1(2.0 * (log_sigma - prior[1]))
        return torch.stack([of_mean, of_log_sigma])
