"""What every family of models has: a decoder of latents, samples from the prior, files. See `VAE`."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from ipvae_kernels import ElboResult, InferResult, State, checks
from ipvae_kernels.philox import KIND_LOSS, Stream
from ipvae_kernels.poisson.noise import PhiloxNoise

from .. import checkpoint
from ..fields import ConfigError
from ..inputs import Inputs, as_tensor, whole
from ..interop import hub
from .config import OWN, VAEConfig
from .decoders import make_decoder, refuse_unfit

SIGMA_CLAMP = 3.45
# Steps of inference behind an encoding, unless told otherwise.
ENCODING_STEPS = 128
# Recorded values held at once while latents are averaged over steps: 64 MiB in float32.
RECORD_ENTRIES = 2**24
# Rows decoded by one product: docs/design/randomness.md, "A row's noise is a function of its global index".
DECODED_ROWS = 32


class VAE(nn.Module):
    """What the families share.

    Args:
        config: of the family.
        decoder: with ``config.decoder = "module"``: from codes [B, K] to means of images, of the shape
            ``[B, *input_shape]``, or of their pixels [B, M]. It has to be differentiable, twice for iterative
            models, and each row by itself; its weights stay as they are given, and are trained with the
            model.

    Attributes:
        config: as given.
        decoder: as given, or as the configuration says; None: the linear one, whose dictionary is fused.
        config_class: its class, which says what a family has to be told.
        n_states: numbers that a neuron's state has; with more than one, states are [n_states, B, K].
        spiking: whether its latents are counts.
        iterative: whether it infers by steps; else by an encoder, in one.
        has_free_energy: whether its loss is a free energy; else KL and -ELBO do not apply, and are NaN.
        matmul_precision: of matrix products on a GPU's tensor cores, "float32", "tf32" or "bf16"
            (`ipvae_kernels.infer`), in the fused rollouts; a matter of the machine, so it is not saved.

    Raises:
        ConfigError: the configuration of another family, or one that names another decoder than is given.
        TypeError, ValueError: a decoder that cannot serve; the message says why.
    """

    config: VAEConfig
    matmul_precision: str = "float32"
    config_class: ClassVar[type[VAEConfig]]
    n_states: ClassVar[int]
    spiking: ClassVar[bool]
    iterative: ClassVar[bool]
    has_free_energy: ClassVar[bool] = True

    def __init__(self, config: VAEConfig, *, decoder: nn.Module | None = None) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            needs = self.config_class.__name__
            raise ConfigError(
                f"config: {type(self).__name__} needs an {needs}, found {type(config).__name__}"
            )
        self.config = config
        check_own(config, "decoder", decoder)
        if decoder is not None:
            refuse_unfit("decoder", decoder, (config.n_latents,), config.shape)
        elif config.decoder != "linear":
            decoder = make_decoder(config)
        self.decoder: nn.Module | None = decoder

    @property
    def cell(self) -> str:
        """Name of the family, `VAEConfig.cell`."""
        return self.config.cell

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device that inputs take."""
        return self.log_sigma

    @property
    def dictionary(self) -> Tensor:
        """Phi of a linear decoder, [M, K].

        Raises:
            ValueError: the decoder is another one.
        """
        if self.decoder is not None:
            raise ValueError(
                f"dictionary: expected a linear decoder, found decoder={self.config.decoder!r}; "
                "`features` has what a spike of each neuron adds"
            )
        return self._linear()

    def _linear(self) -> Tensor:
        """The dictionary, where the decoder is linear."""
        raise NotImplementedError

    def flat_decoder(self) -> nn.Module | None:
        """A decoder that is not linear, from codes [B, K] to pixels [B, M].

        In half precision it takes codes and gives pixels in float32, as everything around it computes.
        """
        return None if self.decoder is None else _FlatDecoder(self.decoder, self.like)

    @torch.no_grad()
    def features(self) -> Tensor:
        """What one spike, or one unit, of each neuron adds to the image of none: [M, K].

        The dictionary where the decoder is linear.
        """
        if self.decoder is None:
            return self.dictionary
        codes = torch.eye(self.config.n_latents, dtype=self.like.dtype, device=self.like.device)
        return (self._mean(codes) - self._mean(torch.zeros_like(codes[:1]))).T

    @property
    def log_sigma(self) -> Tensor:
        """Log standard deviation of the pixels, [M]."""
        raise NotImplementedError

    def flatten(self, x: Inputs) -> Tensor:
        """Inputs as the kernels take them: ``[..., *input_shape]`` to [..., M], or [..., M] as it is.

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
        own = self.like
        tensor = as_tensor(name, value, own)
        return tensor.to(own.device) if isinstance(value, np.ndarray) else tensor

    def decode(self, latents: Inputs) -> Tensor:
        """Mean of the pixels for counts, rates or activated latents: [..., K] to [..., M].

        A model in half precision decodes in float32, as it infers.
        """
        latents, k = self._taken("latents", latents), self.config.n_latents
        if latents.ndim == 0 or latents.shape[-1] != k:
            raise ValueError(f"latents: expected shape [..., {k}], found {list(latents.shape)}")
        return self._mean(latents.reshape(-1, k)).reshape(*latents.shape[:-1], self.config.n_inputs)

    def images(self, pixels: Inputs) -> Tensor:
        """Pixels as images: [..., M] to ``[..., *input_shape]``."""
        pixels = self.flatten(pixels)
        return pixels.reshape(*pixels.shape[:-1], *self.config.shape)

    def _mean(self, codes: Tensor) -> Tensor:
        """Mean of the pixels for codes: [B, K] to [B, M]."""
        codes = checks.raised(codes)
        decoder = self.flat_decoder()
        if decoder is not None:
            return cast(Tensor, decoder(codes))
        return codes @ checks.raised(self.dictionary).T

    def _decode_rows(self, latents: Tensor) -> Tensor:
        """`decode` of [B, K] whose rows do not depend on B, on the CPU to the bit.

        A product of matrices may round otherwise for another number of rows (with MKL, rows of 1,000 and of
        parts of 7 or 333 differed), so every product here has one shape: blocks of rows, the last filled up
        with zeros, in one piece of memory. A traced graph, which is for any number of rows, has one product.
        """
        if latents.device.type != "cpu" or torch.compiler.is_compiling():
            return self.decode(latents)
        pixels = latents.new_empty(len(latents), self.config.n_inputs)
        block = latents.new_empty(DECODED_ROWS, self.config.n_latents)
        blocks = (torch.split(tensor, DECODED_ROWS) for tensor in (latents, pixels))
        for rows, decoded in zip(*blocks, strict=True):
            block[: len(rows)] = rows
            block[len(rows) :] = 0.0
            decoded.copy_(self._mean(block)[: len(rows)])
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
            ``[n, *input_shape]``.
        """
        n = whole("n", n)
        if n < 0:
            raise ValueError(f"n: expected at least 0, found {n}")
        pixel_noise = checks.flag("pixel_noise", pixel_noise)
        _, sample_offset = checks.stream(0, 1, sample_offset, n)
        seed = checks.seed(seed, self.like.device)
        pixels = self._decode_rows(self._sample_prior(n, seed, sample_offset))
        if pixel_noise:
            stream = Stream(KIND_LOSS, sample_offset=sample_offset)
            pixels = pixels + PhiloxNoise(seed).normal(pixels, stream) * self.log_sigma.exp()
        return pixels.reshape(n, *self.config.shape)

    @property
    def prior(self) -> Tensor:
        """Prior of the first step, or the only one: log rates [K], or means and log sigmas [2, K]."""
        raise NotImplementedError

    def _sample_prior(self, n: int, seed: Tensor, sample_offset: int) -> Tensor:
        """Latents of the prior of the first step, [n, K]."""
        raise NotImplementedError

    @property
    def t_train(self) -> int:
        """Inference steps of a training update: 1, where an encoder infers."""
        return 1

    def set_annealing(self, *, temperature: float | None = None, eps: float | None = None) -> None:
        """Sets what is annealed in training, as far as the family has it.

        Args:
            temperature: of relaxed counts, >= 0.
            eps: opening of the soft clamps of iterative models, 0 to 1.
        """
        raise NotImplementedError

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
        """The training loss, differentiable; the families say more."""
        raise NotImplementedError

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
        """Inference without gradient, counts hard; the families say more."""
        raise NotImplementedError

    def rates(self, log_rate: Inputs) -> Tensor:
        """Latents without noise: exp(u) of log rates [..., B, K], the activated mean of [..., 2, B, K]."""
        raise NotImplementedError

    @property
    def _neurons(self) -> int:
        """Neurons whose latents `infer` records here."""
        return self.config.n_latents

    @torch.no_grad()
    def encode(
        self,
        x: Inputs,
        steps: int | None = None,
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
            steps: of inference; None: 128, and 1 where the model is not iterative.
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
        steps, last = self.encoding_steps(steps), whole("last", last)
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
        total = checks.raised(x.new_zeros(x.shape[-2], self._neurons))
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
        steps: int | None = None,
        *,
        last: int = 1,
        counts: bool = False,
        seed: int | Tensor | None = None,
        sample_offset: int = 0,
        backend: str = "auto",
        check: bool = True,
    ) -> Tensor:
        """Decoded latents, [B, M]: of rates (or counts) averaged over steps; see `encode`."""
        latents = self.encode(
            x, steps, last=last, counts=counts, seed=seed, sample_offset=sample_offset, backend=backend,
            check=check,
        )  # fmt: skip
        with torch.no_grad():
            return self._decode_rows(latents)

    def encoding_steps(self, steps: int | None) -> int:
        """The steps behind codes: those asked for; None: 128, and 1 where the model is not iterative."""
        if steps is None:
            return ENCODING_STEPS if self.iterative else 1
        return whole("steps", steps)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Writes ``model.safetensors`` and ``config.json``, each whole or not at all, to a folder."""
        checkpoint.save_model(folder, self.config, self.state_dict())

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the model, a card and its measures to the Hugging Face Hub.

        Args:
            repo_id: "user/name"; made where it is not there.
            options: ``metrics`` (an `ipvae.Evaluation`, or the file of ``ipvae eval --json``), ``dataset``,
                ``license``, ``private``, ``create_pr``, ``message``, ``token``; see `ipvae.interop.hub.push`.

        Returns:
            The address of the commit.

        Raises:
            ValueError: an argument is not as described.
            HubError: the Hub was not reached, or refuses.
            MissingExtra: huggingface_hub is not installed.
        """
        return hub.push(self, repo_id, **options)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        token: str | bool | None = None,
        **modules: nn.Module,
    ) -> Self:
        """Reads a model of this family, as `ipvae.load_model` does of any.

        Args:
            folder: what `save_pretrained` wrote, or the folder of a run (its ``model/``, or where training is
                not finished, ``checkpoints/last.ckpt``), or one of these files itself. Where nothing of that
                name is here, "user/name" is fetched from the Hugging Face Hub.
            device: where to put the model.
            revision: branch, tag or commit on the Hub; None: its newest.
            token: of the Hub; None: the one of ``hf auth login``, if any.
            modules: ``decoder=`` (and ``encoder=``), of a model that was made with one of yours; they receive
                the weights.

        Raises:
            CheckpointError: for files that are missing, damaged, from elsewhere, or of another family; a
                `HubError` where the Hub was not reached or has no such model.
            ValueError: a revision of a folder.
        """
        file = checkpoint.locate(hub.fetched(folder, revision=revision, token=token))
        if file is None:
            raise checkpoint.CheckpointError(
                f"{folder}: expected a folder with {checkpoint.WEIGHTS}, found none"
            )
        values, state = checkpoint.read_model(file)
        if values is None:
            raise checkpoint.CheckpointError(
                f"{file}: not a model of ipvae; from_released reads weights of the authors' code"
            )
        return cls.with_weights(cls.config_from(values, file), state, str(file), **modules).to(device)

    @classmethod
    def config_from(cls, values: Mapping[str, Any], source: str | PathLike[str]) -> VAEConfig:
        """The configuration that a file holds; ``source`` is that file, for messages.

        Raises:
            CheckpointError: it is that of another family, or damaged.
        """
        if values.get("cell") != cls.config_class.cell:
            raise checkpoint.CheckpointError(
                f"{source}: expected {cls.__name__}, found a {values.get('cell')} model"
            )
        return checkpoint.config_of(cls.config_class, values, source)

    @classmethod
    def with_weights(
        cls, config: VAEConfig, state: Mapping[str, Any], name: str, **modules: nn.Module
    ) -> Self:
        """A model of loaded weights; no memory is taken before they are known to fit the configuration.

        Args:
            config: of the model.
            state: its state dict.
            name: where the weights come from.
            modules: as in `from_pretrained`.

        Raises:
            CheckpointError: they do not fit, or the model needs a module of the user's.
        """
        for part in ("decoder", "encoder"):
            if getattr(config, part, None) == OWN and part not in modules:
                raise checkpoint.CheckpointError(
                    f"{name}: made with your own {part}, whose weights are there but not its code: "
                    f"{cls.__name__}.from_pretrained(..., {part}=module)"
                )
        with torch.device("meta"):
            model = cls(config, **modules)
        checkpoint.load_state(model, state, name)
        return model


