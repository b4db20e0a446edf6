"""The models `IPVAE` (spiking) and `IGVAE` (Gaussian), whose state dict is that of the released code.

Parameters live in a submodule `layer` under the released names and shapes (``layer.phi.weight`` [M, K],
``layer.dec_log_sigma`` [1, M], ``layer.log_bias`` [1, K], ``layer.log_lr.0`` [1], ``layer.u_init.0`` [1, K],
and the buffers ``layer.temp``, ``layer.beta_inner``, ``layer.eps``, ``layer.n_exp``). So weights go to and
from the authors' checkpoints by `load_state_dict`, and there is no table of names that could be wrong.
"""

from __future__ import annotations

from os import PathLike
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

import ipvae_kernels
from ipvae_kernels import ElboResult, GaussianParams, InferResult, PoissonParams, State

from . import checkpoint, schedules
from .config import ConfigError, Kind, ModelConfig

SIGMA_CLAMP = 3.45
# What the released code starts from: the 0.999 quantile of Poisson(3).
INITIAL_N_EXP = 10
# Recorded values held at once while latents are averaged over steps: 64 MiB in float32.
RECORD_ENTRIES = 2**24


class _Dictionary(nn.Module):
    weight: nn.Parameter

    def __init__(self, n_inputs: int, n_latents: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_inputs, n_latents))


class _Gain(nn.Module):
    log_gain: nn.Parameter

    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(1, n_latents))


class _Layer(nn.Module):
    """Parameters and buffers under the names of the released ``PoissonLayer`` and ``GaussianLayer``."""

    temp: Tensor
    beta_inner: Tensor
    eps: Tensor

    def __init__(self, config: ModelConfig, n_states: int) -> None:
        super().__init__()
        m, k = config.n_inputs, config.n_latents
        self.phi = _Dictionary(m, k)
        self.dec_log_sigma = nn.Parameter(torch.zeros(1, m))
        if config.activation == "relu":
            self.activation = _Gain(k)
        self.log_bias = nn.Parameter(torch.full((1, k), config.init_log_bias))
        self.log_lr = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(n_states)])
        self.u_init = nn.ParameterList(
            [nn.Parameter(torch.zeros(1, k), requires_grad=config.fit_prior) for _ in range(n_states)]
        )
        self.register_buffer("temp", torch.tensor(1.0))
        self.register_buffer("beta_inner", torch.tensor(config.beta_inner))
        self.register_buffer("eps", torch.tensor(1.0))


