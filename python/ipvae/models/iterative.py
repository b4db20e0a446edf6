"""What the families of iterative models share: `IterativeVAE`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

import ipvae_kernels
from ipvae_kernels import ElboResult, GaussianParams, InferResult, PoissonParams, State, checks

from .. import checkpoint
from ..inputs import Inputs, whole
from ..interop import release, released
from . import packed
from .base import VAE
from .config import ModelConfig
from .layer import Layer

SIGMA_CLAMP = 3.45
# Recorded values held at once while latents are averaged over steps: 64 MiB in float32.
RECORD_ENTRIES = 2**24


class IterativeVAE(VAE):
    """What the Poisson and the Gaussian model share; make one with `IPVAE`, `IGVAE` or `build_model`.

    Args:
        config: of the family.

    Attributes:
        config: as given.
        matmul_precision: of matrix products on a GPU's tensor cores, "float32", "tf32" or "bf16"
            (`ipvae_kernels.infer`); a matter of the machine, so it is not saved.
        n_states: numbers that a neuron's state has; with more than one, states are [n_states, B, K].
        spiking: whether its latents are counts.
        clamp_init: of the soft clamps, before they open.
    """

    matmul_precision: str = "float32"
    n_states: ClassVar[int]
    spiking: ClassVar[bool]
    clamp_init: ClassVar[float]
    layer: Layer

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.layer = self._layer()
        self.reset_parameters()

    def _layer(self) -> Layer:
        """Parameters and buffers."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Brings every parameter and buffer back to what a new model of this configuration holds.

        The dictionary and the initial log rates are drawn from the configuration's seed alone, on the CPU and
        in float32 whatever torch's defaults are; on the meta device there is nothing to draw.
        """
        layer, config = self.layer, self.config
        layer.reset_constants(config)
        if layer.phi.weight.is_meta:
            return
        for parameter in (layer.dec_log_sigma, *layer.log_lr):
            parameter.zero_()
        if layer.has_gain:
            layer.activation.log_gain.zero_()
        layer.log_bias.fill_(config.init_log_bias)
        generator = torch.Generator("cpu").manual_seed(config.seed)
        shape = (config.n_inputs, config.n_latents)
        draw = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        layer.phi.weight.copy_(draw * config.init_scale)
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
    def temperature(self) -> float:
        """Of the relaxed counts, where `forward` is given none; the number in ``layer.temp``.

        Gaussian models have no relaxation, and 1 here.
        """
        return self.layer.read("temp")

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.set_annealing(temperature=value)

    @property
    def eps(self) -> float:
        """How far the soft clamps are open, from 0 (tight) to 1 (final); the number in ``layer.eps``."""
        return self.layer.read("eps")

    @eps.setter
    def eps(self, value: float) -> None:
        self.set_annealing(eps=value)

    @property
    def clamps(self) -> dict[str, Any]:
        """`clamp_u` and `clamp_du` in force, the configured ones as far as `eps` has opened them."""
        eps = self.eps
        return {name: self._clamp(getattr(self.config, name), eps) for name in ("clamp_u", "clamp_du")}

    def _clamp(self, final: float | tuple[float, ...], eps: float) -> float | tuple[float, ...]:
        if isinstance(final, tuple):
            return tuple(opened(c, eps, init=self.clamp_init) for c in final)
        return opened(final, eps, init=self.clamp_init)

    def set_annealing(self, *, temperature: float | None = None, eps: float | None = None) -> None:
        """Sets the temperature and the opening of the clamps, that is, the buffers that are saved.

        Other ways to write these buffers are as good, except that on a GPU code compiled by torch.compile
        holds the numbers that were set here, loaded, or last read outside of it.

        Args:
            temperature: of the relaxed counts, >= 0. A Gaussian model has none to anneal: the released code
                multiplies sigma by it, so there it stays 1.
            eps: 0 (tight clamps) to 1 (the configured ones).

        Raises:
            TypeError, ValueError: for what is not such a number.
        """
        if temperature is not None:
            temperature = checks.number("temperature", temperature, 0.0)
            if self.layer.has_arrivals:
                self.layer.write("temp", temperature)
        if eps is not None:
            eps = checks.number("eps", eps, 0.0)
            if eps > 1.0:
                raise ValueError(f"eps: expected 0 to 1, found {eps}")
            self.layer.write("eps", eps)

    def forward(
        self,
        x: Inputs,
        steps: int | None = None,
        *,
        beta: float = 1.0,
        temperature: float | None = None,
        estimator: str | None = None,
        truncate: int | None = None,
        checkpoint: int | None = None,
        record: Iterable[str] = (),
        single_draw: bool = False,
        matmul_precision: str | None = None,
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
            temperature: of the relaxed counts; None: the attribute. Gaussian models have none and ignore it.
            estimator: of d(counts)/d(log rate); None: the configuration's. Gaussian models have none.
            truncate: cut the gradient after every so many steps; None: never.
            checkpoint: keep the trajectory of so many steps at a time, and run them once more in the
                backward; None: of as many as fit in 64 MiB.
            record: what to keep of every step, differentiable, by the names of `ipvae_kernels.elbo`.
            single_draw: use the counts of one step's loss for the next step's update.
            matmul_precision: format of products on a GPU's tensor cores; None: the attribute.
            state: to continue from; None: the learned initial state.
            seed: of the noise; None: drawn from torch's generator.
            sample_offset: global index of the first row; None: the state's, or 0. The noise of a row is a
                function of the seed and of this index: devices or batches that share a seed need it, or their
                rows get the same spikes.
            backend: of `ipvae_kernels`.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            loss [], recon [T, B] and kl [T, B] in nats, the final state, and the records.
        """
        return ipvae_kernels.elbo(
            self.flatten(x), self.params, self._steps(steps),
            state=state, beta=beta, truncate=truncate, checkpoint=checkpoint, record=record,
            single_draw=single_draw, seed=seed, sample_offset=sample_offset, backend=backend, check=check,
            **self._draw_options(estimator, temperature), **self._rollout_options(matmul_precision),
        )  # fmt: skip

    def infer(
        self,
        x: Inputs,
        steps: int | None = None,
        *,
        record: tuple[str, ...] = (),
        record_every: int = 1,
        state: State | None = None,
        seed: int | Tensor | None = None,
        single_draw: bool = False,
        matmul_precision: str | None = None,
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
            matmul_precision: format of products on a GPU's tensor cores; None: the attribute.
            sample_offset: global index of the first row, as in `forward`; None: the state's, or 0.
            backend: of `ipvae_kernels`.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            The final state and the records, [R, B, ...] each.
        """
        # Entered once: torch.export cannot save such a region within another.
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
            return ipvae_kernels.infer(
                self.flatten(x), packed.packed_once(self, lambda: self.params), self._steps(steps),
                state=state, record=record, record_every=record_every, seed=seed, single_draw=single_draw,
                sample_offset=sample_offset, backend=backend, check=check,
                **self._rollout_options(matmul_precision),
            )  # fmt: skip

    def train(self, mode: bool = True) -> Self:
        """Sets the mode, and forgets what `infer` had prepared."""
        packed.forget(self)
        return super().train(mode)

    def _draw_options(self, estimator: str | None, temperature: float | None) -> dict[str, Any]:
        """How latents are drawn and differentiated in training."""
        raise NotImplementedError

    def _steps(self, steps: int | None) -> int:
        return self.config.t_train if steps is None else steps

    def _rollout_options(self, matmul_precision: str | None) -> dict[str, Any]:
        """What a rollout takes from the configuration, the buffers and the attributes."""
        config = self.config
        leak = self.layer.read("beta_inner") if config.n_inner > 1 else 0.0
        return {
            "n_inner": config.n_inner, "beta_inner": leak, "kl": config.kl,
            "matmul_precision": self.matmul_precision if matmul_precision is None else matmul_precision,
            **self.clamps,
        }  # fmt: skip

    def rates(self, log_rate: Inputs) -> Tensor:
        """Latents without noise: exp(u) of log rates [..., B, K], the activated mean of [..., 2, B, K]."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(
        self,
        x: Inputs,
        steps: int = 128,
        *,
        last: int = 1,
        counts: bool = False,
        seed: int | Tensor | None = None,
        sample_offset: int = 0,
        backend: str = "auto",
        check: bool = True,
    ) -> Tensor:
        """Latents of `x`, averaged over the last steps.

        The noise of a row is a function of the seed and of the row's global index: batches that share a seed
        need their `sample_offset`, or equal rows of them get equal noise. With it, a loop over batches equals
        one call, with the compiled CPU kernels bit for bit.

        Args:
            x: [B, M] or [steps, B, M].
            steps: of inference.
            last: average over so many steps, at most `steps`.
            counts: average sampled counts (Gaussian: activated samples) instead of `rates`.
            seed: of the noise; None: drawn from torch's generator of the device of `x`.
            sample_offset: global index of the first row.
            backend: of `ipvae_kernels`.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            [B, K].

        Raises:
            ValueError: for `steps` or a `last` out of range.
        """
        steps, last = whole("steps", steps), whole("last", last)
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, found {steps}")
        if not 1 <= last <= steps:
            raise ValueError(f"last: expected 1 to steps={steps}, found {last}")
        counts = checks.flag("counts", counts)
        x = self.flatten(x)
        how: dict[str, Any] = {
            "seed": checks.seed(seed, x.device),
            "sample_offset": sample_offset,
            "backend": backend,
            "check": check,
        }
        state: State | None = None
        if steps > last:
            state = self.infer(frames(x, 0, steps - last), steps - last, **how).state
        record = "counts" if counts else "log_rate"
        total = checks.raised(x.new_zeros(x.shape[-2], self.config.n_latents))
        # What depends on the size of a batch would tie a traced graph to it.
        chunk = last if torch.compiler.is_compiling() else max(1, RECORD_ENTRIES // max(total.numel(), 1))
        for first in range(steps - last, steps, chunk):
            stop = min(first + chunk, steps)
            result = self.infer(frames(x, first, stop), stop - first, record=(record,), state=state, **how)
            state, rows = result.state, result.records[record]
            for row in rows if counts else self.rates(rows):
                total += row  # one by one, so that the sum does not depend on the chunk
        return total / last

    def reconstruct(
        self,
        x: Inputs,
        steps: int = 128,
        *,
        last: int = 1,
        counts: bool = False,
        seed: int | Tensor | None = None,
        sample_offset: int = 0,
        backend: str = "auto",
        check: bool = True,
    ) -> Tensor:
        """Decoded latents, [B, M]: Phi times rates (or counts) averaged over steps; see `encode`."""
        latents = self.encode(
            x, steps, last=last, counts=counts, seed=seed, sample_offset=sample_offset, backend=backend,
            check=check,
        )  # fmt: skip
        with torch.no_grad():
            return self._decode_rows(latents)

    @classmethod
    def from_released(
        cls,
        source: Any,
        *,
        config: ModelConfig | None = None,
        settings: str | PathLike[str] | dict[str, Any] | None = None,
        ema: bool = False,
    ) -> Self:
        """A model with the weights of a checkpoint of the authors' code; see `ipvae.interop.released`.

        Args:
            source: a ``.pt`` file, its folder (the last one in it counts), a loaded checkpoint or state dict;
                or a live model or trainer of theirs, whose weights are copied.
            config: of the model; None: made from the authors' settings. Temperature, opening of the clamps,
                weight of the leak and cut of the arrivals are those of the weights all the same.
            settings: the authors' settings, a JSON file or its contents; None: looked for beside the file and
                one folder above it.
            ema: take the average of the weights, ``model_ema``.

        Raises:
            CheckpointError: where there are no settings or no average, for weights of the other family; or
                listing every key that is missing, unknown, or of another shape.
            TypeError: ``source`` is none of these.
        """
        found = released.load(source, checks.flag("ema", ema))
        if (cell := found.cell if config is None else config.cell) != cls.config_class.cell:
            raise checkpoint.CheckpointError(f"{found.name}: expected {cls.__name__}, found a {cell} model")
        if config is None:
            config = cls.config_from(*released.configuration(found, settings))
        return cls.with_weights(config, found.state, found.name)

    def to_released(
        self,
        folder: str | PathLike[str],
        *,
        dataset: str | None = None,
        beta: float = 24.0,
        trainer: dict[str, Any] | None = None,
    ) -> Path:
        """Writes what the loaders of the authors' code read: settings, weights, a trainer that has not begun.

        Their code has one KL, the released one, and one estimator: a model that was configured otherwise is
        trained on by theirs. ``IPVAE.from_released(folder)`` reads it back.

        Args:
            folder: for ``ConfigPoisVAE.json`` or ``ConfigGausVAE.json``, ``ConfigTrain.json`` and the ``.pt``
                file; without weights of others.
            dataset: one of their names, "MNIST" for instance; None: one of theirs with inputs of this shape.
            beta: weight of the KL for their trainer.
            trainer: settings of their trainer; what is left out is as for the released models.

        Returns:
            The ``.pt`` file.

        Raises:
            ConfigError: no data set of theirs has this shape, or ``trainer`` has a name that theirs has not.
            FileExistsError: the folder holds other weights.
        """
        return release.save(self, folder, dataset=dataset, beta=beta, trainer=trainer)


def opened(final: float, eps: float, *, init: float = 2.0) -> float:
    """Soft clamp in force, `init` + eps (`final` - `init`); `init` is 2 (Poisson) or 1 (Gaussian)."""
    final, init = checks.number("final", final), checks.number("init", init)
    return init + checks.number("eps", eps, 0.0, 1.0) * (final - init)


def frames(x: Tensor, first: int, stop: int) -> Tensor:
    """The frames of a moving input [T, B, M]; a static one [B, M] as it is."""
    return x[first:stop] if x.ndim == 3 else x
