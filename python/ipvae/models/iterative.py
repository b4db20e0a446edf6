"""What the families of iterative models share: `IterativeVAE`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

import ipvae_kernels
from ipvae_kernels import ElboResult, GaussianParams, InferResult, PoissonParams, Prepared, State, checks

from .. import checkpoint
from ..fields import ConfigError
from ..inputs import Inputs
from ..interop import release, released
from . import packed
from .base import VAE, soft_log_sigma
from .config import ADDED, OWN, ModelConfig
from .decoders import reset_network
from .layer import Layer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class IterativeVAE(VAE):
    """What the Poisson and the Gaussian model share; make one with `IPVAE`, `IGVAE` or `build_model`.

    Args:
        config: of the family.
        decoder: as in `VAE`.

    Attributes:
        config: as given.
        clamp_init: of the soft clamps, before they open.
        group: processes of `torch.distributed` that share the neurons (`ipvae.models.sharding`); None: this
            one has all.
    """

    config: ModelConfig
    iterative = True
    clamp_init: ClassVar[float]
    layer: Layer
    group: ProcessGroup | None = None

    def __init__(self, config: ModelConfig, *, decoder: nn.Module | None = None) -> None:
        super().__init__(config, decoder=decoder)
        self.layer = self._layer()
        self.reset_parameters()

    def _layer(self) -> Layer:
        """Parameters and buffers."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Brings every parameter and buffer back to what a new model of this configuration holds.

        The decoder and the initial log rates are drawn from the configuration's seed alone, on the CPU and
        in float32 whatever torch's defaults are; on the meta device there is nothing to draw. A decoder that
        the model was given keeps its weights.
        """
        layer, config = self.layer, self.config
        layer.reset_constants(config)
        if layer.dec_log_sigma.is_meta:
            return
        layer.dec_log_sigma.zero_()
        for log_lr in layer.log_lr:
            log_lr.fill_(config.init_log_lr)
        if layer.has_gain:
            layer.activation.log_gain.zero_()
        layer.log_bias.fill_(config.init_log_bias)
        generator = torch.Generator("cpu").manual_seed(config.seed)
        if self.decoder is None:
            shape = (config.n_inputs, config.n_latents)
            draw = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            layer.phi.weight.copy_(draw * config.init_scale)
        elif config.decoder != OWN:
            reset_network(self.decoder, generator, config.init_scale)
        self._reset_prior(generator)

    def _reset_prior(self, generator: torch.Generator) -> None:
        raise NotImplementedError

    @property
    def params(self) -> PoissonParams | GaussianParams:
        """The parameters as `ipvae_kernels` takes them; gradients flow through."""
        raise NotImplementedError

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device that inputs take."""
        return self.layer.dec_log_sigma

    def _linear(self) -> Tensor:
        return self.layer.phi.weight

    def _fused(self) -> Tensor | None:
        """The dictionary as the kernels take it; None beside a decoder that is not linear."""
        return self._linear() if self.decoder is None else None

    @property
    def log_sigma(self) -> Tensor:
        """Log standard deviation of the pixels, [M], soft-clamped to within 3.45."""
        return soft_log_sigma(self.layer.dec_log_sigma[0])

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
        single_draw: bool | None = None,
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
            single_draw: use the counts of one step's loss for the next step's update; None: as configured.
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
        return self._ops().elbo(  # type: ignore[no-any-return]
            self.flatten(x), self.params, self._steps(steps), **self._place(),
            state=state, beta=beta, truncate=truncate, checkpoint=checkpoint, record=record,
            seed=seed, sample_offset=sample_offset, backend=backend, check=check,
            **self._draw_options(estimator, temperature),
            **self._rollout_options(matmul_precision, single_draw),
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
        single_draw: bool | None = None,
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
            single_draw: use the counts of one step's loss for the next step's update; None: as configured.
            matmul_precision: format of products on a GPU's tensor cores; None: the attribute.
            sample_offset: global index of the first row, as in `forward`; None: the state's, or 0.
            backend: of `ipvae_kernels`.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            The final state and the records, [R, B, ...] each.
        """
        # Entered once: torch.export cannot save such a region within another.
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
            return self._ops().infer(  # type: ignore[no-any-return]
                self.flatten(x), self._ready(), self._steps(steps), **self._place(),
                state=state, record=record, record_every=record_every, seed=seed,
                sample_offset=sample_offset, backend=backend, check=check,
                **self._rollout_options(matmul_precision, single_draw),
            )  # fmt: skip

    @property
    def _neurons(self) -> int:
        return self.layer.log_bias.shape[-1]

    def _ops(self) -> Any:
        """Where `infer` and `elbo` are: of this process alone, or of all that share the neurons."""
        return ipvae_kernels if self.group is None else importlib.import_module("ipvae_kernels.distributed")

    def _place(self) -> dict[str, Any]:
        """Who decodes: a decoder, or the processes of a group."""
        return {"decoder": self.flat_decoder()} if self.group is None else {"group": self.group}

    def _ready(self) -> PoissonParams | GaussianParams | Prepared:
        """The parameters for many calls: a dictionary is packed once."""
        if self.decoder is not None or self.group is not None:
            return self.params
        return packed.packed_once(self, lambda: self.params, self._update_rule().get("drive", "paper"))

    def train(self, mode: bool = True) -> Self:
        """Sets the mode, and forgets what `infer` had prepared."""
        packed.forget(self)
        return super().train(mode)

    @property
    def t_train(self) -> int:
        """Inference steps of a training update."""
        return self.config.t_train

    def _draw_options(self, estimator: str | None, temperature: float | None) -> dict[str, Any]:
        """How latents are drawn and differentiated in training."""
        raise NotImplementedError

    def _steps(self, steps: int | None) -> int:
        return self.config.t_train if steps is None else steps

    def _update_rule(self) -> dict[str, Any]:
        """What a rollout is told of the updates, of this family alone."""
        return {}

    def _rollout_options(self, matmul_precision: str | None, single_draw: bool | None) -> dict[str, Any]:
        """What a rollout takes from the configuration, the buffers and the attributes."""
        config = self.config
        leak = self.layer.read("beta_inner") if config.n_inner > 1 else 0.0
        return {
            "n_inner": config.n_inner, "beta_inner": leak, "kl": config.kl, **self._update_rule(),
            "single_draw": config.single_draw if single_draw is None else single_draw,
            "matmul_precision": self.matmul_precision if matmul_precision is None else matmul_precision,
            **self.clamps,
        }  # fmt: skip

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
        own = config or cls.config_from(*released.configuration(found, settings))
        return cls.with_weights(own, found.state, found.name)

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
            ConfigError: the decoder is not linear, no data set of theirs has this shape, or ``trainer`` has a
                name that theirs has not.
            FileExistsError: the folder holds other weights.
        """
        if self.decoder is not None:
            raise ConfigError(
                f"decoder: expected 'linear', the only one of their code, found {self.config.decoder!r}"
            )
        for name, value in ADDED.items():
            if (found := getattr(self.config, name, value)) != value:
                raise ConfigError(f"{name}: expected {value!r}, as in their code, found {found!r}")
        return release.save(self, folder, dataset=dataset, beta=beta, trainer=trainer)


def opened(final: float, eps: float, *, init: float = 2.0) -> float:
    """Soft clamp in force, `init` + eps (`final` - `init`); `init` is 2 (Poisson) or 1 (Gaussian)."""
    final, init = checks.number("final", final), checks.number("init", init)
    return init + checks.number("eps", eps, 0.0, 1.0) * (final - init)
