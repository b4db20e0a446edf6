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
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from ipvae_kernels import ElboResult, InferResult, State, checks
from ipvae_kernels.backend import choice
from ipvae_kernels.cells import CELLS, Cell, Draw, make_cell
from ipvae_kernels.philox import KIND_LOSS, KIND_UPDATE, Stream
from ipvae_kernels.poisson.noise import PhiloxNoise
from ipvae_kernels.rollout import composed
from ipvae_kernels.rollout.config import RolloutConfig
from ipvae_kernels.rollout.decoders import Decoder, LinearDecoder, as_decoder
from ipvae_kernels.rollout.eager import RECORDS, Step, reconstruction_loss, residual

from ..inputs import Inputs, whole
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
from .updaters import Updater


class _Run(NamedTuple):
    """What the iterations of a batch share.

    Attributes:
        x: [B, M].
        prior: for each row, [B, K] or [2, B, K].
        cell: draws, steps and compares posteriors.
        decoder: of codes [B, K].
        offset: global index of the first row.
    """

    x: Tensor
    prior: Tensor
    cell: Cell
    decoder: Decoder
    offset: int


class _Start(NamedTuple):
    """Where iterations begin: the state, how many came before, seed and index of the first row."""

    state: Tensor
    step: int
    seed: Tensor
    offset: int

    def after(self, state: Tensor, steps: int) -> State:
        """Where they end."""
        return State(state, self.step + steps, self.seed, self.offset)


