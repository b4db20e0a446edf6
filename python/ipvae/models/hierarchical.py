"""A hierarchical iterative Poisson VAE, `HIPVAE`: layers of spiking neurons, each predicting the one below.

The extension that "Brain-like variational inference" (arXiv 2410.19315) leaves to future work, in a form of
ours. Layer 0 is decoded to the input; layer l + 1 predicts the log rates of layer l. As in the paper the
prior of a step is the last posterior; that of a lower layer is drawn towards the prediction from above, by a
learned share g of each neuron:

    r_top = u_top
    r_l   = u_l + g_l (C(c_l + W_l z_{l+1}) - u_l),   z_{l+1} ~ Poisson(exp(r_{l+1}))      from the top down

C being the soft clamp of the log rates, lest a loud layer excite the lower ones without bound. With g = 0 the
layers come apart and the lowest is the iP-VAE; with g = 1 nothing of the past is left in the
prior. Then each layer takes the iP-VAE's update from its prior on, from below to the top,

    u_0' = log_rate_update(r_0, r_0, J(z_0)^T (x - f(z_0)) / var),                 z_0 ~ Poisson(exp(r_0))
    u_l' = log_rate_update(r_l, r_l, W_{l-1}^T (g_{l-1} C' (exp(u_{l-1}') - exp(r_{l-1}))))

where the drive of layer l is minus the gradient of KL(u_{l-1}' || r_{l-1}) in z_l: what the layer below found
less what it was told, as the drive of layer 0 is what the input is less what it was told. The free energy of
a step has fresh draws z', recon(x, z_0') and KL(u_l' || r_l') of every layer, r_l' predicted by z_{l+1}'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

import ipvae_kernels
from ipvae_kernels import checks
from ipvae_kernels.backend import choice
from ipvae_kernels.cells import Cell, Draw, make_cell
from ipvae_kernels.philox import KIND_LOSS, KIND_UPDATE, Stream
from ipvae_kernels.poisson.noise import PhiloxNoise
from ipvae_kernels.rollout import composed
from ipvae_kernels.rollout.config import RolloutConfig
from ipvae_kernels.rollout.eager import residual
from ipvae_kernels.update.eager import FLOOR, soft_clamp

from ..inputs import Inputs
from .base import soft_log_sigma
from .config import OWN
from .config_hierarchical import HIPVAEConfig
from .decoders import reset_network
from .iterative import opened
from .latents import PoissonLatents
from .stepped import Start, SteppedVAE, Taken

_CLAMP_INIT = 2.0


class HierarchicalLayer(nn.Module):
    """The parameters of one layer.

    Args:
        n_latents: K, its neurons.
        above: neurons of the layer above; 0 at the top.
        fit_prior: whether `start` is learned.

    Attributes:
        log_bias: [K], constant inhibition.
        log_lr: [], log step size.
        start: [K], log rates before the first step.
        weight: [K, above], from the layer above to log rates; None at the top.
        offset: [K], what no spike above predicts; likewise.
        share: [K], logit of the share of the prior that comes from above; likewise.
    """

    weight: nn.Parameter | None
    offset: nn.Parameter
    share: nn.Parameter

    def __init__(self, n_latents: int, above: int, fit_prior: bool) -> None:
        super().__init__()

        def parameter(*shape: int, fit: bool = True) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=torch.float32), requires_grad=fit)

        self.log_bias, self.log_lr = parameter(n_latents), parameter()
        self.start = parameter(n_latents, fit=fit_prior)
        self.register_parameter("weight", parameter(n_latents, above) if above else None)
        self.register_parameter("offset", parameter(n_latents) if above else None)
        self.register_parameter("share", parameter(n_latents) if above else None)

    def prior(self, u: Tensor, above: Tensor | None, ceiling: float) -> tuple[Tensor, Tensor]:
        """The prior of a step, [B, K], of the last log rates and the counts above; and its slope.

        The slope is d prior / d (offset + weight above): the share, but where the prediction is clamped.
        """
        if above is None or self.weight is None:
            return u, torch.zeros_like(u)
        raw, share = self._raw(above), torch.sigmoid(checks.raised(self.share))
        slope = share * torch.sigmoid(ceiling - raw) * (raw >= FLOOR)
        return u + share * (self.predicted(above, ceiling) - u), slope

    def predicted(self, above: Tensor, ceiling: float) -> Tensor:
        """The log rates that counts above predict, [B, K]."""
        return soft_clamp(self._raw(above).clamp(min=FLOOR), ceiling)

    def _raw(self, above: Tensor) -> Tensor:
        assert self.weight is not None
        return checks.raised(self.offset) + above @ checks.raised(self.weight).T

    def drive_above(self, posterior: Tensor, prior: Tensor, slope: Tensor) -> Tensor:
        """The drive of the layer above, [B, above]: minus the gradient of the KL in its counts."""
        assert self.weight is not None
        return (slope * (posterior.exp() - prior.exp())) @ checks.raised(self.weight)


class HIPVAE(PoissonLatents, SteppedVAE):
    """Layers of spiking neurons; a state has the log rates of all, one after another from below: [B, sum K].

    Counts, features, encodings and rates are those of the lowest layer; `layer_rates` has the others.

    Args:
        config: of the family.
        decoder: as in `VAE`, of the lowest layer.

    Attributes:
        layers: their parameters, from below to the top.
        phi: [M, K], the dictionary of a linear decoder; else None.
        free_log_sigma: [M], `log_sigma` before its soft clamp.
        temp: temperature of relaxed counts, [].
        eps: opening of the soft clamps, 0 to 1, [].

    Example:
        >>> model = HIPVAE(HIPVAEConfig(n_inputs=784, n_latents=480, upper_latents=(52,)))
        >>> loss = model(torch.rand(8, 784)).loss
    """

    config: HIPVAEConfig
    config_class = HIPVAEConfig
    takes_motion = True
    phi: nn.Parameter | None
    temp: Tensor
    eps: Tensor

    def __init__(self, config: HIPVAEConfig, *, decoder: nn.Module | None = None) -> None:
        super().__init__(config, decoder=decoder)
        sizes = config.layers
        upper = (*sizes[1:], 0)
        pairs = zip(sizes, upper, strict=True)
        self.layers = nn.ModuleList(HierarchicalLayer(k, above, config.fit_prior) for k, above in pairs)
        phi = torch.zeros(config.n_inputs, config.n_latents, dtype=torch.float32)
        self.register_parameter("phi", nn.Parameter(phi) if self.decoder is None else None)
        self.free_log_sigma = nn.Parameter(torch.zeros(config.n_inputs, dtype=torch.float32))
        for name in ("temp", "eps"):
            self.register_buffer(name, torch.ones((), dtype=torch.float32))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Brings every parameter and buffer back to what a new model of this configuration holds.

        All is drawn from the configuration's seed alone; a decoder that the model was given keeps its
        weights.
        """
        config = self.config
        if self.free_log_sigma.is_meta:
            return
        generator = torch.Generator("cpu").manual_seed(config.seed)

        def normal(like: Tensor, scale: float) -> Tensor:
            draw = torch.empty(like.shape, dtype=torch.float32, device="cpu")
            return draw.normal_(0.0, scale, generator=generator)

        self.temp.fill_(1.0)
        self.eps.fill_(1.0)
        self.free_log_sigma.zero_()
        if self.phi is not None:
            self.phi.copy_(normal(self.phi, config.init_scale))
        elif config.decoder != OWN and self.decoder is not None:
            reset_network(self.decoder, generator, config.init_scale)
        for layer in self.levels:
            layer.log_bias.fill_(config.init_log_bias)
            layer.log_lr.zero_()
            start = torch.empty(layer.start.shape, dtype=torch.float32, device="cpu")
            layer.start.copy_(start.uniform_(*config.init_log_rate, generator=generator))
            if layer.weight is not None:
                layer.weight.copy_(normal(layer.weight, config.init_upper_scale))
                layer.offset.copy_(layer.start)
                layer.share.fill_(math.log(config.init_share / (1.0 - config.init_share)))

    @property
    def levels(self) -> list[HierarchicalLayer]:
        """`layers` as a list, from below to the top."""
        return cast("list[HierarchicalLayer]", list(self.layers))

    def _linear(self) -> Tensor:
        assert self.phi is not None
        return self.phi

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device that inputs take."""
        return self.free_log_sigma

    @property
    def log_sigma(self) -> Tensor:
        """Log standard deviation of the pixels, [M], soft-clamped to within 3.45."""
        return soft_log_sigma(checks.raised(self.free_log_sigma))

    @property
    def t_train(self) -> int:
        """Inference steps of a training update."""
        return self.config.t_train

    @property
    def shares(self) -> list[Tensor]:
        """Of each layer but the top, how much of its prior comes from above, [K], 0 to 1."""
        return [torch.sigmoid(layer.share.detach()) for layer in self.levels[:-1]]

    def set_annealing(self, *, temperature: float | None = None, eps: float | None = None) -> None:
        """Sets the temperature of relaxed counts, and how far the soft clamps are open, 0 to 1."""
        if temperature is not None:
            self.temp.fill_(checks.number("temperature", temperature, 0.0))
        if eps is not None:
            self.eps.fill_(checks.number("eps", eps, 0.0, 1.0))

    @property
    def prior(self) -> Tensor:
        """Log rates of the lowest layer before the first step, [K]."""
        first: Tensor = self.levels[0].start
        return first

    def split(self, log_rate: Tensor) -> tuple[Tensor, ...]:
        """The log rates of each layer, [..., K_l], from below, of those of all, [..., sum K]."""
        return torch.split(log_rate, list(self.config.layers), dim=-1)

    def rates(self, log_rate: Inputs) -> Tensor:
        """exp(u) of the lowest layer, [..., K], of log rates of all, [..., sum K]."""
        return self.layer_rates(log_rate)[0]

    def layer_rates(self, log_rate: Inputs) -> tuple[Tensor, ...]:
        """exp(u) of each layer, [..., K_l], from below, of log rates of all, [..., sum K].

        Raises:
            ValueError: the last dimension is another.
        """
        states, n = self._taken("log_rate", log_rate), sum(self.config.layers)
        if states.ndim < 1 or states.shape[-1] != n:
            raise ValueError(f"log_rate: expected shape [..., {n}], found {list(states.shape)}")
        return tuple(u.exp() for u in self.split(states))

    def _sample_prior(self, n: int, seed: Tensor, sample_offset: int) -> Tensor:
        """Counts of the lowest layer, by draws from the top down."""
        above: Tensor | None = None
        for layer, offset in zip(reversed(self.levels), reversed(self._offsets()), strict=True):
            start = checks.raised(layer.start).expand(n, -1)
            prior, _ = layer.prior(start, above, self.config.clamp_u)
            above = ipvae_kernels.poisson_sample(
                prior, seed=seed, sample_offset=sample_offset, neuron_offset=offset
            )
        assert above is not None
        return above

    def _offsets(self) -> list[int]:
        """The index of each layer's first neuron in the noise, a multiple of 4."""
        offsets, at = [], 0
        for size in self.config.layers:
            offsets.append(at)
            at += -(-size // 4) * 4
        return offsets

    def _state_shape(self, rows: int) -> tuple[int, ...]:
        return rows, sum(self.config.layers)

    def _first(self, x: Tensor) -> Tensor:
        start = torch.cat([checks.raised(layer.start) for layer in self.levels])
        return start.expand(x.shape[-2], -1)

    def _draw_options(self, estimator: str | None, temperature: float | None) -> dict[str, Any]:
        return {
            "estimator": self.config.estimator if estimator is None else estimator,
            "temperature": float(self.temp) if temperature is None else temperature,
            "n_arrivals": self.config.n_arrivals,
        }

    def _truncate(self, truncate: int) -> int:
        return truncate

    def _cells(self, start: Start, cfg: RolloutConfig, backend: str) -> list[Cell]:
        """A cell for each layer."""
        plain = composed.by_autograd(backend, cfg)
        cells: list[Cell] = []
        for layer in self.levels:
            parts = (checks.raised(layer.log_bias), checks.raised(layer.log_lr))
            if plain:
                cells.append(make_cell(*parts, PhiloxNoise(start.seed), cfg, differentiable=True))
            else:
                cells.append(composed.cell_of(*parts, start.seed, cfg, backend))
        return cells

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
        config, eps, backend = self.config, float(self.eps), choice.select(backend)
        cfg = RolloutConfig(
            1, sample_offset=start.offset, clamp_u=opened(config.clamp_u, eps, init=_CLAMP_INIT),
            clamp_du=opened(config.clamp_du, eps, init=_CLAMP_INIT), **draws,
        )  # fmt: skip
        cells, decoder, offsets = self._cells(start, cfg, backend), self._decoder(), self._offsets()
        precision, initial, state = self._precision(), self._first(start.x), start.state

        def draw(kind: int, step: int, level: int, u: Tensor) -> Draw:
            return cells[level].draw(u, Stream(kind, 0, step, start.offset, offsets[level]))

        for t in range(steps):
            if truncate is not None and t and t % truncate == 0:
                state = state.detach() + (initial - initial.detach())
            before, step, x = self.split(state), start.first + t, start.frame(t)
            priors, slopes, drawn = self._from_above(before, partial(draw, KIND_UPDATE, step), cfg.clamp_u)
            decoded = decoder(drawn[0].code)
            drive, after = decoded.drive(residual(x, decoded) * precision), []
            for layer, cell, prior, slope, code in zip(
                self.levels, cells, priors, slopes, drawn, strict=True
            ):
                after.append(cell.update(prior, prior, drive, code))
                if layer.weight is not None:
                    drive = layer.drive_above(after[-1], prior, slope)
            fresh_draw = partial(draw, KIND_LOSS, step)
            above = [fresh_draw(i, u).code for i, u in enumerate(after) if i > 0]
            kl = state.new_zeros(len(state))
            for layer, cell, old, new, told in zip(
                self.levels, cells, before, after, (*above, None), strict=True
            ):
                kl = kl + cell.kl(new, layer.prior(old, told, cfg.clamp_u)[0]).sum(-1)
            state = torch.cat(after, dim=-1)
            taken = Taken(state, kl)
            if fresh:
                shown = fresh_draw(0, after[0]).code
                taken = taken._replace(code=shown, error=residual(x, decoder(shown)))
            yield taken

    def _from_above(
        self, before: tuple[Tensor, ...], draw: Callable[[int, Tensor], Draw], ceiling: float
    ) -> tuple[list[Tensor], list[Tensor], list[Draw]]:
        """Priors of all layers with their slopes, and counts drawn from them, top down; listed from below."""
        priors: list[Tensor] = []
        slopes: list[Tensor] = []
        drawn: list[Draw] = []
        for i in reversed(range(len(self.levels))):
            above = drawn[0].code if drawn else None
            prior, slope = self.levels[i].prior(before[i], above, ceiling)
            priors.insert(0, prior)
            slopes.insert(0, slope)
            drawn.insert(0, draw(i, prior))
        return priors, slopes, drawn