class IterativeVAE(nn.Module):
    """What the Poisson and the Gaussian model share; make one with `IPVAE`, `IGVAE` or `build_model`.

    Args:
        config: of the kind of the class.

    Attributes:
        config: as given.
        temperature: of the relaxed counts, in force where `forward` is given none.
        eps: opening of the soft clamps, 0 tight to 1 final (`set_annealing`).
        precision: of matrix products on a GPU's tensor cores, "float32", "tf32" or "bf16"
            (`ipvae_kernels.infer`); a matter of the machine, so it is not saved.
    """

    precision: str = "float32"
    kind: ClassVar[Kind]
    n_states: ClassVar[int]
    clamp_init: ClassVar[float]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.kind != self.kind:
            raise ConfigError(f"kind: {type(self).__name__} needs {self.kind!r}, found {config.kind!r}")
        self.config = config
        self.layer = _Layer(config, self.n_states)
        self.temperature = 1.0
        self.eps = 1.0
        self.register_load_state_dict_post_hook(_read_annealing)  # type: ignore[no-untyped-call]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the initial dictionary and log rates from the configuration's seed alone."""
        generator = torch.Generator().manual_seed(self.config.seed)
        shape = (self.config.n_inputs, self.config.n_latents)
        self.layer.phi.weight.copy_(torch.randn(shape, generator=generator) * self.config.init_scale)
        self._reset_prior(generator)

    def _reset_prior(self, generator: torch.Generator) -> None:
        raise NotImplementedError

    @property
    def params(self) -> PoissonParams | GaussianParams:
        """The parameters as `ipvae_kernels` takes them; gradients flow through."""
        raise NotImplementedError

    @property
    def dictionary(self) -> Tensor:
        """Phi, [M, K]."""
        return self.layer.phi.weight

    @property
    def log_sigma(self) -> Tensor:
        """Log standard deviation of the pixels, [M], soft-clamped to within 3.45."""
        return SIGMA_CLAMP * torch.tanh(self.layer.dec_log_sigma[0] / SIGMA_CLAMP)

    @property
    def clamps(self) -> dict[str, Any]:
        """`clamp_u` and `clamp_du` in force: the configured ones as far as `eps` has opened them."""
        return {name: self._clamp(getattr(self.config, name)) for name in ("clamp_u", "clamp_du")}

    def _clamp(self, final: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if isinstance(final, tuple):
            return tuple(schedules.clamp(c, self.eps, init=self.clamp_init) for c in final)
        return schedules.clamp(final, self.eps, init=self.clamp_init)

    def set_annealing(self, *, temperature: float | None = None, eps: float | None = None) -> None:
        """Sets the temperature and the opening of the clamps, here and in the buffers that are saved.

        Both are rounded to float32, as the buffers are, so that a loaded model computes the same numbers.
        """
        if temperature is not None:
            self.temperature = float(np.float32(temperature))
            self.layer.temp.fill_(self.temperature)
        if eps is not None:
            self.eps = float(np.float32(eps))
            self.layer.eps.fill_(self.eps)

    @property
    def n_arrivals(self) -> int | None:
        """The cut of the arrivals in force in training, None for no cut."""
        value = self.config.n_arrivals
        return None if value == "released" else value

    def flatten(self, x: Tensor) -> Tensor:
        """Inputs as the kernels take them: [..., *input_shape] to [..., M], or [..., M] as it is.

        Raises:
            ValueError: if the last dimensions are neither, or if there is no batch dimension.
        """
        shape, m = self.config.shape, self.config.n_inputs
        if x.ndim > len(shape) and tuple(x.shape[x.ndim - len(shape) :]) == shape:
            return x.flatten(x.ndim - len(shape))
        if x.ndim > 1 and x.shape[-1] == m:
            return x
        raise ValueError(
            f"x: expected shape [..., {m}] or [..., {', '.join(map(str, shape))}], found {list(x.shape)}"
        )

    def forward(
        self,
        x: Tensor,
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
        """The training loss over `steps` of inference, differentiable.

        Args:
            x: [B, M] or [steps, B, M], pixels unflattened if you like.
            steps: T; None: the configuration's `t_train`.
            beta: weight of the KL.
            temperature: of the relaxed counts; None: the attribute.
            estimator: of d(counts)/d(log rate); None: the configuration's.
            truncate: cut the gradient after every so many steps; None: never.
            state: to continue from; None: the learned initial state.
            seed: of the noise; None: drawn from torch's generator.
            sample_offset: global index of the first row, where a batch is split over devices; None: the
                state's, or 0.
            backend: of `ipvae_kernels`.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            loss [], recon [T, B] and kl [T, B] in nats, and the final state.
        """
        return ipvae_kernels.elbo(
            self.flatten(x), self.params, self._steps(steps),
            state=state, beta=beta, truncate=truncate, seed=seed, sample_offset=sample_offset,
            backend=backend, check=check, n_arrivals=self.n_arrivals,
            estimator=self.config.estimator if estimator is None else estimator,
            temperature=self.temperature if temperature is None else temperature, **self._cell_options(),
        )  # fmt: skip

    def infer(
        self,
        x: Tensor,
        steps: int | None = None,
        *,
        record: tuple[str, ...] = (),
        record_every: int = 1,
        state: State | None = None,
        seed: int | Tensor | None = None,
        single_draw: bool = False,
        sample_offset: int | None = None,
        backend: str = "auto",
        check: bool = True,
    ) -> InferResult:
        """Inference with hard counts, no gradient; memory does not grow with `steps` beyond what is recorded.

        Args:
            x: [B, M] or [steps, B, M], pixels unflattened if you like.
            steps: T; None: the configuration's `t_train`.
            record: names out of log_rate, counts, reconstruction, recon, kl, squared_error, spikes, zeros.
            record_every: keep every so manyth step.
            state: to continue from; None: the learned initial state.
            seed: of the noise; None: drawn from torch's generator.
            single_draw: use the counts of one step's loss for the next step's update.
            sample_offset: global index of the first row, where a batch is split; None: the state's, or 0.
            backend: of `ipvae_kernels`.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            The final state and the records, [R, B, ...] each.
        """
        with torch.no_grad():
            return ipvae_kernels.infer(
                self.flatten(x), self.params, self._steps(steps),
                state=state, record=record, record_every=record_every, seed=seed, single_draw=single_draw,
                sample_offset=sample_offset, backend=backend, check=check, **self._cell_options(),
            )  # fmt: skip

    def _steps(self, steps: int | None) -> int:
        return self.config.t_train if steps is None else steps

    def _cell_options(self) -> dict[str, Any]:
        config = self.config
        return {
            "n_inner": config.n_inner, "beta_inner": config.beta_inner, "kl": config.kl,
            "precision": self.precision, **self.clamps,
        }  # fmt: skip

    def rates(self, log_rate: Tensor) -> Tensor:
        """Latents without noise: exp(u) of log rates [..., B, K], the activated mean of [..., 2, B, K]."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Mean of the pixels for counts, rates or activated latents: [..., K] to [..., M]."""
        return latents @ self.dictionary.T

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        steps: int = 128,
        *,
        last: int = 1,
        counts: bool = False,
        seed: int | Tensor | None = None,
        backend: str = "auto",
        check: bool = True,
    ) -> Tensor:
        """Latents of `x`, averaged over the last steps.

        Args:
            x: [B, M] or [steps, B, M].
            steps: of inference.
            last: average over so many steps, at most `steps`.
            counts: average sampled counts (Gaussian: activated samples) instead of `rates`.
            seed: of the noise; None: drawn from torch's generator.
            backend: of `ipvae_kernels`.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            [B, K].

        Raises:
            ValueError: for `steps` or a `last` out of range.
        """
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, found {steps}")
        if not 1 <= last <= steps:
            raise ValueError(f"last: expected 1 to steps={steps}, found {last}")
        x = self.flatten(x)
        if seed is None:
            seed = torch.randint(2**62, ())
        state: State | None = None
        if steps > last:
            state = self.infer(
                frames(x, 0, steps - last), steps - last, seed=seed, backend=backend, check=check
            ).state
        record = ("counts",) if counts else ("log_rate",)
        total = x.new_zeros(x.shape[-2], self.config.n_latents)
        chunk = max(1, RECORD_ENTRIES // max(total.numel(), 1))
        for first in range(steps - last, steps, chunk):
            stop = min(first + chunk, steps)
            result = self.infer(
                frames(x, first, stop), stop - first, record=record, state=state, seed=seed, backend=backend,
                check=check,
            )  # fmt: skip
            state, rows = result.state, result.records[record[0]]
            total += (rows if counts else self.rates(rows)).sum(0)
        return total / last

    @torch.no_grad()
    def reconstruct(
        self,
        x: Tensor,
        steps: int = 128,
        *,
        last: int = 1,
        counts: bool = False,
        seed: int | Tensor | None = None,
        backend: str = "auto",
        check: bool = True,
    ) -> Tensor:
        """Decoded latents, [B, M]: Phi times rates (or counts) averaged over steps; see `encode`."""
        return self.decode(
            self.encode(x, steps, last=last, counts=counts, seed=seed, backend=backend, check=check)
        )

    @torch.no_grad()
    def generate(self, n: int, *, seed: int | Tensor | None = None, pixel_noise: bool = False) -> Tensor:
        """Samples from the model: latents from the learned prior of the first step, then the decoder.

        Args:
            n: number of samples.
            seed: of the noise; None: drawn from torch's generator.
            pixel_noise: add the decoder's Gaussian noise; False gives the mean of the pixels.

        Returns:
            [n, *input_shape].
        """
        if n < 0:
            raise ValueError(f"n: expected at least 0, found {n}")
        generator = torch.Generator(device=self.dictionary.device)
        number = int(torch.randint(2**62, ())) if seed is None else int(seed)
        pixels = self.decode(self._sample_prior(n, number, generator.manual_seed(number & (2**63 - 1))))
        if pixel_noise:
            noise = torch.randn(pixels.shape, generator=generator, dtype=pixels.dtype, device=pixels.device)
            pixels = pixels + noise * self.log_sigma.exp()
        return pixels.reshape(n, *self.config.shape)

    def _sample_prior(self, n: int, seed: int, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Writes ``model.safetensors`` and ``config.json``, each whole or not at all, to a folder."""
        checkpoint.save_model(folder, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], *, device: str | torch.device = "cpu") -> Self:
        """Reads what `save_pretrained` wrote; on `IterativeVAE` itself, a model of either kind.

        Raises:
            CheckpointError: for files that are missing, damaged, from elsewhere, or of the other kind.
        """
        config, state = checkpoint.load_model(folder, device="cpu")
        model = build_model(config)
        if not isinstance(model, cls):
            raise checkpoint.CheckpointError(
                f"{folder}: expected {cls.__name__}, found a {config.kind} model"
            )
        checkpoint.load_state(model, state, str(folder))
        return model.to(device)

    @classmethod
    def from_released(
        cls, source: str | PathLike[str] | dict[str, Any], *, config: ModelConfig | None = None
    ) -> Self:
        """A model with the weights of a checkpoint of the authors' code; see `ipvae.released.load`.

        Raises:
            CheckpointError: listing every key that is missing, unknown, or of another shape.
        """
        from . import released

        found, state, name = released.load(source, config)
        model = build_model(found)
        if not isinstance(model, cls):
            raise checkpoint.CheckpointError(f"{name}: expected {cls.__name__}, found a {found.kind} model")
        checkpoint.load_state(model, state, name)
        return model


class IPVAE(IterativeVAE):
    """The iterative Poisson VAE: spikes, and log rates as membrane potentials (arXiv 2410.19315).

    Example:
        >>> model = IPVAE(ModelConfig(n_inputs=784, n_latents=512))
        >>> loss = model(torch.rand(8, 784), beta=24.0).loss
        >>> spikes = model.infer(torch.rand(8, 784), 100, record=("spikes",)).records["spikes"]
    """

    kind = "poisson"
    n_states = 1
    clamp_init = 2.0

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        n_exp = torch.full((config.t_train,), INITIAL_N_EXP, dtype=torch.int32)
        self.layer.register_buffer("n_exp", n_exp)
        self._n_exp = INITIAL_N_EXP

    def _reset_prior(self, generator: torch.Generator) -> None:
        low, high = self.config.init_log_rate
        draw = torch.rand(1, self.config.n_latents, generator=generator)
        self.layer.u_init[0].copy_(low + (high - low) * draw)

    @property
    def params(self) -> PoissonParams:
        """The parameters as `ipvae_kernels` takes them."""
        layer = self.layer
        return PoissonParams(
            dictionary=self.dictionary, log_sigma=self.log_sigma, log_bias=layer.log_bias[0],
            log_lr=layer.log_lr[0][0], log_rate_init=layer.u_init[0][0],
        )  # fmt: skip

    @property
    def n_arrivals(self) -> int | None:
        """The cut of the arrivals in force in training, None for no cut."""
        return self._n_exp if self.config.n_arrivals == "released" else self.config.n_arrivals

    def set_n_arrivals(self, n: int) -> None:
        """Sets the cut used with ``n_arrivals="released"``, here and in the buffer that is saved."""
        self._n_exp = int(n)
        cast(Tensor, self.layer.n_exp).fill_(n)

    def rates(self, log_rate: Tensor) -> Tensor:
        """exp(u), of the shape of the log rates."""
        return log_rate.exp()

    def _sample_prior(self, n: int, seed: int, generator: torch.Generator) -> Tensor:
        log_rate = self.params.log_rate_init.expand(n, -1)
        return ipvae_kernels.poisson_sample(log_rate, seed=seed)


class IGVAE(IterativeVAE):
    """The Gaussian relative, iG-VAE; with ``activation="relu"`` the iG-relu-VAE.

    The released rectified model learns a gain per neuron. Since gain times relu equals relu with that column
    of the dictionary scaled, in the decoder and in its transpose alike, `dictionary` includes the gain and
    the kernels need not know of it.
    """

    kind = "gaussian"
    n_states = 2
    clamp_init = 1.0

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

    def rates(self, log_rate: Tensor) -> Tensor:
        """The activated mean, [..., 2, B, K] to [..., B, K]."""
        mean: Tensor = log_rate.select(-3, 0)
        return mean.relu() if self.config.activation == "relu" else mean

    def _sample_prior(self, n: int, seed: int, generator: torch.Generator) -> Tensor:
        mean, log_sigma = self.params.state_init.unbind()
        noise = torch.randn((n, mean.shape[0]), generator=generator, dtype=mean.dtype, device=mean.device)
        sample = mean + log_sigma.exp() * noise
        return sample.relu() if self.config.activation == "relu" else sample


def build_model(config: ModelConfig) -> IPVAE | IGVAE:
    """The model that a configuration describes, with freshly drawn weights."""
    return IPVAE(config) if config.kind == "poisson" else IGVAE(config)


def frames(x: Tensor, first: int, stop: int) -> Tensor:
    """The frames of a moving input [T, B, M]; a static one [B, M] as it is."""
    return x[first:stop] if x.ndim == 3 else x


def _read_annealing(module: nn.Module, _: object) -> None:
    """Takes the annealed constants over from buffers that were just loaded."""
    model = cast(IterativeVAE, module)
    model.temperature, model.eps = float(model.layer.temp), float(model.layer.eps)
    if isinstance(model, IPVAE):
        model._n_exp = int(cast(Tensor, model.layer.n_exp).max())