class HybridVAE(FixedPriorVAE):
    """What the hybrids share; make one with its class or `build_model`."""

    iterative = True
    through_gradients: ClassVar[bool]
    """Whether training differentiates the gradient that an iteration takes."""
    last_alone: ClassVar[bool]
    """Whether the loss is that of the last iteration, or the mean over all."""

    def _cell_config(self) -> dict[str, Any]:
        """The cell and its clamps, as `RolloutConfig` has them."""
        raise NotImplementedError

    def _first(self, x: Tensor) -> Tensor:
        """The state before the first iteration."""
        raise NotImplementedError

    def _looked_at(self, state: Tensor) -> Tensor:
        """The posterior whose gradient an iteration takes."""
        return state

    def _posterior(self, state: Tensor) -> Tensor:
        """The posterior of a state."""
        return state

    def _next(self, state: Tensor, run: _Run, drive: Tensor, draw: Draw) -> Tensor:
        """The state after an iteration; ``drive`` is that at ``draw``."""
        raise NotImplementedError

    def _log_lr(self) -> Tensor:
        """Log step sizes of a cell's update, [] or [2]."""
        return self.free_log_sigma.new_zeros(() if self.n_numbers == 1 else (self.n_numbers,))

    def _run(self, x: Tensor, seed: Tensor, offset: int, backend: str, **draws: Any) -> _Run:
        backend = choice.select(backend)
        # The leak is in force from two updates a step on.
        cfg = RolloutConfig(1, n_inner=2, sample_offset=offset, **self._cell_config(), **draws)
        log_bias = x.new_full((self.config.n_latents,), NO_BIAS)
        parts = (log_bias, checks.raised(self._log_lr()))
        if not CELLS[cfg.cell].counts:
            choice.refuse_compiled(backend, f"a {self.cell} runs in plain PyTorch")
        if CELLS[cfg.cell].counts and not composed.by_autograd(backend, cfg):
            cell = composed.cell_of(*parts, seed, cfg, backend)
        else:
            cell = make_cell(*parts, PhiloxNoise(seed), cfg, differentiable=True)
        prior = checks.raised(self.prior)
        lead = (*prior.shape[:-1], len(x), prior.shape[-1])
        decoder = (
            as_decoder(self.flat_decoder()) if self.decoder is not None else LinearDecoder(self._linear())
        )
        return _Run(x, prior.unsqueeze(-2).expand(lead), cell, decoder, offset)

    def _iterations(self, run: _Run, state: Tensor, first: int, steps: int) -> Iterator[tuple[Tensor, Step]]:
        """The state after each iteration, and what records and loss are made of."""
        precision = torch.exp(-2.0 * self.log_sigma)
        for t in range(first, first + steps):
            with nullcontext() if self.through_gradients else torch.no_grad():
                draw = run.cell.draw(self._looked_at(state), Stream(KIND_UPDATE, 0, t, run.offset))
                decoded = run.decoder(draw.code)
                drive = decoded.drive(residual(run.x, decoded) * precision)
            state = self._next(state, run, drive, draw)
            posterior = self._posterior(state)
            fresh = run.cell.draw(posterior, Stream(KIND_LOSS, 0, t, run.offset))
            error = residual(run.x, run.decoder(fresh.code))
            yield state, Step([run.prior, posterior], [fresh], [error], [drive])

    def _begin(
        self, x: Inputs, steps: int | None, state: State | None, seed: int | Tensor | None,
        sample_offset: int | None, check: bool,
    ) -> tuple[Tensor, int, _Start]:  # fmt: skip
        """Inputs, number of iterations, and where they begin."""
        x, steps = self._still(x), self.t_train if steps is None else whole("steps", steps)
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, found {steps}")
        if check:
            checks.finite(x=x)
        if state is None:
            seed, offset = self._noise(x, seed, sample_offset)
            return x, steps, _Start(self._first(x), 0, seed, offset)
        lead = (self.n_states,) if self.n_states > 1 else ()
        checks.shape("state.log_rate", state.log_rate, (*lead, len(x), self.config.n_latents), "a state's")
        seed, offset = self._noise(
            x, state.seed if seed is None else seed,
            state.sample_offset if sample_offset is None else sample_offset,
        )  # fmt: skip
        return x, steps, _Start(state.log_rate, state.step, seed, offset)

    def forward(
        self,
        x: Inputs,
        steps: int | None = None,
        *,
        beta: float = 1.0,
        temperature: float | None = None,
        estimator: str | None = None,
        truncate: int | None = None,
        state: State | None = None,
        seed: int | Tensor | None = None,
        sample_offset: int | None = None,
        backend: str = "auto",
        check: bool = True,
    ) -> ElboResult:
        """The training loss, differentiable through all iterations.

        Args:
            x: [B, M], pixels unflattened if you like.
            steps: iterations; None: the configuration's `t_train`.
            beta: weight of the KL in the loss; in the iterations it is the configuration's.
            temperature: of the relaxed counts; None: the attribute. Normals have none and ignore it.
            estimator: of d(counts)/d(log rate); None: the configuration's. Normals have none.
            truncate: None; the gradient is not cut.
            state: to continue from; None: the first posterior.
            seed: of the noise; None: drawn from torch's generator.
            sample_offset: global index of the first row; None: the state's, or 0.
            backend: of `ipvae_kernels`.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            loss [], recon [T, B] and kl [T, B] of each iteration in nats, and the state.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        if truncate is not None:
            raise ValueError(
                f"truncate: expected None for a {self.cell}, whose gradient runs through all iterations, "
                f"found {truncate}"
            )
        beta = checks.number("beta", beta, 0.0)
        x, steps, at = self._begin(x, steps, state, seed, sample_offset, check)
        run = self._run(x, at.seed, at.offset, backend, **self._relaxed(estimator, temperature))
        recons, kls, last = [], [], at.state
        for now, step in self._iterations(run, at.state, at.step, steps):
            last = now
            recons.append(reconstruction_loss(step.errors[-1], self.log_sigma))
            kls.append(run.cell.kl(step.states[-1], step.states[0]).sum(-1))
        recon, kl = torch.stack(recons), torch.stack(kls)
        if check:
            checks.finite_result("the iterations diverged; is the step size reasonable?", recon=recon, kl=kl)
        counted = slice(-1, None) if self.last_alone else slice(None)
        loss = recon[counted] + beta * kl[counted]
        loss = loss.sum() * (256.0 / (x.shape[-1] * max(loss.numel(), 1)))
        return ElboResult(loss, recon, kl, at.after(last, steps), {})

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
        """Iterations without gradient, counts hard; memory grows with `steps` by what is recorded alone.

        Args:
            x: [B, M], pixels unflattened if you like.
            steps: iterations; None: the configuration's `t_train`.
            record: names out of log_rate (the state), counts, reconstruction, recon, kl, squared_error,
                spikes, zeros.
            record_every: keep every so manyth iteration.
            state: to continue from, bit for bit; None: the first posterior.
            seed: of the noise; None: drawn from torch's generator.
            sample_offset: global index of the first row; None: the state's, or 0.
            backend: of `ipvae_kernels`.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            The state, and the records, [R, B, ...] each.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        names = [checks.choice("record", name, RECORDS) for name in record]
        record_every = checks.integer("record_every", record_every, 1, 2**32)
        x, steps, at = self._begin(x, steps, state, seed, sample_offset, check)
        run, last = self._run(x, at.seed, at.offset, backend), at.state
        rows: dict[str, list[Tensor]] = {name: [] for name in names}
        for done, (now, step) in enumerate(self._iterations(run, at.state, at.step, steps), at.step + 1):
            last = now
            if done % record_every:
                continue
            for name in names:
                whole_state = name == "log_rate"
                rows[name].append(last if whole_state else RECORDS[name](step, run.cell, x, self.log_sigma))
        records = {name: self._stacked(name, found, x, last) for name, found in rows.items()}
        if check:
            checks.finite_result("the iterations diverged", **{"state": last, **records})
        return InferResult(at.after(last, steps), records)

    def _stacked(self, name: str, rows: list[Tensor], x: Tensor, state: Tensor) -> Tensor:
        """Records [R, ...], where R may be 0."""
        if rows:
            return torch.stack(rows)
        wide = {"log_rate": state.shape, "counts": (len(x), state.shape[-1]), "reconstruction": x.shape}
        return x.new_empty((0, *wide.get(name, (len(x),))))


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

    def _next(self, state: Tensor, run: _Run, drive: Tensor, draw: Draw) -> Tensor:
        new = run.cell.update(self._looked_at(state), run.prior, drive, draw)
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

    def _gradient(self, posterior: Tensor, run: _Run, drive: Tensor, draw: Draw) -> Tensor:
        """Minus the gradient of the free energy, of the posterior's shape."""
        raise NotImplementedError

    def _first(self, x: Tensor) -> Tensor:
        prior = checks.raised(self.prior)
        return prior.unsqueeze(-2).expand(*prior.shape[:-1], len(x), prior.shape[-1])

    def _next(self, state: Tensor, run: _Run, drive: Tensor, draw: Draw) -> Tensor:
        with torch.no_grad():
            gradient = self._gradient(state, run, drive, draw)
        rows = (_by_row(part) for part in (state - run.prior, run.prior, gradient))
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

    def _gradient(self, posterior: Tensor, run: _Run, drive: Tensor, draw: Draw) -> Tensor:
        return drive - (posterior - run.prior)  # the natural one


class IAGVAE(_Normals, IterativelyAmortisedVAE):
    """The iteratively amortised VAE: a network makes updates of means and log sigmas from their gradients."""

    config: IAGVAEConfig
    config_class = IAGVAEConfig

    def _gradient(self, posterior: Tensor, run: _Run, drive: Tensor, draw: Draw) -> Tensor:
        if self.activation == "relu":
            drive = drive * (draw.code > 0.0)
        (mean, log_sigma), prior = posterior.unbind(), run.prior
        of_mean = drive - (mean - prior[0]) * torch.exp(-2.0 * prior[1])
        of_log_sigma = drive * draw.memo * log_sigma.exp() - torch.expm1(2.0 * (log_sigma - prior[1]))
        return torch.stack([of_mean, of_log_sigma])