def check_own(config: VAEConfig, name: str, module: nn.Module | None) -> None:
    """Refuses a module that the configuration does not announce, and the reverse.

    Args:
        config: of the model.
        name: "decoder" or "encoder".
        module: of the user's.

    Raises:
        ConfigError: it is there and the configuration names another, or it is missing.
    """
    kind = getattr(config, name)
    if module is None and kind == OWN:
        raise ConfigError(f"{name}: expected a module beside config.{name} = {OWN!r}, found None")
    if module is not None and kind != OWN:
        raise ConfigError(f"config.{name}: expected {OWN!r} beside a module, found {kind!r}")


def frames(x: Tensor, first: int, stop: int) -> Tensor:
    """The frames of a moving input [T, B, M]; a static one [B, M] as it is."""
    return x[first:stop] if x.ndim == 3 else x


class _FlatDecoder(nn.Module):
    """A decoder of the dtype of `like`, from codes [B, K] to pixels [B, M]; see `VAE.flat_decoder`."""

    def __init__(self, decoder: nn.Module, like: Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        self.rounded = like.dtype if checks.is_half(like) else None

    def forward(self, codes: Tensor) -> Tensor:
        codes = codes if self.rounded is None else codes.to(self.rounded)
        return checks.raised(cast(Tensor, self.decoder(codes)).flatten(1))


def soft_log_sigma(free: Tensor) -> Tensor:
    """Log standard deviations of the pixels, soft-clamped to within 3.45 as in the released code."""
    return SIGMA_CLAMP * torch.tanh(free / SIGMA_CLAMP)
