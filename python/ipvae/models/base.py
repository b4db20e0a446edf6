"""What the families of iterative models share: `IterativeVAE`."""

from __future__ import annotations

from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

import ipvae_kernels
from ipvae_kernels import ElboResult, GaussianParams, InferResult, PoissonParams, State, checks
from ipvae_kernels.philox import KIND_LOSS, Stream
from ipvae_kernels.poisson.noise import PhiloxNoise

from .. import checkpoint
from ..fields import ConfigError
from ..inputs import Inputs, as_tensor, whole
from ..training import schedules
from .config import Cell, ModelConfig
from .layer import Layer

SIGMA_CLAMP = 3.45
# Recorded values held at once while latents are averaged over steps: 64 MiB in float32.
RECORD_ENTRIES = 2**24
# Rows decoded by one product: docs/design/randomness.md, "A row's noise is a function of its global index".
DECODED_ROWS = 32


class IterativeVAE(nn.Module):
    """What the Poisson and the Gaussian model share; make one with `IPVAE`, `IGVAE` or `build_model`.

    Args:
        config: with the cell of the class.

    Attributes:
        config: as given.
        matmul_precision: of matrix products on a GPU's tensor cores, "float32", "tf32" or "bf16"
            (`ipvae_kernels.infer`); a matter of the machine, so it is not saved.
    """

    matmul_precision: str = "float32"
    cell: ClassVar[Cell]
    n_states: ClassVar[int]
    clamp_init: ClassVar[float]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.cell != self.cell:
            raise ConfigError(f"cell: {type(self).__name__} needs {self.cell!r}, found {config.cell!r}")
        self.config = config
        self.layer = Layer(config, self.n_states)
        self.reset_parameters()

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
        if config.activation == "relu":
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
        """Of the relaxed counts, in force where `forward` is given none: the number in ``layer.temp``.

        Gaussian models have no relaxation, and 1 here.
        """
        return self.layer.read("temp")

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.set_annealing(temperature=value)

    @property
    def eps(self) -> float:
        """Opening of the soft clamps, 0 tight to 1 final: the number in ``layer.eps``."""
        return self.layer.read("eps")

    @eps.setter
    def eps(self, value: float) -> None:
        self.set_annealing(eps=value)

    @property
    def clamps(self) -> dict[str, Any]:
        """`clamp_u` and `clamp_du` in force: the configured ones as far as `eps` has opened them."""
        eps = self.eps
        return {name: self._clamp(getattr(self.config, name), eps) for name in ("clamp_u", "clamp_du")}

    def _clamp(self, final: float | tuple[float, ...], eps: float) -> float | tuple[float, ...]:
        if isinstance(final, tuple):
            return tuple(schedules.clamp(c, eps, init=self.clamp_init) for c in final)
        return schedules.clamp(final, eps, init=self.clamp_init)

    def set_annealing(self, *, temperature: float | None = None, eps: float | None = None) -> None:
        """Sets the temperature and the opening of the clamps, that is, the buffers that are saved.

        Other ways to write these buffers are as good, except that code compiled by torch.compile holds the
        numbers that were set here, loaded, or last read outside of it.

        Args:
            temperature: of the relaxed counts, >= 0. A Gaussian model has none to anneal: the released code
                multiplies sigma by it, so there it stays 1.
            eps: 0 (tight clamps) to 1 (the configured ones).

        Raises:
            TypeError, ValueError: for what is not such a number.
        """
        if temperature is not None:
            temperature = checks.number("temperature", temperature, 0.0)
            if self.cell == "poisson":
                self.layer.write("temp", temperature)
        if eps is not None:
            eps = checks.number("eps", eps, 0.0)
            if eps > 1.0:
                raise ValueError(f"eps: expected 0 to 1, found {eps}")
            self.layer.write("eps", eps)

    @property
    def n_arrivals(self) -> int | None:
        """The cut of the arrivals in force in training, None for no cut."""
        value = self.config.n_arrivals
        return None if value == "released" else value

    def flatten(self, x: Inputs) -> Tensor:
        """Inputs as the kernels take them: [..., *input_shape] to [..., M], or [..., M] as it is.

        A NumPy array of floating point numbers takes dtype and device of the model; every `x` of this class
        may be one.

        Raises:
            TypeError: for what is neither tensor nor array, for integers, and for a tensor of another dtype.
            ValueError: if the last dimensions are neither, or if there is no batch dimension.
        """
        shape, m = self.config.shape, self.config.n_inputs
        x = self._taken("x", x)
        if x.ndim > len(shape) and tuple(x.shape[x.ndim - len(shape) :]) == shape:
            return x.flatten(x.ndim - len(shape))
        if x.ndim > 1 and x.shape[-1] == m:
            return x
        raise ValueError(
            f"x: expected shape [..., {m}] or [..., {', '.join(map(str, shape))}], found {list(x.shape)}"
        )

    def _taken(self, name: str, value: Inputs) -> Tensor:
        """A tensor as it is; an array with dtype and device of the model."""
        own = self.layer.phi.weight
        tensor = as_tensor(name, value, own)
        return tensor.to(own.device) if isinstance(value, np.ndarray) else tensor

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
            temperature: of the relaxed counts; None: the attribute.
            estimator: of d(counts)/d(log rate); None: the configuration's.
            truncate: cut the gradient after every so many steps; None: never.
            checkpoint: keep the trajectory of so many steps at a time, and run them once more in the
                backward; None: of as many as fit in 64 MiB.
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
            loss [], recon [T, B] and kl [T, B] in nats, and the final state.
        """
        return ipvae_kernels.elbo(
            self.flatten(x), self.params, self._steps(steps),
            state=state, beta=beta, truncate=truncate, checkpoint=checkpoint, single_draw=single_draw,
            seed=seed, sample_offset=sample_offset, backend=backend, check=check, n_arrivals=self.n_arrivals,
            estimator=self.config.estimator if estimator is None else estimator,
            temperature=self.temperature if temperature is None else temperature,
            **self._cell_options(matmul_precision),
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
        with torch.no_grad():
            return ipvae_kernels.infer(
                self.flatten(x), self.params, self._steps(steps),
                state=state, record=record, record_every=record_every, seed=seed, single_draw=single_draw,
                sample_offset=sample_offset, backend=backend, check=check,
                **self._cell_options(matmul_precision),
            )  # fmt: skip

    def _steps(self, steps: int | None) -> int:
        return self.config.t_train if steps is None else steps

    def _cell_options(self, matmul_precision: str | None) -> dict[str, Any]:
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

    def decode(self, latents: Inputs) -> Tensor:
        """Mean of the pixels for counts, rates or activated latents: [..., K] to [..., M]."""
        latents, k = self._taken("latents", latents), self.config.n_latents
        if latents.ndim == 0 or latents.shape[-1] != k:
            raise ValueError(f"latents: expected shape [..., {k}], found {list(latents.shape)}")
        return latents @ self.dictionary.T

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
        total = x.new_zeros(x.shape[-2], self.config.n_latents)
        chunk = max(1, RECORD_ENTRIES // max(total.numel(), 1))
        for first in range(steps - last, steps, chunk):
            stop = min(first + chunk, steps)
            result = self.infer(frames(x, first, stop), stop - first, record=(record,), state=state, **how)
            state, rows = result.state, result.records[record]
            for row in rows if counts else self.rates(rows):
                total += row  # one by one, so that the sum does not depend on the chunk
        return total / last

    @torch.no_grad()
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
        return self._decode_rows(
            self.encode(
                x, steps, last=last, counts=counts, seed=seed, sample_offset=sample_offset, backend=backend,
                check=check,
            )
        )  # fmt: skip

    def _decode_rows(self, latents: Tensor) -> Tensor:
        """`decode` of [B, K] whose rows do not depend on B, on the CPU to the bit.

        A product of matrices may round otherwise for another number of rows (with MKL, rows of 1,000 and of
        parts of 7 or 333 differed), so every product here has one shape: blocks of rows, the last filled up
        with zeros, in one piece of memory.
        """
        if latents.device.type != "cpu":
            return self.decode(latents)
        pixels = latents.new_empty(len(latents), self.config.n_inputs)
        dictionary = self.dictionary
        block = latents.new_empty(DECODED_ROWS, self.config.n_latents)
        blocks = (torch.split(tensor, DECODED_ROWS) for tensor in (latents, pixels))
        for rows, decoded in zip(*blocks, strict=True):
            block[: len(rows)] = rows
            block[len(rows) :] = 0.0
            decoded.copy_((block @ dictionary.T)[: len(rows)])
        return pixels

    @torch.no_grad()
    def generate(
        self,
        n: int,
        *,
        seed: int | Tensor | None = None,
        sample_offset: int = 0,
        pixel_noise: bool = False,
    ) -> Tensor:
        """Samples from the model: latents from the learned prior of the first step, then the decoder.

        Like all noise of this package, that of a sample is a function of the seed and of the sample's index:
        batches that share a seed need their `sample_offset`, and then are the parts of one call.

        Args:
            n: number of samples.
            seed: of the noise; None: drawn from torch's generator of the model's device.
            sample_offset: index of the first sample.
            pixel_noise: add the decoder's Gaussian noise; False gives the mean of the pixels.

        Returns:
            [n, *input_shape].
        """
        n = whole("n", n)
        if n < 0:
            raise ValueError(f"n: expected at least 0, found {n}")
        pixel_noise = checks.flag("pixel_noise", pixel_noise)
        _, sample_offset = checks.stream(0, 1, sample_offset, n)
        seed = checks.seed(seed, self.dictionary.device)
        pixels = self._decode_rows(self._sample_prior(n, seed, sample_offset))
        if pixel_noise:
            stream = Stream(KIND_LOSS, sample_offset=sample_offset)
            pixels = pixels + PhiloxNoise(seed).normal(pixels, stream) * self.log_sigma.exp()
        return pixels.reshape(n, *self.config.shape)

    def _sample_prior(self, n: int, seed: Tensor, sample_offset: int) -> Tensor:
        """Latents of the prior of the first step, [n, K]."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Writes ``model.safetensors`` and ``config.json``, each whole or not at all, to a folder."""
        checkpoint.save_model(folder, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], *, device: str | torch.device = "cpu") -> Self:
        """Reads a model of this package; on `IterativeVAE` itself, one with either cell.

        Args:
            folder: what `save_pretrained` wrote, or the folder of a run (its ``model/``, or where training is
                not finished, ``checkpoints/last.ckpt``), or one of these files itself.
            device: where to put the model.

        Raises:
            CheckpointError: for files that are missing, damaged, from elsewhere, or with the other cell.
        """
        from .registry import with_weights

        file = checkpoint.locate(folder)
        if file is None:
            raise checkpoint.CheckpointError(
                f"{folder}: expected a folder with {checkpoint.WEIGHTS}, found none"
            )
        config, state = checkpoint.read_model(file)
        if config is None:
            raise checkpoint.CheckpointError(
                f"{file}: not a model of ipvae; from_released reads weights of the authors' code"
            )
        return cls._checked(with_weights(config, state, str(file)), str(file)).to(device)

    @classmethod
    def from_released(
        cls,
        source: str | PathLike[str] | dict[str, Any],
        *,
        config: ModelConfig | None = None,
        settings: str | PathLike[str] | dict[str, Any] | None = None,
    ) -> Self:
        """A model with the weights of a checkpoint of the authors' code; see `ipvae.interop.released.load`.

        Args:
            source: a ``.pt`` file, its folder (the last one in it counts), a loaded checkpoint or state dict.
            config: of the model; None: made from the authors' settings.
            settings: the authors' settings, a JSON file or its contents; None: looked for beside the file and
                one folder above it.

        Raises:
            CheckpointError: where there are no settings; or listing every key that is missing, unknown, or of
                another shape.
        """
        from ..interop import released
        from .registry import with_weights

        found, state, name = released.load(source, config, settings)
        return cls._checked(with_weights(found, state, name), name)

    @classmethod
    def _checked(cls, model: IterativeVAE, name: str) -> Self:
        if not isinstance(model, cls):
            raise checkpoint.CheckpointError(f"{name}: expected {cls.__name__}, found a {model.cell} model")
        return model


def frames(x: Tensor, first: int, stop: int) -> Tensor:
    """The frames of a moving input [T, B, M]; a static one [B, M] as it is."""
    return x[first:stop] if x.ndim == 3 else x
